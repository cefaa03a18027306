"""The gradient of learned step sizes with sampled data, on problems with exact answers.

    dL/dalpha = -<grad f(w_1; D_o), grad f(w_0; D_in)>,    w_1 = w_0 - alpha grad f(w_0; D_in)

D_in is in both factors. The distribution of D_in does not depend on alpha, so with one inner step this is an unbiased
estimate for the *sampled* objective E_{D_in} f(w_1), for every `hessian_data`. It is biased for the product form, which
takes exact inner gradients: the noise of D_in lowers the best step size. Two independent batches, one for w_1 and one
for the factor, remove that bias where f is quadratic. With several steps alpha also changes where later data are
sampled, and only a score term would see that.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad

from metarl import MetaLearner, Method, make_method
from metarl.agents import make_policy
from metarl.derivatives import gradients
from metarl.engine import Engine
from metarl.envs import GaussianBandit, Navigation
from metarl.envs.exact.enumeration import EnumeratedTaskBatch, sampled_objective
from metarl.envs.exact.expected_update import expected_update
from metarl.envs.exact.policies import GaussianMean, TabularSoftmax
from metarl.envs.exact.tabular import two_state_problem
from metarl.inner import LearnedSgd, adaptation_path
from metarl.learned_rules import META, STEP_SIZES, hide_meta
from metarl.outer import outer_gradient
from metarl.rl import ReinforcementLearning
from metarl.rl.surrogates import make_surrogate
from metarl.tree import broadcast
from metarl.types import Inner, MetaGrad, Params, TaskBatch

ALPHA, PULLS, SAMPLES = 0.2, 4, 200_000
BANDIT, ONE = GaussianBandit(), {"centre": torch.tensor([1.5], dtype=torch.float64)}
MEAN = {"mean": torch.tensor([0.3], dtype=torch.float64)}
NAME = f"{META}inner_lr"


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def slope_of_sampled_objective() -> float:
    """By autograd of the closed form."""
    alpha: Any = double(ALPHA)
    return float(grad(lambda a: BANDIT.sampled_objective(MEAN, ONE, a, PULLS))(alpha))


def slope_of_product_form() -> float:
    """f(w) = (w - c)^2 + 1 and f(w - alpha f'(w)) = (1 - 2 alpha)^2 d^2 + 1."""
    d = 1.5 - 0.3
    return -4 * (1 - 2 * ALPHA) * d**2


def with_a_fresh_factor(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    """The inner product with a second batch at w_0, which w_1 does not depend on."""
    tasks = hide_meta(tasks, params)
    end = outer_gradient(tasks, adaptation_path(params, tasks, inner).params[-1])
    w = broadcast(params, tasks.num_tasks)
    fresh = gradients(tasks, w, tasks.draw(w, "hessian"))
    return end._replace(grads={**end.grads, NAME: -(end.grads["mean"] * fresh["mean"]).sum(1)})


def measure(method: Method) -> tuple[float, float]:
    """The mean of dL/dalpha on the bandit, and its standard error."""
    source = ReinforcementLearning(
        *(BANDIT, GaussianMean().double()), episodes=PULLS, discount=1.0, baseline="none", normalize_advantages=False
    )
    params = {**MEAN, NAME: double(ALPHA)}
    found = expected_update(source, {"centre": np.array([1.5], np.float32)}, params, method, SAMPLES)
    print(f"{float(found.mean[1]):.3f} +- {float(found.stderr[1]):.3f}")
    return float(found.mean[1]), float(found.stderr[1])


@pytest.mark.parametrize(
    ("name", "options"),
    [("maml", {}), ("maml", {"hessian_data": "reuse"}), ("fo_maml", {}), ("hf_maml", {})],
)
def test_one_step_is_unbiased_for_the_sampled_objective(name: str, options: dict[str, Any]) -> None:
    """The sampled objective has the slope 0.267, the product form -3.456."""
    mean, error = measure(make_method(name, ALPHA, 1, learn_inner_lr="scalar", **options))
    assert slope_of_sampled_objective() == pytest.approx(0.26736)
    assert abs(mean - slope_of_sampled_objective()) < 4 * error
    assert abs(mean - slope_of_product_form()) > 20 * error


def test_a_fresh_factor_is_unbiased_for_the_product_form() -> None:
    inner = Inner(LearnedSgd("scalar", ALPHA), 1)
    mean, error = measure(Method(with_a_fresh_factor, inner))
    assert abs(mean - slope_of_product_form()) < 4 * error
    assert abs(mean - slope_of_sampled_objective()) > 20 * error


@pytest.mark.parametrize("surrogate", ["ratio", "dice", "reinforce"])
@pytest.mark.parametrize(
    ("name", "steps", "error"),
    [("maml", 1, 0.0), ("fo_maml", 1, 0.0), ("maml", 2, None), ("fo_maml", 2, None)],
)
def test_all_outcomes_of_the_tabular_problem(name: str, steps: int, error: float | None, surrogate: str) -> None:
    """The exact expectation over all inner trajectories; with two steps it differs from the objective's slope."""
    tasks, task, logits = two_state_problem()
    one = {key: torch.as_tensor(value) for key, value in task.items()}
    w, alpha = {"logits": torch.as_tensor(logits)}, 0.5 * tasks.horizon
    value: Any = double(alpha)
    wanted = float(grad(lambda a: sampled_objective(tasks, one, w, a, steps))(value))
    policy = TabularSoftmax(2, 2).double()
    batch = EnumeratedTaskBatch(tasks, one, policy, make_surrogate(surrogate, None), steps)
    method = make_method(name, alpha, steps, learn_inner_lr="scalar")
    with Engine(record=False, chunk_size=4096).current():
        params = {**w, NAME: double(alpha)}
        grads = method.update(params, hide_meta(batch, params), method.inner).grads
    found = float(batch.expectation({NAME: grads[NAME]})[NAME])
    relative = found / wanted - 1
    print(f"{name} {steps} {surrogate}: {found:.5f}, objective {wanted:.5f}, relative error {relative:+.3f}")
    if error is not None:
        assert relative == pytest.approx(error, abs=1e-9)
    else:
        assert abs(relative) > 1e-3


@pytest.mark.parametrize("kind", STEP_SIZES)
def test_a_policy_learns_the_step_size_of_its_standard_deviation_too(kind: Any) -> None:
    tasks = Navigation(horizon=5)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]})
    source = ReinforcementLearning(tasks, policy, episodes=4)
    options = {"learn_inner_lr": kind}
    learner = MetaLearner(source, "maml", inner_lr=0.1, inner_steps=2, outer_options=options, meta_batch_size=3)
    of_log_std = {"scalar": NAME, "parameter": f"{NAME}/policy.log_std"}.get(kind, f"{NAME}/policy")
    assert of_log_std in learner.params
    before = learner.params[of_log_std]
    after = learner.learn(2).params[of_log_std]
    assert bool((after != before).all())
