"""Devices by name, for the library and the scripts."""

import os

import torch

from metarl.errors import check_int


def pick_device(device: str | torch.device) -> torch.device:
    """The device called `device`; `auto` is a GPU if one is available, else the CPU.

    `cuda` without a number is the GPU of this process, numbered LOCAL_RANK.

    Raises:
        ValueError: for a device that is unknown or not available; lists the available ones.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    if not isinstance(device, str | torch.device):
        raise _unknown(device, "it must be a name or a torch.device")
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        picked = torch.device("cuda", local_rank()) if name == "cuda" else torch.device(name)
        torch.empty((), device=picked)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise _unknown(device, str(error).strip().split("\n")[0].split(". ")[0]) from None
    if picked.type == "meta":
        raise _unknown(device, "it computes nothing")
    return picked


def local_rank() -> int:
    """The number of this process among the processes on its machine."""
    return environment_number("LOCAL_RANK")


def environment_number(name: str) -> int:
    """The environment variable `name` as a number; 0 if it is not set.

    Raises:
        ValueError: when it is not a whole number.
    """
    text = os.environ.get(name, "0")
    return check_int(name, int(text) if text.isdecimal() else text, minimum=0)


def available() -> list[str]:
    """Names of the available devices."""
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *mps]


def _unknown(device: object, reason: str) -> ValueError:
    name = str(device) if isinstance(device, torch.device) else device
    return ValueError(f"device must be 'auto' or one of {available()}, got {name!r} ({reason})")
