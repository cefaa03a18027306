"""The same numbers in other surroundings: bit for bit, except with another number of threads (to rounding)."""

import os
import random
import sys
from pathlib import Path

import torch

from tests.experiments import runs
from tests.faults.fault import fault
from tests.faults.subject import KINDS, end, same, spawn, start, undisturbed

GROUP = "same numbers elsewhere"
VARIABLES: dict[str, dict[str, str | None]] = {
    **{f"PYTHONHASHSEED={seed}": {"PYTHONHASHSEED": seed} for seed in ("0", "1", "12345", "random")},
    **{f"TZ={zone}": {"TZ": zone} for zone in ("Asia/Kathmandu", "America/Los_Angeles", "nowhere")},
    **{f"LC_ALL={name}": {"LC_ALL": name, "PYTHONUTF8": "0"} for name in ("C", "POSIX", "de_DE.UTF-8", "tr_TR")},
    "no HOME": {"HOME": None},
    "HOME that cannot be made": {"HOME": "/proc/nowhere"},
    "10 columns": {"COLUMNS": "10", "TERM": "dumb"},
    "python -O": {"PYTHONOPTIMIZE": "1"},
    "python -OO": {"PYTHONOPTIMIZE": "2"},
    "no bytecode": {"PYTHONDONTWRITEBYTECODE": "1"},
    "warnings shown": {"PYTHONWARNINGS": "default"},
    "no MPLBACKEND": {"MPLBACKEND": None, "DISPLAY": None},
    "a display that is not there": {"MPLBACKEND": None, "DISPLAY": ":97"},
    "development mode": {"PYTHONDEVMODE": "1"},
    "MKL_NUM_THREADS=2": {"MKL_NUM_THREADS": "2"},
}


@fault(GROUP, *[(kind, name) for name in VARIABLES for kind in ("rl",)])
@fault(GROUP, *[("supervised", name) for name in list(VARIABLES)[::5]], *[("workers", name) for name in ("no HOME",)])
def with_variables(folder: Path, kind: str, name: str) -> None:
    outcome = end(start(kind, folder / "run", changes=VARIABLES[name]))
    assert outcome.code == 0, outcome.err[-300:]
    same(folder / "run", undisturbed(kind)[0])


@fault(GROUP, "rl", "supervised")
def in_another_folder(folder: Path, kind: str) -> None:
    """With `--log-dir` relative to it."""
    script, arguments, iterations = KINDS[kind]
    where = ["--iterations", str(iterations), "--log-dir", "deeper/runs", "--name", "run"]
    outcome = end(spawn([sys.executable, "-m", f"metarl.experiments.{script}", *arguments, *where], cwd=folder))
    assert outcome.code == 0, outcome.err[-300:]
    same(folder / "deeper" / "runs" / "run", undisturbed(kind)[0])


@fault(GROUP)
def in_a_folder_that_has_been_deleted(folder: Path) -> None:
    """With an absolute `--log-dir`; the shell stands in a folder that is gone."""
    script, arguments, iterations = KINDS["rl"]
    where = ["--iterations", str(iterations), "--log-dir", str(folder), "--name", "run"]
    command = [sys.executable, "-m", f"metarl.experiments.{script}", *arguments, *where]
    gone = folder / "gone"
    gone.mkdir()
    outcome = end(spawn(["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *command], cwd=gone))
    assert outcome.code == 0, outcome.err[-300:]
    same(folder / "run", undisturbed("rl")[0])


@fault(GROUP)
def with_umask_077(folder: Path) -> None:
    outcome = end(start("rl", folder / "run", umask=0o077))
    assert outcome.code == 0, outcome.err[-300:]
    same(folder / "run", undisturbed("rl")[0])


@fault(GROUP, "rl", "supervised", "logistic")
def with_two_threads(folder: Path, kind: str) -> None:
    """Promised to rounding only, which training amplifies: looked at after two iterations."""
    states = []
    for threads in ("1", "2"):
        run = folder / threads
        outcome = end(start(kind, run, "--iterations", "2", changes={"OMP_NUM_THREADS": threads}))
        assert outcome.code == 0, outcome.err[-300:]
        states.append(torch.load(run / "checkpoint.pt", weights_only=True)["params"])
    for name, one in states[0].items():
        torch.testing.assert_close(states[1][name], one, rtol=1e-3, atol=1e-5)


@fault(GROUP, "rl", "supervised")
def twice_with_two_threads(folder: Path, kind: str) -> None:
    """The same number of threads is the same bit for bit."""
    for name in ("one", "other"):
        outcome = end(start(kind, folder / name, changes={"OMP_NUM_THREADS": "2"}))
        assert outcome.code == 0, outcome.err[-300:]
    same(folder / "one", folder / "other")


@fault(GROUP, *range(2))
def beside_strangers(folder: Path, seed: int) -> None:
    """Other files in the folder of runs, and a name with spaces and letters of other scripts."""
    rng = random.Random(seed)
    for number in range(5):
        (folder / f"{number} стол").write_bytes(rng.randbytes(100))
    os.symlink(folder / "missing", folder / "dangling")
    name = ("a run with spaces", "Läufe-运行")[seed]
    outcome = end(start("rl", folder / name))
    assert outcome.code == 0, outcome.err[-300:]
    assert runs.saved(folder / name) == runs.saved(undisturbed("rl")[0])
