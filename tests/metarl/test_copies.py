"""A learner that has learned can be copied and pickled; the copy goes on as the original."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from metarl import OUTER, MetaLearner
from metarl.agents import make_policy
from metarl.envs import CartPole, Navigation
from metarl.rl import ReinforcementLearning
from metarl.supervised.sinusoid import Sinusoids
from tests.reference.problems import suit

pytestmark = pytest.mark.usefixtures("unrecorded")


def rl(distribution: Any) -> ReinforcementLearning:
    policy = make_policy(distribution.observation_space, distribution.action_space, policy_kwargs={"net_arch": [8]})
    return ReinforcementLearning(distribution, policy, episodes=4)


SOURCES: dict[str, Callable[[], Any]] = {
    "supervised": Sinusoids,
    "functional": lambda: rl(Navigation(horizon=5)),
    "gymnasium": lambda: rl(CartPole(horizon=5)),
}
WAYS: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("outer", "source"), [(o, "supervised") for o in sorted(OUTER)] + [("maml", s) for s in SOURCES]
)
def test_the_copy_goes_on_as_the_original(outer: str, source: str, way: str) -> None:
    learner = MetaLearner(suit(outer, SOURCES[source]()), outer, meta_batch_size=2).learn(2)
    before = learner.evaluate(num_tasks=2, steps=1).scores
    other = WAYS[way](learner)
    assert np.array_equal(other.evaluate(num_tasks=2, steps=1).scores, before)
    learner.learn(2)
    other.learn(2)
    assert other.counts == learner.counts
    for key, leaf in learner.params.items():
        assert torch.equal(other.params[key], leaf)


def test_a_copy_is_independent() -> None:
    learner = MetaLearner(Sinusoids(), meta_batch_size=2).learn(1)
    kept = {key: leaf.clone() for key, leaf in learner.params.items()}
    copy.deepcopy(learner).learn(1)
    for key, leaf in kept.items():
        assert torch.equal(learner.params[key], leaf)
