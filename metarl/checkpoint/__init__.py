"""Checkpoints: one file, written so that there is always a whole one, read without executing anything in it."""

import contextlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from metarl.checkpoint import archive
from metarl.checkpoint.plain import decode, encode

log = logging.getLogger(__name__)

FORMAT = "metarl-checkpoint-2"
UNSEALED = "metarl-checkpoint-1"
"""The format of older versions: it had no digest, and held numbers and tensors only."""


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
    """Save a nested dictionary of tensors and plain values (see `metarl.checkpoint.plain`), with a digest.

    Raises:
        ValueError: when something in it cannot be saved, naming the entry; nothing is written.
    """
    content = {"format": FORMAT, **_encoded(state)}
    write_atomically(path, lambda file: archive.write(file, content))


def check(state: Mapping[str, Any]) -> None:
    """Find out whether `state` can be saved.

    Raises:
        ValueError: as `save` does.
    """
    _encoded(state)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save` saved. Only tensors and plain values are read: no code in the file is executed.

    Raises:
        ValueError: when there is no file; when it is truncated or damaged, naming what is; when it holds something
            other than plain data; when another program, or a newer version, wrote it.
    """
    if path.is_dir():
        raise ValueError(f"checkpoint must be a file written by metarl, but {path} is a folder{hint(path)}")
    if not path.is_file():
        raise ValueError(f"checkpoint must be a file written by metarl, but there is none at {path}")
    try:
        with path.open("rb") as file:
            content = archive.read(file)
        state = _decoded(content)
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"checkpoint {path} {error}") from error.__cause__
    return {key: _moved(value, torch.device(device)) for key, value in state.items()}


def note_if_unsealed(state: Mapping[str, Any]) -> None:
    """Log a warning where `state` comes from a file of an older version: damage to it would not be noticed."""
    if state.get("format") == UNSEALED:
        log.warning("the checkpoint is of an older version, without a digest of its content; save it again to get one")


def snapshot(state: Any) -> Any:
    """A copy of nested containers that later changes of the original leave alone."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, Mapping):
        return {key: snapshot(value) for key, value in state.items()}
    return type(state)(map(snapshot, state)) if type(state) in (list, tuple) else state


def hint(folder: Path) -> str:
    """The end of a sentence on what cannot be loaded, where `folder` is that of a run of the command line."""
    return f"; metarl.load({str(folder)!r}) opens the run in it" if (folder / "config.json").is_file() else ""


def _encoded(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: encode(value, (key,)) for key, value in state.items()}


def _decoded(content: archive.Content) -> dict[str, Any]:
    """The state in a file that was read, if its format is one that this version knows.

    Raises:
        ValueError: as the end of a sentence about the file.
    """
    state = content.value
    found = state.get("format", "no format") if isinstance(state, dict) else type(state).__name__
    if found not in (FORMAT, UNSEALED):
        number = str(found).removeprefix(FORMAT[:-1])
        if number.isdecimal() and int(number) > int(FORMAT[-1]):
            raise ValueError(f"has the format {found!r:.60} of a newer version of metarl; this one reads {FORMAT!r}")
        raise ValueError(f"must have the format {FORMAT!r}, found {found!r:.60}")
    if found == FORMAT and not content.sealed:
        raise ValueError("is damaged: its digest is missing, so it was truncated, or written again by another program")
    try:
        state = decode(state, content.entries)
    except RecursionError:
        raise ValueError("is refused: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is refused: {error}") from None
    result: dict[str, Any] = state
    return result


def _moved(value: Any, device: torch.device) -> Any:
    """With all tensors on `device`."""
    if isinstance(value, torch.Tensor):
        return value if value.device == device else value.detach().to(device).requires_grad_(value.requires_grad)
    if type(value) is dict:
        return {key: _moved(entry, device) for key, entry in value.items()}
    return type(value)(_moved(entry, device) for entry in value) if type(value) in (list, tuple) else value


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # the rename itself must reach the disk
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
