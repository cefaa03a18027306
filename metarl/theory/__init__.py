"""What the convergence theorems ask for: constants of a problem, step sizes, batch sizes."""

from metarl.theory.batch_sizes import FallahBatches, JiBatches, fallah_batches, ji_batches
from metarl.theory.constants import Constants, Estimation, estimate, estimate_smoothness, estimate_source
from metarl.theory.inner_step import TheoryWarning, inner_lr_bound, recommended_inner_lr, warn_if_too_large
from metarl.theory.step_size import StepSizeRule, fallah_rule, ji_rule, ji_slope

__all__ = [
    "Constants",
    "Estimation",
    "FallahBatches",
    "JiBatches",
    "StepSizeRule",
    "TheoryWarning",
    "estimate",
    "estimate_smoothness",
    "estimate_source",
    "fallah_batches",
    "fallah_rule",
    "inner_lr_bound",
    "ji_batches",
    "ji_rule",
    "ji_slope",
    "recommended_inner_lr",
    "warn_if_too_large",
]
