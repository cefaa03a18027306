"""The theory of meta-gradient methods: problems with exact answers, the theorems' constants and step sizes, monitors.

| file | what | source |
| --- | --- | --- |
| `quadratics` | quadratic tasks; closed forms of every method's meta-gradient and fixed point | Fallah et al. (2020) |
| `logistic` | logistic regressions with exact L and rho, random and on real data | |
| `constants` | estimates of L, rho and the variances, from any source of tasks | Fallah et al. (2020) |
| `step_sizes` | bounds of the inner step, rules for the outer one | Fallah et al. (2020), Ji et al. (2022) |
| `monitors` | callbacks: norm of the meta-gradient, distances to stationary points, alpha L | |

`metarl theory` compares what the papers claim with what these tools measure (docs/theory.md).
"""

from metarl.theory.constants import Constants, Estimation, estimate, estimate_smoothness, estimate_source
from metarl.theory.step_sizes import (
    AdaptiveStep,
    AlphaRange,
    StepSizeRule,
    TheoryWarning,
    alpha_range,
    fallah_rule,
    inner_lr_bound,
    ji_rule,
    recommended_inner_lr,
    warn_if_too_large,
)

__all__ = [
    "AdaptiveStep",
    "AlphaRange",
    "Constants",
    "Estimation",
    "StepSizeRule",
    "TheoryWarning",
    "alpha_range",
    "estimate",
    "estimate_smoothness",
    "estimate_source",
    "fallah_rule",
    "inner_lr_bound",
    "ji_rule",
    "recommended_inner_lr",
    "warn_if_too_large",
]
