"""Surrogate losses on an enumerable MDP: the expectation of their derivatives, without sampling (P3 of the notes).

Two states, two actions, horizon 3, tabular softmax. Surrogates are linear in the advantages, so a trajectory's
probability goes in as a factor of its advantages.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev

from metarl.rl.surrogates import SURROGATES

HORIZON = 3


def hessian(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return jacrev(jacrev(function))


class Mdp(NamedTuple):
    moves: Tensor  # [s, a, s'], probabilities
    rewards: Tensor  # [s, a]
    theta: Tensor  # [4]
    states: Tensor  # [N, H], all trajectories
    actions: Tensor  # [N, H]


@pytest.fixture(scope="module")
def mdp() -> Mdp:
    rng = np.random.default_rng(1)
    moves, rewards, theta = rng.dirichlet(np.ones(2), size=(2, 2)), rng.normal(size=(2, 2)), 0.5 * rng.normal(size=4)
    paths = torch.tensor(list(itertools.product((0, 1), repeat=2 * HORIZON - 1)))  # actions, then later states
    states = torch.cat([torch.zeros(len(paths), 1, dtype=torch.int64), paths[:, HORIZON:]], dim=1)
    return Mdp(*(torch.from_numpy(x) for x in (moves, rewards, theta)), states, paths[:, :HORIZON])


def log_probs(mdp: Mdp, theta: Tensor) -> Tensor:
    return theta.view(2, 2).log_softmax(-1)[mdp.states, mdp.actions]


def probabilities(mdp: Mdp, theta: Tensor) -> Tensor:
    """Of all trajectories, `[N]`."""
    moves = mdp.moves[mdp.states[:, :-1], mdp.actions[:, :-1], mdp.states[:, 1:]]
    return log_probs(mdp, theta).sum(-1).exp() * moves.prod(-1)


def expected_return(mdp: Mdp, theta: Tensor) -> Tensor:
    """By dynamic programming, independent of trajectories."""
    policy, value = theta.view(2, 2).softmax(-1), torch.zeros(2, dtype=theta.dtype)
    for _ in range(HORIZON):
        value = (policy * (mdp.rewards + mdp.moves @ value)).sum(-1)
    return value[0]


def expectation(mdp: Mdp, name: str, theta: Tensor) -> Tensor:
    """The expected return as the surrogate has it, over trajectories of the acting policy at `mdp.theta`."""
    rewards = mdp.rewards[mdp.states, mdp.actions]
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)
    advantages = probabilities(mdp, mdp.theta)[:, None] * len(rewards) * to_go
    acting = log_probs(mdp, mdp.theta)
    return -HORIZON * SURROGATES[name](log_probs(mdp, theta), acting, advantages, torch.ones_like(to_go))


def test_the_problem_is_the_notes(mdp: Mdp) -> None:
    assert float(probabilities(mdp, mdp.theta).sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(hessian(lambda t: expected_return(mdp, t))(mdp.theta).norm()) == pytest.approx(0.096645, abs=5e-7)


@pytest.mark.parametrize("name", SURROGATES)
def test_the_gradient_is_the_policy_gradient(mdp: Mdp, name: str) -> None:
    got = grad(lambda t: expectation(mdp, name, t))(mdp.theta)
    torch.testing.assert_close(got, grad(lambda t: expected_return(mdp, t))(mdp.theta), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("name", "error"), [("dice", 0.0), ("ratio", 0.907), ("reinforce", 3.933)])
def test_the_hessian(mdp: Mdp, name: str, error: float) -> None:
    exact = hessian(lambda t: expected_return(mdp, t))(mdp.theta)
    got = float((hessian(lambda t: expectation(mdp, name, t))(mdp.theta) - exact).norm() / exact.norm())
    assert got == pytest.approx(error, abs=1e-8 if name == "dice" else 5e-4)


def test_every_surrogate_has_its_error_here() -> None:
    assert set(SURROGATES) == {"dice", "ratio", "reinforce"}


@pytest.mark.parametrize("name", SURROGATES)
def test_masked_steps_change_nothing_but_the_divisor_stays(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    theta, old, advantages = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    mask, padded = torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.float64)
    padded[:, :3] = 1.0

    def pad(x: Tensor) -> Tensor:
        return torch.cat([x, torch.full_like(x, 0.7)], dim=1)  # anything finite

    def short(x: Tensor) -> Tensor:
        return SURROGATES[name](x, old, advantages, mask)

    def long(x: Tensor) -> Tensor:
        return SURROGATES[name](pad(x), pad(old), pad(advantages), padded)

    for derivative in (lambda f: f, grad, hessian):
        torch.testing.assert_close(derivative(short)(theta), 2 * derivative(long)(theta))


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_what_comes_after_the_end_cannot_overflow(name: str) -> None:
    log_probs = torch.tensor([[-1.0, 500.0]], requires_grad=True)  # the second step never happened
    old, advantages, mask = torch.tensor([[-1.0, -500.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    loss = SURROGATES[name](log_probs, old, advantages, mask)
    (g,) = torch.autograd.grad(loss, log_probs)
    torch.testing.assert_close(g, torch.tensor([[-1.0, 0.0]]))
