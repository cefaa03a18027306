"""The supervised setting: fixed data sets, where the theory can be checked, and their resampling versions."""

from metarl.supervised.oracle import BatchSizes, FiniteSumSource, FiniteSumTasks, ResamplingTasks, SupervisedTasks

__all__ = ["BatchSizes", "FiniteSumSource", "FiniteSumTasks", "ResamplingTasks", "SupervisedTasks"]
