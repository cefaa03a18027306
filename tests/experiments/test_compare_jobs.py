"""The worker processes of `metarl compare`."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from metarl.experiments.common import cli
from metarl.experiments.compare.jobs import THREADS, WORKER, Job, Progress, crew, run_all
from tests.experiments import runs
from tests.experiments.test_compare import run_here

SETTINGS = ["--outer", "maml", "--seeds", "0", "1", "--meta-batch-size", "2", "--episodes", "2", "--horizon", "5"]
SETTINGS += ["--options=--hidden 6 --eval-tasks 2 --eval-every 100"]


def note(path: Path, progress: Progress) -> None:
    """Write this process, its threads and its environment to a file."""
    progress.tell(1)
    threads = [os.environ[name] for name in (*THREADS, *WORKER)]
    path.write_text(f"{os.getpid()} {torch.get_num_threads()} {' '.join(threads)}")
    print("dropped")
    print(f"a warning of {path.name}", file=sys.stderr)


def refuse(progress: Progress) -> None:
    cli.fail("the disk is full", cli.BAD_INPUT)


def break_down(progress: Progress) -> None:
    raise KeyError("a bug")


def die(progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(path: Path, progress: Progress) -> None:
    """Wait for the signal that ends this job, and write that it came."""
    path.write_text("begun")
    try:
        time.sleep(60)
    except cli.Stopped:
        path.write_text("stopped")
        raise


def test_jobs_share_workers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    run_all([Job(f"job {k}", 1, partial(note, tmp_path / f"{k}")) for k in range(5)], workers=2)
    notes = [path.read_text().split(" ", 1) for path in tmp_path.iterdir()]
    assert len(notes) == 5
    assert {number for number, _ in notes} - {str(os.getpid())} == {number for number, _ in notes}
    assert len({number for number, _ in notes}) <= 2
    assert {threads for _, threads in notes} == {"1 1 1 1 1 PASSIVE"}
    assert dict(os.environ) == before
    captured = capfd.readouterr()
    assert "dropped" not in captured.out
    assert "job 3: a warning of 3" in captured.err


def test_threads_of_a_worker(tmp_path: Path) -> None:
    run_all([Job("job", 1, partial(note, tmp_path / "note"))], workers=1, threads=2)
    assert (tmp_path / "note").read_text().split()[1:] == ["2", "2", "2", "2", "1", "PASSIVE"]


@pytest.mark.parametrize(
    ("work", "error", "line"),
    [
        (refuse, SystemExit, "error: bad: the disk is full\n"),
        (die, SystemExit, "error: the process of bad died (exit code -9)\n"),
        (break_down, RuntimeError, ""),
    ],
)
def test_an_error_stops_the_others(
    work: object, error: type[BaseException], line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert callable(work)
    path = tmp_path / "other"

    with pytest.raises(error) as raised:
        run_all([Job("other", 1, partial(wait, path)), Job("bad", 1, partial(later, path, work))], workers=2)
    assert path.read_text() == "stopped"
    assert line in capfd.readouterr().err
    if error is RuntimeError:
        assert "KeyError: 'a bug'" in str(raised.value)


def later(path: Path, work: object, progress: Progress) -> None:
    """Do `work` when the other job has begun."""
    assert callable(work)
    while not path.exists():
        time.sleep(0.02)
    work(progress)


def test_workers_end_with_their_parent() -> None:
    with crew(1) as processes:
        (process,) = processes.values()
        assert process.is_alive()
    assert process.exitcode == 0


@pytest.mark.slow
def test_ctrl_c_and_the_same_call_again(tmp_path: Path) -> None:
    """Interrupted and continued by two workers is bit for bit what one process computes."""
    steps = ["--env-steps", "10000"]
    parent = runs.start("compare", *SETTINGS, *steps, "--jobs", 2, "--out", tmp_path / "out")
    folders = [tmp_path / "out" / "runs" / f"maml-{seed}" for seed in (0, 1)]
    deadline = time.monotonic() + 120
    while not any(len(runs.lines(folder)) >= 3 for folder in folders) and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.send_signal(signal.SIGINT)
    _, err = parent.communicate(timeout=120)
    assert parent.returncode == 128 + signal.SIGINT, err
    assert "error: interrupted; the same call continues" in err
    begun = [folder for folder in folders if (folder / "checkpoint.pt").exists()]
    done = [runs.saved(folder)["iterations"] for folder in begun]
    assert done == [len(runs.lines(folder)) for folder in begun]  # each finished its iteration and saved
    assert max(done) >= 3
    assert not (begun[-1] / "evaluation.json").exists(), "the test must interrupt earlier"

    outcome = runs.call("compare", *SETTINGS, *steps, "--jobs", 2, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metarl.experiments.compare.run_all", run_here)
        assert runs.call("compare", *SETTINGS, *steps, "--out", tmp_path / "whole").code == 0
    for folder in folders:
        whole = tmp_path / "whole" / "runs" / folder.name
        assert runs.saved(folder) == runs.saved(whole)
        assert runs.untimed(folder) == runs.untimed(whole)
        assert (folder / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()
    assert (tmp_path / "out" / "scores.csv").read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()
    assert np.isfinite([line["time/iteration_cpu_seconds"] for line in runs.lines(folders[0])]).all()
