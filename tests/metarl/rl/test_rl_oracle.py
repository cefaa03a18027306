"""The reinforcement-learning oracle: draws, losses and scores against plain autograd and hand-made numbers."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap

from metarl import tree
from metarl.agents import make_policy
from metarl.envs import Navigation
from metarl.rl import SURROGATES, ReinforcementLearning, RLTaskBatch
from metarl.types import Params

TASKS = Navigation(horizon=5)


def make_source(**kwargs: Any) -> ReinforcementLearning:
    policy = make_policy(TASKS.observation_space, TASKS.action_space, policy_kwargs={"net_arch": [8]}).double()
    return ReinforcementLearning(TASKS, policy, **{"episodes": 3, **kwargs})


def make_tasks(seed: int = 0, **kwargs: Any) -> tuple[RLTaskBatch, Params]:
    source = make_source(**kwargs)
    return source.sample(2, np.random.default_rng(seed)), tree.broadcast(source.initial_params(), 2)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_the_gradient_is_the_policy_gradient(surrogate: str) -> None:
    """- 1/(E H) sum_e sum_t A_t grad log pi(a_t | s_t), by plain autograd through the module."""
    tasks, w = make_tasks(surrogate=surrogate, dice_lambda=0.5 if surrogate == "loaded_dice" else None)
    batch = tasks.draw(w, "inner")
    got = vmap(grad(tasks.loss))(w, batch)
    for i in range(2):
        leaves = {k: v.clone().requires_grad_() for k, v in tree.take(w, i).items()}
        loc, scale = functional_call(make_source().policy, leaves, (batch["obs"][i].flatten(0, 1),))
        normal = torch.distributions.Normal(loc, scale)
        log_probs = normal.log_prob(batch["actions"][i].flatten(0, 1)).sum(-1)  # [E * H]
        (-(log_probs * batch["advantages"][i].flatten()).sum() / 15).backward()
        for key, leaf in leaves.items():
            torch.testing.assert_close(got[key][i], leaf.grad)


def test_the_loss_starts_at_minus_the_mean_advantage() -> None:
    tasks, w = make_tasks(normalize_advantages=False, baseline="none")
    batch = tasks.draw(w, "inner")
    wanted = -batch["advantages"].mean((1, 2))
    torch.testing.assert_close(vmap(tasks.loss)(w, batch), wanted)  # all ratios are 1


def test_advantages_are_returns_without_a_baseline() -> None:
    tasks, w = make_tasks(normalize_advantages=False, baseline="none", discount=0.5)
    batch = tasks.draw(w, "inner")
    rewards, running = batch["rewards"], torch.zeros(2, 3, dtype=torch.float64)
    for t in reversed(range(5)):
        running = rewards[..., t] + 0.5 * running
        torch.testing.assert_close(batch["advantages"][..., t], running)


@pytest.mark.parametrize("baseline", ["linear", "time", "none"])
@pytest.mark.parametrize("bootstrap", [False, True])
def test_advantages_are_normalized_per_task(baseline: str, bootstrap: bool) -> None:
    tasks, w = make_tasks(baseline=baseline, bootstrap=bootstrap)
    advantages = tasks.draw(w, "inner")["advantages"]
    torch.testing.assert_close(advantages.mean((1, 2)), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(advantages.std((1, 2), correction=0), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("normalize", [False, True])
def test_the_objective_is_the_discounted_return_in_units_of_the_advantages(normalize: bool) -> None:
    tasks, w = make_tasks(normalize_advantages=normalize, baseline="none", discount=0.5)
    batch = tasks.draw(w, "inner")
    returns = (batch["rewards"] * 0.5 ** torch.arange(5)).sum(-1)  # [T, E]
    raw = make_tasks(normalize_advantages=False, baseline="none", discount=0.5)[0].draw(w, "inner")["advantages"]
    for i in range(2):
        scale = raw[i].std(correction=0) if normalize else 1.0
        torch.testing.assert_close(tasks.objective(tree.take(batch, i)), -returns[i] / (5 * scale))


def test_the_frozen_loss_and_the_likelihood_of_trajectories() -> None:
    tasks, w = make_tasks()
    batch = tasks.draw(w, "inner")
    one, data = tree.take(w, 0), tree.take(batch, 0)
    loc, scale = functional_call(make_source().policy, one, (data["obs"].flatten(0, 1),))
    log_probs = torch.distributions.Normal(loc, scale).log_prob(data["actions"].flatten(0, 1)).sum(-1).view(3, 5)
    torch.testing.assert_close(tasks.log_likelihood(one, data), (log_probs * data["mask"]).sum(1))
    torch.testing.assert_close(tasks.frozen_loss(one, data), -(log_probs * data["advantages"]).sum() / 15)


def test_score_and_cost() -> None:
    tasks, _ = make_tasks()
    rewards = torch.tensor([[[1.0, 2.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    batch = {"rewards": rewards, "mask": mask}
    assert vmap(tasks.score)({}, batch).tolist() == [3.0, 0.5]  # undiscounted, the mean over episodes
    assert tasks.cost(batch) == {"samples": 4, "env_steps": 7}


def test_every_draw_is_fresh_and_follows_from_the_seed() -> None:
    (a, w), (b, _), (c, _) = (make_tasks(seed) for seed in (0, 0, 1))
    first, second = ([tasks.draw(w, role)["actions"] for role in ("inner", "outer", "hessian")] for tasks in (a, b))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert not any(torch.equal(first[i], first[j]) for i, j in [(0, 1), (0, 2), (1, 2)])
    assert not torch.equal(c.draw(w, "inner")["actions"], first[0])
    assert not np.array_equal(a.task["goal"], c.task["goal"])


def test_given_tasks_in_their_order() -> None:
    source = make_source(normalize_advantages=False)
    far_and_near = {"goal": np.array([[50.0, 0.0], [0.5, 0.0]], np.float32)}
    tasks = source.tasks(far_and_near, np.random.default_rng(0))
    returns = tasks.draw(tree.broadcast(source.initial_params(), 2), "inner")["rewards"].mean((1, 2))
    assert returns.tolist() == pytest.approx([-50.0, -0.5], abs=0.5)


def test_the_starting_point_is_the_policys_own_and_is_not_changed() -> None:
    source = make_source()
    before = {k: v.clone() for k, v in source.policy.named_parameters()}
    params = source.initial_params()
    assert set(params) < set(before)  # the critic is left out
    source.sample(2, np.random.default_rng(0)).draw(tree.broadcast(params, 2), "inner")
    for key, leaf in source.policy.named_parameters():
        assert torch.equal(leaf, before[key])
        if key in params:
            assert torch.equal(params[key], leaf)


def test_replace() -> None:
    changed = dataclasses.replace(make_source(), episodes=7, distribution=Navigation(horizon=3))
    batch = changed.sample(2, np.random.default_rng(0)).draw(tree.broadcast(changed.initial_params(), 2), "inner")
    assert batch["mask"].shape == (2, 7, 3)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("episodes", 0),
        ("episodes", 2.5),
        ("surrogate", "ratios"),
        ("dice_lambda", 0.5),
        ("baseline", "liner"),
        ("discount", 1.1),
        ("discount", -0.1),
        ("discount", float("nan")),
        ("gae_lambda", 2),
        ("gae_lambda", "1"),
    ],
)
def test_bad_arguments(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=argument):
        make_source(**{argument: value})


def test_bad_number_of_tasks() -> None:
    with pytest.raises(ValueError, match="num_tasks"):
        make_source().sample(0, np.random.default_rng(0))
