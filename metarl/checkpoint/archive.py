"""The file of a checkpoint: the archive that `torch.save` writes, sealed with a digest, read without trusting it.

The seal is the comment at the archive's end, `metarl:sha256:<digest of everything before it>`. `torch.load` can read
the file, too, but it trusts the sizes that a file declares. Here they are compared with the size of the file before
memory is allocated, and the pickle inside builds only plain values and tensors.
"""

import hashlib
import io
import math
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections import Counter, OrderedDict
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarl.checkpoint.encoding import DTYPES, tensors
from metarl.state_dict import name_of

SEAL = re.compile(rb"metarl:sha256:[0-9a-f]{64}")
SEALED = len("metarl:sha256:") + 64  # bytes of the seal
END = 2  # bytes before the seal, which give its length


class Content(NamedTuple):
    """The content of a file, whether it is sealed, and how many entries to accept."""

    value: Any
    sealed: bool
    entries: int  # the maximum in a file of this size


class RefusedError(ValueError):
    """The file holds something other than plain data."""


def write(file: IO[bytes], content: Any) -> None:
    """Write `content`, plain values and tensors, to a new file opened for writing and reading, and seal it."""
    torch.save(content, file)
    size = file.seek(-END, 2)  # without the length of the archive's comment, which is zero so far
    seal = _compute_seal(file, size)
    file.seek(size)
    file.write(SEALED.to_bytes(END, "little") + seal)


def read(file: IO[bytes]) -> Content:
    """The content that `write` wrote.

    Raises:
        ValueError: when the file is not an archive, truncated, damaged (naming the damaged entries), or holds
            something other than plain data; the message continues "checkpoint PATH".
    """
    start, size = file.read(4), file.seek(0, 2)
    if not start.startswith(b"PK"[: len(start)]):
        raise ValueError(f"cannot be read: it is not a checkpoint, it begins with {start!r}")
    intact = _check_seal(file, size)
    # read a damaged file as well, to name the damaged entries
    try:
        reader = _Reader(file, size)
        value = reader.load()
    except Exception as error:  # the unpickler and the archive reader can raise any of them
        if intact is False:
            raise ValueError("is damaged: its plain values, or its table of contents, are not what was saved") from None
        if isinstance(error, RefusedError):
            raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"cannot be read: it is truncated or damaged ({reason})") from error
    if intact is False or reader.damaged:
        raise ValueError(f"is damaged: {_name_damaged(value, reader.damaged)} not what was saved")
    return Content(value, intact is not None, reader.length)


def _compute_seal(file: IO[bytes], size: int) -> bytes:
    """The seal of the first `size` bytes."""
    file.seek(0)
    digest, left = hashlib.sha256(), size
    while left > 0 and (block := file.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    return b"metarl:sha256:" + digest.hexdigest().encode()


def _check_seal(file: IO[bytes], size: int) -> bool | None:
    """Whether the content matches its seal; `None` without a seal."""
    file.seek(max(0, size - SEALED - END))
    length, seal = file.read(END), file.read()
    if length != SEALED.to_bytes(END, "little") or not SEAL.fullmatch(seal):
        return None
    return seal == _compute_seal(file, size - SEALED - END)


def _name_damaged(value: Any, damaged: set[int]) -> str:
    names = [name_of(where) for where, tensor in tensors(value) if tensor.untyped_storage()._cdata in damaged]
    if not names:
        return "data outside its entries is"
    return f"{', '.join(names[:5])}{' and more' * (len(names) > 5)} {'are' if len(names) > 1 else 'is'}"


class _Reader(pickle._Unpickler):
    """Builds the content of an archive from plain values and tensors; refuses everything else.

    It derives from Python's unpickler, because the one in C allocates what a file declares. It notes damaged tensors
    and continues.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.archive_file = file
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            self.records = {info.filename: info for info in archive.infolist()}
        # declared sizes are bounded by the file's own before anything is read
        if any(info.compress_type or info.compress_size != info.file_size for info in self.records.values()):
            raise ValueError("a record is compressed, but checkpoints are written uncompressed")
        if sum(info.file_size for info in self.records.values()) > size:
            raise ValueError("its records declare more bytes than the file has")
        self.prefix = next(iter(self.records)).partition("/")[0]
        self.storages: dict[str, Tensor] = {}
        self.damaged: set[int] = set()  # storages, by their address
        order = f"{self.prefix}/byteorder"
        if order in self.records and self._read("byteorder")[0] != sys.byteorder.encode():
            raise ValueError("it was written by a machine of another byte order")
        pickled, _ = self._read("data.pkl")
        self.length = len(pickled)
        super().__init__(io.BytesIO(pickled), encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        """The class or function, if pickles of plain values and tensors need it; all others are refused."""
        if (module, name) not in BUILDERS:
            raise RefusedError(f"is refused: it holds {module}.{name}, which is not plain data; nothing was executed")
        return BUILDERS[module, name]

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    """What each opcode does."""

    def load_build(self) -> None:
        """Ignore the attributes of torch's `OrderedDict`s; no other plain value has any."""
        self.stack.pop()  # type: ignore[attr-defined]
        if not isinstance(self.stack[-1], OrderedDict):  # type: ignore[attr-defined]
            raise RefusedError("is refused: it sets attributes of an object; nothing was executed")

    dispatch[pickle.BUILD[0]] = load_build
    del dispatch[pickle.BYTEARRAY8[0]]  # it allocates what the file declares; torch never writes it

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of a storage; its size in the archive must be what the pickle declares."""
        _, dtype, key, _, numel = pid
        if key not in self.storages:
            data, intact = self._read(f"data/{key}")
            if numel * dtype.itemsize != len(data):
                raise ValueError(f"a tensor declares {numel * dtype.itemsize} bytes, found {len(data)}")
            # copied into torch's own aligned memory: the last bits of a result may depend on alignment
            stored = self.storages[key] = torch.tensor(np.frombuffer(data, np.uint8)).view(dtype)
            if not intact:
                self.damaged.add(stored.untyped_storage()._cdata)
        return self.storages[key]

    def _read(self, name: str) -> tuple[bytes, bool]:
        """A record's bytes, and whether its checksum is theirs."""
        info = self.records[f"{self.prefix}/{name}"]
        self.archive_file.seek(info.header_offset + 26)  # where the lengths of its name and extra field are
        self.archive_file.seek(sum(struct.unpack("<HH", self.archive_file.read(4))), 1)
        data = self.archive_file.read(info.file_size)
        intact = len(data) == info.file_size and zlib.crc32(data) == info.CRC
        if not intact and not name.startswith("data/"):
            raise ValueError(f"{name} is damaged")
        return data.ljust(info.file_size, b"\0"), intact


def _build_tensor(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) > len(flat):
        raise ValueError(f"a tensor declares the shape {tuple(size)}, which its {len(flat)} numbers cannot fill")
    if flat.dtype is torch.bool and bool((flat.view(torch.uint8) > 1).any()):
        raise ValueError("a boolean tensor holds other values than booleans")
    return flat.as_strided(size, stride, offset)  # refuses what is outside the storage


STORAGES = {
    kind.__name__: kind._dtype for kind in torch._storage_classes if issubclass(kind, torch.storage._LegacyStorage)
}
BUILDERS: dict[tuple[str, str], Any] = {
    **{("torch", name): dtype for name, dtype in (DTYPES | STORAGES).items()},
    ("torch.storage", "UntypedStorage"): torch.uint8,
    ("torch._utils", "_rebuild_tensor_v2"): _build_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): lambda flat, *more: _build_tensor(flat.view(more[5]), *more),  # its dtype
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): lambda *pairs: Counter(dict(*pairs)),
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("builtins", "set"): set,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): lambda *parts: bytearray(*parts) if parts and isinstance(parts[0], str) else bytearray(),
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1" if encoding == "latin1" else "utf-8"),
}
"""The classes and functions in pickles of plain values and tensors."""
