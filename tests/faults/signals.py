"""Signals, closed pipes and a standard output that takes nothing: a saved state, a clean line, and the run goes on."""

import random
import re
import signal
import subprocess
import sys
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
    no_traceback,
    one_line,
    same,
    spawn,
    start,
    undisturbed,
    wait,
)

GROUP = "signals, pipes, full outputs"
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def stop(process: subprocess.Popen[str], *names: str, pause: float = 0.0, in_training: bool = True) -> None:
    """Send signals; the program must end by the first of them, in a line that says so, and how to go on."""
    for number, name in enumerate(names):
        time.sleep(pause if number else 0.0)
        if process.poll() is None:
            process.send_signal(signal.Signals[name])
    outcome = end(process)
    word = "--resume" if in_training else "stopped by|interrupted"
    said = re.search(word, outcome.out + outcome.err)
    if outcome.code < 0 and said:  # a second one, while Python ends after the line
        outcome = outcome._replace(code=128 - outcome.code)
    no_traceback(outcome)
    if outcome.code == 0:  # it had just ended
        return
    assert outcome.code in {128 + signal.Signals[name] for name in names}, f"exit code {outcome.code}"
    assert said, f"no word: {(outcome.out + outcome.err)[-300:]}"
    assert not left_behind(process), "a child lives on"


@fault(GROUP, *[(kind, name) for kind in ("rl", "supervised", "workers") for name in SIGNALS])
def in_training(folder: Path, kind: str, name: str) -> None:
    run, rng = folder / "run", random.Random(f"{kind} {name}")
    process = start(kind, run)
    at = rng.randrange(1, KINDS[kind].iterations // 2)
    wait(process, lambda: iterations_logged(run) >= at)
    stop(process, name)
    finish(kind, run)


@fault(GROUP, *[("SIGTERM", "SIGTERM", pause) for pause in (0.0, 0.02)], ("SIGINT", "SIGINT", 0.0))
@fault(GROUP, ("SIGINT", "SIGTERM", 0.0), ("SIGHUP", "SIGTERM", 0.01))
def two_signals(folder: Path, first: str, second: str, pause: float) -> None:
    run = folder / "run"
    process = start("rl", run)
    wait(process, lambda: iterations_logged(run) >= 5)
    stop(process, first, second, pause=pause)
    finish("rl", run)


@fault(GROUP, *[("rl", name) for name in SIGNALS], ("supervised", "SIGTERM"))
def in_the_final_evaluation(folder: Path, kind: str, name: str) -> None:
    run = folder / "run"
    process = start(kind, run)
    wait(process, lambda: iterations_logged(run) >= KINDS[kind].iterations)
    time.sleep(random.Random(f"{kind} {name}").uniform(0.0, 0.6))
    stop(process, name)
    finish(kind, run)


@fault(GROUP, *SIGNALS)
def when_resumed_at_its_beginning(folder: Path, name: str) -> None:
    run = folder / "run"
    process = start("rl", run)
    wait(process, lambda: iterations_logged(run) >= 5)
    process.kill()
    process.communicate()
    (run / ".lock").unlink()  # or it would be taken for that of the next one
    process = go_on("rl", run)
    wait(process, (run / ".lock").exists)
    stop(process, name, in_training=False)
    finish("rl", run)


@fault(GROUP, "rl", "supervised")
def the_reader_takes_one_line(folder: Path, kind: str) -> None:
    run = folder / "run"
    process = start(kind, run)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    outcome = end(process)
    no_traceback(outcome)
    assert outcome.code in (0, 128 + signal.SIGPIPE), f"exit code {outcome.code}"
    finish(kind, run)


@fault(GROUP, "rl", "supervised")
def standard_output_is_full(folder: Path, kind: str) -> None:
    run = folder / "run"
    with Path("/dev/full").open("w") as full:
        one_line(end(start(kind, run, stdout=full)))
    finish(kind, run)


@fault(GROUP, "rl", "supervised")
def standard_error_is_full(folder: Path, kind: str) -> None:
    run = folder / "run"
    with Path("/dev/full").open("w") as full:
        outcome = end(start(kind, run, stderr=full))
    assert outcome.code in (0, 2), f"exit code {outcome.code}"
    finish(kind, run)


@fault(GROUP, "<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-")
def closed(folder: Path, closing: str) -> None:
    run = folder / "run"
    script, arguments, iterations = KINDS["rl"]
    where = ["--iterations", str(iterations), "--log-dir", str(folder), "--name", "run"]
    command = [sys.executable, "-m", f"metarl.experiments.{script}", *arguments, *where]
    outcome = end(spawn(["sh", "-c", f'"$@" {closing}', "sh", *command]))
    no_traceback(outcome)
    assert outcome.code in (0, 2), f"exit code {outcome.code}"
    finish("rl", run)


@fault(GROUP)
def nohup(folder: Path) -> None:
    run = folder / "run"
    process = start("rl", run, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait(process, lambda: iterations_logged(run) >= 5)
    process.send_signal(signal.SIGHUP)
    outcome = end(process)
    kill_all(process)
    assert outcome.code == 0, outcome.err[-300:]
    same(run, undisturbed("rl")[0])
