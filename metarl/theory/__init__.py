"""What the convergence theorems ask for: constants of a problem, step sizes, batch sizes."""

from metarl.theory.adaptive_step import AdaptiveStep
from metarl.theory.constants import Constants, Estimation, estimate, estimate_smoothness, estimate_source
from metarl.theory.inner_lr import TheoryWarning, inner_lr_bound, recommended_inner_lr, warn_if_too_large
from metarl.theory.step_size import StepSizeRule, fallah_rule, ji_rule, ji_slope

__all__ = [
    "AdaptiveStep",
    "Constants",
    "Estimation",
    "StepSizeRule",
    "TheoryWarning",
    "estimate",
    "estimate_smoothness",
    "estimate_source",
    "fallah_rule",
    "inner_lr_bound",
    "ji_rule",
    "ji_slope",
    "recommended_inner_lr",
    "warn_if_too_large",
]
