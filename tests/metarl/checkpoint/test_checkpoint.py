"""Checkpoints: written whole or not at all, and read without executing what is in them."""

import functools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarl import Inner, MetaLearner, Method, checkpoint, make_method
from metarl.inner import sgd
from metarl.random import generator_state, restore_generator
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch

pytestmark = pytest.mark.usefixtures("unrecorded")


def source(size: int = 2) -> FiniteSumSource:
    tasks = FiniteSumTaskBatch(lambda p, b: ((p["w"] - b["c"]) ** 2).sum(), {"c": torch.tensor([[1.0], [2.0]])})
    return FiniteSumSource(tasks, {"w": torch.zeros(size)})


def train(outer: str = "maml", method: Method | None = None, **arguments: Any) -> MetaLearner:
    if method is not None:
        return MetaLearner.from_parts(source(), method, meta_batch_size=2, **arguments).learn(2)
    return MetaLearner(source(), outer, meta_batch_size=2, **arguments).learn(2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    train().save(tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_crash_while_renaming(saved: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def crash(*args: object) -> None:
        raise OSError("no space")

    before = saved.read_bytes()
    monkeypatch.setattr(os, function, crash)
    with pytest.raises(OSError, match="no space"):
        train(seed=1).save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_round_trip(tmp_path: Path) -> None:
    state = {"t": torch.arange(3), "nested": [(1, 2.5, None, True, "x")], "d": torch.tensor(0.1, dtype=torch.float64)}
    checkpoint.save(tmp_path / "file", state)
    loaded = checkpoint.load(tmp_path / "file")
    assert loaded.pop("format") == checkpoint.FORMAT
    assert loaded["nested"] == state["nested"]
    assert torch.equal(loaded["t"], state["t"])
    assert loaded["d"].dtype == torch.float64


def test_generators_go_on() -> None:
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    rng.random(3)
    restore_generator(other, generator_state(rng))
    assert rng.random(5).tolist() == other.random(5).tolist()


def test_truncated_anywhere(saved: Path) -> None:
    whole = saved.read_bytes()
    lengths = {0, 1, 2, 3, 4, 10, len(whole) - 1, len(whole) - 2, *range(0, len(whole), max(1, len(whole) // 40))}
    for length in sorted(lengths):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"checkpoint\.pt"):
            checkpoint.load(saved)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (open, (str(self.path), "w"))


def make_malicious_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious(path.with_name("owned"))))


def make_malicious_torch(path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT, "params": Malicious(path.with_name("owned"))}, path)


def test_the_malicious_file_is_malicious(tmp_path: Path) -> None:
    make_malicious_pickle(tmp_path / "file")
    pickle.loads((tmp_path / "file").read_bytes()).close()
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("iteration,return\n1,-40\n"),
        lambda path: path.write_bytes(bytes(range(256)) * 10),
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
        lambda path: path.mkdir(),
        lambda path: None,
        lambda path: path.write_bytes(pickle.dumps({"format": checkpoint.FORMAT})),
        make_malicious_pickle,
        make_malicious_torch,
        lambda path: torch.save(torch.nn.Linear(2, 2), path),
        lambda path: torch.save(torch.nn.Linear(2, 2).state_dict(), path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"format": "metarl-checkpoint-0"}, path),
        lambda path: torch.save({"format": checkpoint.FORMAT}, path),
        lambda path: torch.save({"format": checkpoint.FORMAT, "config": {"outer": "maml"}}, path),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_foreign_files(tmp_path: Path, write: Callable[[Path], object]) -> None:
    path = tmp_path / "foreign.pt"
    write(path)
    with pytest.raises(ValueError, match=r"foreign\.pt"):
        MetaLearner.load(path, source())
    assert not (tmp_path / "owned").exists()


def test_a_source_of_other_shapes(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"params\.w must be a tensor of shape \(3,\), .* found .* \(2,\)"):
        MetaLearner.load(saved, source(3))


METHOD = Method(make_method("maml", 0.1).update, Inner(sgd(0.1)))
MOMENTUM = functools.partial(torch.optim.SGD, momentum=0.9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"method": METHOD}, "method"),
        ({"optimizer": MOMENTUM}, "optimizer"),
        ({"schedule": lambda n: 1 / (1 + n)}, "schedule"),
    ],
)
def test_what_a_file_cannot_hold_must_be_given(tmp_path: Path, arguments: dict[str, Any], named: str) -> None:
    learner = train(**arguments)
    learner.save(tmp_path / "file")
    with pytest.raises(ValueError, match=f"{named} must be given"):
        MetaLearner.load(tmp_path / "file", source())
    loaded = MetaLearner.load(tmp_path / "file", source(), **arguments)
    assert torch.equal(loaded.learn(2).params["w"], learner.learn(2).params["w"])


@pytest.mark.parametrize(("argument", "value"), [("learning_rate", 0.5), ("seed", 4), ("meta_batch_size", 1)])
def test_other_settings_are_refused(saved: Path, argument: str, value: Any) -> None:
    arguments = {"meta_batch_size": 2, argument: value}
    with pytest.raises(ValueError, match=f"{argument} is {value}, but the checkpoint was trained with"):
        MetaLearner(source(), **arguments).load_state_dict(checkpoint.load(saved))


def test_settings_come_from_the_file(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "inner_lr": 0.03,
        "inner_steps": 2,
        "outer_options": {"hessian_data": "reuse"},
        "learning_rate": 0.02,
        "optimizer": torch.optim.RMSprop,
        "max_grad_norm": 0.7,
        "seed": 11,
    }
    learner = train("maml", **arguments)
    learner.save(tmp_path / "file")
    loaded = MetaLearner.load(tmp_path / "file", source())
    assert loaded._config() == learner._config()
    assert loaded.iterations == 2
    assert loaded.counts == learner.counts
    assert torch.equal(loaded.learn(3).params["w"], learner.learn(3).params["w"])
