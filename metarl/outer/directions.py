"""Random directions for updates that need them: normal numbers that follow from the parameters, a label and the task.

An update gets no generator. The key of the numbers is a hash of the parameters w that it starts at (rounded to float32)
and of a label, and each task has its own part of the key's stream. So an iteration has new directions because w has
moved, and the same iteration has the same ones after a restart, in another number of processes, and on replayed draws:
wherever the parameters are the same, bit for bit. Where they differ by rounding, as with three processes instead of
one, the directions are others, and runs agree in distribution only. No generator is read or changed.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metarl.tree import tree_map, unflatten
from metarl.types import Params

BLOCK = 4  # numbers that the generator makes in one step


def normal_directions(start: Params, label: tuple[int, ...], tasks: range, like: Mapping[str, Tensor]) -> Params:
    """Independent standard normal numbers for each of `tasks`, stacked.

    Args:
        start: the parameters that the update starts at, not stacked.
        label: integers of at least 0; another label gives other numbers, in the same update.
        tasks: the numbers of the tasks in the whole batch.
        like: leaves of the result, stacked `[t, ...]`.

    Example:
        >>> w = {"x": torch.zeros(2)}
        >>> stacked = {"x": torch.zeros(3, 2)}
        >>> every, last = (normal_directions(w, (0,), tasks, stacked) for tasks in (range(3), range(2, 5)))
        >>> torch.equal(every["x"][2], last["x"][0])
        True
    """
    size = sum(leaf.shape[1:].numel() for leaf in like.values())
    # skip the numbers of the tasks before these: each has a whole number of blocks
    blocks = -(-size // BLOCK)
    stream = np.random.Philox(key=_key(start, label)).advance(tasks.start * blocks)
    uniform = torch.from_numpy(np.random.Generator(stream).random((len(tasks), blocks * BLOCK)))[:, :size]
    normal = torch.special.ndtri(uniform.clamp_(min=2.0**-54))
    return tree_map(lambda x, leaf: x.to(leaf), unflatten(normal, like), dict(like))


def _key(start: Params, label: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    digest = hashlib.blake2b(repr(label).encode(), digest_size=16)
    for name, leaf in start.items():
        digest.update(name.encode())
        digest.update(leaf.detach().float().cpu().contiguous().numpy().tobytes())
    return np.frombuffer(digest.digest(), np.uint64)
