"""Multi-step MAML in the resampling setting (Ji, Yang, Liang, 2022, eq. 2.3-2.5).

    w_{j+1} = w_j - alpha grad f(w_j; S_j),    G(w) = [ prod_{j=0}^{N-1} (I - alpha H(w_j; D_j)) ] grad f(w_N; T)

Every S_j, every D_j and T are separate draws, S_j and D_j at the *current* adapted parameters. On a finite sum the
draws return the fixed support and query sets, and the same product is eq. 2.7. The theory wants
alpha L < 2^{1/(2N)} - 1, so an alpha that suits one step must shrink about as 1/N.
"""

from metarl.outer.maml import maml
from metarl.outer.registry import Method, register


@register("multi_step_maml")
def multi_step_maml(inner_lr: float = 0.1, inner_steps: int = 3) -> Method:
    """MAML with several inner steps and a fresh Hessian batch at each of them."""
    return maml(inner_lr, inner_steps, hessian_data="fresh")
