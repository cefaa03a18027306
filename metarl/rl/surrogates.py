"""Surrogate losses: functions of the action log-probabilities whose gradient is minus the policy gradient.

Their *second* derivatives differ, and with them the meta-gradients (Rothfuss et al., 2019; Farquhar et al., 2019).
With s_t the score of action t and A_t its advantage, the Hessian of the return is H1 + H2 + H12 + H12^T:

| surrogate | expected second derivative | |
| --- | --- | --- |
| `ratio` | H1 + H2 | low variance; exact for horizon 1; the default (LVC) |
| `dice` | H1 + H2 + H12 + H12^T | unbiased at any horizon when A is; higher variance |
| `reinforce` | H2 only | wrong; worse than no second derivative at all. For first-order methods and comparison |

Each takes one task's `log_probs`, `old_log_probs` (those of the policy that acted), `advantages` and `mask`, all
`[E, H]`, and returns the loss *per step of the horizon*: the sum over steps, the mean over episodes, divided by H. The
divisor is a constant, so the estimate stays unbiased when episodes end early.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Surrogate: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def ratio(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Likelihood ratios of single actions times advantages (J^LR and LVC of Rothfuss et al., eq. 6.4-6.5)."""
    log_ratio = (log_probs - old_log_probs) * mask  # before the exponential: what came after the end may overflow it
    return -(torch.exp(log_ratio) * advantages * mask).mean()


def reinforce(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities times advantages (Williams, 1992): right at first order only."""
    return -(log_probs * advantages * mask).mean()


def dice(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Loaded DiCE with lambda = 1: `(box(a_<=t) - box(a_<t)) A_t`, box the likelihood ratio of all actions so far."""
    log_ratio = (log_probs - old_log_probs) * mask
    up_to = log_ratio.cumsum(-1)
    return -((torch.exp(up_to) - torch.exp(up_to - log_ratio)) * advantages * mask).mean()


SURROGATES: dict[str, Surrogate] = {"ratio": ratio, "reinforce": reinforce, "dice": dice}
