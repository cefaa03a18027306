"""Linearised score function (Tang, 2022): E-MAML with the outcome of adaptation replaced by its linear expansion.

    g_j = (d w_{j+1} / d w_j)^T g_{j+1} + sum_{tau in D_j} c_tau grad log p(tau; w_j),    j = N-1, ..., 0
    c_tau = -(alpha / n) <g(tau; w_j), g_{j+1}>

E-MAML credits every inner trajectory tau with the whole outcome f^(w_N; D_o), whose noise grows with the number n of
trajectories. Here tau gets the credit c_tau: what its own part -(alpha / n) g(tau) of the inner step changes, to first
order. g(tau) is its gradient with the data held fixed, and the mean over tau is the inner step's. g_{j+1} is the
meta-gradient at w_{j+1}, with the score terms of the later steps, so that the credit is chained along the path.

The paper's claim is a variance of O(1/n), against Theta(n) for E-MAML, at the price of a bias of O(n^{-1/2}); the
certificates measure both. This form of the estimator, also for several steps, is our derivation from the abstract.

With a linear inner rule the two terms are MAML's, with the Hessian estimated on D_j by

    H^ = 1/n sum_tau [g'(tau) + s(tau) g(tau)^T],    s = grad log p,    g' = d g / d w,

which is unbiased for the Hessian. On data that do not depend on the parameters this is MAML with D_h reused.
"""

from torch import Tensor

from metarl.derivatives import as_linearised, hessian_vector_products, linear_effects, score_terms
from metarl.inner import adaptation_path, has_adjoint, sgd
from metarl.outer.pull_back import outer_gradient, pull_back
from metarl.outer.registry import Method, register
from metarl.tree import add
from metarl.types import Batch, Inner, MetaGrad, Params, TaskBatch


def linearised_score(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    """Adapt, and pull the gradient at the end back with MAML's and the linearised score term of every step."""
    sampled = as_linearised(tasks)
    path = adaptation_path(params, tasks, inner, grads=not has_adjoint(inner.rule))
    end = outer_gradient(tasks, path.params[-1])

    def multiply(tasks: TaskBatch, w: Params, data: Batch, u: Params) -> Params:
        # u is what g_{j+1} is through the rule: -alpha g_{j+1} for a step of gradient descent
        effects: Tensor = linear_effects(tasks, w, data, u)  # [T, n], the c_tau times n
        through_step = hessian_vector_products(tasks, w, data, u, sampled.frozen_loss)
        return add(through_step, score_terms(tasks, w, data, effects / effects.shape[1]))

    return end._replace(grads=pull_back(tasks, path, inner, end.grads, multiply, "reuse"))


@register("lsf")
def lsf(inner_lr: float = 0.1, inner_steps: int = 1) -> Method:
    """Linearised score function: between `maml`, without the score term, and `e_maml`, with the outcome's noise in it.

    It draws no D_h. It needs what `e_maml` needs, and each trajectory's own loss (`metarl.types.LinearisedTaskBatch`).

    Example, on (x - 1)^2 from x = 0. Its data do not depend on x, so the score term is zero, as in MAML:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = lsf(inner_lr=0.25)
        >>> method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # (1 - 0.25 * 2) grad f(0.5)
        tensor([-0.5000])
    """
    return Method(linearised_score, Inner(sgd(inner_lr), inner_steps), differentiates_twice=True)
