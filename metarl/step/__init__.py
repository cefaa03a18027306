"""Outer steps: how a meta-gradient moves the parameters."""

from metarl.step.optimizer import OptimizerFactory, OptimizerStep, OuterStep, Schedule, Stepped, spread

__all__ = ["OptimizerFactory", "OptimizerStep", "OuterStep", "Schedule", "Stepped", "spread"]
