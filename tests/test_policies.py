"""The policies of the repository: they load, they act, and adapt as well as their cards say: the drift alarm."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import metarl
from metarl import AdaptationCurve, MetaLearner
from metarl.checkpoint import package
from metarl.engine import Engine
from metarl.experiments.common.evaluation import step_sizes
from metarl.experiments.common.packages import MEMBERS
from metarl.experiments.train import FINAL_EPISODES, FINAL_SEED, FINAL_TASKS
from metarl.random import Stream, stream_generator
from metarl.rl import ReinforcementLearning
from tests.pages import ROOT

FOLDER = ROOT / "policies"
POLICIES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
FEW = 10
"""A quarter of the card's tasks: they draw what they draw among all."""


CHAOTIC = 3.0
"""How many times wider the interval is for policies in MuJoCo. Processors differ in the last bits, and MuJoCo amplifies
them: another processor may give what other draws give. With four other draws on the same tasks the means stayed within
1.8 intervals after every step."""


def is_chaotic(policy: str) -> bool:
    """Whether it acts in MuJoCo."""
    return policy.startswith("half_cheetah")


def curve(learner: MetaLearner, steps: int = 3) -> AdaptationCurve:
    """The evaluation of the card, of the first tasks."""
    source = learner.source
    assert isinstance(source, ReinforcementLearning)
    many = dataclasses.replace(source, episodes=FINAL_EPISODES)
    tasks = many.sample(FINAL_TASKS, stream_generator(FINAL_SEED, Stream.HELD_OUT_TASKS))
    return metarl.evaluate(learner.params, tasks.shard(0, FEW), learner.rules(step_sizes(learner, steps)))


def outside(found: list[float], policy: str) -> list[int]:
    """The gradient steps after which the mean return is farther from the card's on these tasks than its interval."""
    card = json.loads((FOLDER / policy / "evaluation.json").read_text())
    wanted = np.mean(card["scores"][0][:FEW], axis=0)
    half = [(high - low) / 2 * (CHAOTIC if is_chaotic(policy) else 1.0) for low, high in card["ci95"]]
    assert len(wanted) == len(half) == 4
    return [step for step, mean in enumerate(found) if abs(mean - wanted[step]) > half[step]]


def test_which_there_are() -> None:
    assert POLICIES == [
        "grid_world",
        "half_cheetah_direction",
        "half_cheetah_velocity",
        "navigation",
        "point_velocity",
    ]
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size < 1_200_000


@pytest.mark.parametrize("policy", POLICIES)
def test_it_adapts_as_its_card_says(policy: str) -> None:
    with Engine().current():
        learner = metarl.load(FOLDER / policy)
        found = curve(learner, steps=1 if is_chaotic(policy) else 3).mean
        assert len(found) == (2 if is_chaotic(policy) else 4)
        assert outside(found, policy) == []


def test_the_alarm_rings() -> None:
    """For other parameters, and for another size of the inner step."""
    with Engine().current():
        learner = metarl.load(FOLDER / "navigation")
        trained = learner.params
        learner.params = {k: v * 0.9 for k, v in trained.items()}
        assert outside(curve(learner).mean, "navigation")
        learner.params = trained
        rules = learner.rules([0.08, 0.04, 0.04])
        learner.rules = lambda _: rules  # type: ignore[method-assign]
        assert outside(curve(learner).mean, "navigation")
        card = json.loads((FOLDER / "navigation" / "evaluation.json").read_text())
        untrained = np.mean(card["random_init"]["scores"][0][:FEW], axis=0)
        assert outside(untrained.tolist(), "navigation") == [0, 1, 2, 3]
        card = json.loads((FOLDER / "half_cheetah_direction" / "evaluation.json").read_text())
        untrained = np.mean(card["random_init"]["scores"][0][:FEW], axis=0)
        assert outside(untrained.tolist(), "half_cheetah_direction") == [0, 1, 2, 3]


@pytest.mark.parametrize("policy", POLICIES)
def test_its_parts_are_whole(policy: str) -> None:
    members = package.read(FOLDER / policy)
    assert set(members) == set(MEMBERS)
    assert {path.name for path in (FOLDER / policy).iterdir()} == set(MEMBERS)
    assert f"[{policy}]({policy}/README.md)" in (FOLDER / "README.md").read_text()
    assert str(Path.home()) not in members["config.json"].decode()


@pytest.mark.parametrize("policy", POLICIES)
def test_it_acts(policy: str) -> None:
    with Engine(record=False).current():
        learner = metarl.load(FOLDER / policy)
        source = learner.source
        assert isinstance(source, ReinforcementLearning)
        env = source.distribution.make(source.distribution.example())  # type: ignore[attr-defined]
        adapted = learner.adapt(env, 1, episodes=2)
        action, _ = adapted.predict(env.reset(seed=0)[0])
        assert env.action_space.contains(action)
