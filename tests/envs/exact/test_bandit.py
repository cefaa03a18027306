"""Meta-gradient estimators on a Gaussian bandit whose every expectation is a polynomial in normal moments.

Actions a ~ N(w, 1), reward -(a - c)^2, loss -J(w) = (w - c)^2 + 1, one inner step on 4 sampled actions, no baseline.
With e = a - w ~ N(0, 1) and d = c - w, one action's gradient is g = e (e - d)^2 and its second derivative is
h = (e^2 - 1)(e - d)^2 for the likelihood ratio, h = -(e - d)^2 for the log-probability. So

    E[G] = (1 - alpha E[h]) 2 (w_1 - c) + 2 alpha^2 cov(h, g) / 4,    w_1 = w - alpha E[g]

where the covariance is there only if step and Hessian share their data. Only the ratio on fresh data is unbiased for
the product form, and only the score term of `e_maml` makes the gradient of the sampled objective.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad

from metarl.envs import GaussianBandit
from metarl.envs.exact.expected_update import Estimate, expected_update, product_form
from metarl.envs.exact.policies import GaussianMean
from metarl.outer import make_method
from metarl.rl import ReinforcementLearning

C, W, ALPHA, ACTIONS, TASKS = 1.5, 0.3, 0.2, 4, 400_000
D = C - W

PRODUCT_FORM = (1 - ALPHA * 2) * 2 * (W + ALPHA * 2 * D - C)  # (I - alpha H) grad(-J)(w_1)
COVARIANCE = {"ratio": -48 * D - 8 * D**3 + 4 * D, "reinforce": 12 * D + 4 * D**3 - 2 * D * (1 + D**2)}  # of h and g
MEAN_HESSIAN = {"ratio": 2.0, "reinforce": -(1 + D**2)}
SAMPLED_OBJECTIVE = 2 * (1 - 2 * ALPHA) * (W + 2 * ALPHA * D - C) - ALPHA**2 * (28 * D + 4 * D**3) / ACTIONS

BANDIT = GaussianBandit()
PARAMS = {"mean": torch.tensor([W], dtype=torch.float64)}
TASK = {"centre": np.array([C], np.float32)}
ONE = {"centre": torch.tensor([C], dtype=torch.float64)}


def expected(surrogate: str, hessian_data: str) -> float:
    end = 2 * (W + ALPHA * 2 * D - C)
    shared = 2 * ALPHA**2 * COVARIANCE[surrogate] / ACTIONS if hessian_data == "reuse" else 0.0
    return (1 - ALPHA * MEAN_HESSIAN[surrogate]) * end + shared


def measure(surrogate: str, outer: str, **options: Any) -> Estimate:
    source = ReinforcementLearning(
        BANDIT,
        GaussianMean().double(),
        episodes=ACTIONS,
        surrogate=surrogate,
        discount=1.0,
        baseline="none",
        normalize_advantages=False,
    )
    found = expected_update(source, TASK, PARAMS, make_method(outer, ALPHA, 1, **options), TASKS)
    print(f"{outer} {surrogate} {options}: {float(found.mean):.4f} +- {float(found.stderr):.4f}")
    assert float(found.stderr) < 0.03
    return found


def test_closed_forms_are_the_published_ones() -> None:
    assert pytest.approx(-0.864) == PRODUCT_FORM
    assert pytest.approx(-1.26912) == SAMPLED_OBJECTIVE
    assert expected("ratio", "fresh") == pytest.approx(PRODUCT_FORM)
    exact = product_form(lambda w: -BANDIT.expected_return(w, ONE), PARAMS, ALPHA)["mean"]
    assert float(exact) == pytest.approx(PRODUCT_FORM, rel=1e-12)
    objective = grad(lambda w: BANDIT.sampled_objective(w, ONE, ALPHA, ACTIONS))(PARAMS)["mean"]
    assert float(objective) == pytest.approx(SAMPLED_OBJECTIVE, rel=1e-12)


@pytest.mark.parametrize(
    ("outer", "surrogate", "hessian_data", "near", "unbiased"),
    [
        ("maml", "ratio", "fresh", -0.864, True),
        ("hf_maml", "ratio", "fresh", -0.864, True),
        ("maml", "ratio", "reuse", -2.196, False),
        ("maml", "reinforce", "fresh", -2.143, False),
        ("maml", "reinforce", "reuse", -1.834, False),
    ],
)
def test_meta_gradient(outer: str, surrogate: str, hessian_data: str, near: float, unbiased: bool) -> None:
    found = measure(surrogate, outer, hessian_data=hessian_data)
    assert expected(surrogate, hessian_data) == pytest.approx(near, abs=5e-4)
    assert abs(found.z_score(torch.tensor([expected(surrogate, hessian_data)]))) < 4
    assert (abs(found.z_score(torch.tensor([PRODUCT_FORM]))) < 4) == unbiased  # the wrong ones are told apart
    assert abs(found.z_score(torch.tensor([SAMPLED_OBJECTIVE]))) > 4


@pytest.mark.parametrize("baseline", ["none", "tasks", "trajectories"])
def test_the_score_term_makes_the_gradient_of_the_sampled_objective(baseline: str) -> None:
    found = measure("reinforce", "e_maml", baseline=baseline)
    assert abs(found.z_score(torch.tensor([SAMPLED_OBJECTIVE]))) < 4
    assert abs(found.z_score(torch.tensor([PRODUCT_FORM]))) > 20
