"""Training runs: opened from the command line, trained, finished, resumed and loaded again.

    with open_run(TrainConfig, arguments, __doc__) as run:  # parsed, checked, its folder made and locked
        train_run(run, callbacks)
        finish(run, results, figures)

A run's folder has `config.json` (the settings with versions and commit), `metrics.jsonl` (a line per iteration),
TensorBoard events, `checkpoint.pt`, and at the end pictures and `evaluation.json`.

With several processes, only the first one reads and writes folders, and tells the others what it found.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TextIO

from matplotlib.figure import Figure

from metarl import MetaLearner, checkpoint
from metarl.callbacks import Callback, Checkpointing, ProgressBar
from metarl.experiments.common import cli
from metarl.experiments.common.config import (
    C,
    LoopConfig,
    add_changes,
    may_differ,
    read_config,
    read_if_whole,
    settings,
    to_json,
)
from metarl.experiments.common.lock import LOCK_FILE, FolderLock, holder
from metarl.files import is_temporary, remove_temporaries, write_atomically, write_json
from metarl.logging import RunLog
from metarl.processes import ALONE, Processes, is_launched, launch, restarts
from metarl.trackers import find_tracker

CHANGEABLE = (
    *("iterations", "env_steps", "learning_rate", "anneal_iterations", "device"),
    *("eval_every", "eval_tasks", "eval_seed", "save_every", "plugins", "picture_every", "track"),
)
"""Settings that a resumed run may change; `config.json` records changes of the outer step size."""

ADAPTED = {"alpha_maml": ("learning_rate", "anneal_iterations")}
"""Settings that it may not change, because the outer step adapts them."""


@dataclass(frozen=True)
class Run(Generic[C]):
    """A training run, checked and ready to train."""

    config: C
    learner: MetaLearner
    folder: Path
    lock: FolderLock
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # by --resume: from what, to what


@contextmanager
def open_run(kind: type[C], arguments: Sequence[str] | None, description: str | None) -> Iterator[Run[C]]:
    """The run that the command line asks for, new or resumed, while this program holds its lock.

    Settings that cannot work end the program with one line and exit code 2, before anything is written.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    with cli.join_processes() as processes:
        folder = find_resumed(words)
        if folder is None:
            config = kind.parse(words, description, processes)
            run = cli.prepare(lambda: new_run(config, processes), processes)
        else:
            saved = cli.prepare(lambda: processes.from_first(lambda: read_config(kind, folder)), processes)
            # The run's settings are the defaults, so every difference comes from the command line.
            spans_all = saved.anneal_iterations == saved.iterations
            defaults = dataclasses.replace(saved, anneal_iterations=None) if spans_all else saved
            given = anneal_to_the_end(kind.parse(words, description, processes, defaults))
            run = cli.prepare(lambda: resume_run(folder, saved, given, processes), processes)
        hint = f"; the last good checkpoint is {run.folder / 'checkpoint.pt'}; to resume: --resume {run.folder}"
        with write_run(run, hint):
            yield run


def find_resumed(words: Sequence[str]) -> Path | None:
    """The folder after `--resume` on the command line."""
    for word, following in zip_longest(words, words[1:]):
        name, equals, value = word.partition("=")
        if name == "--resume" and (equals or following is not None):
            return Path(value if equals else str(following))
    return None


@contextmanager
def write_run(run: Run[C], hint: str) -> Iterator[None]:
    """Hold the run's lock, in the first process. Errors end the program with one line and `hint`."""
    processes = run.learner.processes
    cli.prepare(lambda: processes.from_first(run.lock.acquire), processes)
    try:
        with cli.one_line_errors(hint, processes):
            yield
    finally:
        run.lock.release()


def train_run(
    run: Run[C], callbacks: Sequence[Callback], messages: TextIO | None = None, progress: Callback | None = None
) -> None:
    """Train to the end with a log, checkpoints and a progress bar, or `progress` instead.

    `callbacks` may add to what is logged.

    If a signal ends training, the program ends here and says how to resume. If training is complete already, only
    the evaluation and the pictures remain, which may be repeated: the last file written says that they are done.
    """
    config, learner, folder = run.config, run.learner, run.folder

    def tell(text: str) -> None:
        if learner.processes.is_first:
            print(text, file=messages)

    tell(f"{folder}: {config.algorithm} on {config.about}, {config.iterations - learner.iterations} iterations to go")
    for name, (before, now) in run.changed.items():
        tell(f"{folder}: {name} is {now!r} from iteration {learner.iterations + 1} on, it was {before!r}")
    as_text = json.dumps(to_json(config, learner.processes), indent=2)
    log = RunLog(folder, {"configuration": f"```json\n{as_text}\n```"})
    if learner.iterations < config.iterations:
        trackers = [find_tracker(name)(folder, to_json(config, learner.processes)) for name in config.track]
        saving = Checkpointing(folder / "checkpoint.pt", config.save_every)
        every = [*callbacks, log, *trackers, progress or ProgressBar(), saving]
        learner.learn(config.iterations - learner.iterations, every)
    elif learner.processes.is_first:
        log.repair(learner.iterations)
    if learner.stopped_by is not None:
        where = f"saved after iteration {learner.iterations}; to resume: --resume {folder}"
        tell(f"stopped by {learner.stopped_by}, {where}")
        raise SystemExit(cli.SIGNAL_BASE + signal.Signals[learner.stopped_by])


def finish(run: Run[C], results: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
    """Leave the pictures in the run's folder and in TensorBoard, and the results in `evaluation.json`.

    `results["mean"]` has the mean score after each step, or at the `points` of another `axis`; with the settings it
    goes to TensorBoard's HParams tab.
    """
    log = RunLog(run.folder)
    for name, figure in figures.items():
        write_atomically(run.folder / f"{name}.png", figure.savefig)
        log.figure(f"figures/{name}", figure, run.learner.iterations)
    score = run.learner.source.score_name
    axis, points = results.get("axis", "step"), results.get("points", range(len(results["mean"])))
    finals = {f"final/{score}_{axis}_{k}": value for k, value in zip(points, results["mean"], strict=True)}
    log.hyperparameters(settings(run.config), finals, run.learner.iterations)
    log.close()
    # Last of all: this file says that the run is finished.
    write_json(run.folder / "evaluation.json", {**results, "iterations": run.learner.iterations})


# New runs.


def new_run(config: C, processes: Processes = ALONE) -> Run[C]:
    """A new run. Its folder is made last, after all settings have been checked.

    If torchrun starts the processes again after one was killed, they continue the run that they had started.

    Raises:
        ValueError: naming the setting that cannot work, or the folder that exists.
    """
    # Check everything in every process; nothing is written yet.
    config = processes.together(lambda: settle(config))
    processes.together(lambda: check_trackers(config))
    learner = processes.together(lambda: config.build_learner(processes))
    restarted = processes.any(restarts() > 0)  # on several machines, only the killed process's may count the restart
    name = config.name
    assert name is not None  # `settle` fills it in
    folder = config.log_dir / name
    lock = FolderLock(folder)

    def begin() -> Mapping[str, Any]:
        again = folder.is_dir() and (restarted or is_of_this_launch(folder))
        if not again:
            new_folder(config.log_dir, name)
        with lock, remove_at_errors(None if again else folder):
            state = load_checkpoint_of_killed_run(config, folder) if again else None
            remove_temporaries(folder)
            if state is not None:
                return state
            write_json(folder / "config.json", to_json(config, processes))
            learner.save(folder / "checkpoint.pt")
        return learner.state_dict()

    # Every process begins with what the first one saved or found.
    learner.load_state_dict(processes.from_first(begin))
    return Run(config, learner, folder, lock)


def settle(config: C) -> C:
    """The settings with every default filled in.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    if config.name is None and is_launched():
        raise ValueError("name must be given under torchrun: a process that is started again looks for it, got None")
    config = config.settle()
    # A plug-in's names may be anything.
    about = re.sub(r"[^\w.+-]", "_", f"{config.about}-{config.algorithm}-{config.seed}")
    name = config.name or f"{about[:LONGEST_ABOUT]}-{time.strftime('%Y%m%d-%H%M%S')}"
    return anneal_to_the_end(dataclasses.replace(config, name=name))


def check_trackers(config: LoopConfig) -> None:
    """Import the trackers.

    Raises:
        ValueError: when one cannot be found.
    """
    cli.import_plugins([name.partition(":")[0] for name in config.track if ":" in name], "track")
    for name in config.track:
        find_tracker(name)


LONGEST_ABOUT = 60
"""Letters of a default name before its time; even at four bytes each, the whole is a valid file name."""


def anneal_to_the_end(config: C) -> C:
    """The settings with a schedule over all iterations, unless another one is given."""
    given = config.anneal_iterations
    return dataclasses.replace(config, anneal_iterations=config.iterations if given is None else given)


def new_folder(log_dir: Path, name: str) -> Path:
    """Make the folder `name` in `log_dir`.

    Raises:
        ValueError: when the name is not valid, the folder exists, or it cannot be made.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"name must be the name of a folder without a path, got {name!r}")
    for argument, path in (("name", Path(name)), ("log_dir", log_dir)):
        for part in path.parts:
            if "\0" in part or len(os.fsencode(part)) > LONGEST:  # checked before any parent is made and left behind
                found = f"{cli.shorten(part)!r}, {len(part)} letters"
                raise ValueError(f"{argument} must have names of folders, at most {LONGEST} bytes each, got {found}")
            if any("\ud800" <= letter <= "\udfff" for letter in part):  # bytes that TensorBoard cannot open
                raise ValueError(f"{argument} must be UTF-8, got {cli.shorten(part)!r}")
    folder = log_dir / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ValueError(_describe_taken(folder)) from None
    except OSError as error:
        raise ValueError(f"log_dir must be writable, got {cli.shorten(str(log_dir))} ({error.strerror})") from None
    return folder


LONGEST = 255  # bytes of a name in nearly every file system


def _describe_taken(folder: Path) -> str:
    by = holder(folder)
    if by is not None:
        return f"{folder} exists and is being written by {by}; choose another --name"
    return f"{folder} exists; choose another --name, or resume it: --resume {folder}"


@contextmanager
def remove_at_errors(folder: Path | None) -> Iterator[None]:
    """Remove a folder that has just been made if the run cannot begin in it, for example on a full disk."""
    try:
        yield
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


# Runs that were killed under torchrun.


def is_of_this_launch(folder: Path) -> bool:
    """Whether the run in `folder` was begun by the same call of torchrun, if that has a name."""
    found = read_if_whole(folder / "config.json")
    return found is not None and found.get("launch") is not None and found["launch"] == launch()


def load_checkpoint_of_killed_run(config: LoopConfig, folder: Path) -> dict[str, Any] | None:
    """The last checkpoint of a run with these settings, or nothing if it was killed before the first one.

    Raises:
        ValueError: when the folder holds anything else.
    """
    found = {path.name for path in folder.iterdir() if not is_temporary(path.name)} - {LOCK_FILE}
    other = "config.json" in found and settings(read_config(type(config), folder)) != settings(config)
    if not other and {"config.json", "checkpoint.pt"} <= found:
        return checkpoint.load(folder / "checkpoint.pt")
    if other or not found <= {"config.json"}:
        raise ValueError(_describe_taken(folder))
    return None


# Runs that exist.


def resume_run(folder: Path, saved: C, given: C, processes: Processes = ALONE) -> Run[C]:
    """The run in `folder`, whose settings are `saved`, at its last checkpoint with the settings `given` now.

    Raises:
        ValueError: when the folder is not a run's, or a resumed run cannot change a setting that was given.
    """
    before, now = settings(saved), settings(given)
    changed = {name: (before[name], value) for name, value in now.items() if value != before[name]}
    check_changeable(before, now)
    processes.together(lambda: check_trackers(given))
    lock = FolderLock(folder)
    try:
        processes.from_first(lock.acquire)  # before anything is read that another writer may change
        learner = _restore(folder, given, changed, processes)
        restarted = processes.any(restarts() > 0)
        processes.from_first(lambda: _begin_again(folder, given, learner, changed, restarted))
    except BaseException:
        lock.release()
        raise
    return Run(given, learner, folder, lock, changed)


def _begin_again(
    folder: Path, config: LoopConfig, learner: MetaLearner, changed: Mapping[str, tuple[Any, Any]], restarted: bool
) -> None:
    done = learner.iterations
    finished = is_finished(folder, done) and not restarted  # after a kill in its final evaluation a run continues
    if config.iterations < done or (config.iterations == done and finished):
        further = f"the run is finished; to train further: --resume {folder} --iterations N, N > {done}"
        raise ValueError(
            f"iterations must be more than the {done} that {folder} has, got {config.iterations}; {further}"
        )
    remove_temporaries(folder)
    entries = add_changes(folder, changed, done)
    write_json(folder / "config.json", {**to_json(config, learner.processes), **entries})


def check_changeable(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names a setting which a resumed run cannot change."""
    fixed = ADAPTED.get(saved.get("outer_step", ""), ())
    for name, value in given.items():
        if (name not in CHANGEABLE or name in fixed) and value != saved[name]:
            raise ValueError(f"{name} cannot change when a run is resumed: it is {saved[name]!r}, got {value!r}")


def is_finished(folder: Path, iterations: int) -> bool:
    """Whether the run in `folder` was evaluated after this many iterations: `evaluation.json` is written last."""
    found = read_if_whole(folder / "evaluation.json")
    # Older runs did not write the number.
    return found is not None and bool(found.get("iterations", iterations) == iterations)


def load_run(
    kind: type[C], folder: Path, changes: Mapping[str, Any] = MappingProxyType({}), processes: Processes = ALONE
) -> MetaLearner:
    """The learner of the run in `folder` at its last checkpoint, with some settings changed.

    Raises:
        ValueError: when the folder is not a run's, or its checkpoint is missing, truncated or another run's.
    """
    config = dataclasses.replace(processes.from_first(lambda: read_config(kind, folder)), **changes)
    return _restore(folder, config, changes, processes)


def _restore(folder: Path, config: LoopConfig, changed: Mapping[str, object], processes: Processes) -> MetaLearner:
    path = folder / "checkpoint.pt"
    learner = processes.together(lambda: config.build_learner(processes))
    state = processes.from_first(lambda: checkpoint.load(path))
    different = processes.from_first(lambda: may_differ(folder, changed))
    try:
        processes.together(lambda: learner.load_state_dict(state, different))
    except ValueError as error:
        raise ValueError(f"checkpoint {path} does not fit: {error}") from error
    return learner
