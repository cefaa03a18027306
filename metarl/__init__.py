"""Gradient-based meta-reinforcement learning: meta-gradients over task oracles, adaptation and evaluation."""

from metarl import tree
from metarl.errors import NonFiniteError
from metarl.evaluation import Evaluation, evaluate
from metarl.inner import Path, adapt, adaptation_path
from metarl.learner import MetaLearner
from metarl.outer import OUTER, Method, make_method, register
from metarl.runs import load
from metarl.types import Batch, Inner, MetaGrad, OuterUpdate, Params, Task, TaskDistribution, Tasks, TaskSource

__version__ = "0.1.0"

__all__ = [
    "OUTER",
    "Batch",
    "Evaluation",
    "Inner",
    "MetaGrad",
    "MetaLearner",
    "Method",
    "NonFiniteError",
    "OuterUpdate",
    "Params",
    "Path",
    "Task",
    "TaskDistribution",
    "TaskSource",
    "Tasks",
    "adapt",
    "adaptation_path",
    "evaluate",
    "load",
    "make_method",
    "register",
    "tree",
]
