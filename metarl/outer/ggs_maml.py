"""GGS-MAML (Ji, Yang, Liang, first version of arXiv 2002.07836, 2020): Hessians by gradients at Gaussian perturbations.

    H(w; D_h) v  ~  1/K sum_{k=1}^{K} [grad f(w + s u_k; D_h) - grad f(w - s u_k; D_h)] / (2 s) <u_k, v>,  u_k ~ N(0, I)

This is an unbiased estimate of the Hessian of f smoothed by N(0, s^2 I); on a quadratic that is H itself. Its variance
grows with the number of parameters, where `hf_maml`, which looks along v itself, has none: 2 K gradients buy K of P
directions. The idea is from the paper's abstract; its released code has a forward difference and, in reinforcement
learning, new episodes at every perturbed point. Both sides on the same D_h, whose noise then cancels, are our choice.

The directions of a task and step follow from the parameters w (`metarl.outer.directions`).
"""

import itertools

import torch
from torch import Tensor
from torch.func import vmap

from metarl import tree
from metarl.derivatives import gradients, task_numbers
from metarl.errors import check_int, check_real
from metarl.inner import sgd
from metarl.outer.directions import normal_directions
from metarl.outer.hf_maml import relative_length, shift
from metarl.outer.maml import adapt_and_pull_back
from metarl.outer.pull_back import HessianData, Multiply, check_hessian_data
from metarl.outer.registry import Method, register
from metarl.partial import start
from metarl.types import Batch, Inner, MetaGrad, Params, TaskBatch


def smoothed_products(at: Params, directions: int, smoothing: float | None) -> Multiply:
    """A Hessian-vector product from gradients at `directions` pairs of points; `at` gives the directions.

    Leaves that the vector lacks count as zero and are not perturbed.
    """
    products = itertools.count()  # the products of one update, in order

    def deviation(w: Params, v: Params) -> Tensor:
        w = {name: w[name] for name in v}
        numbers = sum(leaf.numel() for leaf in w.values())
        return relative_length(w) / numbers**0.5 if smoothing is None else torch.full_like(tree.norm(w), smoothing)

    def multiply(tasks: TaskBatch, w: Params, batch: Batch, v: Params) -> Params:
        product, s, total = next(products), vmap(deviation)(w, v), tree.tree_map(torch.zeros_like, w)  # s: [T]
        for k in range(directions):
            u = normal_directions(at, (product, k), task_numbers(tasks), v)
            above = gradients(tasks, vmap(shift)(w, s, u), batch)
            below = gradients(tasks, vmap(shift)(w, -s, u), batch)  # same D_h on both sides
            weight = vmap(tree.dot)(u, v) / (2 * directions * s)
            total = vmap(tree.add_scaled)(total, weight, tree.subtract(above, below))
        return total

    return multiply


@register("ggs_maml")
def ggs_maml(
    inner_lr: float = 0.1,
    inner_steps: int = 1,
    *,
    hessian_data: HessianData = "fresh",
    directions: int = 5,
    smoothing: float | None = None,
) -> Method:
    """GGS-MAML: 2 K more gradients for each inner step, no second derivative. `hessian_data` is the same as for `maml`.

    `directions` is K. `smoothing` is s, the standard deviation of a perturbation of one number. By default a
    perturbation is about as long as `hf_maml`'s probe, r (1 + |w|): s is that over sqrt(P) for P parameters.

    Example, on (x - 1)^2 from x = 0, where H = 2, and the mean of u^2 over four directions takes the place of 1:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> w, method = {"x": torch.tensor(0.0)}, ggs_maml(inner_lr=0.25, directions=4, smoothing=0.1)
        >>> u = [normal_directions(w, (0, k), range(1), {"x": torch.zeros(1)})["x"] for k in range(4)]
        >>> mean = sum(x.square() for x in u) / 4
        >>> torch.allclose(method.update(w, tasks, method.inner).grads["x"], -(1 - 0.25 * 2 * mean), atol=1e-5)
        True
    """
    check_int("directions", directions)
    if smoothing is not None:
        check_real("smoothing", smoothing)
    hessian_data = check_hessian_data(hessian_data)

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        multiply = smoothed_products(start(inner.rule, params), directions, smoothing)
        return adapt_and_pull_back(multiply, hessian_data)(params, tasks, inner)

    return Method(update, Inner(sgd(inner_lr), inner_steps), needs_hessian=True, replays=True)
