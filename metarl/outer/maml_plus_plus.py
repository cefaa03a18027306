"""MAML++ (Antoniou, Edwards, Storkey, 2019): exact MAML, annealed from an easier problem, with more meta-parameters.

    L(w) = sum_{j=1}^{N} v_j f(w_j; D_o,j),    w_{j+1} = w_j - a_j grad f(w_j; D_j),    a_j one for each layer

In iteration e of the E with several losses, all v_j begin at 1/N, and the sum stays 1:

    v_j = max(1/N (1 - e/E), 0.03/N)  for j < N,    v_N = 1 - (v_1 + ... + v_{N-1})

After them only the loss at w_N remains. The first iterations count Hessians as zero (derivative-order annealing). The
step sizes a_j are meta-parameters. So are the weights and biases of batch normalisation, with one set for each point
w_j. The paper's fifth part, a cosine schedule of the outer step size, is `metarl.schedules.Cosine`.
"""

from metarl.derivatives import gradients, hessian_vector_products
from metarl.errors import check_bool, check_int
from metarl.inner import adaptation_path, has_adjoint, make_sgd
from metarl.learned_rules import PerStepNorm, StepSizes, hide_meta
from metarl.outer.maml import adapt_and_pull_back
from metarl.outer.pull_back import HessianData, Multiply, check_hessian_data, outer_gradient, pull_back
from metarl.outer.registry import Annealing, Method, register
from metarl.tree import tree_map
from metarl.types import Inner, MetaGrad, OuterUpdate, Params, TaskBatch

LEAST = 0.03
"""What the weight of an earlier loss falls to, as a fraction of its first value."""


def loss_weights(steps: int, progress: float) -> list[float]:
    """v_1 ... v_N after the fraction `progress` of the iterations with several losses; their sum is 1.

    Example:
        >>> loss_weights(4, 0.0), loss_weights(4, 0.5)
        ([0.25, 0.25, 0.25, 0.25], [0.125, 0.125, 0.125, 0.625])
        >>> loss_weights(4, 1.0)
        [0.0, 0.0, 0.0, 1.0]
    """
    earlier = 0.0 if progress >= 1 else max(1 - progress, LEAST) / steps
    return [earlier] * (steps - 1) + [1 - (steps - 1) * earlier]


def multi_step_update(progress: float, multiply: Multiply | None, hessian_data: HessianData) -> OuterUpdate:
    """Adapt, take the gradient at every point after w_0, and pull the weighted gradients back along one path."""

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        tasks = hide_meta(tasks, params)
        path = adaptation_path(params, tasks, inner, batches=hessian_data == "reuse", grads=not has_adjoint(inner.rule))
        *weights, last = loss_weights(inner.steps, progress)
        # the gradients at w_1 ... w_N, each on a D_o drawn there
        earlier = {
            j: tree_map(lambda g, v=v: v * g, gradients(tasks, w, tasks.draw(w, "outer")))
            for j, (v, w) in enumerate(zip(weights, path.params[1:-1], strict=True), start=1)
        }
        end = outer_gradient(tasks, path.params[-1])
        # from w_N back to w_0; the earlier gradients join on the way
        cotangent = tree_map(lambda g: last * g, end.grads)
        return end._replace(grads=pull_back(tasks, path, inner, cotangent, multiply, hessian_data, earlier))

    return update


@register("maml_plus_plus")
def maml_plus_plus(
    inner_lr: float = 0.1,
    inner_steps: int = 5,
    *,
    hessian_data: HessianData = "fresh",
    learn_inner_lr: StepSizes | None = "layer-step",
    multi_step_iterations: int = 50,
    second_order_from: int = 25,
    per_step_norm: bool = True,
) -> Method:
    """MAML++. `hessian_data` and `learn_inner_lr` are the same as for `maml`.

    `multi_step_iterations` is E, and `second_order_from` the first iteration with Hessians; 0 turns either off.
    `per_step_norm` gives every step its own weights and biases of batch normalisation, if the network has it.

    Example, on (x - 1)^2 from x = 0, with the losses at 0.5 and 0.75 in the first iteration:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = maml_plus_plus(inner_lr=0.25, inner_steps=2, learn_inner_lr=None, second_order_from=0)
        >>> method.at(0)({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # 0.5 * 0.5 * (-1 + 0.5 * -0.5)
        tensor([-0.3125])
        >>> method.at(50)({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # 0.5 * 0.5 * -0.5
        tensor([-0.1250])
    """
    check_hessian_data(hessian_data)
    check_int("multi_step_iterations", multi_step_iterations, minimum=0)
    check_int("second_order_from", second_order_from, minimum=0)
    check_bool("per_step_norm", per_step_norm)

    def early(iteration: int) -> OuterUpdate:
        multiply = hessian_vector_products if iteration >= second_order_from else None
        if iteration >= multi_step_iterations:
            return adapt_and_pull_back(multiply, hessian_data)
        return multi_step_update(iteration / multi_step_iterations, multiply, hessian_data)

    rule = make_sgd(inner_lr, inner_steps, learn_inner_lr)
    return Method(
        adapt_and_pull_back(hessian_vector_products, hessian_data),
        Inner(PerStepNorm(rule, inner_steps) if per_step_norm else rule, inner_steps),
        needs_hessian=True,
        differentiates_twice=True,
        replays=True,
        annealing=Annealing(max(multi_step_iterations, second_order_from), early),
    )
