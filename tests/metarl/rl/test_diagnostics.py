"""Diagnostics: against torch.distributions and numpy on the draws of an iteration, and that training ignores them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal, kl_divergence

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.callbacks import Callback, Metrics
from metarl.diagnostics import STATES, Diagnose, drop_unreported
from metarl.envs import GridWorld, Navigation
from metarl.outer import make_method
from metarl.processes import Processes, shard, share_of
from metarl.rl import ReinforcementLearning
from metarl.types import Params
from metarl.wrappers import RecordDraws

pytestmark = pytest.mark.usefixtures("unrecorded")


def make_source(kind: str, **settings: Any) -> ReinforcementLearning:
    tasks: Any = Navigation(horizon=12) if kind == "box" else GridWorld(size=3, horizon=12)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [8]}, seed=1).double()
    return ReinforcementLearning(tasks, policy, episodes=6, **settings)


def outputs(source: ReinforcementLearning, params: Params, task: int, obs: Tensor) -> Distribution:
    own = {k: v[task] for k, v in params.items()}
    found = torch.func.functional_call(source.policy, own, obs)  # type: ignore[no-untyped-call]
    return Categorical(logits=found[0]) if len(found) == 1 else Normal(*found)


def each(x: Tensor) -> Tensor:
    """One number for each state: torch has one for each action dimension."""
    return x.sum(-1) if x.dim() > 1 else x


@pytest.mark.parametrize("kind", ["box", "discrete"])
@pytest.mark.parametrize("normalized", [False, True])
def test_of_policies_against_torch(kind: str, normalized: bool) -> None:
    source = make_source(kind, normalize_observations=normalized and kind == "box")
    recording = RecordDraws(source.sample(3, np.random.default_rng(0)))
    noted, method = Diagnose(recording), make_method("maml", inner_lr=2.0)
    end = method.update(source.initial_params(), noted, method.inner)
    got = noted.values(share_of(noted))

    first, last = recording.draws[0], next(draw for draw in recording.draws if draw.role == "outer")
    kls, reversed_kls = [], []
    entropies: dict[str, list[Tensor]] = {"before": [], "after": []}
    for task in range(3):
        for when, draw in (("before", first), ("after", last)):
            obs = draw.batch["obs"][task][draw.batch["mask"][task] > 0]
            entropies[when].append(each(outputs(source, draw.params, task, obs).entropy()).mean())
        obs = first.batch["obs"][task][first.batch["mask"][task] > 0]
        old, new = (outputs(source, draw.params, task, obs) for draw in (first, last))
        kls.append(each(kl_divergence(old, new)).mean())
        reversed_kls.append(each(kl_divergence(new, old)).mean())
    assert got["policy/kl"] == pytest.approx(float(torch.stack(kls).mean()), rel=1e-9) != 0
    assert got["policy/kl"] != pytest.approx(float(torch.stack(reversed_kls).mean()), rel=1e-4)  # the other direction
    for when, values in entropies.items():
        assert got[f"policy/entropy_{when}"] == pytest.approx(float(torch.stack(values).mean()), rel=1e-9)
    assert got["policy/entropy_before"] != pytest.approx(got["policy/entropy_after"], rel=1e-6)
    norms = torch.stack([leaf.reshape(3, -1).square().sum(1) for leaf in end.grads.values()]).sum(0).sqrt()
    assert got["train/outer_grad_norm"] != pytest.approx(float(norms.mean()), rel=1e-6)  # before the pull-back


def test_standard_deviations_are_those_of_the_policies() -> None:
    source = make_source("box")
    recording = RecordDraws(source.sample(3, np.random.default_rng(0)))
    noted, method = Diagnose(recording), make_method("maml", inner_lr=2.0)
    method.update(source.initial_params(), noted, method.inner)
    got = noted.values(share_of(noted))
    outer = next(draw for draw in recording.draws if draw.role == "outer")
    wanted = outer.params["policy.log_std"].exp().mean()
    assert got["policy/std_after"] == pytest.approx(float(wanted))
    assert got["policy/std_before"] == pytest.approx(1.0) != got["policy/std_after"]
    discrete = make_source("discrete")
    noted = Diagnose(discrete.sample(2, np.random.default_rng(0)))
    method.update(discrete.initial_params(), noted, method.inner)
    assert not any("std" in tag for tag in noted.values(share_of(noted)))


@pytest.mark.parametrize("baseline", ["linear", "time", "none"])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
def test_explained_variance_against_numpy(baseline: str, gae_lambda: float) -> None:
    source = make_source("box", baseline=baseline, gae_lambda=gae_lambda)
    tasks = source.sample(3, np.random.default_rng(0))
    noted = Diagnose(tasks)
    method = make_method("reptile", inner_steps=1)
    values: list[np.ndarray[Any, Any]] = []
    usual = source.baseline_values

    def note(episodes: Any) -> tuple[Tensor, Tensor]:
        found = usual(episodes)
        values.append(found[0].numpy())
        return found

    object.__setattr__(source, "baseline_values", note)
    recording = RecordDraws(noted)
    method.update(source.initial_params(), recording, method.inner)
    got = noted.values(share_of(noted))
    for when, draw, estimate in zip(("before", "after"), recording.draws, values, strict=True):
        residuals, totals = [], []
        for task in range(3):
            returns, guesses = [], []
            for episode in range(6):
                steps = int(draw.batch["mask"][task, episode].sum())
                rewards = draw.batch["rewards"][task, episode, :steps].tolist()
                returns += [sum(r * 0.99**k for k, r in enumerate(rewards[t:])) for t in range(steps)]
                guesses += estimate[task, episode, :steps].tolist()
            residuals.append(np.var(np.array(returns) - np.array(guesses)))
            totals.append(np.var(returns))
        wanted = 1 - np.mean(residuals) / np.mean(totals)
        assert got[f"baseline/explained_variance_{when}"] == pytest.approx(wanted, abs=1e-9)
        assert (wanted > 0.1) == (baseline != "none")
        lengths = draw.batch["mask"].sum(2).mean()
        assert got[f"rollout/episode_length_{when}"] == pytest.approx(float(lengths))


def test_the_change_of_the_surrogate_loss() -> None:
    """For small steps it is -alpha |g|^2, which the gradient's own norm gives."""
    source = make_source("box")
    noted, method = Diagnose(source.sample(1, np.random.default_rng(0))), make_method("maml", inner_lr=1e-4)
    method.update(source.initial_params(), noted, method.inner)
    got = noted.values(share_of(noted))
    assert got["train/inner_loss_change"] == pytest.approx(-1e-4 * got["train/inner_grad_norm"] ** 2, rel=1e-2)


class Log(Callback):
    def __init__(self) -> None:
        self.metrics: list[Metrics] = []

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        self.metrics.append(dict(metrics))


@pytest.mark.parametrize("outer", ["maml", "hf_maml", "multi_step_maml", "reptile", "es_maml", "e_maml", "multitask"])
def test_training_is_the_same_with_and_without(outer: str) -> None:
    logs, learners = [], []
    for diagnostics in (True, False):
        learner = MetaLearner(make_source("box"), outer, meta_batch_size=3)
        learner.diagnostics = diagnostics
        logs.append(Log())
        learners.append(learner.learn(2, [logs[-1]]))
    one, other = learners
    assert all(torch.equal(one.params[k], other.params[k]) for k in one.params)
    for with_, without in zip(logs[0].metrics, logs[1].metrics, strict=True):
        kept = {tag: value for tag, value in without.items() if not tag.startswith("time/")}
        assert kept.items() <= with_.items()
        assert not any(tag.startswith(("policy/", "baseline/")) for tag in without)
        assert ("policy/kl" in with_) == (outer != "multitask")  # which has a single draw


def test_only_a_few_states_are_kept() -> None:
    source = make_source("box")
    tasks = source.sample(3, np.random.default_rng(0))
    params = {k: v.expand(3, *v.shape) for k, v in source.initial_params().items()}
    batch = tasks.draw(params, "inner")
    assert tasks.excerpt(batch, STATES)["obs"].shape == (3, 6, 12, 2)
    assert tasks.excerpt(batch, 3 * 12 * 2 + 5)["obs"].shape == (3, 2, 12, 2)
    assert tasks.excerpt(batch, 1)["obs"].shape == (3, 1, 12, 2)


@pytest.mark.parametrize("states", [12 * 4, 12 * 9, 12 * 4 * 5 + 7])
def test_the_states_do_not_depend_on_the_number_of_processes(states: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarl.diagnostics.STATES", states)
    source, kept = make_source("box"), []
    for processes in (Processes(0, 1), Processes(0, 2), Processes(3, 4)):
        whole = source.sample(4, np.random.default_rng(0))
        tasks = shard(whole, processes)
        noted = Diagnose(tasks)
        monkeypatch.setattr(Processes, "max", lambda self, number: number)  # there are no other processes here
        noted.draw({k: v.expand(tasks.num_tasks, *v.shape) for k, v in source.initial_params().items()}, "inner")
        kept.append(noted._kept["before"].excerpt["obs"].shape[1])
    assert kept == [max(1, states // 48)] * 3


def test_one_process_reports_successes() -> None:
    """The columns are the same in all processes, and the mean counts the other tasks as failures."""
    columns, source = [], make_source("box")
    for success in (None, torch.tensor([1.0, 0.5])):
        tasks = source.sample(2, np.random.default_rng(0))
        batch = tasks.draw({k: v.expand(2, *v.shape) for k, v in source.initial_params().items()}, "inner")
        tasks.success = success
        columns.append({f"{tag}_before": x.double() for tag, x in tasks.statistics(batch).items()})
    assert columns[0].keys() == columns[1].keys()
    means = [
        {tag: float(torch.cat([x[tag] for x in some]).mean()) for tag in some[0]} for some in (columns, columns[:1])
    ]
    assert drop_unreported(means[0])["rollout/success_before"] == 0.375
    assert [tag for tag in drop_unreported(means[1]) if "success" in tag] == []
