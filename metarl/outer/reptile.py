"""Reptile (Nichol, Achiam, Schulman, 2018): move towards the adapted parameters.

    G(w) = w - w_N

There is no gradient on D_o; it is drawn once, to score the adapted parameters as for every other method.
"""

from metarl.derivatives import scores
from metarl.inner import adapt, sgd
from metarl.outer.registry import Method, register
from metarl.tree import broadcast, subtract
from metarl.types import Inner, MetaGrad, Params, TaskBatch


def displacement(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    """How far adaptation went, with its sign turned."""
    end = adapt(params, tasks, inner)
    return MetaGrad(subtract(broadcast(params, tasks.num_tasks), end), scores(tasks, end, tasks.draw(end, "outer")))


@register("reptile")
def reptile(inner_lr: float = 0.1, inner_steps: int = 3) -> Method:
    """Reptile; with one inner step it is joint training on all tasks."""
    return Method(displacement, Inner(sgd(inner_lr), inner_steps))
