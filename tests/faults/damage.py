"""Damaged files: refused by name in one line with exit code 2, or without any effect; never another number."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from metarl.experiments.train import TrainConfig
from tests.experiments import runs
from tests.faults.fault import Result, faults
from tests.faults.subject import cases_in_child, end, no_traceback, one_line, start

GROUP = "damaged files"
MORE = 2  # iterations after the damage
ITERATIONS = 6


def half_done(folder: Path) -> Path:
    """A folder with a run to damage, and what becomes of it undisturbed."""
    run = folder / "run"
    outcome = end(start("rl", run, "--iterations", str(ITERATIONS), "--anneal-iterations", "0"))
    assert outcome.code == 0, outcome.err
    (run / "evaluation.json").unlink()
    shutil.copytree(run, folder / "whole" / "run")
    assert resume(folder / "whole" / "run").code == 0
    return run


def resume(run: Path) -> runs.Outcome:
    """Go on for some iterations, without the pictures."""
    with mock.patch("metarl.experiments.train.report", return_value=None):
        return runs.call("train", "--resume", run, "--iterations", ITERATIONS + MORE)


def undamaged(run: Path, whole: Path) -> None:
    assert runs.saved(run) == runs.saved(whole), "went on silently to another checkpoint"
    assert runs.untimed(run) == runs.untimed(whole), "went on silently with another metrics.jsonl"


def refused_or_harmless(run: Path, whole: Path) -> None:
    before = runs.files(run)
    outcome = resume(run)
    if outcome.code:
        one_line(outcome, 1, 2)  # 1 where a NaN is met in the first iteration
        assert outcome.code == 1 or runs.files(run) == before, "refused, but the folder has changed"
        assert runs.files(run)["checkpoint.pt"] == before["checkpoint.pt"], "refused, but the checkpoint has changed"
    else:
        undamaged(run, whole)


def damage(name: str, change: Callable[[Path, random.Random, str], None]) -> Callable[[Path, Path, str], None]:
    """A function of a case that damages one file of a copy of the run, and resumes it."""

    def case(folder: Path, own: Path, text: str) -> None:
        run = own / "run"
        shutil.copytree(folder / "run", run)
        change(run / name, random.Random(text), text)
        refused_or_harmless(run, folder / "whole" / "run")

    return case


def cut(path: Path, rng: random.Random, case: str) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def flip(path: Path, rng: random.Random, case: str) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def overwrite(path: Path, rng: random.Random, case: str) -> None:
    """A block of a disk with other data in it."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(max(1, len(content) - 512))
    content[at : at + 512] = rng.randbytes(min(512, len(content) - at))
    path.write_bytes(content)


# config.json

VALUES: dict[str, Any] = {
    "null": None,
    "a word": "word",
    "a list": [1, "x"],
    "a dictionary": {"a": 1},
    "minus one": -1,
    "a half": 0.5,
    "huge": 10**400,
    "NaN": float("nan"),
    "true": True,
    "deep": json.loads("[" * 400 + "]" * 400),
}
TEXTS = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "deep lists": b"[" * 200_000 + b"]" * 200_000,
    "deep dictionaries": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "not text": bytes(range(256)),
    "NULs": b"\0" * 1000,
    "a long number": b"9" * 10_000,
    "half a pair": b'{"env": "\\ud800"}',
}
KEPT = ("iterations", "eval_every", "eval_tasks", "eval_seed", "save_every", "log_dir", "name", "device", "plugins")


def wrong_setting(path: Path, rng: random.Random, case: str) -> None:
    name, _, value = case.partition(" = ")
    found = json.loads(path.read_text())
    found[name] = VALUES[value]
    path.write_text(json.dumps(found))


def wrong_text(path: Path, rng: random.Random, case: str) -> None:
    path.write_bytes(TEXTS[case])


def setting(folder: Path, own: Path, case: str) -> None:
    """Another valid setting is what somebody has written there, and no damage that can be seen."""
    run = own / "run"
    shutil.copytree(folder / "run", run)
    wrong_setting(run / "config.json", random.Random(0), case)
    outcome = resume(run)
    no_traceback(outcome)
    if outcome.code:
        one_line(outcome, 1, 2)


# metrics.jsonl

LINES = {
    "no number": '{"iteration": "one"}',
    "a list": "[1, 2]",
    "deep": "[" * 100_000,
    "a line twice": '{"iteration": 2, "rollout/return_before": -1.0}',
    "beyond": '{"iteration": 99}',
    "huge": '{"iteration": ' + "9" * 5000 + "}",
    "NaN": '{"iteration": NaN}',
    "minus": '{"iteration": -3}',
    "a half": '{"iteration": 1.5}',
    "not text": "\udcff\udcfe",
    "NULs": "\0" * 100,
    "empty": "",
}


def metrics(folder: Path, own: Path, case: str) -> None:
    """Training goes on exactly; the log has each iteration once at most, and a warning names those that are lost."""
    run, whole = own / "run", folder / "whole" / "run"
    shutil.copytree(folder / "run", run)
    path, rng = run / "metrics.jsonl", random.Random(case)
    kind = case.split(" ", 1)[0]
    if kind == "line":
        lines = path.read_bytes().split(b"\n")
        lines.insert(rng.randrange(len(lines)), LINES[case.split(" ", 1)[1]].encode(errors="surrogateescape"))
        path.write_bytes(b"\n".join(lines))
    elif kind == "missing":
        path.unlink()
    else:
        {"cut": cut, "flip": flip, "block": overwrite}[kind](path, rng, case)
    outcome = resume(run)
    no_traceback(outcome)
    assert outcome.code == 0, outcome.err[-300:]
    assert runs.saved(run) == runs.saved(whole), "another checkpoint"
    numbers = [int(line["iteration"]) for line in runs.lines(run)]
    assert numbers == sorted(set(numbers)), f"iterations {numbers}"
    assert set(numbers) <= set(range(1, ITERATIONS + MORE + 1)), f"iterations {numbers}"


def log_folder(folder: Path, own: Path, case: str) -> None:
    """A folder where a file should be."""
    run = own / "run"
    shutil.copytree(folder / "run", run)
    (run / case).unlink()
    (run / case).mkdir()
    one_line(resume(run))


config_cut, config_text = damage("config.json", cut), damage("config.json", wrong_text)


@faults(GROUP, "config", "metrics")
def damage_of(folder: Path, what: str) -> Iterator[Result]:
    half_done(folder)
    if what == "config":
        names = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in KEPT]
        settings = [f"{name} = {value}" for name in names for value in VALUES]
        yield from cases_in_child("damage", "setting", folder, random.Random(0).sample(settings, 100))
        yield from cases_in_child("damage", "config_text", folder, list(TEXTS))
        yield from cases_in_child("damage", "config_cut", folder, [str(number) for number in range(12)])
        yield from cases_in_child("damage", "log_folder", folder, ["config.json", "metrics.jsonl", "checkpoint.pt"])
    else:
        kinds = [f"{kind} {number}" for kind in ("cut", "flip", "block") for number in range(12)]
        yield from cases_in_child("damage", "metrics", folder, [*kinds, "missing", *(f"line {name}" for name in LINES)])
