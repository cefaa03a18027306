"""Successes that environments report, and scores of the most likely actions."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Dict, Discrete

from metarl import MetaLearner, evaluate
from metarl.agents import make_policy
from metarl.envs import GymDistribution, Navigation, PointVelocity
from metarl.functional_call import call
from metarl.rl import ReinforcementLearning, RLTaskBatch
from metarl.rl.distributions import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical, SquashedGaussian
from metarl.rl.rollout import Noise
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
from metarl.types import Batch, Params, Role, TaskDistribution
from metarl.wrappers import RecordDraws, RecordedDraw
from tests.envs.toy_envs import Pressing
from tests.keep import Keep

pytestmark = pytest.mark.usefixtures("unrecorded")


def learner_on(tasks: TaskDistribution, episodes: int = 6) -> MetaLearner:
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [8]})
    return MetaLearner(ReinforcementLearning(tasks, policy, episodes=episodes), inner_lr=0.5, meta_batch_size=2)


def pressing(workers: int = 0) -> GymDistribution:
    return GymDistribution(Pressing, Dict({"at": Discrete(4, start=2)}), horizon=4, workers=workers)


# Success.


def successes_are_those_of_any_step(workers: int = 0) -> None:
    """Against the actions: the episode succeeds if that of step `at` is 1, which for the last task never comes."""
    learner = learner_on(pressing(workers))
    at = np.array([2, 3, 4, 5, 3])
    assert isinstance(learner.source, ReinforcementLearning)
    recording = RecordDraws(learner.source.tasks({"at": at}, np.random.default_rng(1)))
    curve = evaluate(learner.params, recording, learner.rules([None, None]))
    drawn = [draw.batch["actions"].numpy() for draw in recording.draws if draw.role == "outer"]  # [T, E, 4] each
    wanted = [[0.0 if when == 5 else np.mean(x[t, :, when - 1] == 1) for x in drawn] for t, when in enumerate(at)]
    assert curve.success is not None
    np.testing.assert_allclose(curve.success[0], wanted)
    assert 0 < curve.success.mean() < 1


def test_successes_are_those_of_any_step() -> None:
    successes_are_those_of_any_step()


def test_worker_processes_report_successes() -> None:
    successes_are_those_of_any_step(workers=2)


class LastStep(Pressing):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *result, info = super().step(action)
        return *result, {**info, "success": info["success"] if self.steps == 4 else 0.0} if info else info  # type: ignore[return-value]


def test_the_test_of_successes_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.metarl.rl.test_scored_episodes.Pressing", LastStep)
    monkeypatch.setitem(globals(), "Pressing", LastStep)
    with pytest.raises(AssertionError):
        successes_are_those_of_any_step()


@pytest.mark.parametrize("reports", [True, False])
def test_training_logs_successes(reports: bool) -> None:
    """Those of the first and of the last draw of an iteration."""
    learner, keep, seen = learner_on(pressing() if reports else Navigation(horizon=3)), Keep(), []
    draw = RLTaskBatch.draw

    def watch(self: RLTaskBatch, params: Params, role: Role) -> Batch:
        batch = draw(self, params, role)
        seen.append((role, self.success))
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RLTaskBatch, "draw", watch)
        learner.learn(1, [keep])
    (metrics,) = keep.metrics
    assert ("rollout/success_before" in metrics) == ("rollout/success_after" in metrics) == reports
    if reports:
        by_role = {role: float(success.mean()) for role, success in seen if success is not None}
        assert metrics["rollout/success_before"] == pytest.approx(by_role["inner"])
        assert metrics["rollout/success_after"] == pytest.approx(by_role["outer"])


def test_environments_without_successes_have_none() -> None:
    assert learner_on(Navigation(horizon=3)).evaluate(num_tasks=2, steps=1).success is None


class WrongSuccess(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Reports a success for too few environments."""

    def __init__(self, vec: Any) -> None:
        self.vec, self.num_envs = vec, vec.num_envs
        self.single_observation_space, self.single_action_space = vec.single_observation_space, vec.single_action_space

    def reset(self, **kwargs: Any) -> Any:
        return self.vec.reset(**kwargs)

    def step(self, actions: Any) -> Any:
        return *self.vec.step(actions)[:-1], {"success": np.zeros(1)}


def test_successes_of_another_shape_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    make_vec = GymDistribution.make_vec
    monkeypatch.setattr(GymDistribution, "make_vec", lambda *args, **kwargs: WrongSuccess(make_vec(*args, **kwargs)))
    with pytest.raises(ValueError, match=r"success must be numbers of shape \(12,\), got float64 of shape \(1,\)"):
        learner_on(pressing()).evaluate(num_tasks=2, steps=0)


# The most likely actions.

DISTRIBUTIONS: dict[str, Callable[[], TaskDistribution]] = {
    "functions": lambda: Navigation(horizon=4),
    "a long horizon": lambda: PointVelocity(horizon=260),
    "discrete": pressing,
}


def draws_of(learner: MetaLearner, deterministic: bool) -> list[RecordedDraw]:
    recording = RecordDraws(learner.source.sample(2, np.random.default_rng(3)))
    evaluate(learner.params, recording, learner.rules([None]), deterministic=deterministic)
    return list(recording.draws)


def only_scores_take_the_mode(name: str) -> None:
    learner = learner_on(DISTRIBUTIONS[name]())
    assert isinstance(learner.source, ReinforcementLearning)
    sampled, found = draws_of(learner, False), draws_of(learner, True)
    for one, other in zip(sampled, found, strict=True):
        same = torch.equal(one.batch["actions"], other.batch["actions"])
        assert same == (one.role == "inner")  # adaptation has the same random numbers
    first = found[0].batch  # before adaptation: all tasks have the parameters of the learner
    (mode, *_) = call(learner.source.policy, learner.params, first["obs"].flatten(0, 2))
    wanted = mode.argmax(-1) if name == "discrete" else mode
    running = first["mask"].flatten() > 0
    torch.testing.assert_close(first["actions"].flatten(0, 2)[running], wanted[running], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_only_scores_take_the_mode(name: str) -> None:
    only_scores_take_the_mode(name)


def forever(self: Noise) -> Noise:
    return self._replace(actions=torch.zeros_like(self.actions))


@pytest.mark.parametrize(("mutant", "name"), [(lambda self: self, "functions"), (forever, "a long horizon")])
def test_wrong_noise_is_seen(mutant: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noise, "with_most_likely_actions", mutant)
    with pytest.raises(AssertionError):
        only_scores_take_the_mode(name)


@pytest.mark.parametrize(
    ("distribution", "params", "mode"),
    [
        (DiagonalGaussian(2), (torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.1]])), [[1.0, -2.0]]),
        (SquashedGaussian(1), (torch.tensor([[0.5]]), torch.tensor([[2.0]])), [[0.5]]),
        (Categorical(3), (torch.tensor([[0.1, 0.7, 0.2]]),), [1]),
        (MultiCategorical([2, 3]), (torch.tensor([[0.1, -0.7, 0.2, 0.1, 0.3]]),), [[0, 2]]),
        (Bernoulli(2), (torch.tensor([[0.1, -0.7]]),), [[1, 0]]),
    ],
    ids=["gaussian", "squashed", "categorical", "several categoricals", "bits"],
)
def test_noise_of_zeros_gives_the_mode(distribution: Any, params: Any, mode: Any) -> None:
    noise = distribution.noise((1,), torch.Generator().manual_seed(0), torch.float32)
    found = distribution.sample(params, torch.zeros_like(noise))
    assert torch.equal(found, torch.tensor(mode))
    # the density of a squashed Gaussian is highest elsewhere: its mode is that before tanh
    density = DiagonalGaussian(1) if isinstance(distribution, SquashedGaussian) else distribution
    for seed in range(20):
        numbers = distribution.noise((1,), torch.Generator().manual_seed(seed), torch.float32)
        other = distribution.sample(params, numbers)
        assert density.log_prob(params, other) <= density.log_prob(params, found) + 1e-6


def test_tasks_without_a_policy_are_refused() -> None:
    batch = FiniteSumTaskBatch(lambda params, data: (params["w"] - data["c"]) ** 2, {"c": torch.ones(2)})
    learner = MetaLearner(FiniteSumSource(batch, {"w": torch.tensor(0.0)}), meta_batch_size=2)
    with pytest.raises(ValueError, match="deterministic must be False for tasks without a policy, such as FiniteSum"):
        learner.evaluate(num_tasks=2, deterministic=True)


# Chosen tasks.


def test_chosen_tasks() -> None:
    learner = learner_on(Navigation(horizon=4))
    goals = [[0.1, 0.2], [-0.3, 0.4], [2.0, 2.0]]  # the last one is outside the training distribution
    curve = learner.evaluate(tasks=[{"goal": goal} for goal in goals], steps=1)
    same = learner.evaluate(tasks={"goal": np.array(goals, np.float32)}, steps=1)
    assert curve.to_dict() == same.to_dict()
    np.testing.assert_array_equal(curve.tasks["goal"], np.array(goals, np.float32))
    distances = np.linalg.norm(goals, axis=1)
    assert np.argsort(-curve.scores[0, :, 0]).tolist() == np.argsort(distances).tolist()  # far goals cost more


def test_sampled_tasks_are_kept_in_the_curve() -> None:
    learner = learner_on(Navigation(horizon=4))
    curve = learner.evaluate(num_tasks=5, steps=1)
    again = learner.evaluate(tasks=curve.tasks, steps=0)
    np.testing.assert_array_equal(again.tasks["goal"], curve.tasks["goal"])
    assert curve.tasks["goal"].shape == (5, 2)
    assert curve.step_sizes == (0.5,)
    assert (curve.score_name, learner.evaluate(steps=0).num_tasks) == ("return", 40)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tasks": []}, "tasks must be a list with a dictionary of parameters for each task"),
    ({"tasks": "goals.csv"}, "tasks must be a list with a dictionary"),
    (
        {"tasks": [{"goal": [0, 0]}, {"gaol": [0, 0]}]},
        r"tasks\[1\]: task must have the keys \['goal'\], got",
    ),
    ({"tasks": [{"goal": [0, 0, 0]}]}, r"tasks\[0\]: task\['goal'\] must have shape \(2,\)"),
    ({"tasks": {"goal": [0.0, np.nan]}}, "must be finite"),
    ({"tasks": [{"goal": [0, 0]}], "num_tasks": 1}, "num_tasks must be left out if tasks are given, got 1"),
    ({"num_tasks": 0}, "num_tasks must be an integer of at least 1"),
    ({"deterministic": 1}, "deterministic must be True or False, got 1"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_wrong_tasks_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learner_on(Navigation(horizon=4)).evaluate(**arguments)


def test_sources_without_parameters_refuse_chosen_tasks() -> None:
    batch = FiniteSumTaskBatch(lambda params, data: (params["w"] - data["c"]) ** 2, {"c": torch.ones(2)})
    learner = MetaLearner(FiniteSumSource(batch, {"w": torch.tensor(0.0)}), meta_batch_size=2)
    with pytest.raises(ValueError, match="tasks must be left out for FiniteSumSource, whose tasks have no parameters"):
        learner.evaluate(tasks=[{"c": 1.0}])
