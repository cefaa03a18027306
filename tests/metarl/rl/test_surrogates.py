"""Surrogate losses on an enumerable MDP: the expectation of their derivatives, without sampling.

Two states, two actions, horizon 3, tabular softmax. Surrogates are linear in the advantages, so a trajectory's
probability goes in as a factor of its advantages.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev

from metarl.envs.exact.enumeration import probabilities, trajectories
from metarl.envs.exact.tabular import two_state_problem
from metarl.rl.surrogates import SURROGATES, make_surrogate

TASKS, TABLES, LOGITS = two_state_problem()
TASK = {key: torch.as_tensor(value) for key, value in TABLES.items()}
THETA = torch.as_tensor(LOGITS).flatten()
ALL = trajectories(TASKS, TASK)
ERRORS = [("dice", None, 0.0), ("ratio", None, 0.907), ("reinforce", None, 3.933)]
ERRORS += [("loaded_dice", 1.0, 0.0), ("loaded_dice", 0.5, 0.510), ("loaded_dice", 0.0, 0.907)]
SETTINGS = [(name, lam) for name, lam, _ in ERRORS]


def hessian(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return jacrev(jacrev(function))


def log_probs(theta: Tensor) -> Tensor:
    return theta.view(2, 2).log_softmax(-1)[ALL.states, ALL.actions]


def expected_return(theta: Tensor) -> Tensor:
    """By dynamic programming, independent of trajectories."""
    return TASKS.expected_return({"logits": theta.view(2, 2)}, TASK)


def expectation(name: str, lam: float | None, theta: Tensor) -> Tensor:
    """The expected return as the surrogate has it, over trajectories of the acting policy at `THETA`."""
    to_go = ALL.rewards.flip(-1).cumsum(-1).flip(-1)
    weights = len(to_go) * probabilities({"logits": THETA.view(2, 2)}, ALL)
    surrogate = make_surrogate(name, lam)
    return -3 * surrogate(log_probs(theta), log_probs(THETA), weights[:, None] * to_go, torch.ones_like(to_go))


def test_the_problem_is_the_known_one() -> None:
    assert float(hessian(expected_return)(THETA).norm()) == pytest.approx(0.096645, abs=5e-7)


@pytest.mark.parametrize(("name", "lam"), SETTINGS)
def test_the_gradient_is_the_policy_gradient(name: str, lam: float | None) -> None:
    got = grad(lambda t: expectation(name, lam, t))(THETA)
    torch.testing.assert_close(got, grad(expected_return)(THETA), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("name", "lam", "error"), ERRORS)
def test_the_hessian(name: str, lam: float | None, error: float) -> None:
    exact = hessian(expected_return)(THETA)
    got = float((hessian(lambda t: expectation(name, lam, t))(THETA) - exact).norm() / exact.norm())
    assert got == pytest.approx(error, abs=5e-4 if error else 1e-8)


def test_every_surrogate_has_its_error_here() -> None:
    assert {name for name, _, _ in ERRORS} == set(SURROGATES)


@pytest.mark.parametrize(("name", "lam"), SETTINGS)
def test_masked_steps_change_nothing_but_the_divisor_stays(name: str, lam: float | None) -> None:
    surrogate = make_surrogate(name, lam)
    generator = torch.Generator().manual_seed(0)
    theta, old, advantages = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    mask, padded = torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.float64)
    padded[:, :3] = 1.0

    def pad(x: Tensor) -> Tensor:
        return torch.cat([x, torch.full_like(x, 0.7)], dim=1)  # anything finite

    def short(x: Tensor) -> Tensor:
        return surrogate(x, old, advantages, mask)

    def long(x: Tensor) -> Tensor:
        return surrogate(pad(x), pad(old), pad(advantages), padded)

    for derivative in (lambda f: f, grad, hessian):
        torch.testing.assert_close(derivative(short)(theta), 2 * derivative(long)(theta))


@pytest.mark.parametrize(("name", "lam"), SETTINGS)
def test_what_comes_after_the_end_cannot_overflow(name: str, lam: float | None) -> None:
    log_probs = torch.tensor([[-1.0, 500.0]], requires_grad=True)  # the second step never happened
    old, advantages, mask = torch.tensor([[-1.0, -500.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    loss = make_surrogate(name, lam)(log_probs, old, advantages, mask)
    (g,) = torch.autograd.grad(loss, log_probs)
    torch.testing.assert_close(g, torch.tensor([[-1.0, 0.0]]))
