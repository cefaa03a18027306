"""kill -9 at random moments, again and again, then the run goes on to what an undisturbed one leaves."""

import random
import subprocess
import time
from pathlib import Path

from tests.faults.fault import fault
from tests.faults.subject import (
    KINDS,
    end,
    finish,
    go_on,
    iterations_logged,
    kill_all,
    left_behind,
    one_line,
    start,
    undisturbed,
    wait,
)

GROUP = "kill -9"
IMPORTS = 1.0  # seconds in which nothing of a run has happened yet


@fault(GROUP, *[("rl", n) for n in range(6)], *[("supervised", n) for n in range(4)])
@fault(GROUP, *[("logistic", n) for n in range(2)], *[("workers", n) for n in range(4)])
def killed_three_times(folder: Path, kind: str, seed: int) -> None:
    rng, run = random.Random(f"{kind} {seed}"), folder / "run"
    seconds = undisturbed(kind)[1]
    for _ in range(3):
        process = begin_or_go_on(kind, run)
        time.sleep(rng.uniform(IMPORTS, seconds))
        kill(process)
    if not (run / "checkpoint.pt").exists():
        process = begin_or_go_on(kind, run)
        wait(process, (run / "checkpoint.pt").exists)
        kill(process)
    finish(kind, run)


def begin_or_go_on(kind: str, run: Path) -> subprocess.Popen[str]:
    """A run that was killed before it had saved anything is one to be removed, and says so in one line."""
    if run.exists() and not (run / "checkpoint.pt").exists():
        one_line(end(go_on(kind, run)))
        for path in run.iterdir():
            path.unlink()
        run.rmdir()
    return go_on(kind, run) if run.exists() else start(kind, run)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    orphans = left_behind_after(process)
    kill_all(process)
    process.communicate()
    assert not orphans, "its workers live on"


def left_behind_after(process: subprocess.Popen[str]) -> bool:
    process.wait()
    return left_behind(process)


@fault(GROUP, *[("rl", n) for n in range(4)], *[("supervised", n) for n in range(2)])
def killed_while_pictures_are_drawn(folder: Path, kind: str, seed: int) -> None:
    rng, run = random.Random(f"{kind} pictures {seed}"), folder / "run"
    process = start(kind, run)
    wait(process, lambda: iterations_logged(run) >= KINDS[kind].iterations)
    time.sleep(rng.uniform(0, 2.0))
    kill(process)
    finish(kind, run)
