"""Pictures of trajectories: a legend of components, short labels, and drawings of the author's."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.envs import GymDistribution, Navigation
from metarl.envs.base import EnvDistribution
from metarl.experiments.common.figures import trajectory_figure
from metarl.rl import ReinforcementLearning
from tests.experiments import runs

pytestmark = pytest.mark.usefixtures("unrecorded")
GRAVITY = gymnasium.spaces.Dict({"g": Box(5.0, 15.0, (), np.float32)})


def draw(tasks: EnvDistribution) -> Any:
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]})
    learner = MetaLearner(ReinforcementLearning(tasks, policy, episodes=3), meta_batch_size=2)
    return trajectory_figure(learner.source, learner.params, learner.rules([None]), 2, seed=1)  # type: ignore[arg-type]


def test_own_tasks_have_a_legend_and_short_labels() -> None:
    figure = draw(GymDistribution("Pendulum-v1", GRAVITY, horizon=6))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["observation 0", "observation 1", "observation 2"]
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert len(colours) == 3
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert all(label.startswith("g ") and len(label) <= 7 for label in labels)  # three digits


def test_places_have_one_colour_and_no_legend() -> None:
    figure = draw(Navigation(horizon=6))
    assert not figure.legends
    assert {line.get_color() for line in figure.axes[0].lines} == {"tab:blue", "tab:green"}


def test_drawings_of_the_author() -> None:
    seen: list[tuple[int, ...]] = []

    def episode(ax: Any, observations: Any, **line_kwargs: Any) -> None:
        seen.append(observations.shape)
        ax.plot(observations[:, 2], label="speed", **line_kwargs)

    def task(ax: Any, parameters: Any) -> None:
        ax.set_xlabel(f"gravity {float(parameters['g']):.0f}")

    figure = draw(GymDistribution("Pendulum-v1", GRAVITY, horizon=6, draw_episode=episode, draw_task=task))
    assert set(seen) == {(6, 3)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["speed"]
    assert all(ax.get_xlabel().startswith("gravity ") for ax in figure.axes)
    with pytest.raises(ValueError, match="draw_task must be a function that draws"):
        GymDistribution("Pendulum-v1", GRAVITY, draw_task=3)  # type: ignore[arg-type]


def test_find_inner_lr(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints a row for each of five sizes, and makes no folder."""
    monkeypatch.chdir(tmp_path)
    outcome = runs.call("train", *runs.TINY, "--find-inner-lr", "--inner-lr", 0.2)
    assert outcome.code == 0, outcome.err
    rows = [line.split("|")[1:-1] for line in outcome.out.splitlines() if line.startswith("|")][2:]
    assert [float(row[0]) for row in rows] == [0.02, 0.06, 0.2, 0.6, 2.0]
    assert len({row[1] for row in rows}) == 1  # the same tasks and draws before the step
    divergences = [float(row[3]) for row in rows]
    assert divergences == sorted(divergences)
    assert not list(tmp_path.iterdir())
    assert runs.call("train", *runs.TINY, "--find-inner-lr", "--outer", "mamel").code == 2
