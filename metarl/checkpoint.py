"""Checkpoints: one file, written so that there is always a whole one, read without executing anything in it."""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

FORMAT = "metarl-checkpoint-1"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file through a temporary one beside it: after a crash the old file or the new one is there, whole.

    Raises:
        OSError: naming the file, when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # nobody else's
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_folder(path.parent)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that `write_atomically` had not finished."""
    return re.fullmatch(r"\..+\.tmp", name) is not None


def remove_temporaries(folder: Path) -> None:
    """Remove what writers left in `folder` that were killed; nobody may be writing there now."""
    for path in folder.iterdir():
        if is_temporary(path.name):
            path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON, atomically."""
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Save a nested dictionary of tensors and plain values."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save` saved. Only tensors and plain values are read: no code in the file is executed.

    Raises:
        ValueError: when there is no file, or it is truncated, or something else; naming the file.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint must be a file written by metarl, but there is none at {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # the unpickler and the archive reader raise all kinds
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise ValueError(f"checkpoint {path} cannot be read: it is truncated or not a checkpoint ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format", "no format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"checkpoint {path} must have the format {FORMAT!r}, found {found!r}")
    return state


def snapshot(state: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples that later changes of the original's tensors leave alone."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, Mapping):
        return {key: snapshot(value) for key, value in state.items()}
    return type(state)(map(snapshot, state)) if isinstance(state, list | tuple) else state


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # the rename itself must reach the disk
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
