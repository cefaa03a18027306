"""Outer steps: how a meta-gradient moves the parameters."""

from metarl.step.alpha_maml import HypergradientStep
from metarl.step.mean_grad import MeanGrad, average
from metarl.step.optimizer import (
    ChecksSource,
    OptimizerFactory,
    OptimizerStep,
    OuterStep,
    Schedule,
    Stepped,
    Update,
    check_same_method,
)
from metarl.step.proximal import ProximalStep
from metarl.step.trust_region import TrustRegionStep

__all__ = [
    "ChecksSource",
    "HypergradientStep",
    "MeanGrad",
    "OptimizerFactory",
    "OptimizerStep",
    "OuterStep",
    "ProximalStep",
    "Schedule",
    "Stepped",
    "TrustRegionStep",
    "Update",
    "average",
    "check_same_method",
]
