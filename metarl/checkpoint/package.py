"""Packages: what is shared of a run, in a zip file or a folder; every member's digest is checked, no code is executed.

`manifest.json` names the members with their sizes and SHA-256 digests. Numbers are in `*.safetensors`; everything else
is JSON, Markdown or a picture. The digests detect damage, not forgery.
"""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metarl.files import write_atomically

FORMAT = "metarl-policy-1"
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 20  # bytes
NAME = re.compile(r"\w[\w.-]{0,99}")
OLDEST = (1980, 1, 1, 0, 0, 0)  # the time of every member, so that the same members give the same file


def write(path: Path, members: Mapping[str, bytes], about: Mapping[str, Any]) -> None:
    """Write a package: a zip file if the name of `path` ends in `.zip`, else a folder.

    Args:
        path: must not exist.
        members: the contents by name.
        about: entries for the manifest, such as versions.

    Raises:
        ValueError: when something exists at `path`.
        OSError: when it cannot be written.
    """
    if path.exists():
        raise ValueError(f"path must be a new file or folder, but {path} exists; remove it, or choose another name")
    digests = {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in members.items()}
    manifest = json.dumps({"format": FORMAT, **about, "members": digests}, indent=2) + "\n"
    everything = {MANIFEST: manifest.encode(), **members}
    if path.suffix == ".zip":
        write_atomically(path, lambda file: _write_zip(file, everything))
        return
    for name, data in [*members.items(), (MANIFEST, everything[MANIFEST])]:  # the manifest says that all is there
        write_atomically(path / name, lambda file, data=data: file.write(data))  # type: ignore[misc]


def is_package(path: Path) -> bool:
    """Whether `path` is a zip file, or a folder with a manifest."""
    return path.is_file() or (path / MANIFEST).is_file()


def read(path: Path) -> dict[str, bytes]:
    """The members of a package that its manifest names, and the manifest; each has the digest that it says.

    Raises:
        ValueError: when it is no package, a newer version wrote it, or a member is missing or damaged, naming it.
    """
    wanted = f"package {path} must be a zip file or a folder written by metarl export"
    try:
        found = _read_folder(path) if path.is_dir() else _read_zip(path)
    except OSError as error:
        raise ValueError(f"{wanted}, but it cannot be read: {error.strerror or error}") from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"{wanted}, but it is not, or it is truncated ({error})") from None
    members = _read_manifest(path, found.get(MANIFEST))
    for name, entry in members.items():
        if name not in found:
            raise ValueError(f"package {path} is damaged: {name} is missing")
        if len(found[name]) != entry["bytes"] or _digest(found[name]) != entry["sha256"]:
            raise ValueError(f"package {path} is damaged: {name} is not what was saved")
    # other names were not checked, and may lead out of a folder
    return {name: found[name] for name in (MANIFEST, *members)}


def _write_zip(file: Any, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, OLDEST), data)


def _read_zip(path: Path) -> dict[str, bytes]:
    """The members, in memory; a damaged one is left empty, so that its digest names it."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        # declared sizes are bounded by the file's own before anything is read
        if any(info.compress_type or info.compress_size != info.file_size for info in infos):
            raise ValueError(f"package {path} is refused: a member is compressed; unpack it and load the folder")
        if sum(info.file_size for info in infos) > path.stat().st_size:
            raise ValueError(f"package {path} is refused: its members declare more bytes than the file has")
        found = {}
        for info in infos:
            try:
                found[info.filename] = archive.read(info)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
                found[info.filename] = b""
        return found


def _read_folder(path: Path) -> dict[str, bytes]:
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"package {path} must have a {MANIFEST}; metarl export writes packages")
    data = manifest.read_bytes()
    names = [name for name in _read_manifest(path, data) if (path / name).is_file()]
    return {MANIFEST: data, **{name: (path / name).read_bytes() for name in names}}


def _read_manifest(path: Path, data: bytes | None) -> dict[str, dict[str, Any]]:
    """The members' entries in the manifest."""
    try:
        if not data or len(data) > LARGEST_MANIFEST:
            raise ValueError("it is missing, empty or too long")
        found = json.loads(data)
        if not isinstance(found, dict) or not isinstance(found.get("members"), dict):
            raise ValueError("it is not a manifest")
        members: dict[str, dict[str, Any]] = found["members"]
        for name, entry in members.items():
            if not NAME.fullmatch(name) or not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
                raise ValueError(f"it has a member {name!r:.60} without size and digest, or with a path")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"package {path} is damaged: {MANIFEST} cannot be used ({error})") from None
    if found.get("format") != FORMAT:
        got = f"{found.get('format')!r:.60}"
        raise ValueError(f"package {path} must have the format {FORMAT!r}, got {got}; a newer version may read it")
    return members


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors as a safetensors file.

    >>> import torch
    >>> unpack_tensors(pack_tensors({"w": torch.ones(2)}), "weights")
    {'w': tensor([1., 1.])}
    """
    from safetensors.torch import save

    packed: bytes = save({name: leaf.detach().cpu().contiguous().clone() for name, leaf in tensors.items()})
    return packed


def unpack_tensors(data: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: when it is not one, naming the member.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{name} must be a safetensors file: {error}") from None
    return {key: leaf.clone() for key, leaf in found.items()}  # in torch's own aligned memory
