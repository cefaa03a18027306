"""Outer steps: how a meta-gradient moves the parameters."""

from metarl.step.adaptive import AdaptiveStep
from metarl.step.optimizer import OptimizerFactory, OptimizerStep, OuterStep, Schedule, Stepped, spread

__all__ = ["AdaptiveStep", "OptimizerFactory", "OptimizerStep", "OuterStep", "Schedule", "Stepped", "spread"]
