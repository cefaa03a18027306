"""One writer for a run's folder: a lock on a file in it that the system drops when its process ends, in whatever way.

POSIX record locks: they reach other machines over NFS (version 4, or version 3 with its lock daemon), and children do
not inherit them. Where a file system knows no locks, a warning says so; reading needs no lock.
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
"""What a file system answers that knows no locks."""

_held: set[Path] = set()  # by this process, among whose threads record locks make no difference
_guard = threading.Lock()


class FolderLock:
    """The right to write into `folder`; released by `release`, at the end of `with`, or when nobody holds this object.

    The file is there while the lock is held, and holds the process and the machine. One that a killed process has left
    is free.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._release: weakref.finalize[[Path, int], FolderLock] | None = None

    def acquire(self) -> None:
        """Take the lock, unless this object holds it already.

        Raises:
            ValueError: when somebody else has it, naming process and machine, or the folder cannot be written.
        """
        if self._release is not None and self._release.alive:
            return
        path = self.folder.resolve() / LOCK_FILE
        with _guard:
            if path in _held:
                raise ValueError(_taken(self.folder, "this process"))
            descriptor = _locked(path, self.folder)
            _held.add(path)
        self._release = weakref.finalize(self, _unlock, path, descriptor)

    def release(self) -> None:
        """Give it back, if it is held."""
        if self._release is not None:
            self._release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def holder(folder: Path) -> str | None:
    """Who writes into `folder` now, as `process 17 on machine`, or nothing where nobody does."""
    path = folder.resolve() / LOCK_FILE
    with _guard:
        if path in _held:
            return "this process"
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            return None
        try:
            return None if _try(descriptor) else _said(path)
        finally:
            os.close(descriptor)


def _locked(path: Path, folder: Path) -> int:
    """The file at `path`, opened and locked."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(f"{folder} must be a folder that can be written ({error.strerror})") from None
        if not _try(descriptor):
            os.close(descriptor)
            raise ValueError(_taken(folder, _said(path)))
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its holder has removed it since it was opened
    with contextlib.suppress(OSError):  # of a full disk: the lock counts, not who says to have it
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
        warnings.warn("the file system knows no locks: see to it that one process writes into a run", stacklevel=2)
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


def _said(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:200] or "another process"
    except OSError:
        return "another process"


def _taken(folder: Path, by: str) -> str:
    return f"{folder} is being written by {by}; wait for its end, or end it first"
