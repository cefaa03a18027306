"""Methods that take the loss's Hessian warn where it is not the objective's; e_maml works with integer data first."""

import warnings

import numpy as np
import pytest
import torch

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.envs import Navigation
from metarl.errors import HessianWarning
from metarl.outer import without_particles
from metarl.rl import ReinforcementLearning
from metarl.rl.surrogates import SURROGATES
from metarl.supervised import BatchSizes, FiniteSumSource, FiniteSumTaskBatch

pytestmark = pytest.mark.usefixtures("unrecorded")

HESSIAN = {"maml", "multi_step_maml", "maml_plus_plus", "binom_maml", "hf_maml", "ggs_maml", "imaml"}


def source(surrogate: str) -> ReinforcementLearning:
    tasks = Navigation(horizon=3)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]})
    lam = 0.5 if surrogate == "loaded_dice" else None
    return ReinforcementLearning(tasks, policy, episodes=2, surrogate=surrogate, dice_lambda=lam)


@pytest.mark.parametrize("outer", sorted(without_particles()))
@pytest.mark.parametrize("surrogate", sorted(SURROGATES))
def test_which_combinations_warn(outer: str, surrogate: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MetaLearner(source(surrogate), outer, meta_batch_size=2).learn(1)
    wrong = surrogate == "reinforce" and outer in HESSIAN
    assert [warning.category for warning in caught] == [HessianWarning] * wrong
    if wrong:
        assert caught[0].filename == __file__
        assert repr(outer) in str(caught[0].message)


def integers_first() -> FiniteSumSource:
    rng = np.random.default_rng(0)
    data = {
        "label": torch.from_numpy(rng.integers(0, 2, (3, 5))),
        "x": torch.from_numpy(rng.normal(size=(3, 5, 2))),
        "scale": torch.ones(3, dtype=torch.float64),
    }

    def loss(w: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["scale"] * ((batch["x"] @ w["w"] - batch["label"]) ** 2).mean()

    tasks = FiniteSumTaskBatch(loss, data, batch_sizes=BatchSizes(), generator=torch.Generator())
    return FiniteSumSource(tasks, {"w": torch.zeros(2, dtype=torch.float64)})


def reordered(names: list[str]) -> FiniteSumSource:
    tasks = integers_first().tasks
    data = {name: tasks.support[name] for name in names}
    return FiniteSumSource(FiniteSumTaskBatch(tasks.loss, data), {"w": torch.zeros(2, dtype=torch.float64)})


@pytest.mark.parametrize("outer", sorted(without_particles()))
def test_the_order_of_the_leaves_of_a_batch_does_not_matter(outer: str) -> None:
    """An integer leaf, or a number of each task, may be the first one."""
    orders = [["x", "label", "scale"], ["label", "x", "scale"], ["scale", "label", "x"]]
    learners = [MetaLearner(reordered(order), outer, meta_batch_size=3, inner_lr=0.1).learn(2) for order in orders]
    for learner in learners[1:]:
        assert torch.equal(learner.params["w"], learners[0].params["w"])
        assert learner.counts == learners[0].counts
