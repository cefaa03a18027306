"""Trackers: a user's from the page's text, and Weights & Biases with a module that stands in for it."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.experiments import runs
from tests.pages import ROOT, python_blocks

pytestmark = pytest.mark.usefixtures("no_report", "unrecorded")

WANDB = """
import json, os
from pathlib import Path

class Run:
    def __init__(self, folder, id):
        self.id, self.path = id or "a1", Path(folder) / "wandb.jsonl"
    def write(self, **entry):
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\\n")
    def log(self, numbers, step):
        self.write(numbers=numbers, step=step)
    def finish(self):
        self.write(finished=True)

def init(dir, config, name, id, resume):
    run = Run(dir, id)
    run.write(config=config, name=name, id=id, resume=resume, mode=os.environ["WANDB_MODE"])
    return run
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The working folder; modules in it are forgotten at the end."""
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("my_tracker", "wandb", "bad_tracker"):
        if name not in known:
            sys.modules.pop(name, None)


def rows_of(run: Path) -> list[list[str]]:
    with (run / "returns.csv").open() as file:
        return list(csv.reader(file))


def test_the_tracker_of_the_page(folder: Path) -> None:
    block = python_blocks(ROOT / "docs/callbacks.md")[1]
    assert len([line for line in block.split("class CsvTracker")[1].splitlines() if line.strip()]) <= 12
    (folder / "my_tracker.py").write_text(block)
    run = runs.train(folder / "run", "--track", "my_tracker:CsvTracker", "--iterations", 2)
    rows = rows_of(run)
    lines = runs.lines(run)
    assert [float(row[2]) for row in rows] == [line["rollout/return_after"] for line in lines]
    runs.resume(run, "--iterations", 3)
    assert [row[0] for row in rows_of(run)] == ["1", "2", "3"]
    plain = runs.train(folder / "plain", "--iterations", 2)
    assert runs.untimed(plain) == runs.untimed(run)[:2]  # a tracker changes no number


def test_wandb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "wandb.py").write_text(WANDB)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = runs.train(folder / "run", "--track", "wandb", "--iterations", 2)
    runs.resume(run, "--iterations", 3)
    sent = [json.loads(line) for line in (run / "wandb.jsonl").read_text().splitlines()]
    first, again = (entry for entry in sent if "config" in entry)
    assert (first["name"], first["id"], first["mode"], first["config"]["env"]) == ("run", None, "offline", "navigation")
    assert (again["id"], again["resume"]) == ("a1", "allow")  # the same run of W&B
    assert sum("finished" in entry for entry in sent) == 2
    logged = {entry["step"]: entry["numbers"] for entry in sent if "step" in entry}
    lines = runs.lines(run, untrained=True)
    assert logged == {line.pop("iteration"): line for line in lines}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandbb", "did you mean 'wandb'"),
        ("no_such_module:Tracker", "track must name importable modules"),
        ("bad_tracker:Tracker", "must be a class of metarl.callbacks.Callback"),
        ("bad_tracker:Trackr", "bad_tracker has no class 'Trackr'; did you mean 'Tracker'"),
    ],
)
def test_bad_trackers(folder: Path, name: str, message: str) -> None:
    (folder / "bad_tracker.py").write_text("class Tracker: pass\n")
    outcome = runs.call("train", "--track", name, "--log-dir", folder / "runs")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert message in outcome.err
    assert not (folder / "runs").exists()


@pytest.mark.skipif("wandb" in sys.modules, reason="wandb is there")
def test_wandb_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = runs.call("train", "--track", "wandb", "--log-dir", folder / "runs")
    assert "track wandb needs the package wandb: pip install wandb" in outcome.err
