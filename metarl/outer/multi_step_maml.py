"""Multi-step MAML in the resampling setting (Ji, Yang, Liang, 2022, eq. 2.3-2.5).

    w_{j+1} = w_j - alpha grad f(w_j; S_j),    G(w) = [ prod_{j=0}^{N-1} (I - alpha H(w_j; D_j)) ] grad f(w_N; T)

Every S_j, every D_j and T are separate draws, S_j and D_j at the *current* adapted parameters. On a finite sum the
draws return the fixed support and query sets, and the same product is eq. 2.7. The theory wants
alpha L < 2^{1/(2N)} - 1, so an alpha that suits one step must shrink about as 1/N.
"""

from metarl.learned_rules import StepSizes
from metarl.outer.maml import maml
from metarl.outer.registry import Method, register


@register("multi_step_maml")
def multi_step_maml(inner_lr: float = 0.1, inner_steps: int = 3, *, learn_inner_lr: StepSizes | None = None) -> Method:
    """MAML with several inner steps and a fresh Hessian batch for each; `learn_inner_lr` is the same as for `maml`.

    Example, on (x - 1)^2 from x = 0:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = multi_step_maml(inner_lr=0.25, inner_steps=2)
        >>> method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # (1 - 0.25 * 2)^2 grad f(0.75)
        tensor([-0.1250])
    """
    return maml(inner_lr, inner_steps, hessian_data="fresh", learn_inner_lr=learn_inner_lr)
