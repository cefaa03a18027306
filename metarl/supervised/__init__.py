"""The finite-sum setting: fixed data sets, where the theory can be checked."""

from metarl.supervised.oracle import FiniteSumSource, FiniteSumTasks

__all__ = ["FiniteSumSource", "FiniteSumTasks"]
