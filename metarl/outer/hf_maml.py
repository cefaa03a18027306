"""Hessian-free MAML (Fallah et al., 2020, eq. 1.7-1.10): H v by a central difference along v, on D_h.

    H(w; D_h) v  ~  [grad f(w + delta v; D_h) - grad f(w - delta v; D_h)] / (2 delta)

Both gradients use the same D_h, so their noise cancels. The default probe length delta |v| is r (1 + |w|), relative to
the parameters: r = 1e-2 in float32, 1e-4 in float64. The published rule delta = 1 / (6 rho alpha |v|) has the constant
probe length 1 / (6 rho alpha). Its error is a constant fraction of |v| at any batch size; it is an option.

In float32 the default costs accuracy. With tanh policies of two layers of 32 units H v is 0.23 to 0.51 % off, with 100
units 0.53 to 1.7 % (medians over tasks; at worst 6.3 %). That is the third derivative, not rounding: in float64 the
medians are 2e-7 to 1.7e-6, at worst 6.6e-6. In the meta-gradient it is multiplied by alpha: at most 0.08 % at
alpha = 0.1. With ReLUs the difference also sees the kinks that the Hessian does not.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.func import vmap

from metarl import tree
from metarl.derivatives import gradients
from metarl.errors import check_choice, check_real
from metarl.inner import make_sgd
from metarl.learned_rules import StepSizes
from metarl.outer.maml import adapt_and_pull_back
from metarl.outer.pull_back import HessianData, Multiply
from metarl.outer.registry import Method, register
from metarl.types import Batch, Inner, Params, TaskBatch

ProbeLength: TypeAlias = Callable[[Params], Tensor]
"""The length of one task's probe, delta |v|, from its parameters; a scalar."""


def relative_length(w: Params) -> Tensor:
    """r (1 + |w|), with r from the precision of `w`."""
    size = tree.norm(w)
    return (1e-4 if size.dtype == torch.float64 else 1e-2) * (1 + size)


def published_length(rho: float, inner_lr: float) -> ProbeLength:
    """1 / (6 rho alpha), infinite on a quadratic (rho = 0), where the clamp makes it finite."""
    check_real("rho", rho, open_low=False)
    length = 1 / (6 * rho * inner_lr) if rho > 0 else torch.inf
    return lambda w: torch.full_like(tree.norm(w), length)


def shift(w: Params, delta: Tensor | float, u: Params) -> Params:
    """`w + delta u`; leaves that `u` lacks count as zero."""
    return {k: w[k] + delta * u[k] if k in u else w[k] for k in w}


def central_difference(probe_length: ProbeLength) -> Multiply:
    """A Hessian-vector product from two gradients; exactly zero where the vector is zero."""

    def delta(w: Params, u: Params) -> Tensor:
        size, w = tree.norm(u), {k: leaf for k, leaf in w.items() if k in u}
        # a shorter probe is lost in rounding, a longer one does not approximate a derivative
        shortest = 1e-7 if size.dtype == torch.float64 else 1e-4
        return probe_length(w).clamp(shortest, 10.0) / torch.where(size > 0, size, 1.0)

    def multiply(tasks: TaskBatch, w: Params, batch: Batch, u: Params) -> Params:
        d = vmap(delta)(w, u)  # [T]
        above = gradients(tasks, vmap(shift)(w, d, u), batch)
        below = gradients(tasks, vmap(shift)(w, -d, u), batch)  # same D_h on both sides: the noise cancels
        return vmap(lambda a, b, d: tree.tree_map(lambda x, y: (x - y) / (2 * d), a, b))(above, below, d)

    return multiply


@register("hf_maml")
def hf_maml(
    inner_lr: float = 0.1,
    inner_steps: int = 1,
    *,
    hessian_data: HessianData = "fresh",
    delta: Literal["relative", "published"] = "relative",
    rho: float | None = None,
    learn_inner_lr: StepSizes | None = None,
) -> Method:
    """Hessian-free MAML: two more gradients for each inner step, no second derivative and no graph.

    `delta` chooses the rule for the probe; `published` needs `rho`, the Lipschitz constant of the Hessian, and uses the
    initial step size. `learn_inner_lr` is the same as for `maml`.

    Example, on (x - 1)^2 from x = 0:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = hf_maml(inner_lr=0.25)
        >>> method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # (1 - 0.25 * 2) grad f(0.5)
        tensor([-0.5000])
    """
    published = check_choice("delta", delta, ("relative", "published")) == "published"
    if published != (rho is not None):
        raise ValueError(f"rho must be given if delta='published', and only then, got rho={rho!r} and delta={delta!r}")
    probe_length = relative_length if rho is None else published_length(rho, inner_lr)
    multiply = central_difference(probe_length)
    update = adapt_and_pull_back(multiply, hessian_data)
    inner = Inner(make_sgd(inner_lr, inner_steps, learn_inner_lr), inner_steps)
    return Method(update, inner, needs_hessian=True, replays=True)
