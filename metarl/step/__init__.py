"""Outer steps: how a meta-gradient moves the parameters."""

from metarl.step.alpha_maml import HypergradientStep
from metarl.step.mean_grad import MeanGrad, average
from metarl.step.optimizer import OptimizerFactory, OptimizerStep, OuterStep, Schedule, Stepped, Update

__all__ = [
    "HypergradientStep",
    "MeanGrad",
    "OptimizerFactory",
    "OptimizerStep",
    "OuterStep",
    "Schedule",
    "Stepped",
    "Update",
    "average",
]
