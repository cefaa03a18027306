"""Devices by name, the same for the library and the scripts."""

import torch

from metarl.processes import local_rank


def pick_device(device: str | torch.device) -> torch.device:
    """The device called `device`; `auto` is an accelerator where there is one, else the CPU.

    `cuda` without a number is the GPU that belongs to this process: its LOCAL_RANK.

    Raises:
        ValueError: for a device that torch does not know, or that is not there, with the ones that are.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    if not isinstance(device, str | torch.device):
        raise _unknown(device, "a name or a torch.device is wanted")
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


def available() -> list[str]:
    """Names of the devices that are there."""
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *mps]


def _unknown(device: object, reason: str) -> ValueError:
    name = str(device) if isinstance(device, torch.device) else device
    return ValueError(f"device must be 'auto' or one of {available()}, got {name!r} ({reason})")
