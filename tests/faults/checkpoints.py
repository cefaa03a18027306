"""Checkpoints that are damaged, or made to do damage: refused by name in one line, or without any effect."""

import contextlib
import io
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from metarl import checkpoint
from tests.faults.damage import GROUP, cut, damage, flip, half_done, overwrite, refused_or_harmless
from tests.faults.fault import Result, faults
from tests.faults.limits import protect
from tests.faults.subject import cases_in_child


def leaves(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to everything in a checkpoint that is not a dictionary."""
    if isinstance(state, dict) and state:
        for key, value in state.items():
            yield from leaves(value, (*path, key))
    else:
        yield path


def replacements(value: Any) -> dict[str, Any]:
    """What a leaf should not be."""
    if not isinstance(value, torch.Tensor):
        return {"tensor": torch.zeros(3), "list": [1, 2], "none": None, "text": "text", "minus": -1, "dict": {"a": 1}}
    twice = torch.cat([value.reshape(-1), value.reshape(-1)])
    return {
        "longer": twice if value.ndim else torch.zeros(3),
        "one more axis": value[None],
        "float64": value.double() if value.dtype != torch.float64 else value.float(),
        "int64": value.to(torch.int64) if value.dtype != torch.int64 else value.to(torch.int8),
        "complex": value.to(torch.complex64),
        "sparse": value.float().to_sparse(),
        "NaN": torch.full_like(value, float("nan")) if value.is_floating_point() else torch.zeros(2),
        "a number": 1.0,
        "meta": torch.empty_like(value, device="meta"),
        "missing": _MISSING,
    }


_MISSING = object()


def leaf(folder: Path, own: Path, case: str) -> None:
    """One entry of the checkpoint is of another shape, dtype or type."""
    run = own / "run"
    shutil.copytree(folder / "run", run)
    state = checkpoint.load(run / "checkpoint.pt")
    number, kind = case.split(" ", 1)
    path = list(leaves(state))[int(number)]
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    found = replacements(inner[path[-1]]).get(kind, _MISSING)
    if found is _MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = found
    saved_by_torch(run / "checkpoint.pt", state)
    try:
        refused_or_harmless(run, folder / "whole" / "run")
    except AssertionError as error:
        raise AssertionError(f"{'.'.join(map(str, path))}: {error}") from None


def saved_by_torch(path: Path, state: dict[str, Any]) -> None:
    with contextlib.suppress(Exception):  # a format that refuses what cannot be loaded is as good
        checkpoint.save(path, {key: value for key, value in state.items() if key != "format"})
        return
    torch.save(state, path)


def rewritten(path: Path, change: Callable[[str, bytes], bytes], **options: Any) -> None:
    """The archive with some members changed."""
    source, target = zipfile.ZipFile(io.BytesIO(path.read_bytes())), io.BytesIO()
    with zipfile.ZipFile(target, "w", **options) as archive:
        for name in source.namelist():
            archive.writestr(name, change(name, source.read(name)))
    path.write_bytes(target.getvalue())


def bomb(path: Path, rng: random.Random, case: str) -> None:
    """A small file that says to be a large one, or that wants to run something."""
    zeros = b"\0" * (1 << 30)
    if case == "zip bomb in a tensor":
        rewritten(path, lambda name, data: zeros if name.endswith("data/0") else data, compression=zipfile.ZIP_DEFLATED)
    elif case == "zip bomb in the pickle":
        rewritten(path, lambda name, data: zeros if name.endswith(".pkl") else data, compression=zipfile.ZIP_DEFLATED)
    elif case == "compressed":
        rewritten(path, lambda name, data: data, compression=zipfile.ZIP_DEFLATED)
    elif case == "huge declared size":
        saved_by_torch(path, {**checkpoint.load(path), "params": {"w": torch.zeros(1).expand(1 << 40)}})
    elif case == "huge strides":
        rewritten(path, lambda name, data: data.replace(b"K\x08", b"J\xff\xff\xff\x7f"))
    elif case == "deep pickle":
        deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
        rewritten(path, lambda name, data: deep if name.endswith(".pkl") else data)
    elif case == "code":
        rewritten(path, lambda name, data: EVIL if name.endswith(".pkl") else data)
    else:
        path.write_bytes(EVIL if case == "a pickle with code" else zeros[:1000])


EVIL = b"cos\nsystem\n(S'touch evil'\ntR."
BOMBS = ("zip bomb in a tensor", "zip bomb in the pickle", "compressed", "huge declared size", "huge strides")
BOMBS += ("deep pickle", "code", "a pickle with code", "zeros")

checkpoint_cut, checkpoint_flip = damage("checkpoint.pt", cut), damage("checkpoint.pt", flip)
checkpoint_block, checkpoint_bomb = damage("checkpoint.pt", overwrite), damage("checkpoint.pt", bomb)


@faults(GROUP)
def damaged_checkpoint(folder: Path) -> Iterator[Result]:
    half_done(folder)
    for name, number in (("cut", 20), ("flip", 40), ("block", 20)):
        yield from cases_in_child("checkpoints", f"checkpoint_{name}", folder, [str(seed) for seed in range(number)])
    yield from cases_in_child("checkpoints", "checkpoint_bomb", folder, list(BOMBS), preexec_fn=protect)


@faults(GROUP)
def entries_of_a_checkpoint(folder: Path) -> Iterator[Result]:
    half_done(folder)
    state = checkpoint.load(folder / "run" / "checkpoint.pt")
    values = [(number, at(state, path)) for number, path in enumerate(leaves(state)) if path != ("format",)]
    cases = [f"{number} {kind}" for number, value in values for kind in replacements(value)]
    yield from cases_in_child("checkpoints", "leaf", folder, random.Random(0).sample(cases, 120))


def at(state: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        state = state[key]
    return state
