"""The scripts under torchrun: one run, whoever and however many computed it, also after a kill."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from matplotlib.figure import Figure

from metarl import OUTER
from metarl.files import write_json
from tests.environment import with_root
from tests.experiments import runs
from tests.process_pool import Pool

SETTINGS = ["six_logistic", "--iterations", "6", "--eval-every", "2", "--save-every", "2", "--outer", "maml"]
SHARED = ["--inner-lr", "0.2", "--meta-batch-size", "4", "--anneal-iterations", "6", "--eval-steps", "2"]
FATAL = '''
import os, signal
from pathlib import Path
from metarl import Method, make_method, register

@register("fatal")
def fatal(inner_lr=0.1, inner_steps=1):
    """MAML that kills its process, the second one, in the fourth iteration, if it was not started again."""
    method, calls = make_method("maml", inner_lr, inner_steps), []

    def update(params, tasks, inner):
        calls.append(1)
        if os.environ.get("RANK") == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and len(calls) == 4:
            Path("was_killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return method.update(params, tasks, inner)

    return Method(update, method.inner)
'''


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as made:
        yield made


AGAIN = {"TORCHELASTIC_RESTART_COUNT": 1}


def call(pool: Pool, size: int, *arguments: object, **variables: object) -> list[runs.Outcome]:
    """The script in every process, as torchrun starts it."""
    outcomes: list[runs.Outcome] = pool.call(size, quick, *map(str, arguments), **variables)
    return outcomes


def quick(*arguments: object, script: str = "train_supervised") -> runs.Outcome:
    """The script without the seconds that its pictures take."""
    pictures = {"train_supervised": ("adaptation_figure", "plot"), "train": ("adaptation_figure", "trajectory_figure")}
    blank = {name: lambda *_, **__: Figure() for name in pictures[script]}
    with mock.patch.multiple(f"metarl.experiments.{script}", **blank):
        return runs.call(script, *arguments)


def quick_train(*arguments: str) -> runs.Outcome:
    return quick(*arguments, script="train")


def by_one(folder: Path, *arguments: object) -> Path:
    outcome = quick(*SETTINGS, *SHARED, *arguments, "--log-dir", folder.parent, "--name", folder.name)
    assert outcome.code == 0, outcome.err
    return folder


def by_two(pool: Pool, folder: Path, *arguments: object, **variables: object) -> Path:
    line = [*SETTINGS, *SHARED, *arguments, "--log-dir", folder.parent, "--name", folder.name]
    for outcome in call(pool, 2, *line, **variables):
        assert outcome.code == 0, outcome.err
    return folder


def evaluation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return {key: value for key, value in found.items() if key not in ("run", "seconds_per_iteration")}


def assert_same_run(one: Path, other: Path) -> None:
    assert runs.untimed(one) == runs.untimed(other)
    assert runs.saved(one) == runs.saved(other)
    assert evaluation(one) == evaluation(other)
    assert kinds(one) == kinds(other)


def kinds(folder: Path) -> set[str]:
    """The files by name; of TensorBoard's, which are named after process and time, just that they are there."""
    return {path.name.partition(".tfevents")[0] for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process; to be looked at, not changed."""
    return by_one(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def shared(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by two."""
    return by_two(pool, tmp_path_factory.mktemp("shared") / "run")


def test_two_leave_what_one_leaves(whole: Path, shared: Path) -> None:
    assert_same_run(whole, shared)
    assert len(runs.lines(shared)) == 6
    assert [json.loads((f / "config.json").read_text())["processes"] for f in (whole, shared)] == [1, 2]


def test_only_the_first_one_speaks(pool: Pool, tmp_path: Path) -> None:
    options = [*SETTINGS, "--log-dir", tmp_path, "--name", "run", "--json"]
    first, second = call(pool, 2, *options)
    assert json.loads(first.out)["iterations"] == 6
    assert "6 iterations to go" in first.err
    assert second == runs.Outcome(0, "", "")


def test_reinforcement_learning(pool: Pool, tmp_path: Path) -> None:
    tiny = [*runs.TINY, "--meta-batch-size", "4", "--eval-tasks", "4", "--iterations", "2"]
    line = [*tiny, "--log-dir", str(tmp_path), "--name"]
    first, second = pool.call(2, quick_train, *line, "two")
    assert (first.code, second) == (0, runs.Outcome(0, "", ""))
    assert quick_train(*line, "one").out.replace("one", "two") == first.out
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_resumed_by_another_number(pool: Pool, whole: Path, tmp_path: Path) -> None:
    folder = by_two(pool, tmp_path / "run", "--iterations", 2)
    assert quick("--resume", folder, "--iterations", 4).code == 0
    assert [outcome.code for outcome in call(pool, 2, "--resume", folder, "--iterations", 6)] == [0, 0]
    assert_same_run(whole, folder)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--log-dir .", "name must be given under torchrun"),
        ("--name done", "done exists; choose another --name, or resume it: --resume done"),
        ("--name new --outer mamel", "outer must .* did you mean 'maml'"),
        ("--name new --iteration 3", "--iteration"),
        ("--name new --meta-batch-size 1", "meta_batch_size must be at least 2, the number of processes, got 1"),
        ("--name new --outer-step ji --step-tasks 1", "step_tasks must be at least 2, the number of processes, got 1"),
        ("--resume missing", "run must be the folder of a run .*missing/config.json"),
        ("--resume done", "iterations must be more than the 6"),
        ("--resume done --outer fo_maml", "outer cannot change"),
        ("--resume torn", "checkpoint .*torn/checkpoint.pt cannot be read"),
    ],
)
def test_refused_in_one_line(pool: Pool, shared: Path, tmp_path: Path, line: str, wanted: str) -> None:
    for name in ("done", "torn"):
        runs.copy(shared, tmp_path / name)
    (tmp_path / "torn" / "checkpoint.pt").write_bytes(b"PK")
    before = runs.files(tmp_path)
    options = [*SETTINGS, "--log-dir", "."] if "--resume" not in line else []
    first, second = pool.call(2, within, tmp_path, [*options, *line.split()])
    assert runs.files(tmp_path) == before
    assert (first.code, first.out) == (2, "")
    assert re.fullmatch(rf"error: .*{wanted}.*\n", first.err)
    assert second == runs.Outcome(2, "", "")


def within(folder: Path, arguments: list[str]) -> runs.Outcome:
    os.chdir(folder)
    return quick(*arguments)


# What processes find that are started again


def placed(run: Path, folder: Path, **changes: object) -> Path:
    """A copy of a run, as if it had been made in `folder`."""
    runs.copy(run, folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "log_dir": str(folder.parent), "name": folder.name, **changes})
    return folder


def test_they_go_on_from_the_last_checkpoint(pool: Pool, whole: Path, shared: Path, tmp_path: Path) -> None:
    folder, half = placed(shared, tmp_path / "run"), by_one(tmp_path / "half", "--iterations", 2)
    (folder / "evaluation.json").unlink()
    shutil.copy(half / "checkpoint.pt", folder / "checkpoint.pt")
    first, _ = call(pool, 2, *SETTINGS, *SHARED, "--log-dir", tmp_path, "--name", "run", **AGAIN)
    assert "4 iterations to go" in first.out
    assert_same_run(whole, folder)


def test_a_new_member_of_the_same_launch_goes_on(pool: Pool, shared: Path, tmp_path: Path) -> None:
    """On several machines, nobody may count a restart after one of them has been replaced."""
    folder = placed(shared, tmp_path / "run", launch="job-17")
    assert_same_run(shared, by_two(pool, folder, TORCHELASTIC_RUN_ID="job-17"))
    line = [*SETTINGS, *SHARED, "--log-dir", tmp_path, "--name", "run"]
    for other in ({"TORCHELASTIC_RUN_ID": "job-18"}, {"TORCHELASTIC_RUN_ID": "none"}, {}):
        assert [outcome.code for outcome in call(pool, 2, *line, **other)] == [2, 2]


@pytest.mark.parametrize("left", [[], ["config.json", ".checkpoint.pt.tmp"], [".config.json.tmp"]])
def test_they_begin_anew_where_nothing_was_saved(
    pool: Pool, whole: Path, shared: Path, tmp_path: Path, left: list[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).write_bytes(b"{")
    if "config.json" in left:
        config = json.loads((shared / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "log_dir": str(tmp_path)}))
    assert_same_run(whole, by_two(pool, folder, **AGAIN))


def test_a_finished_run_stays(pool: Pool, shared: Path, tmp_path: Path) -> None:
    """Killed after its last checkpoint: only what comes after training is done again."""
    folder = placed(shared, tmp_path / "run")
    assert_same_run(shared, by_two(pool, folder, **AGAIN))
    assert [o.code for o in call(pool, 2, "--resume", folder, "--iterations", 6, **AGAIN)] == [0, 0]
    assert_same_run(shared, folder)


@pytest.mark.parametrize("other", ["settings", "folder", "broken"])
def test_they_leave_alone_what_is_not_theirs(pool: Pool, shared: Path, tmp_path: Path, other: str) -> None:
    folder = runs.copy(shared, tmp_path / "run")  # its log_dir is another one
    if other == "folder":
        for path in folder.iterdir():
            path.unlink()
        (folder / "thesis.tex").write_text("all my work")
    if other == "broken":
        (folder / "config.json").unlink()
    before = runs.files(tmp_path)
    line = [*SETTINGS, *SHARED, "--log-dir", tmp_path, "--name", "run"]
    assert [outcome.code for outcome in call(pool, 2, *line, **AGAIN)] == [2, 2]
    assert runs.files(tmp_path) == before


@pytest.mark.slow
def test_kill_9_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fatal_plugin.py").write_text(FATAL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = [*SETTINGS, *SHARED, "--outer", "fatal", "--plugins", "fatal_plugin", "--log-dir", str(tmp_path)]
    environment = with_root(tmp_path, OMP_NUM_THREADS="1")
    command = [
        *torchrun,
        "--max-restarts",
        "1",
        "-m",
        "metarl.experiments.train_supervised",
        *options,
        "--name",
        "killed",
    ]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.terminate()  # a failure must not leave its processes behind
    assert process.returncode == 0, err
    assert (tmp_path / "was_killed").exists()
    assert out.count("killed: fatal on six_logistic, 6 iterations to go") == 1
    assert out.count("4 iterations to go") == 1  # from the checkpoint after the second iteration
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert quick(*options, "--name", "undisturbed").code == 0
    finally:
        OUTER.pop("fatal", None)
        sys.modules.pop("fatal_plugin", None)
    assert_same_run(tmp_path / "undisturbed", tmp_path / "killed")
    assert [line["iteration"] for line in runs.lines(tmp_path / "killed")] == [1, 2, 3, 4, 5, 6]
