"""First-order MAML (Finn et al., 2017; Fallah et al., 2020, eq. 1.6): the adjoint of every step is the identity.

    G(w) = grad f(w_N; D_o)

Its bias with respect to MAML's objective is O(alpha L sigma), whatever the batches.
"""

from metarl.inner import adapt, sgd
from metarl.outer.pull_back import outer_gradient
from metarl.outer.registry import Method, register
from metarl.types import Inner, MetaGrad, Params, TaskBatch


def gradient_at_the_end(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    """Adapt, then the gradient at the adapted parameters; what comes out depends on the inner rule."""
    return outer_gradient(tasks, adapt(params, tasks, inner))


@register("fo_maml")
def fo_maml(inner_lr: float = 0.1, inner_steps: int = 1) -> Method:
    """First-order MAML: no second derivative."""
    return Method(gradient_at_the_end, Inner(sgd(inner_lr), inner_steps))
