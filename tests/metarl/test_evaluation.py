"""Adaptation curves: numbers by hand, held-out tasks, and nothing left behind."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from metarl import MetaLearner, evaluate
from metarl.agents import make_policy
from metarl.derivatives import gradients, gradients_and_scores, scores
from metarl.envs import Navigation
from metarl.errors import MoreStepsWarning
from metarl.evaluation import ScoreBefore
from metarl.inner import sgd
from metarl.rl import ReinforcementLearning, RLTaskBatch
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
from metarl.tree import broadcast

pytestmark = pytest.mark.usefixtures("unrecorded")

TASKS = FiniteSumTaskBatch(
    lambda params, batch: 0.5 * batch["a"] * (params["w"] - batch["c"]) ** 2,
    {"a": torch.tensor([1.0, 2.0]), "c": torch.tensor([1.0, -1.0])},
)
PARAMS = {"w": torch.tensor(0.0)}


def minus_losses(*factors: Sequence[float]) -> list[list[float]]:
    """Scores where the distance to the centre has shrunk by a factor for each of the two tasks."""
    return [[-0.5 * a**2, -(b**2)] for a, b in factors]


@pytest.mark.parametrize(
    ("step_sizes", "wanted"),
    [
        ([], minus_losses((1, 1))),
        ([0.25, 0.25], minus_losses((1, 1), (0.75, 0.5), (0.75**2, 0.25))),
        ([0.25, 0.125], minus_losses((1, 1), (0.75, 0.5), (0.75 * 0.875, 0.375))),
        ([0.5, None], minus_losses((1, 1), (0.5, 0.0), (0.375, 0.0))),
    ],
)
def test_curve_by_hand(step_sizes: list[float | None], wanted: list[list[float]]) -> None:
    learner = MetaLearner(FiniteSumSource(TASKS, PARAMS), inner_lr=0.25, meta_batch_size=2)
    curve = learner.evaluate(num_tasks=2, steps=len(step_sizes), step_sizes=step_sizes)
    np.testing.assert_allclose(curve.scores[0].T, wanted, rtol=1e-6)
    assert curve.mean == pytest.approx([sum(row) / 2 for row in wanted])


def test_steps_are_as_in_training_by_default() -> None:
    learner = MetaLearner(FiniteSumSource(TASKS, PARAMS), "moreau", inner_lr=0.25, meta_batch_size=2)
    curve = learner.evaluate(num_tasks=2, steps=2)  # restarts: w_2 = -alpha a (w_1 - c)
    np.testing.assert_allclose(curve.scores[0].T, minus_losses((1, 1), (0.75, 0.5), (0.8125, 0.75)), rtol=1e-6)


def test_costs_are_those_of_adaptation() -> None:
    curve = evaluate(PARAMS, TASKS, [sgd(0.1)] * 2)
    assert {unit: spent.tolist() for unit, spent in curve.costs.items()} == {
        "gradients": [[0, 2, 4]],
        "samples": [[0, 2, 4]],
    }
    summary = curve.to_dict()
    assert summary["steps"] == [0, 1, 2]
    assert summary["num_tasks"] == 2
    assert summary["costs"]["samples"] == [[0, 2, 4]]
    assert summary["mean"] == curve.mean
    assert all(low <= mean <= high for (low, high), mean in zip(curve.ci95, curve.mean, strict=True))


class Noting(ReinforcementLearning):
    """Notes the tasks it gave out."""

    goals: list[Any]

    def sample(self, num_tasks: int, rng: np.random.Generator) -> RLTaskBatch:
        tasks = super().sample(num_tasks, rng)
        self.goals.append(tasks.task["goal"])
        return tasks


def make_learner() -> tuple[MetaLearner, Noting]:
    tasks = Navigation(horizon=5)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [8]})
    source = Noting(tasks, policy, episodes=2)
    source.goals = []
    return MetaLearner(source, meta_batch_size=4, seed=1000), source


def test_the_held_out_tasks_are_the_same_each_time() -> None:
    learner, source = make_learner()
    first = learner.evaluate(num_tasks=4, steps=1)
    learner.adapt(source.sample(2, np.random.default_rng(0)))
    second = learner.evaluate(num_tasks=4, steps=1)
    assert np.array_equal(first.scores, second.scores)
    assert np.array_equal(source.goals[0], source.goals[2])
    learner.learn(1)  # with the seed of the evaluation: even then the tasks are others
    third = learner.evaluate(num_tasks=4, steps=1)
    assert np.array_equal(source.goals[0], source.goals[4])
    assert not np.array_equal(source.goals[0], source.goals[3])
    assert not np.array_equal(first.scores, third.scores)  # the parameters have moved
    learner.evaluate(num_tasks=4, steps=1, seed=1)
    assert not np.array_equal(source.goals[0], source.goals[5])


def test_another_source() -> None:
    learner, source = make_learner()
    far = Navigation(horizon=5, goal_low=90.0, goal_high=100.0)
    other = ReinforcementLearning(far, source.policy, episodes=2)
    curve = learner.evaluate(other, num_tasks=2, steps=0)
    assert curve.mean[0] < -5 * 90
    assert not source.goals


def test_no_graph_and_parameters_are_left_alone() -> None:
    w = {"w": torch.tensor(0.3, requires_grad=True)}
    evaluate(w, TASKS, [sgd(0.1)] * 3)
    assert w["w"].grad is None
    assert w["w"].item() == pytest.approx(0.3)


def test_more_steps_than_trained_warn_once_where_they_are_worse() -> None:
    """alpha a = 1.5 and 3: a step too long for the second task; the third step is worse than the first."""
    source = FiniteSumSource(
        FiniteSumTaskBatch(TASKS.loss, {"a": torch.tensor([2.5, 2.5, 2.5]), "c": torch.tensor([1.0, -1.0, 0.9])}),
        PARAMS,
    )
    learner = MetaLearner(source, inner_lr=1.0, meta_batch_size=3)
    learner.evaluate(num_tasks=3, steps=3)  # it has not been trained for anything
    learner.learn(1)
    learner.evaluate(num_tasks=3, steps=1)
    learner.evaluate(num_tasks=3, steps=3, warn=False)
    with pytest.warns(MoreStepsWarning, match="2 inner steps give a worse minus_loss than the 1") as caught:
        learner.evaluate(num_tasks=3, steps=3)
    assert caught[0].filename == __file__
    learner.evaluate(num_tasks=3, steps=3)


def test_more_steps_that_help_do_not_warn() -> None:
    learner = MetaLearner(FiniteSumSource(TASKS, PARAMS), inner_lr=0.1, meta_batch_size=2).learn(1)
    assert learner.evaluate(num_tasks=2, steps=4).mean[4] > learner.evaluate(num_tasks=2, steps=4).mean[1]


def in_training(tasks: ScoreBefore) -> None:
    """As an update does: the first inner gradient is taken at the initial parameters."""
    start = broadcast(PARAMS, 2)
    gradients(tasks, start, tasks.draw(start, "inner"))
    gradients(tasks, AWAY, tasks.draw(AWAY, "outer"))


def without_a_gradient(tasks: ScoreBefore) -> None:
    tasks.draw(broadcast(PARAMS, 2), "inner")


def elsewhere_on_the_same_batch(tasks: ScoreBefore) -> None:
    gradients(tasks, AWAY, tasks.draw(broadcast(PARAMS, 2), "inner"))


def draws_again(tasks: ScoreBefore) -> None:
    in_training(tasks)
    gradients(tasks, AWAY, tasks.draw(AWAY, "inner"))


AWAY = {"w": torch.tensor([3.0, 4.0])}


@pytest.mark.parametrize("use", [in_training, without_a_gradient, elsewhere_on_the_same_batch, draws_again])
def test_the_score_before_is_that_of_the_initial_parameters(use: Callable[[ScoreBefore], None]) -> None:
    tasks = ScoreBefore(TASKS)
    assert np.isnan(tasks.total_score)
    use(tasks)
    assert tasks.total_score == -0.5 * 1.0 - 1.0


def test_the_first_gradient_computes_the_score_before(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = ScoreBefore(TASKS)
    in_training(tasks)
    monkeypatch.setattr("metarl.evaluation.scores", None)  # not needed
    assert tasks.total_score == -1.5


def test_gradients_and_scores_are_both() -> None:
    batch = TASKS.draw(AWAY, "outer")
    grads, found = gradients_and_scores(TASKS, AWAY, batch)
    assert torch.equal(grads["w"], gradients(TASKS, AWAY, batch)["w"])
    assert torch.equal(found, scores(TASKS, AWAY, batch))
    torch.testing.assert_close(found, -torch.tensor([0.5 * 2.0**2, 5.0**2]))
