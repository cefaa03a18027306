"""FO-MuML (Mishchenko, Hanzely, Richtarik, 2023, eq. 4.3-4.4): descent on the Moreau envelopes of the tasks.

    z_0 = w,    z_{s+1} = w - alpha grad f(z_s),    G(w) = grad f(z_S)

Every step restarts from `w`, so `z_s` approaches the proximal point, where grad f equals the envelope's gradient: the
error is at most (alpha L)^{S+1} of it. One step is FO-MAML.
"""

from metarl.inner import restart_sgd
from metarl.outer.fo_maml import gradient_at_the_end
from metarl.outer.registry import Method, register
from metarl.types import Inner


@register("moreau")
def moreau(inner_lr: float = 0.1, inner_steps: int = 3) -> Method:
    """FO-MuML: `inner_steps` is S, the number of fixed-point iterations.

    Example, on (x - 1)^2 from x = 0:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = moreau(inner_lr=0.25, inner_steps=2)
        >>> method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # grad f(z_2), z_2 = 0.25
        tensor([-1.5000])
    """
    return Method(gradient_at_the_end, Inner(restart_sgd(inner_lr), inner_steps), follows_adapted_loss=False)
