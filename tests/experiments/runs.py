"""Tiny runs of the scripts, and what is compared about them."""

import contextlib
import importlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metarl import checkpoint
from tests.environment import with_root

ROOT = Path(__file__).parents[2]
TINY = [
    *("--meta-batch-size", "2", "--episodes", "2", "--horizon", "5", "--hidden", "8"),
    *("--eval-every", "1", "--eval-tasks", "2", "--save-every", "1"),
]


class Outcome(NamedTuple):
    """How a script ended, and what it printed."""

    code: int
    out: str
    err: str


def call(script: str, *arguments: object) -> Outcome:
    """The script's `main`, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    main = importlib.import_module(f"metarl.experiments.{script}").main
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return Outcome(code, out.getvalue(), err.getvalue())


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """The script in a process of its own."""
    command = [sys.executable, "-m", f"metarl.experiments.{script}", *map(str, arguments)]
    environment = with_root(OMP_NUM_THREADS="1")
    pipe = subprocess.PIPE
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)


def train(folder: Path, *arguments: object, settings: Sequence[str] = TINY) -> Path:
    """A new tiny run in `folder`."""
    outcome = call("train", *settings, *arguments, "--log-dir", folder.parent, "--name", folder.name)
    assert outcome.code == 0, outcome.err
    return folder


def resume(folder: Path, *arguments: object) -> Path:
    """Go on with a run."""
    outcome = call("train", "--resume", folder, *arguments)
    assert outcome.code == 0, outcome.err
    return folder


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything below `folder`: each file's bytes, `None` for folders."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def lines(folder: Path, *, untrained: bool = False) -> list[dict[str, float]]:
    """The whole lines of `metrics.jsonl`; with `untrained` also that of iteration 0."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text.split("\n")[:-1]]
    return [line for line in found if line["iteration"] or untrained]


def untimed(folder: Path) -> list[dict[str, float]]:
    """`metrics.jsonl` without what depends on the clock."""
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines(folder)]


def saved(folder: Path) -> dict[str, Any]:
    """The checkpoint, with tensors as bytes: `==` is bit for bit."""
    result: dict[str, Any] = _bits(checkpoint.load(folder / "checkpoint.pt"))
    return result


def _bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: _bits(entry) for key, entry in value.items()}
    return [_bits(entry) for entry in value] if isinstance(value, list | tuple) else value
