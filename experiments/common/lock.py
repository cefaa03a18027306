"""One writer per run folder: a lock on a file in it, which the system releases when its process ends or is killed.

POSIX record locks work between machines over NFS (version 4, or version 3 with its lock daemon), and child processes do
not inherit them. A file system without locks gives a warning. Reading needs no lock.
"""

import contextlib
import errno
import os
import socket
import threading
import warnings
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"

UNKNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of file systems without locks."""

_held: set[Path] = set()  # by this process: record locks do not tell its threads apart
_guard = threading.Lock()


class FolderLock:
    """The right to write to `folder`, until `release`, the end of `with`, or the end of this object.

    The lock file exists while the lock is held, and names the process and the machine. A killed process may leave the
    file behind, but the lock is free.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._release: weakref.finalize[[Path, int], FolderLock] | None = None

    def acquire(self) -> None:
        """Take the lock, unless this object holds it already.

        Raises:
            ValueError: when another process has it, naming process and machine, or the folder cannot be written.
        """
        if self._release is not None and self._release.alive:
            return
        path = self.folder.resolve() / LOCK_FILE
        with _guard:
            if path in _held:
                raise ValueError(_describe_taken(self.folder, "this process"))
            descriptor = _open_locked(path, self.folder)
            _held.add(path)
        self._release = weakref.finalize(self, _unlock, path, descriptor)

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._release is not None:
            self._release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def holder(folder: Path) -> str | None:
    """The process that writes to `folder` now, as `process 17 on machine`, or nothing if nobody does."""
    path = folder.resolve() / LOCK_FILE
    with _guard:
        if path in _held:
            return "this process"
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            return None
        try:
            return None if _try(descriptor) else _read_holder(path)
        finally:
            os.close(descriptor)


def _open_locked(path: Path, folder: Path) -> int:
    """Open and lock the file at `path`."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(f"{folder} must be a folder that can be written ({error.strerror})") from None
        if not _try(descriptor):
            os.close(descriptor)
            raise ValueError(_describe_taken(folder, _read_holder(path)))
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its holder has removed it since it was opened
    with contextlib.suppress(OSError):  # on a full disk the holder's name is missing, but the lock holds
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor


def _try(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in UNKNOWN:
            return False
        warnings.warn("the file system has no locks: make sure that only one process writes to a run", stacklevel=2)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _unlock(path: Path, descriptor: int) -> None:
    with _guard:
        if _is_at(descriptor, path):
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(descriptor)
        _held.discard(path)


def _read_holder(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:200] or "another process"
    except OSError:
        return "another process"


def _describe_taken(folder: Path, by: str) -> str:
    return f"{folder} is being written by {by}; wait until it ends, or stop it first"
