"""First-order MAML (Finn et al., 2017; Fallah et al., 2020, eq. 1.6): the adjoint of every step is the identity.

    G(w) = grad f(w_N; D_o)

Its bias with respect to MAML's objective is O(alpha L sigma) for any batch size.
"""

from metarl.inner import adapt, make_sgd
from metarl.learned_rules import StepSizes
from metarl.outer.maml import adapt_and_pull_back
from metarl.outer.pull_back import outer_gradient
from metarl.outer.registry import Method, register
from metarl.types import Inner, MetaGrad, Params, TaskBatch


def gradient_at_the_end(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    """Adapt and return the gradient at the adapted parameters; the inner rule decides which method this is."""
    return outer_gradient(tasks, adapt(params, tasks, inner))


@register("fo_maml")
def fo_maml(inner_lr: float = 0.1, inner_steps: int = 1, *, learn_inner_lr: StepSizes | None = None) -> Method:
    """First-order MAML: no second derivative.

    `learn_inner_lr` is the same as for `maml`. The gradient of a step size is -sum_j <grad f(w_N; D_o), g_j>: exact for
    one inner step; with several, the Hessians that carry it through later steps count as zero.

    Example, on (x - 1)^2 from x = 0:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = fo_maml(inner_lr=0.25)
        >>> method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # grad f(0.5)
        tensor([-1.])
    """
    inner = Inner(make_sgd(inner_lr, inner_steps, learn_inner_lr), inner_steps)
    update = gradient_at_the_end if learn_inner_lr is None else adapt_and_pull_back(None, "fresh")
    return Method(update, inner, replays=True)
