"""A run that is killed at any moment goes on from its last checkpoint as if nothing had happened."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from metarl.experiments.common.run import load_run
from metarl.experiments.train import TrainConfig
from tests.experiments import runs

SETTINGS = [*runs.TINY, "--eval-every", "5", "--anneal-iterations", "40"]
MANY = 100_000  # more iterations than a run gets to before it is killed


def wait_for_iteration(process: subprocess.Popen[str], folder: Path, iteration: int, seconds: float = 60) -> None:
    """Until `metrics.jsonl` has a line beyond `iteration`."""
    end = time.monotonic() + seconds
    while not any(line["iteration"] > iteration for line in runs.lines(folder)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.005)


def kill_and_check(folder: Path, kills: int, longest: float, seed: int) -> None:
    rng = random.Random(seed)
    command = [*SETTINGS, "--iterations", MANY, "--log-dir", folder.parent, "--name", folder.name]
    done = 0
    for _ in range(kills):
        process = runs.start("train", *command)
        try:
            wait_for_iteration(process, folder, done)
            time.sleep(rng.uniform(0, longest))
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        learner = load_run(TrainConfig, folder)
        assert learner.iterations >= done
        done = learner.iterations
        command = ["--resume", folder]
    runs.resume(folder, "--iterations", done + 3)

    whole = runs.train(folder.parent / "whole", "--iterations", done + 3, settings=SETTINGS)
    assert runs.saved(folder) == runs.saved(whole)
    assert [line["iteration"] for line in runs.lines(folder)] == list(range(1, done + 4))
    assert runs.untimed(folder) == runs.untimed(whole)


@pytest.mark.usefixtures("no_report")
def test_two_kills(tmp_path: Path) -> None:
    """Of a new run and of a resumed one."""
    kill_and_check(tmp_path / "run", kills=2, longest=0.3, seed=0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_twenty_kills(tmp_path: Path) -> None:
    kill_and_check(tmp_path / "run", kills=20, longest=1.5, seed=1)


@pytest.mark.usefixtures("no_report")
def test_signals_save_and_say_how_to_go_on(tmp_path: Path) -> None:
    """SIGINT to a new run, SIGTERM when it goes on."""
    folder, last = tmp_path / "run", 0
    command = [*SETTINGS, "--save-every", MANY, "--iterations", MANY, "--log-dir", tmp_path, "--name", "run"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = runs.start("train", *command)
        try:
            wait_for_iteration(process, folder, last + 1)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == code
        assert "Traceback" not in err
        last = runs.saved(folder)["iterations"]
        assert out.splitlines()[-1].startswith(f"stopped by {number.name}, saved after iteration {last};")
        assert out.rstrip().endswith(f"--resume {folder}")
        assert [line["iteration"] for line in runs.lines(folder)] == list(range(1, last + 1))
        command = ["--resume", folder]
    runs.resume(folder, "--iterations", last + 2)
    assert [line["iteration"] for line in runs.lines(folder)] == list(range(1, last + 3))
