"""One process, two, three and four: the same numbers, in processes of their own that talk over gloo."""

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import Inner, MetaLearner, Method, NonFiniteError, adapt, make_method
from metarl.agents import make_policy
from metarl.callbacks import Callback, Checkpointing, HeldOutEvaluation, Metrics
from metarl.engine import Engine
from metarl.envs import Navigation
from metarl.inner import sgd
from metarl.outer import outer_gradient
from metarl.processes import ALONE, Processes, Share, joined
from metarl.random import torch_generator
from metarl.rl import ReinforcementLearning
from metarl.step import HypergradientStep, TrustRegionStep
from metarl.supervised.oracle import BatchSizes, FiniteSumSource
from metarl.supervised.sinusoid import Sinusoids
from metarl.theory import AdaptiveStep, fallah_rule
from metarl.theory.logistic import FreshLogistic, logistic_source, logistic_tasks, random_logistic
from metarl.theory.quadratics import FreshQuadratics
from metarl.tree import total
from metarl.types import Batch, MetaGrad, Params, Role, TaskBatch, TaskSource
from metarl.wrappers import TaskWrapper
from tests.metarl.rl.test_normalization import train_normalized
from tests.process_pool import Pool, joining
from tests.reference.problems import suit


class Shifted:
    """Tasks whose data depend on the parameters: points x ~ normal(w_i, 1), of which (x - c_i)^2 is to be small.

    Each task has a random stream of its own, so a share of them draws what it would draw as part of the whole.
    """

    def __init__(self, centres: Tensor, generators: list[torch.Generator]) -> None:
        self.centres, self.generators = centres, generators
        self.num_tasks = len(centres)

    def shard(self, first: int, last: int) -> "Shifted":
        return Shifted(self.centres[first:last], self.generators[first:last])

    def draw(self, params: Params, role: Role) -> Batch:
        noise = torch.stack([torch.randn(7, generator=g, dtype=torch.float64) for g in self.generators])
        return {"x": params["w"][:, None] + noise, "c": self.centres[:, None].expand(-1, 7)}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return (self.log_likelihood(params, batch) * (self.objective(batch) - 3)).mean()

    frozen_loss = loss

    def log_likelihood(self, params: Params, batch: Batch) -> Tensor:
        return -(batch["x"] - params["w"]).square() / 2

    def objective(self, batch: Batch) -> Tensor:
        return (batch["x"] - batch["c"]).square()

    def score(self, params: Params, batch: Batch) -> Tensor:
        return -self.objective(batch).mean()

    def cost(self, batch: Batch) -> Mapping[str, int]:
        return {"samples": batch["x"].numel(), "env_steps": int((batch["x"] > 0).sum())}  # depends on the data


class ShiftedSource:
    score_name = "minus_distance"

    def initial_params(self) -> Params:
        return {"w": torch.tensor(0.5, dtype=torch.float64)}

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Shifted:
        return Shifted(torch.as_tensor(rng.normal(size=num_tasks)), [torch_generator(rng) for _ in range(num_tasks)])


def minibatches() -> FiniteSumSource:
    """Twelve fixed tasks with random minibatches."""
    problem = random_logistic(np.random.default_rng(0), 12)
    return logistic_source(
        problem, logistic_tasks(problem, batch_sizes=BatchSizes(4, 4, 4), generator=torch.Generator())
    )


def adaptive(source: TaskSource) -> dict[str, Any]:
    return {"outer_step": AdaptiveStep(fallah_rule("maml", L=1.0, rho=0.1, inner_lr=0.1), source, num_tasks=8)}


def hypergradients(source: TaskSource) -> dict[str, Any]:
    method = make_method("maml", 0.05, learn_inner_lr="layer")
    return {"method": method, "outer_step": HypergradientStep(method.initial_params(source), 0.01)}


def trusting(source: TaskSource) -> dict[str, Any]:
    method = make_method("maml", 0.05, 2)
    step = TrustRegionStep(method.initial_params(source), method, cg_iterations=4, max_kl=0.1, every=2)
    return {"method": method, "outer_step": step}


def annealed(source: TaskSource) -> dict[str, Any]:
    """Several losses in three iterations, the first of them first-order."""
    return {"inner_steps": 2, "outer_options": {"multi_step_iterations": 3, "second_order_from": 1}}


def navigation() -> ReinforcementLearning:
    tasks = Navigation(horizon=6)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [8]})
    return ReinforcementLearning(tasks, policy, episodes=4)


CASES: dict[str, tuple[Callable[[], TaskSource], str, Callable[[TaskSource], dict[str, Any]]]] = {
    "sinusoids": (lambda: Sinusoids(), "maml", lambda _: {"max_grad_norm": 1.0}),
    "resampled": (lambda: Sinusoids(setting="resampling"), "multi_step_maml", lambda _: {}),
    "alpha maml": (lambda: Sinusoids(), "maml", hypergradients),
    "annealed": (lambda: Sinusoids(), "maml_plus_plus", annealed),
    "quadratics": (FreshQuadratics, "imaml", lambda _: {}),  # logs how well it has solved for each task
    "logistic": (FreshLogistic, "hf_maml", adaptive),
    "minibatches": (minibatches, "maml", lambda _: {}),
    "score terms": (ShiftedSource, "e_maml", lambda _: {}),  # a baseline over the other tasks
    "navigation": (navigation, "e_maml", lambda _: {}),
    "random directions": (minibatches, "ggs_maml", lambda _: {}),
    "random directions, navigation": (navigation, "ggs_maml", lambda _: {}),
    "scores only": (navigation, "es_maml", lambda _: {}),
    "linearised": (navigation, "lsf", lambda _: {}),
    "trust region": (navigation, "maml", trusting),
    "head": (navigation, "maml", lambda _: {"adapt": ("head", "*log_std")}),
    "particles": (lambda: suit("bmaml", Sinusoids()), "bmaml", lambda _: {"inner_steps": 2}),
}
DIRECTED = ("ggs_maml", "es_maml")
SINGLE_PRECISION = (
    "linearised",
    "sinusoids",
    "resampled",
    "alpha maml",
    "annealed",
    "navigation",
    "trust region",
    "head",
    "particles",
)


def make(case: str, num_tasks: int, processes: Processes) -> MetaLearner:
    make_source, outer, arguments = CASES[case]
    source, engine = make_source(), Engine(record=case in ("quadratics", "logistic"))
    shared: dict[str, Any] = {"meta_batch_size": num_tasks, "seed": 3, "processes": processes, "engine": engine}
    if arguments in (adaptive, hypergradients, trusting):
        parts = {"method": make_method(outer, 0.05), **arguments(source)}
        return MetaLearner.from_parts(source, **parts, **shared)
    return MetaLearner(source, outer, inner_lr=0.05, **arguments(source), **shared)


class Log(Callback):
    """All metrics, but what the clock says."""

    def __init__(self) -> None:
        self.lines: list[Metrics] = []

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        self.lines.append({key: value for key, value in metrics.items() if not key.startswith("time/")})


def trained(learner: MetaLearner, iterations: int) -> dict[str, Any]:
    """All that is known of a run, as plain values: equal is equal bit for bit."""
    log = Log()
    learner.learn(iterations, [HeldOutEvaluation(every=2, num_tasks=8), log])
    state = {key: value for key, value in learner.state_dict().items() if key != "callbacks"}
    return {"log": log.lines, "evaluation": learner.evaluate(num_tasks=9, steps=2).to_dict(), **plain(state)}


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def train_all(processes: Processes, num_tasks: int, iterations: int) -> dict[str, Any]:
    return {case: trained(make(case, num_tasks, processes), iterations) for case in CASES}


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(4) as made:
        yield made


@pytest.fixture(scope="module")
def by_one(pool: Pool) -> dict[str, Any]:
    (found,) = pool.join(1, train_all, 8, 4)
    return found


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def by_several(pool: Pool, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return pool.join(request.param, train_all, 8, 4)


@pytest.mark.parametrize("case", CASES)
def test_powers_of_two_change_no_bit(by_one: dict[str, Any], by_several: list[dict[str, Any]], case: str) -> None:
    for found in by_several:
        for part, wanted in by_one[case].items():
            assert found[case][part] == wanted, part


def test_the_runs_are_worth_comparing(by_one: dict[str, Any]) -> None:
    for case, found in by_one.items():
        start = plain(make(case, 8, ALONE).params)
        assert found["params"] != start
        assert len(found["log"]) == found["iterations"] == 4
        assert found["counts"]["samples"] > 0
        assert found["log"][0]["train/meta_grad_spread"] > 0
        assert found["evaluation"]["costs"]["samples"][0][2] > 0


@pytest.mark.slow
def test_three_processes_and_a_remainder(pool: Pool, by_one: dict[str, Any]) -> None:
    """Eight tasks are 2 + 3 + 3: equal to rounding, and in whole numbers exactly."""
    everywhere = pool.join(3, train_all, 8, 4)
    assert everywhere[0] == everywhere[1] == everywhere[2]
    for case, wanted in by_one.items():
        found = everywhere[0][case]
        assert found["counts"] == wanted["counts"]
        if CASES[case][1] in DIRECTED:  # rounded parameters give other directions
            continue
        for ours, theirs in zip(found["log"], wanted["log"], strict=True):
            assert ours == pytest.approx(theirs, rel=2e-3 if case in SINGLE_PRECISION else 1e-9, abs=1e-6)
        assert found["evaluation"]["mean"] == pytest.approx(wanted["evaluation"]["mean"], rel=1e-3)


def resumed(processes: Processes, folder: Path, before: str | None, after: str) -> None:
    """Two iterations that go on from one file and leave another one."""
    source = ShiftedSource()
    if before is None:
        learner = make("score terms", 8, processes)
    else:
        learner = MetaLearner.load(folder / before, source, processes=processes)
    learner.learn(2, [Checkpointing(folder / after)]).save(folder / f"{after}-by-{processes.rank}")


def test_resumed_by_other_numbers_of_processes(pool: Pool, tmp_path: Path) -> None:
    pool.join(2, resumed, tmp_path, None, "two")
    pool.join(1, resumed, tmp_path, "two", "one")
    pool.join(4, resumed, tmp_path, "one", "four")
    straight = make("score terms", 8, ALONE).learn(6, [Checkpointing(tmp_path / "straight")])
    loaded = MetaLearner.load(tmp_path / "four", ShiftedSource())
    assert plain(loaded.state_dict()) == plain(straight.state_dict())
    written = {"four", "one", "two", "four-by-0", "one-by-0", "two-by-0"}  # by the first process alone
    assert {path.name for path in tmp_path.iterdir()} == written | {"straight"}


class Ask(Callback):
    """In one process, at one iteration, a request to stop."""

    def __init__(self, how: str, processes: Processes) -> None:
        self.how, self.here = how, processes.rank == processes.size - 1

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        if self.here and learner.iterations == 2:
            os.kill(os.getpid(), signal.SIGTERM) if self.how == "SIGTERM" else learner.stop(self.how)


def stopped(processes: Processes, how: str) -> tuple[int, str | None]:
    learner = make("score terms", 4, processes).learn(5, [Ask(how, processes)])
    return learner.iterations, learner.stopped_by


@pytest.mark.parametrize("how", ["SIGTERM", "enough"])
def test_one_is_asked_to_stop_and_all_do(pool: Pool, how: str) -> None:
    assert pool.join(3, stopped, how) == [(2, how)] * 3


class Spoiled(ShiftedSource):
    """The data of task 5 are infinite."""

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Shifted:
        tasks = super().sample(num_tasks, rng)
        tasks.centres[5] = math.inf
        return tasks


def spoiled(processes: Processes) -> None:
    MetaLearner(Spoiled(), "fo_maml", meta_batch_size=8, processes=processes).learn(1)


def test_a_nan_names_the_task_and_leaves_nobody_waiting(pool: Pool) -> None:
    first, second = pool.call(2, joining, spoiled)  # tasks 4 to 7 are the second's
    assert isinstance(second, NonFiniteError)
    assert (second.quantity, second.task, second.iteration) == ("'inner' batch c", 5, 1)
    assert isinstance(first, ConnectionError)
    assert "another process has ended" in str(first)


def broken(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    """The last task's meta-gradient is not finite."""
    found = outer_gradient(tasks, adapt(params, tasks, inner))
    bad = found.grads["w"].clone()
    bad[-1] = math.nan
    return found._replace(grads={"w": bad})


def break_down(processes: Processes) -> None:
    MetaLearner.from_parts(
        ShiftedSource(), Method(broken, Inner(sgd(0.1))), meta_batch_size=5, processes=processes
    ).learn(1)


def test_each_names_its_own_task(pool: Pool) -> None:
    """Five tasks are 1 + 2 + 2."""
    found = pool.call(3, joining, break_down)
    assert [error.task for error in found if isinstance(error, NonFiniteError)] == [0, 2, 4]


def differently(processes: Processes) -> None:
    learner = make("score terms", 4, processes)
    learner.params = {"w": learner.params["w"] + processes.rank}
    learner.learn(1)


def one_seed_each(processes: Processes) -> None:
    MetaLearner(ShiftedSource(), meta_batch_size=4, seed=processes.rank, processes=processes).learn(1)


def without_shard(processes: Processes) -> None:
    class Plain(ShiftedSource):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return TaskWrapper(super().sample(num_tasks, rng))

    MetaLearner(Plain(), meta_batch_size=4, processes=processes).learn(1)


def too_few(processes: Processes) -> None:
    make("score terms", 2, processes)


def too_few_for_the_step(processes: Processes) -> None:
    source = ShiftedSource()
    step = AdaptiveStep(fallah_rule("maml", L=1.0, rho=0.1, inner_lr=0.1), source, num_tasks=2)
    MetaLearner.from_parts(source, make_method("maml"), step, meta_batch_size=4, processes=processes).learn(1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (differently, r"params, seed and iterations must be the same .* those of \[1, 2\]"),
        (one_seed_each, r"params, seed and iterations must be the same .* those of \[1, 2\]"),
        (without_shard, r"tasks must have a method shard\(first, last\).* TaskWrapper lacks"),
        (too_few, "meta_batch_size must be at least 3, the number of processes, got 2"),
        (too_few_for_the_step, "tasks must be at least 3, the number of processes, got 2"),
    ],
)
def test_what_cannot_work_is_refused_everywhere(pool: Pool, function: Callable[..., Any], message: str) -> None:
    for error in pool.call(3, joining, function):
        with pytest.raises(ValueError, match=message):
            raise error


def evaluate_few(processes: Processes) -> dict[str, Any]:
    return make("score terms", 4, processes).evaluate(num_tasks=2, steps=2).to_dict()


def test_fewer_held_out_tasks_than_processes(pool: Pool) -> None:
    assert pool.join(3, evaluate_few) == [evaluate_few(ALONE)] * 3


def talk(processes: Processes) -> dict[str, Any]:
    rank = processes.rank

    def picky() -> int:
        if rank == 1:
            raise ValueError("not here")
        return rank

    try:
        processes.together(picky)
        refused = ""
    except ValueError as error:
        refused = str(error)
    share = Share(processes, 7)
    own = torch.arange(7)[share.first : share.last]
    return {
        "gathered": processes.gather(torch.tensor([rank, 10 * rank]).T).tolist(),
        "transposed": processes.gather(torch.arange(4).view(2, 2).T).tolist(),
        "sum": processes.sum(torch.tensor(rank + 1.0)).item(),
        "objects": processes.gather_objects({"rank": rank}),
        "any": (processes.any(rank == 2), processes.any(False)),
        "refused": refused,
        "first": processes.from_first(lambda: f"from {rank}"),
        "none": processes.from_first(lambda: None),
        "tasks": share.gather(own[:, None].expand(-1, 2)).tolist(),
        "mean": share.mean(own.double()).item(),
    }


def test_talking(pool: Pool) -> None:
    for found in pool.join(3, talk):
        assert found == {
            "gathered": [[0, 0], [1, 10], [2, 20]],
            "transposed": [[[0, 2], [1, 3]]] * 3,
            "sum": 6.0,
            "objects": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            "any": (True, False),
            "refused": "not here",
            "first": "from 0",
            "none": None,
            "tasks": [[i, i] for i in range(7)],
            "mean": 3.0,
        }


def test_alone_is_the_same_without_anyone() -> None:
    assert ALONE.gather(torch.ones(2)).tolist() == [[1.0, 1.0]]
    assert ALONE.gather_objects("x") == ["x"]
    assert (ALONE.any(True), ALONE.any(False)) == (True, False)
    assert ALONE.from_first(lambda: 3) == 3
    with joined() as processes:
        assert processes is ALONE
    make("score terms", 2, ALONE).learn(1)
    assert not torch.distributed.is_initialized()


def test_half_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"lacks \['LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'\]"), joined():
        pass


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("num_tasks", [8, 12, 13])
def test_shares_are_all_tasks_once_and_even(size: int, num_tasks: int) -> None:
    shares = [Share(Processes(rank, size), num_tasks) for rank in range(size)]
    assert [task for share in shares for task in range(share.first, share.last)] == list(range(num_tasks))
    lengths = {share.last - share.first for share in shares}
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("number", [1, 2, 3, 6, 7, 8, 20, 25, 48])
def test_total_is_the_sum_and_made_of_totals(number: int) -> None:
    rows = torch.as_tensor(np.random.default_rng(number).normal(size=(number, 3, 5)), dtype=torch.float32)
    wanted = rows.double().sum(0)
    torch.testing.assert_close(total(rows).double(), wanted, rtol=1e-6, atol=1e-6)
    for size in (2, 4, 8, 16):
        if number % size == 0:
            parts = torch.stack([total(part) for part in rows.split(number // size)])
            assert torch.equal(total(parts), total(rows))


def test_statistics_of_observations_are_everyones(pool: Pool) -> None:
    ((statistics, params),), everywhere = (pool.join(size, train_normalized) for size in (1, 2))
    for found, trained in everywhere:
        assert found.keys() == statistics.keys() == {"count", "mean", "squares"}
        assert all(torch.equal(found[name], leaf) for name, leaf in statistics.items())
        for name, leaf in params.items():
            torch.testing.assert_close(trained[name], leaf, rtol=0, atol=1e-6)
