"""Two writers, folders that vanish or cannot be written, full disks: one line, and what was saved stays."""

import contextlib
import functools
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from metarl.experiments.common.run import load_run
from metarl.experiments.train import TrainConfig
from tests.experiments import runs
from tests.faults.fault import fault
from tests.faults.subject import (
    KINDS,
    end,
    finish,
    go_on,
    iterations_logged,
    launch,
    no_traceback,
    one_line,
    same,
    scratch,
    start,
    undisturbed,
    wait,
)

GROUP = "two writers, folders, full disks"


def interrupted(run: Path, kind: str = "rl", at: int = 5) -> None:
    """A run that was killed after some iterations."""
    process = start(kind, run)
    wait(process, lambda: iterations_logged(run) >= at)
    process.kill()
    process.communicate()


@fault(GROUP, *[("rl", n) for n in range(3)], *[("supervised", n) for n in range(2)])
def resumed_twice_at_once(folder: Path, kind: str, seed: int) -> None:
    run = folder / "run"
    interrupted(run, kind)
    first = go_on(kind, run)
    time.sleep(random.Random(seed).choice([0.0, 0.05, 0.5]))
    second = go_on(kind, run)
    outcomes = [end(first), end(second)]
    assert sorted(outcome.code for outcome in outcomes) == [0, 2], [outcome.err[-200:] for outcome in outcomes]
    one_line(next(outcome for outcome in outcomes if outcome.code == 2))
    same(run, undisturbed(kind)[0])


@fault(GROUP, *range(3))
def two_resumes_at_the_same_moment(folder: Path, seed: int) -> None:
    run = folder / "run"
    interrupted(run, at=5 + seed)
    processes = [go_on("rl", run), go_on("rl", run), go_on("rl", run)]
    outcomes = [end(process) for process in processes]
    assert sorted(outcome.code for outcome in outcomes) == [0, 2, 2], [outcome.err[-200:] for outcome in outcomes]
    for outcome in outcomes:
        if outcome.code:
            one_line(outcome)
    same(run, undisturbed("rl")[0])


@fault(GROUP, *range(2))
def two_new_runs_of_one_name(folder: Path, seed: int) -> None:
    run = folder / "run"
    processes = [start("rl", run), start("rl", run)]
    outcomes = [end(process) for process in processes]
    assert sorted(outcome.code for outcome in outcomes) == [0, 2], [outcome.err[-200:] for outcome in outcomes]
    same(run, undisturbed("rl")[0])


@functools.cache
def can_mount() -> bool:
    """Whether this user may mount a file system."""
    with scratch() as folder:
        command = ["mount", "-t", "tmpfs", "none", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", str(folder)], check=True)
    return True


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody can write in the folder: the user by its rights, the administrator by a mount."""
    if can_mount():
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


@fault(GROUP, "resume", "new")
def read_only_folder(folder: Path, what: str) -> None:
    run = folder / "run"
    interrupted(run)
    before = runs.files(run)
    with read_only(folder):
        process = go_on("rl", run) if what == "resume" else start("rl", folder / "other")
        one_line(end(process), holds=str(folder))
    assert runs.files(run) == before
    finish("rl", run)


@fault(GROUP, "/proc/runs", "/dev/null/runs", "/etc/hostname")
def log_dir_that_cannot_be(folder: Path, where: str) -> None:
    one_line(end(start("rl", Path(where) / "run")))


@fault(GROUP, *[(kind, at) for kind in ("rl", "supervised") for at in (2, 20)])
def folder_deleted_in_training(folder: Path, kind: str, at: int) -> None:
    run = folder / "run"
    process = start(kind, run)
    wait(process, lambda: iterations_logged(run) >= at)
    run.rename(folder / "away")  # at once: while files are deleted one by one, new ones are written
    shutil.rmtree(folder / "away")
    outcome = end(process)
    no_traceback(outcome)
    one_line(outcome)


@fault(GROUP, *range(3))
def folder_deleted_before_its_pictures(folder: Path, seed: int) -> None:
    run = folder / "run"
    process = start("rl", run)
    wait(process, lambda: iterations_logged(run) >= KINDS["rl"].iterations)
    time.sleep(random.Random(seed).uniform(0.0, 1.5))
    if process.poll() is None:
        run.rename(folder / "away")
        outcome = end(process)
        no_traceback(outcome)
        shutil.rmtree(run, ignore_errors=True)
        (folder / "away").rename(run)
    process.communicate()
    finish("rl", run)


@fault(GROUP, *["checkpoint.pt", "metrics.jsonl", "config.json"])
def file_deleted_in_training(folder: Path, name: str) -> None:
    """What is in memory is written again; only lines of the log that are gone stay so, and `--resume` says it."""
    run = folder / "run"
    process = start("rl", run)
    wait(process, lambda: iterations_logged(run) >= 5)
    (run / name).unlink(missing_ok=True)
    outcome = end(process)
    no_traceback(outcome)
    assert outcome.code in (0, 2), outcome.err[-300:]
    assert runs.saved(run) == runs.saved(undisturbed("rl")[0])


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of this size, where one can be mounted."""
    place = folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


SIZES = (4, 16, 40, 100, 200, 320)
"""Kilobytes; an undisturbed run has about 400."""


def full_disk(folder: Path, kilobytes: int) -> None:
    """Full at some moment between the first file and the last picture; goes on in a larger one."""
    with small_disk(folder, kilobytes) as place:
        survive_full(place / "run", lambda: end(start("rl", place / "run")), folder / "run")


if can_mount():
    fault(GROUP, *SIZES)(full_disk)


@fault(GROUP, *SIZES)
def file_size_limit(folder: Path, kilobytes: int) -> None:
    """No file may be larger than this (`ulimit -f`)."""
    size = kilobytes * 1024
    limit, run = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)), folder / "small" / "run"
    survive_full(run, lambda: end(start("rl", run, preexec_fn=limit)), folder / "run")


def survive_full(run: Path, disturbed: Callable[[], runs.Outcome], copy: Path) -> None:
    outcome = disturbed()
    no_traceback(outcome)
    if outcome.code == 0:  # it was large enough
        same(run, undisturbed("rl")[0])
        return
    one_line(outcome)
    if not run.exists():  # not even the first checkpoint could be saved
        return
    load_run(TrainConfig, run)
    shutil.copytree(run, copy)
    finish("rl", copy)


@fault(GROUP, ("plot", ".png"), ("film", ".gif"))
def output_on_a_full_disk(folder: Path, script: str, ending: str) -> None:
    """A picture that cannot be written whole is not there at all, nor is anything else."""
    run, size = undisturbed("rl")[0], 100
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    more = ("--y", "rollout/return_after") if script == "plot" else ("--frames", "2")
    one_line(end(launch(script, run, *more, "--out", folder / f"out{ending}", preexec_fn=limit)))
    assert not [path for path in folder.rglob("*") if path.is_file()], "a broken file was left"
