"""What tasks' meta-gradients come to: their mean moves the parameters, and the rest is logged."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from metarl import tree
from metarl.processes import ALONE, Share
from metarl.types import MetaGrad, Params


class MeanGrad(NamedTuple):
    """A meta-gradient over all tasks of all processes; the same in every process."""

    grads: Params  # the mean, not stacked
    spread: float  # the standard deviation of the tasks' meta-gradients, sqrt(mean_i |g_i - mean g|^2)
    score: float  # the mean after adaptation
    info: Mapping[str, float] = MappingProxyType({})  # means of what else is worth logging


def averaged(meta_grad: MetaGrad, share: Share | None = None) -> MeanGrad:
    """The mean of `meta_grad` over its tasks; where they are the `share` of a process, over those of all processes."""
    share = share or Share(ALONE, len(meta_grad.score))
    grads = tree.mean(meta_grad.grads, share)
    columns = {"spread": _squared_gaps(meta_grad.grads, grads), "score": meta_grad.score, **meta_grad.info}
    # in double precision, which not every device has
    table = torch.stack([column.detach().cpu().double() for column in columns.values()], 1)  # [t, columns]
    means = dict(zip(columns, share.mean(table).tolist(), strict=True))
    return MeanGrad(grads, means.pop("spread") ** 0.5, means.pop("score"), means)


def _squared_gaps(stacked: Params, mean: Params) -> Tensor:
    """How far each task's meta-gradient is from the mean, squared, `[t]`."""
    return (tree.flatten(stacked) - tree.flatten(tree.broadcast(mean, 1))).square().sum(1)
