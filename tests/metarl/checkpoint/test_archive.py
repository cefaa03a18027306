"""The file of a checkpoint: damage is found and named, declared sizes are not believed, older files are read."""

import logging
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.storage import TypedStorage

from metarl import MetaLearner, checkpoint
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch

pytestmark = pytest.mark.usefixtures("unrecorded")

OLD = "metarl-checkpoint-1"


def source(size: int = 50) -> FiniteSumSource:
    tasks = FiniteSumTaskBatch(lambda p, b: ((p["w"] - b["c"]) ** 2).sum(), {"c": torch.tensor([[1.0], [2.0]])})
    return FiniteSumSource(tasks, {"w": torch.linspace(0, 1, size)})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    MetaLearner(source(), "maml", meta_batch_size=2).learn(2).save(tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def flip(path: Path, whole: bytes, position: int, bit: int) -> None:
    changed = bytearray(whole)
    changed[position] ^= 1 << bit
    path.write_bytes(changed)


def test_every_flipped_bit_is_found(saved: Path) -> None:
    whole = saved.read_bytes()
    rng = np.random.default_rng(0)
    positions = {*range(0, len(whole), max(1, len(whole) // 250)), *range(len(whole) - 100, len(whole))}
    for position in sorted(positions):
        flip(saved, whole, position, int(rng.integers(8)))
        with pytest.raises(ValueError, match=r"checkpoint\.pt"):
            checkpoint.load(saved)
    saved.write_bytes(whole)
    assert checkpoint.load(saved)["iterations"] == 2


@pytest.mark.parametrize("old", [False, True], ids=["with a digest", "of an older version"])
@pytest.mark.parametrize("name", ["params.w", "outer_step.optimizer.state[0].exp_avg"])
def test_the_damaged_entry_is_named(saved: Path, name: str, old: bool) -> None:
    state = checkpoint.load(saved)
    if old:
        torch.save({**state, "format": OLD}, saved)
    leaf = state["params"]["w"] if name == "params.w" else state["outer_step"]["optimizer"]["state"][0]["exp_avg"]
    whole, data = saved.read_bytes(), leaf.numpy().tobytes()
    assert whole.count(data) == 1
    for byte in range(0, len(data), 7):
        flip(saved, whole, whole.index(data) + byte, byte % 8)
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged: .* is not what was saved") as caught:
            checkpoint.load(saved)
        assert f"damaged: {name} is" in str(caught.value)


def test_torch_reads_the_file_as_well(saved: Path) -> None:
    theirs, ours = torch.load(saved, weights_only=True), checkpoint.load(saved)
    assert torch.equal(theirs["params"]["w"], ours["params"]["w"])
    assert theirs["config"] == ours["config"]


def test_files_of_older_versions(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = checkpoint.load(saved)
    torch.save({**state, "format": OLD}, saved)
    with caplog.at_level(logging.WARNING):
        old = MetaLearner.load(saved, source())
    assert "without a digest" in caplog.text
    caplog.clear()
    old.save(saved)
    new = MetaLearner.load(saved, source())
    assert caplog.text == ""
    assert torch.equal(old.learn(2).params["w"], new.learn(2).params["w"])


class Reduced:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def storage(numbers: int) -> TypedStorage:
    return TypedStorage(wrap_storage=torch.zeros(numbers).untyped_storage(), dtype=torch.float32, _internal=True)


def huge_shape(path: Path) -> None:
    rebuild = Reduced(torch._utils._rebuild_tensor_v2, storage(2), 0, (1 << 38,), (0,), False, {})
    torch.save({"format": OLD, "params": rebuild}, path)


def huge_storage(path: Path) -> None:
    torch.save({"format": OLD, "params": torch.zeros(777)}, path)
    repack(path, lambda data: data.replace(struct.pack("<H", 777), struct.pack("<H", 60000)))


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 28))


def long_text(path: Path) -> None:
    torch.save({"format": OLD}, path)
    repack(path, lambda data: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.")


def long_bytearray(path: Path) -> None:
    torch.save({"format": OLD}, path)
    repack(path, lambda data: b"\x80\x05\x96" + struct.pack("<Q", 1 << 30) + b"x.")


def deep_lists(path: Path) -> None:
    bomb: list[Any] = []
    for _ in range(40):
        bomb = [bomb, bomb]
    torch.save({"format": OLD, "params": bomb}, path)


def repack(path: Path, change: Callable[[bytes], bytes]) -> None:
    """The archive with another pickle in it."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("write", [huge_shape, huge_storage, compressed, long_text, long_bytearray, deep_lists])
def test_declared_sizes_are_compared_with_the_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "bomb.pt"
    write(path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb\.pt"):
            checkpoint.load(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def foreign_class(path: Path) -> None:
    torch.save({"format": OLD, "params": Path("x")}, path)


def attributes_of_a_class(path: Path) -> None:
    """What would set `Counter.update`."""
    torch.save({"format": OLD}, path)
    body = b"ccollections\nCounter\n(N}X\x06\x00\x00\x00updateK\x01stb."
    repack(path, lambda data: b"\x80\x02" + body)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("iteration,return"), "it is not a checkpoint, it begins with b'iter'"),
        (lambda path: path.write_bytes(pickle.dumps([1])), "it is not a checkpoint"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "it is truncated or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-70]), "its digest is missing|truncated or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "it is truncated or damaged"),
        (foreign_class, r"is refused: it holds pathlib\.\w*Path, which is not plain data; nothing was executed"),
        (attributes_of_a_class, "is refused: it sets attributes of an object"),
        (lambda path: torch.save({"format": "metarl-checkpoint-9"}, path), "of a newer version of metarl"),
        (lambda path: torch.save({"format": "other"}, path), "must have the format 'metarl-checkpoint-2'"),
        (lambda path: torch.save({"format": checkpoint.FORMAT}, path), "digest is missing"),
        (lambda path: torch.save([1], path), "must have the format .* found 'list'"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    ],
)
def test_the_message_tells_what_it_is(saved: Path, write: Callable[[Path], object], message: str) -> None:
    write(saved)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(saved)
