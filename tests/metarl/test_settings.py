"""A setting that is changed later takes effect, or is refused; never neither."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.envs import Navigation
from metarl.rl import ReinforcementLearning
from metarl.supervised.sinusoid import Sinusoids

pytestmark = pytest.mark.usefixtures("unrecorded")


def source(**settings: Any) -> ReinforcementLearning:
    tasks = Navigation(horizon=5)
    return ReinforcementLearning(tasks, make_policy(tasks.observation_space, tasks.action_space), **settings)


REFUSED: list[tuple[Any, str, Any]] = [
    (lambda: Navigation(), "goal_high", 3.0),
    (lambda: Navigation(), "horizon", 3),
    (lambda: source(), "surrogate", "dice"),
    (lambda: source(), "baseline", "none"),
    (lambda: source(), "device", "cpu"),
    (lambda: Sinusoids(), "network", None),
    (lambda: MetaLearner(Sinusoids()), "inner_lr", 0.5),
    (lambda: MetaLearner(Sinusoids()), "inner_steps", 2),
    (lambda: MetaLearner(Sinusoids()), "learning_rate", 0.5),
]


@pytest.mark.parametrize(("make", "name", "value"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_what_would_have_no_effect_is_refused(make: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} cannot change after the .* is made.*make another"):
        setattr(make(), name, value)


def first_batch(drawn_from: ReinforcementLearning) -> dict[str, Any]:
    learner = MetaLearner(drawn_from, meta_batch_size=2)
    tasks = drawn_from.sample(2, np.random.default_rng(0))
    stacked = {key: leaf.expand(2, *leaf.shape) for key, leaf in learner.params.items()}
    return dict(tasks.draw(stacked, "inner"))


LIVE = [("discount", 0.5), ("gae_lambda", 0.5), ("discount_weights", True), ("normalize_advantages", False)]


@pytest.mark.parametrize(("name", "value"), LIVE)
def test_what_may_change_takes_effect(name: str, value: Any) -> None:
    changed = source(episodes=4)
    before = first_batch(changed)["advantages"]
    setattr(changed, name, value)
    after, wanted = (first_batch(x)["advantages"] for x in (changed, dataclasses.replace(changed)))
    assert torch.equal(after, wanted)
    assert not torch.equal(after, before)


@pytest.mark.parametrize(("name", "value"), [("discount", 2.0), ("episodes", 0), ("bootstrap", 1)])
def test_what_may_change_is_checked(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        setattr(source(), name, value)
