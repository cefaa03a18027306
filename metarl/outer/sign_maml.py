"""Sign-MAML (Fan, Ram, Liu, 2021, eq. 3.1-3.2): signSGD inside, the gradient at its end outside.

    w_{j+1} = w_j - alpha sign(grad f(w_j; D_j)),    G(w) = grad f(w_N; D_o)

The derivative of the sign is zero almost everywhere, so the first-order gradient is exact except at the kinks. A step
moves each parameter by alpha, at any scale of the loss: alpha must be much smaller than for `sgd`.
"""

from metarl.inner import sign_sgd
from metarl.outer.fo_maml import gradient_at_the_end
from metarl.outer.registry import Method, register
from metarl.types import Inner


@register("sign_maml")
def sign_maml(inner_lr: float = 0.01, inner_steps: int = 1) -> Method:
    """Sign-MAML: first order, and exact almost everywhere.

    Example, on (x - 1)^2 from x = 0:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = sign_maml(inner_lr=0.25)
        >>> method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # grad f(0.25)
        tensor([-1.5000])
    """
    return Method(gradient_at_the_end, Inner(sign_sgd(inner_lr), inner_steps), replays=True)
