"""Reptile (Nichol, Achiam, Schulman, 2018): move towards the adapted parameters.

    G(w) = w - w_N

D_o needs no gradient; it is drawn once, to score the adapted parameters as for every other method.
"""

from metarl.derivatives import scores
from metarl.inner import adapt, sgd
from metarl.outer.registry import Method, register
from metarl.tree import broadcast, subtract
from metarl.types import Inner, MetaGrad, Params, TaskBatch


def displacement(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    """Adapt and return `w - w_N`."""
    end = adapt(params, tasks, inner)
    return MetaGrad(subtract(broadcast(params, tasks.num_tasks), end), scores(tasks, end, tasks.draw(end, "outer")))


@register("reptile")
def reptile(inner_lr: float = 0.1, inner_steps: int = 3) -> Method:
    """Reptile; with one inner step it is joint training on all tasks.

    Example, on (x - 1)^2 from x = 0:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = reptile(inner_lr=0.25, inner_steps=2)
        >>> method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # 0 - 0.75
        tensor([-0.7500])
    """
    inner = Inner(sgd(inner_lr), inner_steps)
    return Method(displacement, inner, follows_adapted_loss=False, trains_frozen_params=False)
