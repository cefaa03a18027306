"""Few files, little memory, long paths, outputs that are folders, sizes that no machine has: refused in one line."""

import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from metarl.experiments.common.run import load_run
from metarl.experiments.train import TrainConfig
from tests.experiments import runs
from tests.faults.fault import Result, faults
from tests.faults.subject import WORLDS, cases_in_child, one_line, undisturbed

GROUP = "limits, paths, huge sizes"
HUGE = ("4611686018427387904", "9223372036854775808", "1000000000000", "-1")
COUNTS = ("meta_batch_size", "episodes", "horizon", "hidden", "eval_tasks", "inner_steps")
SEEDS = ("seed", "eval_seed")
PROBLEM_COUNTS = ("meta_batch_size", "eval_tasks", "inner_steps", "shots", "queries", "eval_steps", "final_tasks")
SCRIPTS = {"train": (), "train_supervised": ("sinusoid",)}
LIMITED: dict[str, Sequence[Any]] = {
    "train": runs.TINY,
    "workers": (*runs.TINY, *WORLDS, "--env-options", "workers=2"),
    "resume": runs.TINY,
    "train_supervised": ("six_logistic",),
}
NAMES = {
    "300 letters": "x" * 300,
    "300 letters of two bytes": "ж" * 150,
    "200 folders": "d/" * 200 + "run",
    "300 folders of 100 letters": ("f" * 100 + "/") * 300,
    "a NUL": "a\0b",
    "nothing": "",
    "..": "..",
    "a line feed": "a\nb",
    "half a pair": "\udcff",
}


@faults(GROUP)
def size(folder: Path) -> Iterator[Result]:
    sizes = {"train": COUNTS + SEEDS, "train_supervised": PROBLEM_COUNTS + SEEDS}
    cases = [f"{script} {name} {value}" for script, names in sizes.items() for name in names for value in HUGE]
    return cases_in_child("limits", "huge_size", folder, cases, preexec_fn=protect)


def protect() -> None:
    """A machine with less memory than that may not be taken down by what should have been refused."""
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))


def huge_size(_: Path, own: Path, case: str) -> None:
    script, name, value = case.split()
    option = [f"--{name.replace('_', '-')}", value]
    tiny = runs.TINY if script == "train" else ("--eval-every", "1")
    line = [*SCRIPTS[script], *tiny, "--iterations", "1", *option, "--log-dir", own, "--name", "run"]
    outcome = within(15, lambda: runs.call(script, *line))
    if name in SEEDS and outcome.code == 0:  # any seed of 64 bits is one
        return
    one_line(outcome)
    assert not list(own.iterdir()), "a folder was left behind"


def within(seconds: int, call: Callable[[], runs.Outcome]) -> runs.Outcome:
    """`call()`, which fails when it takes longer."""

    def late(number: int, frame: FrameType | None) -> NoReturn:
        raise AssertionError(f"it computes for more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        return call()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@faults(GROUP)
def path(folder: Path) -> Iterator[Result]:
    cases = [
        f"{option} = {name}" for option in ("--name", "--log-dir", "--resume", "--out", "--plugins") for name in NAMES
    ]
    run = folder / "run"
    shutil.copytree(undisturbed("rl")[0], run)
    more = ["--out = a folder", "--out = below a file", "--log-dir = a file", "--resume = a file"]
    return cases_in_child("limits", "odd_path", run, cases + more)


def odd_path(run: Path, own: Path, case: str) -> None:
    """Refused in one line with nothing left behind, or used as it is."""
    option, _, name = case.partition(" = ")
    file = own / "file"
    file.write_text("mine")
    before = runs.files(run)
    special = {"a folder": own, "below a file": file / "plot.png", "a file": file}
    value: Any = special[name] if name in special else NAMES[name]
    if name not in special and option != "--name" and value:
        value = f"{own}/{value}"
    tiny = [*runs.TINY, "--iterations", "1"]
    line = {
        "--resume": ["--resume", value],
        "--out": [run, "--y", "rollout/return_after", "--out", value],
        "--name": [*tiny, "--log-dir", own, "--name", value],
        "--log-dir": [*tiny, "--log-dir", value or own, "--name", "run"],
        "--plugins": [*tiny, "--log-dir", own, "--name", "run", "--plugins", value],
    }[option]
    outcome = runs.call("plot" if option == "--out" else "train", *line)
    if outcome.code:
        one_line(outcome)
        assert [path.name for path in own.iterdir()] == ["file"], f"left behind: {list(own.iterdir())}"
    assert "Traceback" not in outcome.err
    assert file.read_text() == "mine"
    assert runs.files(run) == before


@faults(GROUP, "files", "memory")
def limit_of(folder: Path, what: str) -> Iterator[Result]:
    run = folder / "run"
    shutil.copytree(undisturbed("rl")[0], run)
    amounts = (0, 2, 8, 24) if what == "files" else (0, 4, 16, 100)
    for case in [f"{what} {script} {amount}" for script in LIMITED for amount in amounts]:
        yield from cases_in_child("limits", "little", run, [case])  # a limit cannot be taken back


def little(whole: Path, own: Path, case: str) -> None:
    """`ulimit -n` and `ulimit -v` a little above what a first run took."""
    what, script, amount = case.split()
    line = [*LIMITED[script], "--iterations", "3", "--log-dir", own, "--name", "run"]
    if script == "resume":
        shutil.copytree(whole, own / "run")
        line = ["--resume", own / "run", "--iterations", 62]
    name = "train_supervised" if script == "train_supervised" else "train"
    first = [*LIMITED[script], "--iterations", "1", "--log-dir", own, "--name", "first"]
    assert runs.call(name, *first).code == 0  # what is imported or allocated at the first use is there
    set_limit(what, int(amount))
    outcome = runs.call(name, *line)
    if outcome.code == 0:
        return
    one_line(outcome, 1, 2)
    if (own / "run" / "checkpoint.pt").exists() and name == "train":
        raised(what)
        load_run(TrainConfig, own / "run")


def set_limit(what: str, amount: int) -> None:
    if what == "files":
        number = len(list(Path("/proc/self/fd").iterdir())) - 1 + amount
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    else:
        used = 1024 * int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (used + amount * 2**20, resource.RLIM_INFINITY))


def raised(what: str) -> None:
    """Lift the limit again."""
    kind = resource.RLIMIT_NOFILE if what == "files" else resource.RLIMIT_AS
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (hard, hard))
