"""Checkpoints: one file, written atomically, and read without executing anything in it.

| file | what it does |
| --- | --- |
| `archive` | the file format: torch's archive with a digest; detects damage, refuses code |
| `encoding` | Python values to plain values and tensors, and back |
| `learner_state` | checks every entry of a learner's state before it is loaded |
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarl.checkpoint import archive
from metarl.checkpoint.encoding import decode, encode
from metarl.files import write_atomically

log = logging.getLogger(__name__)

FORMAT = "metarl-checkpoint-2"
UNSEALED = "metarl-checkpoint-1"
"""The format of older versions: without a digest, numbers and tensors only."""


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Save a nested dictionary of tensors and plain values (see `metarl.checkpoint.encoding`), with a digest.

    Raises:
        ValueError: when an entry cannot be saved, naming it; nothing is written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Path(folder) / "checkpoint.pt", {"iterations": 3})
        ...     load(Path(folder) / "checkpoint.pt")
        {'format': 'metarl-checkpoint-2', 'iterations': 3}
    """
    content = {"format": FORMAT, **_encode(state)}
    write_atomically(path, lambda file: archive.write(file, content))


def check(state: Mapping[str, Any]) -> None:
    """Check that `state` can be saved.

    Raises:
        ValueError: as in `save`.
    """
    _encode(state)


def load(path: Path) -> dict[str, Any]:
    """Load what `save` saved, on the CPU. Only tensors and plain values are read: no code in the file is executed.

    Raises:
        ValueError: when there is no file; when it is truncated or damaged, naming the damaged entries; when it holds
            something other than plain data; when another program, or a newer version, wrote it.
    """
    if path.is_dir():
        raise ValueError(f"checkpoint must be a file written by metarl, but {path} is a folder{hint(path)}")
    if not path.is_file():
        raise ValueError(f"checkpoint must be a file written by metarl, but there is no file {path}")
    try:
        with path.open("rb") as file:
            content = archive.read(file)
        return _decode(content)
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"checkpoint {path} {error}") from error.__cause__


def note_if_unsealed(state: Mapping[str, Any]) -> None:
    """Log a warning if `state` comes from a file of an older version, in which damage cannot be detected."""
    if state.get("format") == UNSEALED:
        log.warning(
            "the checkpoint is from an older version, without a digest of its content; save it again to add one"
        )


def hint(folder: Path) -> str:
    """Advice for an error message about a file in `folder`; empty unless it is a run of the command line."""
    return f"; metarl.load({str(folder)!r}) opens the run in it" if (folder / "config.json").is_file() else ""


def _encode(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: encode(value, (key,)) for key, value in state.items()}


def _decode(content: archive.Content) -> dict[str, Any]:
    """The state in the content of a file, if this version knows its format.

    Raises:
        ValueError: with a message that continues "checkpoint PATH".
    """
    state = content.value
    found = state.get("format", "no format") if isinstance(state, dict) else type(state).__name__
    if found not in (FORMAT, UNSEALED):
        number = str(found).removeprefix(FORMAT[:-1])
        if number.isdecimal() and int(number) > int(FORMAT[-1]):
            raise ValueError(f"has the format {found!r:.60} of a newer version of metarl; this one reads {FORMAT!r}")
        raise ValueError(f"must have the format {FORMAT!r}, found {found!r:.60}")
    if found == FORMAT and not content.sealed:
        raise ValueError("is damaged: its digest is missing, so it was truncated, or rewritten by another program")
    try:
        result: dict[str, Any] = decode(state, content.entries)
    except RecursionError:
        raise ValueError("is refused: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is refused: {error}") from None
    return result
