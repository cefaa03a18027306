"""Gradient-based meta-reinforcement learning: meta-gradients over task oracles, adaptation and evaluation."""

from metarl import tree
from metarl.adaptation_curve import AdaptationCurve
from metarl.errors import NonFiniteError
from metarl.evaluation import evaluate
from metarl.inner import AdaptationPath, adapt, adaptation_path
from metarl.learner import MetaLearner
from metarl.outer import OUTER, Method, make_method, register
from metarl.runs import export, from_hub, load, to_hub
from metarl.types import (
    Batch,
    Inner,
    MetaGrad,
    OuterUpdate,
    Params,
    TaskBatch,
    TaskDistribution,
    TaskParams,
    TaskSource,
)

__version__ = "0.1.0"

__all__ = [
    "OUTER",
    "AdaptationCurve",
    "AdaptationPath",
    "Batch",
    "Inner",
    "MetaGrad",
    "MetaLearner",
    "Method",
    "NonFiniteError",
    "OuterUpdate",
    "Params",
    "TaskBatch",
    "TaskDistribution",
    "TaskParams",
    "TaskSource",
    "adapt",
    "adaptation_path",
    "evaluate",
    "export",
    "from_hub",
    "load",
    "make_method",
    "register",
    "to_hub",
    "tree",
]
