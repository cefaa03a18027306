"""The mean of the tasks' meta-gradients, which moves the parameters, and statistics for the log."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from metarl import tree
from metarl.types import MetaGrad, Params


class MeanGrad(NamedTuple):
    """A meta-gradient over all tasks of all processes; the same in every process."""

    grads: Params  # the mean, not stacked
    spread: float  # the standard deviation of the tasks' meta-gradients, sqrt(mean_i |g_i - mean g|^2)
    score: float  # the mean after adaptation
    info: Mapping[str, float] = MappingProxyType({})  # means of other values for the log


def average(meta_grad: MetaGrad, mean_rows: Callable[[Tensor], Tensor] = tree.mean_rows) -> MeanGrad:
    """The mean of `meta_grad` over tasks; `mean_rows` takes one row for each task, `[t, ...]`, to their mean `[...]`.

    With several processes it is the mean over the tasks of all of them: `metarl.processes.Share.mean`.
    """
    grads = tree.mean(meta_grad.grads, mean_rows)
    columns = {"spread": _squared_distances(meta_grad.grads, grads), "score": meta_grad.score, **meta_grad.info}
    # in double precision on the CPU: not every device has it
    table = torch.stack([column.detach().cpu().double() for column in columns.values()], 1)  # [t, columns]
    means = dict(zip(columns, mean_rows(table).tolist(), strict=True))
    return MeanGrad(grads, means.pop("spread") ** 0.5, means.pop("score"), means)


def _squared_distances(stacked: Params, mean: Params) -> Tensor:
    """The squared distance of each task's meta-gradient from the mean, `[t]`."""
    return (tree.flatten(stacked) - tree.flatten(tree.broadcast(mean, 1))).square().sum(1)
