"""MAML (Finn, Abbeel, Levine, 2017; Fallah et al., 2020, eq. 1.5), exact for any number of inner steps.

    G(w) = [ prod_{j=0}^{N-1} (I - alpha H(w_j; D_h)) ] grad f(w_N; D_o)

The papers draw D_h independently of D_in. `hessian_data="reuse"` reuses the inner batch for the Hessian: this saves a
third of the environment steps and adds a bias, because the step and the Hessian then share their noise.
"""

from metarl.derivatives import hessian_vector_products
from metarl.inner import adaptation_path, has_adjoint, make_sgd
from metarl.learned_rules import StepSizes, hide_meta
from metarl.outer.pull_back import HessianData, Multiply, check_hessian_data, outer_gradient, pull_back
from metarl.outer.registry import Method, register
from metarl.types import Inner, MetaGrad, OuterUpdate, Params, TaskBatch


def adapt_and_pull_back(multiply: Multiply | None, hessian_data: HessianData) -> OuterUpdate:
    """Adapt, take the gradient at the end and pull it back; `multiply` is the product with the Hessian of one step."""
    hessian_data = check_hessian_data(hessian_data)

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        tasks = hide_meta(tasks, params)
        path = adaptation_path(params, tasks, inner, batches=hessian_data == "reuse", grads=not has_adjoint(inner.rule))
        end = outer_gradient(tasks, path.params[-1])
        return end._replace(grads=pull_back(tasks, path, inner, end.grads, multiply, hessian_data))

    return update


@register("maml")
def maml(
    inner_lr: float = 0.1,
    inner_steps: int = 1,
    *,
    hessian_data: HessianData = "fresh",
    learn_inner_lr: StepSizes | None = None,
) -> Method:
    """Exact MAML; `hessian_data` says whether the Hessian gets a fresh batch or reuses the inner one.

    `learn_inner_lr` learns the step size: one number, or one for each layer, parameter, or layer and step.

    Example, on (x - 1)^2 from x = 0:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = maml(inner_lr=0.25)
        >>> method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # (1 - 0.25 * 2) grad f(0.5)
        tensor([-0.5000])
    """
    update = adapt_and_pull_back(hessian_vector_products, hessian_data)
    inner = Inner(make_sgd(inner_lr, inner_steps, learn_inner_lr), inner_steps)
    return Method(update, inner, needs_hessian=True, differentiates_twice=True, replays=True)
