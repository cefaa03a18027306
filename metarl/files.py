"""Files that are always whole: written to a temporary file, which then replaces the old one."""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file through a temporary one beside it. After a crash, either the old or the new file is there, whole.

    Raises:
        OSError: naming the file, when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # a name that no other writer uses
    try:
        with temporary.open("w+b") as file:
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
    if os.name == "posix":  # the rename itself must reach the disk
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


def is_temporary(name: str) -> bool:
    """Whether `name` is that of an unfinished file of `write_atomically`."""
    return re.fullmatch(r"\..+\.tmp", name) is not None


def remove_temporaries(folder: Path) -> None:
    """Remove the files that killed writers left in `folder`; no process may be writing there now."""
    for path in folder.iterdir():
        if is_temporary(path.name):
            path.unlink(missing_ok=True)
