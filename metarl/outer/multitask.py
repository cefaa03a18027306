"""Multi-task pretraining: the gradient of the tasks' mean loss, without adaptation.

    G(w) = grad f(w; D_o)

The baseline of every comparison: training knows nothing of the inner steps that follow at evaluation. In reinforcement
learning it is the policy gradient of the mean return over tasks.
"""

from metarl.inner import sgd
from metarl.outer.pull_back import outer_gradient
from metarl.outer.registry import Method, register
from metarl.partial import start
from metarl.tree import broadcast
from metarl.types import Inner, MetaGrad, Params, TaskBatch


def gradient_before_adaptation(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    """The gradient and the score of every task at the same parameters; the inner loop is not used."""
    return outer_gradient(tasks, broadcast(start(inner.rule, params), tasks.num_tasks))


@register("multitask")
def multitask(inner_lr: float = 0.1, inner_steps: int = 1) -> Method:
    """Multi-task pretraining. `inner_lr` and `inner_steps` are those of evaluation; training does not use them.

    One draw an iteration, with the role `outer`. The score is that of the parameters themselves.

    Example, on (x - 1)^2 from x = 0:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = multitask(inner_lr=0.25)
        >>> method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # grad f(0)
        tensor([-2.])
    """
    return Method(gradient_before_adaptation, Inner(sgd(inner_lr), inner_steps), replays=True, adapts=False)
