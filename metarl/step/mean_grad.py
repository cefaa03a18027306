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
    grads, squared_distances = _mean_and_squared_distances(meta_grad.grads, mean_rows)
    columns = {"spread": squared_distances, "score": meta_grad.score, **meta_grad.info}
    # in double precision on the CPU: not every device has it
    table = torch.stack([column.detach().cpu().double() for column in columns.values()], 1)  # [t, columns]
    means = dict(zip(columns, mean_rows(table).tolist(), strict=True))
    return MeanGrad(grads, means.pop("spread") ** 0.5, means.pop("score"), means)


def _mean_and_squared_distances(stacked: Params, mean_rows: Callable[[Tensor], Tensor]) -> tuple[Params, Tensor]:
    """The mean over tasks, and the squared distance of each task from it, `[t]`."""
    means: Params = {}
    squares: list[Tensor] = []
    for part in tree.split_by_dtype(stacked):
        rows = tree.flatten(part)  # [t, P]
        mean = mean_rows(rows)
        means |= tree.unflatten_row(mean, part)
        squares.append((rows - mean).square().sum(1))
    return {key: means[key] for key in stacked}, torch.stack(squares).sum(0)
