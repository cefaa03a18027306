"""The tiny runs that faults are done to: how they are started, what they leave undisturbed, what is compared."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.environment import with_root
from tests.experiments import runs
from tests.experiments.runs import ROOT, Outcome
from tests.faults.fault import Once, Result

SECONDS = 120.0  # nothing here takes as long, so what does hangs
WORLDS = ("--plugins", "tests.faults.worlds", "--env", "walk")


class Kind(NamedTuple):
    """A kind of run: its script, what it is asked for, and the iterations it has."""

    script: str
    arguments: tuple[str, ...]
    iterations: int


CASES = 25  # in one child


KINDS = {
    "rl": Kind("train", (*runs.TINY, "--eval-every", "5", "--save-every", "3"), 60),
    "supervised": Kind(
        "train_supervised", ("sinusoid", "--eval-every", "40", "--save-every", "7", "--final-tasks", "50"), 200
    ),
    "logistic": Kind("train_supervised", ("six_logistic", "--eval-every", "50", "--save-every", "10"), 300),
    "workers": Kind("train", (*runs.TINY, *WORLDS, "--env-options", "workers=2", "--eval-every", "5"), 12),
}


def environment(changes: Mapping[str, str | None] = MappingProxyType({})) -> dict[str, str]:
    """This process's environment, one thread, with `changes`; a variable that is `None` is left out."""
    all_ = {**with_root(OMP_NUM_THREADS="1", MPLBACKEND="Agg"), **changes}
    return {name: value for name, value in all_.items() if value is not None}


def start(kind: str, folder: Path, *more: object, **options: Any) -> subprocess.Popen[str]:
    """A new run in `folder`."""
    script, arguments, iterations = KINDS[kind]
    where = ("--log-dir", folder.parent, "--name", folder.name)
    return launch(script, *arguments, "--iterations", iterations, *where, *more, **options)


def go_on(kind: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    """Go on with the run in `folder`."""
    return launch(KINDS[kind].script, "--resume", folder, **options)


def launch(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A script in a session of its own, so that nothing of it can be left behind."""
    return spawn([sys.executable, "-m", f"metarl.experiments.{script}", *map(str, arguments)], **options)


def spawn(command: list[str], changes: Mapping[str, str | None] = MappingProxyType({}), **options: Any) -> Any:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "cwd": ROOT}
    given: dict[str, Any] = {**pipes, **options}
    return subprocess.Popen(command, text=True, env=environment(changes), start_new_session=True, **given)


def end(process: subprocess.Popen[str], seconds: float = SECONDS) -> Outcome:
    """Wait for a process; what hangs is killed with its children, and has failed."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill_all(process)
        out, err = process.communicate()
        raise AssertionError(f"it hangs: {(err or out or '')[-200:]}") from None
    return Outcome(process.returncode, out or "", err or "")


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill everything in the process's session that is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def left_behind(process: subprocess.Popen[str], seconds: float = 20.0) -> bool:
    """Whether children of an ended process are still there after a while."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def iterations_logged(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").read_text().count("\n")
    except OSError:
        return 0


def wait(process: subprocess.Popen[str], until: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Until something is so, while the process runs."""
    last = time.monotonic() + seconds
    while not until():
        assert process.poll() is None, f"ended early with {process.returncode}"
        assert time.monotonic() < last, "the run does not get on"
        time.sleep(0.005)


def one_line(outcome: Outcome, *codes: int, holds: str = "") -> str:
    """The error of a program that ended with one of `codes` and one clean line."""
    no_traceback(outcome)
    errors = [line for line in outcome.err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert outcome.code in (codes or (2,)), f"exit code {outcome.code}: {outcome.err[-300:]}"
    assert len(errors) == 1, f"{len(errors)} lines of error: {outcome.err[-300:]}"
    assert holds in errors[0], errors[0]
    return errors[0]


def no_traceback(outcome: Outcome) -> None:
    assert "Traceback" not in outcome.err + outcome.out, outcome.err[-300:]
    assert outcome.code >= 0, f"killed by signal {-outcome.code}"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="metarl-faults-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


SHARED = contextlib.ExitStack()
"""Holds the undisturbed runs; to be closed at the end."""


def _undisturbed(kind: str) -> tuple[Path, float]:
    folder = SHARED.enter_context(scratch()) / "run"
    began = time.monotonic()
    outcome = end(start(kind, folder))
    assert outcome.code == 0, outcome.err
    return folder, time.monotonic() - began


undisturbed = Once(_undisturbed)
"""The folder of an undisturbed run of a kind, and its seconds."""


def evaluation(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "evaluation.json").read_text())
    return {key: value for key, value in found.items() if key not in ("run", "seconds_per_iteration")}


def same(folder: Path, other: Path) -> None:
    """Two runs have the same parameters, optimiser, log and evaluation bit for bit, and the same files."""
    assert runs.saved(folder) == runs.saved(other), "another checkpoint"
    assert runs.untimed(folder) == runs.untimed(other), "another metrics.jsonl"
    assert evaluation(folder) == evaluation(other), "another evaluation.json"
    names = [{path.name.partition(".tfevents")[0] for path in each.iterdir()} for each in (folder, other)]
    assert names[0] == names[1], f"other files: {sorted(names[0] ^ names[1])}"


def finish(kind: str, folder: Path) -> None:
    """Go on to the end, and find what an undisturbed run leaves."""
    outcome = end(go_on(kind, folder))
    no_traceback(outcome)
    assert outcome.code == 0 or "the run is finished" in outcome.err, outcome.err[-300:]
    same(folder, undisturbed(kind)[0])


def in_child(module: str, function: str, *arguments: Any, seconds: float = SECONDS, **options: Any) -> Outcome:
    """A function of this package in a process of its own."""
    code = f"from tests.faults.{module} import {function}; {function}(*{arguments!r})"
    return end(spawn([sys.executable, "-c", code], **options), seconds)


def cases_in_child(module: str, function: str, folder: Path, cases: list[str], **options: Any) -> Iterator[Result]:
    """`function(folder, case)` for each case in one child, which is started again after a case that kills it."""
    for first in range(0, len(cases), CASES):
        yield from _in_one_child(module, function, folder, cases[first : first + CASES], **options)


def _in_one_child(module: str, function: str, folder: Path, cases: list[str], **options: Any) -> Iterator[Result]:
    left = list(cases)
    while left:
        code = f"from tests.faults.subject import each; each({module!r}, {function!r}, {str(folder)!r}, {left!r})"
        process = spawn([sys.executable, "-c", code], **options)
        try:
            outcome = end(process, 20.0 * len(left) + 60)
            text, died = outcome.out, f"the process died with {outcome.code}: {outcome.err[-200:]}"
        except AssertionError as error:
            text, died = str(error), "it hangs"
        found = {row["name"]: row["problem"] for line in text.splitlines() if (row := _row(line))}
        yield from (Result(f"{function.replace('_', ' ')}: {name}", found[name]) for name in left if name in found)
        left = [name for name in left if name not in found]
        if left:
            yield Result(f"{function.replace('_', ' ')}: {left.pop(0)}", " ".join(died.split()))


def _row(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"name"'):
        return None
    found: dict[str, Any] = json.loads(line)
    return found


def each(module: str, function: str, folder: str, cases: list[str]) -> None:
    """What the child does."""
    import importlib

    from tests.faults.fault import reason

    call = getattr(importlib.import_module(f"tests.faults.{module}"), function)
    for case in cases:
        problem = None
        with scratch() as own:
            try:
                call(Path(folder), own, case)
            except Exception as error:
                problem = reason(error)
        print(json.dumps({"name": case, "problem": problem}), flush=True)
