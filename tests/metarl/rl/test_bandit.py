"""Meta-gradient estimators on a Gaussian bandit whose every expectation is a polynomial in normal moments.

Actions a ~ N(w, 1), reward -(a - c)^2, loss -J(w) = (w - c)^2 + 1, one inner step on 4 sampled actions, no baseline.
With e = a - w ~ N(0, 1) and d = c - w, one action's gradient is g = e (e - d)^2 and its second derivative is
h = (e^2 - 1)(e - d)^2 for the likelihood ratio, h = -(e - d)^2 for the log-probability. So

    E[G] = (1 - alpha E[h]) 2 (w_1 - c) + 2 alpha^2 cov(h, g) / 4,    w_1 = w - alpha E[g]

where the covariance is there only if step and Hessian share their data. Only the ratio on fresh data is unbiased.
"""

import math

import pytest
import torch
from torch import Tensor

from metarl.outer import make_method
from metarl.rl.surrogates import SURROGATES
from metarl.types import Batch, Params, Role

C, W, ALPHA, ACTIONS, TASKS = 1.5, 0.3, 0.2, 4, 400_000
D = C - W

PRODUCT_FORM = (1 - ALPHA * 2) * 2 * (W + ALPHA * 2 * D - C)  # (I - alpha H) grad(-J)(w_1)
COVARIANCE = {"ratio": -48 * D - 8 * D**3 + 4 * D, "reinforce": 12 * D + 4 * D**3 - 2 * D * (1 + D**2)}  # of h and g
MEAN_HESSIAN = {"ratio": 2.0, "reinforce": -(1 + D**2)}


def expected(surrogate: str, hessian_data: str) -> float:
    end = 2 * (W + ALPHA * 2 * D - C)
    shared = 2 * ALPHA**2 * COVARIANCE[surrogate] / ACTIONS if hessian_data == "inner" else 0.0
    return (1 - ALPHA * MEAN_HESSIAN[surrogate]) * end + shared


class Bandit:
    """T copies of the bandit, as an oracle."""

    num_tasks = TASKS

    def __init__(self, surrogate: str, seed: int = 0) -> None:
        self.surrogate = SURROGATES[surrogate]
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, params: Params, role: Role) -> Batch:
        noise = torch.randn(TASKS, ACTIONS, 1, generator=self.generator, dtype=torch.float64)  # [T, E, H = 1]
        actions = params["w"][:, None, None] + noise
        return {"actions": actions, "old": -0.5 * noise**2, "advantages": -((actions - C) ** 2)}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        log_probs = -0.5 * (batch["actions"] - params["w"]) ** 2
        return self.surrogate(log_probs, batch["old"], batch["advantages"], torch.ones_like(log_probs))

    def score(self, params: Params, batch: Batch) -> Tensor:
        return batch["advantages"].mean()

    def cost(self, batch: Batch) -> dict[str, int]:
        return {"samples": batch["actions"].numel()}


def test_closed_forms_are_the_published_ones() -> None:
    assert pytest.approx(-0.864) == PRODUCT_FORM
    assert expected("ratio", "fresh") == pytest.approx(PRODUCT_FORM)


@pytest.mark.parametrize(
    ("outer", "surrogate", "hessian_data", "near", "unbiased"),
    [
        ("maml", "ratio", "fresh", -0.864, True),
        ("hf_maml", "ratio", "fresh", -0.864, True),
        ("maml", "ratio", "inner", -2.196, False),
        ("maml", "reinforce", "fresh", -2.143, False),
        ("maml", "reinforce", "inner", -1.834, False),
    ],
)
def test_meta_gradient(outer: str, surrogate: str, hessian_data: str, near: float, unbiased: bool) -> None:
    method = make_method(outer, ALPHA, 1, hessian_data=hessian_data)
    w = {"w": torch.tensor(W, dtype=torch.float64)}
    grads = method.update(w, Bandit(surrogate), method.inner).grads["w"]
    mean, stderr = float(grads.mean()), float(grads.std()) / math.sqrt(TASKS)
    print(f"{outer} {surrogate} {hessian_data}: {mean:.4f} +- {stderr:.4f}")
    assert expected(surrogate, hessian_data) == pytest.approx(near, abs=5e-4)
    assert stderr < 0.03
    assert abs(mean - near) < 4 * stderr
    assert (abs(mean - PRODUCT_FORM) < 4 * stderr) == unbiased  # the wrong ones are told apart
