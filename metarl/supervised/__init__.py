"""The supervised setting: fixed data sets, where the theory can be checked, and their resampling versions."""

from metarl.supervised.oracle import (
    BatchSizes,
    FiniteSumSource,
    FiniteSumTaskBatch,
    ResamplingTaskBatch,
    SupervisedTaskBatch,
)

__all__ = ["BatchSizes", "FiniteSumSource", "FiniteSumTaskBatch", "ResamplingTaskBatch", "SupervisedTaskBatch"]
