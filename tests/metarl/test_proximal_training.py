"""Proximal epochs in training: steps, limits, logs, checkpoints, processes, and what is refused."""

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import MetaLearner, make_method
from metarl.agents import make_policy
from metarl.callbacks import Metrics
from metarl.derivatives import gradients_and_scores
from metarl.engine import Engine
from metarl.envs import Navigation
from metarl.errors import StateError
from metarl.inner import sgd
from metarl.learned_rules import hide_meta
from metarl.outer import OUTER, Method
from metarl.processes import Processes
from metarl.rl import ReinforcementLearning
from metarl.schedules import Linear
from metarl.step import MeanGrad, OptimizerStep, ProximalStep, TrustRegionStep, average, proximal
from metarl.supervised.sinusoid import Sinusoids
from metarl.tree import broadcast
from metarl.types import Batch, Inner, MetaGrad, Params, TaskBatch
from metarl.wrappers import RecordDraws, ReplayDraws, TaskWrapper
from tests.keep import Keep
from tests.metarl.checkpoint.test_learner_state import equal, replace, variants
from tests.metarl.test_proximal import (
    ALPHA,
    CLIP,
    DEFINED,
    PLAIN,
    Moves,
    assert_close,
    divergence,
    gradient,
    of,
    source,
    surrogate,
)
from tests.process_pool import Pool


def learner(outer: str = "maml", made: ReinforcementLearning | None = None, **options: Any) -> MetaLearner:
    made = made or source()
    method = make_method(outer, 0.1, 2, **PLAIN.get(outer, {}))
    step = ProximalStep(method.initial_params(made), method, **{"learning_rate": 0.05, **options})
    return MetaLearner.from_parts(made, method, step, meta_batch_size=4, seed=1, engine=Engine(record=False))


def same(one: Params, other: Params) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("name", DEFINED)
def test_replay_at_the_same_parameters_gives_the_recorded_gradient(name: str, record: bool) -> None:
    made = source()
    method = make_method(name, 0.05, 2, **PLAIN.get(name, {}))
    params, tasks = method.initial_params(made), RecordDraws(made.sample(3, np.random.default_rng(0)))

    def update(tasks: TaskBatch) -> Params:
        return method.update(params, hide_meta(proximal.ClipOuter(tasks, CLIP), params), method.inner).grads

    with Engine(record=record).current():
        assert same(update(tasks), update(ReplayDraws(tasks, tasks.draws)))


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.01, "schedule": Linear(4)}])
@pytest.mark.parametrize("name", ["maml", "maml_plus_plus"])
def test_one_epoch_is_the_plain_step_of_the_optimizer(name: str, options: dict[str, Any]) -> None:
    ours = learner(name, epochs=1, clip=None, kl_coefficient=0.0, **options).learn(4)
    method = make_method(name, 0.1, 2, **PLAIN.get(name, {}))
    plain = OptimizerStep(method.initial_params(source()), learning_rate=0.05, **options)
    other = MetaLearner.from_parts(source(), method, plain, meta_batch_size=4, seed=1, engine=Engine(record=False))
    assert same(ours.params, other.learn(4).params)
    clipped = learner(name, epochs=1, **options).learn(4)  # all ratios are 1 but for rounding
    assert_close(clipped.params, ours.params)


def test_steps_and_draws_are_counted_once_and_gradients_in_every_epoch() -> None:
    counts = [dict(learner(epochs=epochs, kl_coefficient=0.0).learn(1).counts) for epochs in (1, 3)]
    assert counts[0]["env_steps"] == counts[1]["env_steps"]
    assert counts[0]["samples"] == counts[1]["samples"] == 4 * 4 * 5
    assert (counts[0]["hessian_vector_products"], counts[1]["hessian_vector_products"]) == (8, 24)
    assert (counts[0]["gradients"], counts[1]["gradients"]) == (12 + 8, 3 * 12 + 8)  # two for the log
    penalized = learner(epochs=3).learn(1).counts
    assert penalized["gradients"] == 3 * 12 + 8 + 2 * (4 + 8)  # the path, and the slope at both points
    assert penalized["hessian_vector_products"] == 24 + 2 * 4


def test_the_schedule_counts_iterations() -> None:
    keep = Keep()
    done = learner(epochs=3, schedule=Linear(2, end=0.5)).learn(3, [keep])
    assert [m["train/learning_rate"] for m in keep.metrics] == pytest.approx([0.05, 0.0375, 0.025])
    assert isinstance(done.outer_step, ProximalStep)
    assert done.outer_step.optimizer.steps == 3
    state = done.outer_step.state_dict()["optimizer"]["state"]
    assert {float(x["step"]) for x in state.values()} == {9.0}  # Adam counts epochs


def test_the_optimizer_goes_on_over_epochs_and_iterations() -> None:
    """Adam's state after two iterations is that of six steps along the gradients of all epochs."""
    made, gradients = source(), []
    method = make_method("maml", 0.1)
    params = start = method.initial_params(made)
    step = ProximalStep(start, method, epochs=3, learning_rate=0.05, kl_coefficient=0.0)

    def update(w: Params, tasks: TaskBatch) -> MeanGrad:
        gradients.append(average(method.update(w, tasks, method.inner)))
        return gradients[-1]

    for seed in range(2):
        params = step(params, made.sample(3, np.random.default_rng(seed)), update).params
    plain = OptimizerStep(start, learning_rate=0.05)
    for found in gradients:
        start = plain(start, None, lambda w, tasks, found=found: found).params  # type: ignore[arg-type, misc]
    assert len(gradients) == 6
    assert same(params, start)


def test_more_epochs_move_further_and_what_is_logged() -> None:
    keeps = {}
    for epochs in (1, 4):
        keeps[epochs] = Keep()
        learner(epochs=epochs, clip=0.02, learning_rate=0.005).learn(1, [keeps[epochs]])
    one, four = (keeps[epochs].metrics[0] for epochs in (1, 4))
    assert four["train/kl_after"] > 2 * one["train/kl_after"] > 0
    assert four["train/kl_before"] > 2 * one["train/kl_before"] > 0
    assert four["train/surrogate_last"] > one["train/surrogate_last"] > one["train/surrogate_first"]
    assert four["train/surrogate_first"] == one["train/surrogate_first"] == pytest.approx(0, abs=1e-8)
    assert (one["train/epochs"], four["train/epochs"], four["train/kl_coefficient"]) == (1.0, 4.0, 5e-4)
    assert 0 <= one["train/clip_fraction"] < four["train/clip_fraction"] < 1
    assert one["train/meta_grad_norm"] == four["train/meta_grad_norm"]  # of the first epoch
    keep = Keep()
    learner(clip=None).learn(1, [keep])
    assert "train/clip_fraction" not in keep.metrics[0]


def test_logged_divergences_are_those_of_the_policies() -> None:
    moves = Moves(make_method("fo_maml", ALPHA, 2), source())
    w = [{k: v[None].expand(3, *v.shape) for k, v in moves.stepped.params.items()}]
    for draw in moves.draws("inner"):
        slopes = [gradient_of(moves.source, of(w[-1], task), of(draw.batch, task)) for task in range(3)]
        w.append({k: v + ALPHA * torch.stack([s[k] for s in slopes]) for k, v in w[-1].items()})
    drawn = [*moves.draws("inner"), *moves.draws("outer")]
    kls = [
        torch.stack([divergence(moves.source, of(d.params, i), of(x, i), of(d.batch, i)) for i in range(3)]).mean()
        for d, x in zip(drawn, w, strict=True)
    ]
    assert moves.stepped.info["kl_before"] == pytest.approx(float(kls[0] + kls[1]) / 2)
    assert moves.stepped.info["kl_after"] == pytest.approx(float(kls[2]))
    ends = [surrogate(moves.source, of(w[-1], i), of(drawn[-1].batch, i), CLIP) for i in range(3)]
    assert moves.stepped.info["surrogate_last"] == pytest.approx(float(torch.stack(ends).mean()))


def gradient_of(made: ReinforcementLearning, w: Params, batch: Batch) -> Params:
    leaves = {k: v.clone().requires_grad_() for k, v in w.items()}
    return gradient(surrogate(made, leaves, batch), leaves, False)


def test_epochs_end_when_the_adapted_policies_have_moved_too_far() -> None:
    """The epoch that passes the limit is kept."""
    kls, ends = [], []
    for epochs in range(1, 6):
        keep = Keep()
        ends.append(learner(epochs=epochs).learn(1, [keep]).params)
        kls.append(keep.metrics[0]["train/kl_after"])
    assert kls == sorted(kls)
    for limit, wanted in (((kls[1] + kls[2]) / 2, 3), (kls[0] / 2, 1), (kls[2], 4), (kls[4], 5)):  # exactly: not yet
        keep = Keep()
        found = learner(epochs=5, target_kl=limit).learn(1, [keep]).params
        assert keep.metrics[0]["train/epochs"] == wanted
        assert same(found, ends[wanted - 1])


def test_the_coefficient_by_hand() -> None:
    """It is halved below 2/3 of the divergence wanted, doubled above 3/2, and else kept."""
    made = source()
    keep = Keep()
    learner(made=made).learn(1, [keep])
    kl = keep.metrics[0]["train/kl_before"]
    for factor, wanted in ((1.6, 0.5), (1.4, 1), (1 / 1.4, 1), (1 / 1.6, 2)):
        keep = Keep()
        learner(made=made, adaptive_kl=factor * kl).learn(2, [keep])
        assert keep.metrics[0]["train/kl_coefficient"] == 5e-4
        assert keep.metrics[1]["train/kl_coefficient"] == 5e-4 * wanted


def test_a_stronger_penalty_keeps_policies_nearer() -> None:
    kls = []
    for coefficient in (0.0, 0.3, 1.0):
        keep = Keep()
        learner(kl_coefficient=coefficient, optimizer=torch.optim.SGD, learning_rate=0.1).learn(1, [keep])
        kls.append(keep.metrics[0]["train/kl_before"])
    assert kls == sorted(kls, reverse=True)


@pytest.mark.parametrize("name", ["maml", "maml_plus_plus"])
def test_only_the_first_iteration_makes_records(name: str) -> None:
    made = source()
    method = make_method(name, 0.1, 2, **PLAIN.get(name, {}))
    step = ProximalStep(method.initial_params(made), method, epochs=3, target_kl=1.0)
    plain = MetaLearner.from_parts(made, method, copy.deepcopy(step), meta_batch_size=2, engine=Engine(record=False))
    trained = MetaLearner.from_parts(made, method, step, meta_batch_size=2, engine=Engine()).learn(1)
    number = len(trained.engine._cache)
    assert number > 4
    assert len(trained.learn(4).engine._cache) == number
    assert_close(trained.params, plain.learn(5).params, 1e-6)


# Saved, copied, in several processes.


@pytest.mark.parametrize("name", ["maml", "maml_plus_plus"])
def test_saved_and_loaded_it_goes_on_exactly(tmp_path: Path, name: str) -> None:
    """The file alone makes the same step again, with the optimiser's state and the adapted coefficient."""
    options = {"adaptive_kl": 1.0, "target_kl": 0.5, "epochs": 3, "schedule": Linear(9), "max_grad_norm": 1.0}
    whole, half = learner(name, **options).learn(5), learner(name, **options).learn(2)
    half.save(tmp_path / "checkpoint.pt")
    engine = Engine(record=False)
    resumed = MetaLearner.load(tmp_path / "checkpoint.pt", source(), engine=engine)
    assert isinstance(resumed.outer_step, ProximalStep)
    assert resumed.outer_step.kl_coefficient == 5e-4 / 4
    assert equal(resumed.state_dict(), half.state_dict())
    assert equal(resumed.learn(3).state_dict(), whole.state_dict())
    for change in ({"kl_coefficient": 100.0}, {"steps": 9}):
        other = MetaLearner.load(tmp_path / "checkpoint.pt", source(), engine=engine)
        other.outer_step.load_state_dict({**other.outer_step.state_dict(), **change})
        assert not same(other.learn(3).params, whole.params)


def test_a_file_with_other_settings(tmp_path: Path) -> None:
    saved = learner(epochs=2, schedule=lambda n: 1.0).learn(1)
    saved.save(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="schedule must be given to load this checkpoint"):
        MetaLearner.load(tmp_path / "checkpoint.pt", source())
    again = MetaLearner.load(tmp_path / "checkpoint.pt", source(), schedule=lambda n: 1.0)
    assert isinstance(again.outer_step, ProximalStep)
    with pytest.raises(StateError, match=r"step_options is .*'epochs': 3.* but the checkpoint was trained with"):
        learner(epochs=3, schedule=lambda n: 1.0).load_state_dict(saved.state_dict())
    with pytest.raises(StateError, match=r"learning_rate is 0.1, but the checkpoint was trained with 0.05"):
        learner(epochs=2, learning_rate=0.1, schedule=lambda n: 1.0).load_state_dict(saved.state_dict())
    learner(epochs=2, learning_rate=0.1).load_state_dict(saved.state_dict(), changed=("learning_rate", "schedule"))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_goes_on_as_the_original(way: Callable[[MetaLearner], MetaLearner]) -> None:
    one = learner(schedule=Linear(4)).learn(2)
    before = copy.deepcopy(one.state_dict())
    other = way(one).learn(2)
    assert equal(one.state_dict(), before)
    assert equal(other.state_dict(), one.learn(2).state_dict())


def test_a_state_is_refused_or_loaded_as_it_is() -> None:
    trained = learner().learn(1).outer_step
    whole, refused = trained.state_dict(), 0
    for where, value in variants(whole):
        variant, step = replace(whole, where, value), copy.deepcopy(trained)
        try:
            step.load_state_dict(variant)
        except StateError:
            refused += 1
        else:
            assert equal(step.state_dict(), variant) or where[0] in ("kl_coefficient", "optimizer")
    assert refused > 100
    with pytest.raises(StateError, match=r"outer_step.kl_coefficient must be a finite number at least 0, found -1"):
        trained.load_state_dict({**whole, "kl_coefficient": -1.0})


def train(processes: Processes, name: str) -> tuple[Params, list[Metrics]]:
    made, keep = source(), Keep()
    method = make_method(name, 0.1, 2)
    step = ProximalStep(method.initial_params(made), method, learning_rate=0.05, adaptive_kl=0.01, target_kl=0.1)
    parts: dict[str, Any] = {"meta_batch_size": 4, "processes": processes, "engine": Engine(record=False)}
    params = MetaLearner.from_parts(made, method, step, **parts).learn(3, [keep]).params
    return params, [{k: v for k, v in m.items() if not k.startswith("time/")} for m in keep.metrics]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


@pytest.mark.parametrize("name", [pytest.param("maml", marks=pytest.mark.slow), "maml_plus_plus"])
def test_two_processes_give_the_same_numbers(name: str, pool: Pool) -> None:
    params, metrics = pool.join(1, train, name)[0]
    for found, logged in pool.join(2, train, name):
        assert same(found, params)
        assert logged == metrics


# Refused before work starts.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"clip": 0.0}, "clip must .* got 0.0"),
        ({"kl_coefficient": -1.0}, "kl_coefficient must .* got -1.0"),
        ({"kl_coefficient": 0, "adaptive_kl": 0.1}, "kl_coefficient must be positive to be adapted"),
        ({"adaptive_kl": math.nan}, "adaptive_kl must .* got nan"),
        ({"target_kl": 0.0}, "target_kl must .* got 0.0"),
        ({"learning_rate": 0.0}, "learning_rate must .* got 0.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must .* got 0.0"),
        ({"optimizer": "adam"}, "optimizer must"),
        ({"schedule": 3}, "schedule must"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProximalStep({"w": torch.zeros(2)}, make_method("maml"), **options)


def test_methods_for_which_it_is_not_defined() -> None:
    undefined = dict.fromkeys(("e_maml", "lsf"), "right on replayed draws")
    undefined |= dict.fromkeys(("reptile", "moreau", "imaml", "bmaml"), "meta-gradient is that of the loss after")
    for name, reason in undefined.items():
        with pytest.raises(ValueError, match=rf"proximal .*{reason}.*") as caught:
            ProximalStep({"w": torch.zeros(2)}, make_method(name))
        assert repr(name) in str(caught.value)
    assert {name for name, build in OUTER.items() if build().replays} == set(DEFINED)  # each is tested above
    assert all(OUTER[name]().follows_adapted_loss for name in DEFINED)


def test_a_method_of_your_own_must_say_that_it_replays() -> None:
    own = make_method("maml")
    for replays in (True, False):
        method = Method(own.update, own.inner, replays=replays)
        if replays:
            assert ProximalStep({"w": torch.zeros(2)}, method).method is method
            continue
        with pytest.raises(ValueError, match=r"this outer update does not say that it is \(Method.replays\)"):
            ProximalStep({"w": torch.zeros(2)}, method)


def test_sources_for_which_it_is_not_defined() -> None:
    method = make_method("maml")
    for made, message in (
        (Sinusoids(), "proximal needs the policies of reinforcement learning, got Sinusoids"),
        (source(surrogate="dice"), "surrogate must be 'ratio' for proximal, .* got 'dice'"),
    ):
        step = ProximalStep(method.initial_params(made), method)
        with pytest.raises(ValueError, match=message):
            MetaLearner.from_parts(made, method, step, meta_batch_size=2)


def test_tasks_whose_loss_cannot_be_clipped() -> None:
    with pytest.raises(ValueError, match="needs the policies of reinforcement learning"):
        proximal.ClipOuter(Sinusoids().sample(2, np.random.default_rng(0)), 0.3)
    tasks = source(surrogate="dice").sample(1, np.random.default_rng(0))
    params = source().initial_params()
    batch = tasks.draw({k: v[None] for k, v in params.items()}, "outer")
    with pytest.raises(ValueError, match="surrogate must be 'ratio' for a clipped loss"):
        tasks.clipped_loss(params, of(batch, 0), torch.tensor(0.3))

    class Doubled(TaskWrapper):
        def loss(self, params: Params, batch: Batch) -> Tensor:  # type: ignore[override]
            return 2 * super().loss(params, batch)

    with pytest.raises(ValueError, match="clip must be None for tasks in a wrapper that changes the loss"):
        proximal.ClipOuter(Doubled(source().sample(2, np.random.default_rng(0))), 0.3)


def small() -> tuple[ReinforcementLearning, Params]:
    tasks = Navigation(horizon=5)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]})
    source = ReinforcementLearning(tasks, policy, episodes=2)
    return source, source.initial_params()


@pytest.mark.parametrize("kind", [ProximalStep, TrustRegionStep])
def test_a_step_with_another_method_than_the_learner_is_refused(kind: Any) -> None:
    source, params = small()
    method, other, again = (make_method("maml", alpha) for alpha in (0.1, 0.2, 0.1))
    with pytest.raises(ValueError, match=r"outer_step must be made with the learner's method, .*0\.1.*, got .*0\.2"):
        MetaLearner.from_parts(source, method, kind(params, other), meta_batch_size=2)
    MetaLearner.from_parts(source, method, kind(params, again), meta_batch_size=2)


def test_an_update_without_an_outer_draw_is_refused() -> None:
    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        w = broadcast(params, tasks.num_tasks)
        return MetaGrad(*gradients_and_scores(tasks, w, tasks.draw(w, "inner")))

    source, params = small()
    method = Method(update, Inner(sgd(0.1)), replays=True)
    learner = MetaLearner.from_parts(source, method, ProximalStep(params, method), meta_batch_size=2)
    with pytest.raises(ValueError, match=r"update must draw .* an outer one.* got .*'outer': 0"):
        learner.learn(1)


def test_the_trust_region_needs_likelihood_ratios() -> None:
    source, params = small()
    method = make_method("fo_maml")
    step = TrustRegionStep(params, method)
    with pytest.raises(ValueError, match=r"surrogate must be one with likelihood ratios .*, got 'reinforce'"):
        MetaLearner.from_parts(dataclasses.replace(source, surrogate="reinforce"), method, step, meta_batch_size=2)
