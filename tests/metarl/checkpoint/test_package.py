"""Packages: the same members come back; whatever is damaged, missing or forged is refused by name."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.checkpoint import package

MEMBERS = {"a.json": b'{"x": 1}', "weights.safetensors": bytes(range(256)) * 4, "README.md": b"# card\n"}


@pytest.fixture(params=["package.zip", "package"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = tmp_path / request.param
    package.write(made, MEMBERS, {"versions": {"torch": "2"}})
    return made


def rewrite(path: Path, changes: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """Replace, add or remove members without looking at the manifest."""
    if path.is_dir():
        for name, data in changes.items():
            (path / name).unlink() if data is None else (path / name).write_bytes(data)
        return
    with zipfile.ZipFile(path) as archive:
        everything: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {**everything, **changes}.items():
            if data is not None:
                archive.writestr(name, data)


def test_the_members_come_back(path: Path) -> None:
    found = package.read(path)
    assert {name: found[name] for name in MEMBERS} == MEMBERS
    manifest = json.loads(found["manifest.json"])
    assert (manifest["format"], manifest["versions"]) == ("metarl-policy-1", {"torch": "2"})
    assert package.is_package(path)
    assert not package.is_package(path.parent)


def test_the_same_members_make_the_same_file(tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        package.write(tmp_path / name, MEMBERS, {})
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("data", [b"", b"other", None])
def test_a_changed_member_is_named(path: Path, member: str, data: bytes | None) -> None:
    rewrite(path, {member: data})
    with pytest.raises(
        ValueError, match=rf"damaged: {member} is {'missing' if data is None else 'not what was saved'}"
    ):
        package.read(path)


def test_every_flipped_byte_of_a_zip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "package.zip"
    package.write(path, {"a.json": b"{}", "b": b"12345"}, {})
    whole = path.read_bytes()
    manifest = json.loads(package.read(path)["manifest.json"])
    harmless = 0
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x11]) + whole[i + 1 :])
        try:
            found = package.read(path)
        except ValueError:
            continue
        # times, versions and attributes of members may differ: what is read may not
        harmless += 1
        assert (found["a.json"], found["b"], json.loads(found["manifest.json"])) == (b"{}", b"12345", manifest)
    assert harmless < len(whole) / 3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "package.zip"
    package.write(path, MEMBERS, {})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="must be a zip file or a folder written by metarl export"):
        package.read(path)


def manifest(**changes: Any) -> bytes:
    good = {"format": "metarl-policy-1", "members": {"a.json": {"bytes": 1, "sha256": "0"}}}
    return json.dumps({**good, **changes}).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "missing, empty"),
        (None, "manifest.json"),
        (b"[1]", "not a manifest"),
        (b"{", "cannot be used"),
        (b"[" * 100_000, "cannot be used"),
        (b" " * (1 << 21), "too long"),
        (manifest(format="metarl-policy-9"), "must have the format 'metarl-policy-1', got 'metarl-policy-9'"),
        (manifest(members={"../outside": {"bytes": 1, "sha256": "0"}}), "with a path"),
        (manifest(members={"/etc/passwd": {"bytes": 1, "sha256": "0"}}), "with a path"),
        (manifest(members={"a.json": 3}), "without size and digest"),
    ],
)
def test_other_manifests_are_refused(path: Path, data: bytes | None, message: str) -> None:
    rewrite(path, {"manifest.json": data})
    with pytest.raises(ValueError, match=message):
        package.read(path)


def test_compressed_members_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    package.write(path, MEMBERS, {})
    rewrite(path, {"zeros": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed; unpack it"):
        package.read(path)


def test_nothing_is_overwritten(path: Path) -> None:
    with pytest.raises(ValueError, match="exists; remove it"):
        package.write(path, MEMBERS, {})


def test_tensors_keep_their_bits() -> None:
    shared = torch.arange(6, dtype=torch.float64)
    tensors = {"a": shared.view(2, 3).T, "b": shared, "c": torch.tensor(3.5), "d": torch.zeros(0, 2)}
    found = package.unpack_tensors(package.pack_tensors(tensors), "weights")
    for name, value in tensors.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize("data", [b"", b"123", pickle.dumps({"w": 1}), (2**62).to_bytes(8, "little") + b"{}"])
def test_other_weights_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="weights must be a safetensors file"):
        package.unpack_tensors(data, "weights")
