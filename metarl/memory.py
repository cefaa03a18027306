"""A lower bound on the memory of a computation, compared with the available memory."""

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


def available_bytes() -> int | None:
    """The bytes that this process may still allocate, or `None` if the system does not tell.

    The smallest of the free memory, the control group's limit (containers) and the address space (`ulimit -v`).
    """
    found = [_meminfo(), _control_group(), _address_space()]
    return min((number for number in found if number is not None), default=None)


def check_fits(sizes: str, numbers: int, bytes_each: int = 4) -> None:
    """Raise a `ValueError` if `numbers` values do not fit into memory.

    Args:
        sizes: the arguments and their values for the message, such as `meta_batch_size x episodes = 20 x 20`.
        numbers: the smallest number of values in memory at the same time.
        bytes_each: bytes of a number.
    """
    available = available_bytes()
    if available is not None and numbers * bytes_each > available:
        needed, free = numbers * bytes_each / 1e9, available / 1e9
        raise ValueError(f"{sizes} must fit into memory: they need {needed:.3g} GB at least, and {free:.3g} are free")


def space_numbers(space: gymnasium.Space[Any]) -> int:
    """The number of values in one element of a Box; 1 for other spaces."""
    return math.prod(space.shape or (1,))


def itemsize(space: gymnasium.Space[Any]) -> int:
    """Bytes of one value of an element."""
    return int(np.dtype(space.dtype or np.float32).itemsize)


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _control_group() -> int | None:
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # another system, or no limit: "max"
        return None


def _address_space() -> int | None:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = 1024 * int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0])
    except (ImportError, OSError, ValueError, IndexError):
        return None
    return None if limit == resource.RLIM_INFINITY else max(0, limit - used)
