"""The supervised setting: fixed data sets, where the theory can be checked, and their resampling versions."""

from metarl.supervised.oracle import (
    BatchSizes,
    FiniteSumSource,
    FiniteSumTaskBatch,
    ResamplingTaskBatch,
    SupervisedTaskBatch,
)
from metarl.supervised.own_data import OwnTasks, TaskData, from_arrays, from_datasets, read_csv, split_tasks

__all__ = [
    "BatchSizes",
    "FiniteSumSource",
    "FiniteSumTaskBatch",
    "OwnTasks",
    "ResamplingTaskBatch",
    "SupervisedTaskBatch",
    "TaskData",
    "from_arrays",
    "from_datasets",
    "read_csv",
    "split_tasks",
]
