"""The file of a checkpoint: the archive that `torch.save` writes, sealed with a digest, read without trusting it.

The seal is the comment at the archive's end, `metarl:sha256:<digest of all before it>`. `torch.load` reads the file,
too. Here it is not used: it believes the sizes that a file declares. Here they are compared with the size of the file
before memory is taken, and the pickle in it builds plain values and tensors only.
"""

import hashlib
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections import Counter, OrderedDict
from typing import IO, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from metarl.checkpoint.plain import DTYPES, tensors
from metarl.checkpoint.structure import name_of

SEAL = re.compile(rb"metarl:sha256:[0-9a-f]{64}")
SEALED = len("metarl:sha256:") + 64  # bytes of the seal
END = 2  # bytes before it that give its length


class Content(NamedTuple):
    """What a file holds, and what is known of it."""

    value: Any
    sealed: bool
    entries: int  # that honest content of its size has at most


class Entry(NamedTuple):
    """A storage in the archive: its bytes, and the type of its elements."""

    key: str
    data: Tensor  # uint8
    dtype: torch.dtype


class RefusedError(ValueError):
    """The file holds something other than plain data."""


def write(file: IO[bytes], content: Any) -> None:
    """Write `content`, plain values and tensors, and seal it."""
    hashing = _Hashing(file)
    torch.save(content, hashing)  # type: ignore[arg-type]  # needs no more of a file than `write`
    file.seek(-END, 2)
    file.write(SEALED.to_bytes(END, "little") + b"metarl:sha256:" + hashing.digest.hexdigest().encode())


def read(file: IO[bytes]) -> Content:
    """What `write` wrote.

    Raises:
        ValueError: as the end of a sentence about the file, when it is no archive, truncated, damaged (naming what is),
            or holds something other than plain data.
    """
    start, size = file.read(4), file.seek(0, 2)
    if not start.startswith(b"PK"[: len(start)]):
        raise ValueError(f"cannot be read: it is not a checkpoint, it begins with {start!r}")
    seal = _seal(file, size)
    if seal is not None and seal != _digest(file, size):
        raise ValueError(f"is damaged: {_damage(file, size)}")
    try:
        reader = _Reader(file, size)
        value = reader.load()
    except RefusedError:
        raise
    except Exception as error:  # the unpickler and the archive reader raise all kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"cannot be read: it is truncated or damaged ({reason})") from error
    if reader.damaged:
        raise ValueError(f"is damaged: {_damage(file, size)}")
    return Content(value, seal is not None, reader.length)


class _Hashing:
    """Passes on what is written, and hashes all but the last bytes, which the seal's length takes the place of."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self._last = b""

    def write(self, data: bytes) -> int:
        data = bytes(data)
        waiting = self._last + data if len(data) < END else data
        if waiting is data:
            self.digest.update(self._last)
        self.digest.update(waiting[:-END])
        self._last = waiting[-END:]
        return self.file.write(data)

    def flush(self) -> None:
        """The writer may ask for it."""
        self.file.flush()


def _seal(file: IO[bytes], size: int) -> str | None:
    file.seek(max(0, size - SEALED - END))
    length, seal = file.read(END), file.read()
    if length != SEALED.to_bytes(END, "little") or not SEAL.fullmatch(seal):
        return None
    return seal.decode().rpartition(":")[2]


def _digest(file: IO[bytes], size: int) -> str:
    file.seek(0)
    digest, left = hashlib.sha256(), size - SEALED - END
    while left > 0 and (block := file.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def _damage(file: IO[bytes], size: int) -> str:
    """Which entries are not what was saved, as far as the damage lets one see."""
    try:
        reader = _Reader(file, size, tolerant=True)
        value = reader.load()
    except Exception:  # it is damaged, after all
        return "its plain values, or its table of contents, are not what was saved"
    bad = [name_of(where) for where, tensor in tensors(value) if id(tensor) in reader.of_damaged]
    if not bad:
        return "something around its entries is not what was saved"
    return f"{', '.join(bad[:5])}{' and more' * (len(bad) > 5)} {'are' if len(bad) > 1 else 'is'} not what was saved"


class _Reader(pickle._Unpickler):
    """Builds the content of an archive out of plain values and tensors; everything else is refused.

    Python's unpickler, not C's: that one takes memory for what a file declares. `tolerant` goes on at damaged tensors
    and notes them.
    """

    def __init__(self, file: IO[bytes], size: int, *, tolerant: bool = False) -> None:
        self.archive_file, self.tolerant = file, tolerant
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            self.records = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type or info.compress_size != info.file_size for info in self.records.values()):
            raise ValueError("a record is compressed, which is not how checkpoints are written")
        if sum(info.file_size for info in self.records.values()) > size:
            raise ValueError("its records declare more bytes than the file has")
        self.prefix = next(iter(self.records)).partition("/")[0]
        self.storages: dict[str, Entry] = {}
        self.damaged: list[str] = []
        self.of_damaged: dict[int, Tensor] = {}  # kept, so that the ids stay theirs
        order = f"{self.prefix}/byteorder"
        if order in self.records and self._bytes("byteorder") != sys.byteorder.encode():
            raise ValueError("it was written by a machine of another byte order")
        pickled = self._bytes("data.pkl")
        self.length = len(pickled)
        super().__init__(_Stream(pickled), encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        """The few things that plain values and tensors are pickled with."""
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return torch.uint8
        builders = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_of,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            **BUILDERS,
        }
        if (module, name) not in builders:
            raise RefusedError(f"is refused: it holds {module}.{name}, which is not plain data; nothing was executed")
        return builders[module, name]

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    """What each opcode does; those that would change what has been looked up are not among it."""

    def load_build(self) -> None:
        """The attributes of an object, which no plain value has: left out, as torch's `OrderedDict` carries some."""
        self.stack.pop()  # type: ignore[attr-defined]
        if not isinstance(self.stack[-1], OrderedDict):  # type: ignore[attr-defined]
            raise RefusedError("is refused: it sets attributes of an object; nothing was executed")

    dispatch[pickle.BUILD[0]] = load_build

    def persistent_load(self, pid: Any) -> Entry:
        """A storage; its size in the archive must be the one that the pickle declares."""
        _, dtype, key, _, numel = pid
        if key not in self.storages:
            data = self._bytes(f"data/{key}")
            wanted = numel * dtype.itemsize
            if wanted != len(data):
                raise ValueError(f"a tensor declares {wanted} bytes, found {len(data)}")
            # in memory of torch's own, aligned as ever: a result may depend on that
            stored = torch.frombuffer(bytearray(data), dtype=torch.uint8).clone() if data else torch.empty(0).byte()
            self.storages[key] = Entry(key, stored, dtype)
        return self.storages[key]

    def _tensor(
        self,
        entry: Entry,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool = False,
        hooks: object = None,
        metadata: object = None,
    ) -> Tensor:
        flat = entry.data.view(entry.dtype)
        if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
            raise ValueError("a tensor declares a shape that cannot be")
        numel, last = 1, offset
        for n, step in zip(size, stride, strict=True):
            numel, last = numel * n, last + (n - 1) * step
        if numel and (last >= len(flat) or numel > len(flat)):
            raise ValueError(f"a tensor declares the shape {tuple(size)}, which its {len(flat)} numbers cannot fill")
        if flat.dtype is torch.bool and bool((entry.data > 1).any()):
            raise ValueError("a boolean tensor holds something else than booleans")
        tensor = flat.as_strided(size, stride, offset) if numel else flat.new_empty(size)
        if entry.key in self.damaged:
            self.of_damaged[id(tensor)] = tensor
        return tensor

    def _tensor_of(self, entry: Entry, *placed: Any) -> Tensor:
        """A tensor of a type that has no storage of that type: it comes after the tensor's place in the storage."""
        return self._tensor(entry._replace(dtype=placed[5]), *placed[:5])

    def _bytes(self, name: str) -> bytes:
        info = self.records[f"{self.prefix}/{name}"]
        self.archive_file.seek(info.header_offset + 26)  # to the lengths of what stands before the data
        self.archive_file.seek(sum(struct.unpack("<HH", self.archive_file.read(4))), 1)
        data = self.archive_file.read(info.file_size)
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            if not name.startswith("data/"):
                raise ValueError(f"{name} is damaged")
            self.damaged.append(name.removeprefix("data/"))
            data = data.ljust(info.file_size, b"\0")
        return data


class _Stream:
    """Bytes as a file that reads no more than it has."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def read(self, n: int = -1) -> bytes:
        if n < 0 or n > len(self.data) - self.at:
            raise EOFError("the pickle ends too early")
        self.at += n
        return self.data[self.at - n : self.at]

    def readline(self) -> bytes:
        end = self.data.find(b"\n", self.at) + 1
        if end == 0:
            raise EOFError("the pickle ends too early")
        return self.read(end - self.at)

    def readinto(self, buffer: Any) -> int:
        buffer[:] = self.read(len(buffer))
        return len(buffer)


STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}
BUILDERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): lambda *pairs: Counter(dict(*pairs)),
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("builtins", "set"): set,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): lambda *parts: bytearray(*parts) if parts and isinstance(parts[0], str) else bytearray(),
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1" if encoding == "latin1" else "utf-8"),
}
"""What plain values are pickled with, besides tensors."""
