"""What the training scripts share: a run's folder, how it is made, resumed, trained and loaded again.

The folder has `config.json` (the settings with versions and commit), `metrics.jsonl` (a line per iteration),
TensorBoard events, `checkpoint.pt`, and what the script leaves at the end, `evaluation.json` among it.

Of several processes, only the first one looks at folders and writes; it tells the others what it found.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal, TextIO, TypeVar

import tyro

from metarl import MetaLearner, checkpoint
from metarl.callbacks import Callback, Checkpointing, ProgressBar
from metarl.checkpoint import is_temporary, remove_temporaries, write_json
from metarl.errors import check_int
from metarl.experiments.common import cli, options
from metarl.experiments.common.cli import import_plugins
from metarl.experiments.common.lock import LOCK_FILE, FolderLock, holder
from metarl.experiments.common.recorded import changes_with, read_object, saved_config, to_json, tolerated
from metarl.logging import RunLog
from metarl.outer import builder
from metarl.processes import ALONE, Processes, is_launched, launch, restarts
from metarl.schedules import Linear


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings that every training run has."""

    outer: str = "maml"
    """Outer update: maml, fo_maml, hf_maml, multi_step_maml, e_maml, sign_maml, moreau, reptile, imaml, or your own."""
    iterations: int = 150
    """Meta-iterations in all."""
    inner_steps: int | None = None
    """Inner steps N; default: the method's own (1, but 3 for multi_step_maml, moreau and reptile, 5 for imaml)."""
    inner_lr: float | None = None
    """Inner step size alpha; default: the method's own (0.1, but far less for sign_maml)."""
    hessian_data: Literal["fresh", "reuse"] | None = None
    """D_h of maml and hf_maml: a fresh draw (default), or reuse the inner batch, which saves a third of the draws."""
    outer_options: tuple[str, ...] = ()
    """More options as name=value, as delta=published rho=0.5 (hf_maml), lam=2 (imaml), baseline=none (e_maml)."""
    anneal_iterations: int | None = None
    """Let the outer step size fall linearly to a tenth over so many iterations (default: all; 0: never)."""
    max_grad_norm: float | None = None
    """Clip the mean meta-gradient to this norm; default: no clipping."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ...; auto takes an accelerator where there is one."""
    seed: int = 0
    """Everything random follows from it."""
    eval_every: int = 10
    """Evaluate on held-out tasks every so many iterations."""
    eval_tasks: int = 20
    """Held-out tasks of the evaluations during training."""
    eval_seed: int = 1000
    """Seed of the held-out tasks."""
    save_every: int = 10
    """Write a checkpoint every so many iterations."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, such as one that registers your own outer update."""
    log_dir: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs")
    """Where run folders are made."""
    name: str | None = None
    """Name of the run's folder; default: what is trained, update, seed and time. Needed under torchrun."""


C = TypeVar("C", bound=RunConfig)

LONGEST_ABOUT = 60
"""Letters of the part of a run's default name that tells what is trained: also in four bytes each it is a file name."""

CHANGEABLE = (
    "iterations",
    "learning_rate",
    "anneal_iterations",
    "device",
    "eval_every",
    "eval_tasks",
    "eval_seed",
    "save_every",
    "plugins",
)
"""Settings that a resumed run may change; those of the outer step size are recorded in `config.json` when they are."""


@dataclass(frozen=True)
class Run(Generic[C]):
    """A training run, checked and ready to go: train it `with writing(run):`."""

    config: C
    learner: MetaLearner
    folder: Path
    lock: FolderLock
    changed: Mapping[str, tuple[Any, Any]] = field(
        default_factory=dict
    )  # by --resume: what a setting was, and what it is


@dataclass(frozen=True)
class Recipe(Generic[C]):
    """What a script trains."""

    script: str  # as it is called, for messages
    config: type[C]
    build: Callable[[C, Processes], MetaLearner]  # the learner before training; checks every setting
    about: Callable[[C], str]  # what is trained on, for names and titles
    settle: Callable[[C], C] = lambda config: config  # fill in defaults that depend on other settings
    added: Mapping[str, Any] = field(
        default_factory=dict
    )  # settings that older runs do not have: what they trained with


def parsed(
    recipe: Recipe[C],
    arguments_class: type[Any],
    arguments: list[str] | None,
    description: str | None,
    processes: Processes,
) -> tuple[Any, Run[C]]:
    """The command line as `arguments_class` (the configuration and `resume`), and the run it asks for."""
    given = cli.parse(arguments_class, arguments, recipe.script, description, None, processes)
    folder = given.resume
    if folder is None:
        return given, cli.prepared(lambda: fresh(recipe, settings_of(recipe, given), processes), processes)
    saved = cli.prepared(lambda: processes.from_first(lambda: saved_config(recipe, folder)), processes)
    # read again over the run's own settings: what then differs from them was really given
    own = arguments_class(**{**vars(saved), "anneal_iterations": annealing(saved), "resume": folder})
    given = cli.parse(arguments_class, arguments, recipe.script, description, own, processes)
    settings = annealed(settings_of(recipe, given))
    return given, cli.prepared(lambda: resumed(recipe, folder, saved, settings, processes), processes)


def annealing(saved: RunConfig) -> int | None:
    """`anneal_iterations` of a run that is resumed: where its schedule spanned all iterations, it does so again."""
    return None if saved.anneal_iterations == saved.iterations else saved.anneal_iterations


def annealed(config: C) -> C:
    """With a schedule that spans all iterations, unless another one is given."""
    given = config.anneal_iterations
    return dataclasses.replace(config, anneal_iterations=config.iterations if given is None else given)


def settings_of(recipe: Recipe[C], given: Any) -> C:
    """The settings of a run without the arguments that only this call is about."""
    return recipe.config(**{one.name: getattr(given, one.name) for one in dataclasses.fields(recipe.config)})


def fresh(recipe: Recipe[C], config: C, processes: Processes = ALONE) -> Run[C]:
    """A new run; its folder is made last, when all settings have been checked.

    Under torchrun, processes that are started again after one was killed go on with the run that they had begun.

    Raises:
        ValueError: naming the setting that cannot work, or the folder that exists.
    """
    config = processes.together(lambda: settled(recipe, config))
    learner = processes.together(lambda: recipe.build(config, processes))
    restarted = processes.any(restarts() > 0)  # of several machines, only that of the killed process may count it
    name = config.name
    assert name is not None  # it has been settled
    folder = config.log_dir / name
    lock = FolderLock(folder)

    def begin() -> Mapping[str, Any]:
        again = folder.is_dir() and (restarted or is_of_this_launch(folder))
        if not again:
            new_folder(config.log_dir, name)
        with lock, removed_at_errors(None if again else folder):
            state = left_by_killed(recipe, config, folder) if again else None
            remove_temporaries(folder)
            if state is not None:
                return state
            write_json(folder / "config.json", to_json(config, processes))
            learner.save(folder / "checkpoint.pt")
        return learner.state_dict()

    learner.load_state_dict(processes.from_first(begin))
    return Run(config, learner, folder, lock)


@contextmanager
def writing(run: Run[C]) -> Iterator[None]:
    """Hold the run's lock, in the first process; where another writer was faster, the program ends here."""
    processes = run.learner.processes
    cli.prepared(lambda: processes.from_first(run.lock.acquire), processes)
    try:
        yield
    finally:
        run.lock.release()


@contextmanager
def released_at_errors(lock: FolderLock) -> Iterator[None]:
    """Leave the folder to others when this run does not begin."""
    try:
        yield
    except BaseException:
        lock.release()
        raise


@contextmanager
def removed_at_errors(folder: Path | None) -> Iterator[None]:
    """Remove a folder that has just been made when the run cannot begin in it, as on a full disk."""
    try:
        yield
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def settled(recipe: Recipe[C], config: C) -> C:
    """With everything filled in that depends on other settings.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    if config.name is None and is_launched():
        raise ValueError("name must be given under torchrun: a process that is started again looks for it, got None")
    config = recipe.settle(config)
    about = f"{recipe.about(config)}-{config.outer}-{config.seed}"
    built = re.sub(r"[^\w.+-]", "_", about)[:LONGEST_ABOUT]  # a plug-in's names may hold anything
    name = config.name or f"{built}-{time.strftime('%Y%m%d-%H%M%S')}"
    return annealed(dataclasses.replace(config, name=name))


def is_of_this_launch(folder: Path) -> bool:
    """Whether the run in `folder` was begun by the same call of torchrun, as far as that has a name."""
    try:
        found = read_object(folder / "config.json").get("launch")
    except (OSError, ValueError, RecursionError):
        return False
    return found is not None and found == launch()


def left_by_killed(recipe: Recipe[C], config: C, folder: Path) -> dict[str, Any] | None:
    """The last checkpoint of a run with these settings, or nothing where it was killed before it had saved one.

    Raises:
        ValueError: when the folder is another one.
    """
    found = {path.name for path in folder.iterdir() if not is_temporary(path.name)} - {LOCK_FILE}
    other = "config.json" in found and saved_config(recipe, folder) != config
    if not other and "config.json" in found and "checkpoint.pt" in found:
        return checkpoint.load(folder / "checkpoint.pt")
    if other or not found <= {"config.json"}:
        raise ValueError(_taken(folder))
    return None


def new_folder(log_dir: Path, name: str) -> Path:
    """Make the folder `name` in `log_dir`.

    Raises:
        ValueError: when the name is not one, the folder exists, or it cannot be made.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"name must be the name of a folder without a path, got {name!r}")
    for argument, path in (("name", Path(name)), ("log_dir", log_dir)):
        for part in path.parts:
            if "\0" in part or len(os.fsencode(part)) > LONGEST:  # or parents would be made, and then left behind
                found = f"{cli.shortened(part)!r}, {len(part)} letters"
                raise ValueError(f"{argument} must have names of folders, at most {LONGEST} bytes each, got {found}")
            if _is_not_text(part):  # TensorBoard cannot open it
                raise ValueError(f"{argument} must be UTF-8, got {cli.shortened(part)!r}")
    folder = log_dir / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ValueError(_taken(folder)) from None
    except OSError as error:
        raise ValueError(f"log_dir must be writable, got {cli.shortened(str(log_dir))} ({error.strerror})") from None
    return folder


def _is_not_text(name: str) -> bool:
    """Whether a file's name holds bytes that are no letters in UTF-8."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)


LONGEST = 255  # bytes of a name in nearly every file system


def _taken(folder: Path) -> str:
    by = holder(folder)
    if by is not None:
        return f"{folder} exists and is being written by {by}; choose another --name"
    return f"{folder} exists; choose another --name, or go on with it: --resume {folder}"


def resumed(recipe: Recipe[C], folder: Path, saved: C, given: C, processes: Processes = ALONE) -> Run[C]:
    """The run in `folder`, whose settings are `saved`, at its last checkpoint, with those that are `given` now.

    Raises:
        ValueError: when the folder is not a run's, or a setting was given that a resumed run cannot change.
    """
    changes = {name: value for name, value in vars(given).items() if value != getattr(saved, name)}
    check_changeable(saved, changes)
    lock = FolderLock(folder)
    with released_at_errors(lock):
        processes.from_first(lock.acquire)  # before anything is read that another writer may change
        changed = {name: (getattr(saved, name), value) for name, value in changes.items()}
        run = dataclasses.replace(load(recipe, folder, changes, processes), lock=lock, changed=changed)
        done, wanted = run.learner.iterations, run.config.iterations
        restarted = processes.any(restarts() > 0)

        def begin() -> None:
            finished = is_finished(folder, done) and not restarted  # one that was killed meanwhile goes on
            if wanted < done or (wanted == done and finished):
                further = f"the run is finished; to train further: --resume {folder} --iterations N, N > {done}"
                raise ValueError(f"iterations must be more than the {done} that {folder} has, got {wanted}; {further}")
            remove_temporaries(folder)
            entries = changes_with(folder, changed, done)
            write_json(folder / "config.json", {**to_json(run.config, processes), **entries})

        processes.from_first(begin)
    return run


def check_changeable(saved: RunConfig, changes: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names a setting which a run keeps."""
    for name, value in changes.items():
        if name not in CHANGEABLE:
            kept = getattr(saved, name)
            raise ValueError(f"{name} cannot change when a run is resumed: it is {kept!r}, got {value!r}")


def is_finished(folder: Path, iterations: int) -> bool:
    """Whether the run in `folder` was evaluated after so many iterations; `evaluation.json` is written last of all."""
    try:
        found = read_object(folder / "evaluation.json")
        return bool(found.get("iterations", iterations) == iterations)  # older runs did not write it
    except (OSError, ValueError, RecursionError):
        return False


def load(
    recipe: Recipe[C], folder: Path, changes: Mapping[str, Any] = MappingProxyType({}), processes: Processes = ALONE
) -> Run[C]:
    """The run in `folder` at its last checkpoint, with some settings changed.

    Raises:
        ValueError: when the folder is not a run's, or its checkpoint is missing, truncated or another run's.
    """
    config = dataclasses.replace(processes.from_first(lambda: saved_config(recipe, folder)), **changes)
    learner = processes.together(lambda: recipe.build(config, processes))
    state = processes.from_first(lambda: checkpoint.load(folder / "checkpoint.pt"))
    may_differ = processes.from_first(lambda: tolerated(folder, changes))
    processes.together(lambda: learner.load_state_dict(state, may_differ))
    return Run(config, learner, folder, FolderLock(folder))


def learn(run: Run[C], before_log: Sequence[Callback], about: str, messages: TextIO | None = None) -> RunLog:
    """Train to the end with a log, a progress bar and checkpoints; `before_log` may add to what is logged.

    A signal that ended training ends the program here, with how to go on. Where training is complete, what is left to
    do is to finish: evaluate and draw, which may be repeated, as it is the last file that says it has been done.
    """
    config, learner, folder = run.config, run.learner, run.folder

    def say(text: str) -> None:
        if learner.processes.is_first:
            print(text, file=messages)

    say(f"{folder}: {config.outer} on {about}, {config.iterations - learner.iterations} iterations to go")
    for name, (before, now) in run.changed.items():
        say(f"{folder}: {name} is {now!r} from iteration {learner.iterations + 1} on, it was {before!r}")
    settings = json.dumps(to_json(config, learner.processes), indent=2)
    log = RunLog(folder, {"configuration": f"```json\n{settings}\n```"})
    callbacks = [*before_log, log, ProgressBar(), Checkpointing(folder / "checkpoint.pt", config.save_every)]
    if learner.iterations < config.iterations:
        learner.learn(config.iterations - learner.iterations, callbacks)
    elif learner.processes.is_first:
        log.repair(learner.iterations)
    if learner.stopped_by is not None:
        where = f"saved after iteration {learner.iterations}; to go on: --resume {folder}"
        say(f"stopped by {learner.stopped_by}, {where}")
        raise SystemExit(cli.SIGNAL_BASE + signal.Signals[learner.stopped_by])
    return log


def last_good(folder: Path) -> str:
    """The end of a sentence on why a run has ended."""
    return f"; the last good checkpoint is {folder / 'checkpoint.pt'}, to go on: --resume {folder}"


def learner_arguments(config: RunConfig, processes: Processes) -> dict[str, Any]:
    """Arguments of `MetaLearner` that every run has."""
    return {
        "outer": config.outer,
        "inner_lr": config.inner_lr,
        "inner_steps": config.inner_steps,
        "outer_options": parse_outer_options(config),
        "max_grad_norm": config.max_grad_norm,
        "schedule": annealing_schedule(config.anneal_iterations),
        "seed": config.seed,
        "processes": processes,
    }


def annealing_schedule(iterations: int | None) -> Linear | None:
    """A fall to a tenth over `iterations`; nothing at 0.

    Raises:
        ValueError: for a number that is none.
    """
    return Linear(iterations) if iterations and check_int("anneal_iterations", iterations, minimum=0) else None


def check_shared(config: RunConfig) -> None:
    """Import the plug-ins and check what every run has, but what the learner checks itself.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    import_plugins(config.plugins)
    for name in ("iterations", "eval_every", "eval_tasks", "save_every"):
        check_int(name, getattr(config, name))
    check_int("eval_seed", config.eval_seed, minimum=0)


def parse_outer_options(config: RunConfig) -> dict[str, Any]:
    """The options of the outer update from `hessian_data` and `outer_options`."""
    chosen: dict[str, Any] = {} if config.hessian_data is None else {"hessian_data": config.hessian_data}
    given = options.read("outer_options", config.outer_options, builder(config.outer))
    if twice := sorted(set(chosen) & set(given)):
        raise ValueError(f"outer_options must not have {twice}, which has been given as --hessian-data")
    return {**chosen, **given}


def step_sizes(learner: MetaLearner, steps: int, schedule: str) -> list[float]:
    """Inner step sizes at test time: `constant`, or `halved` after the steps that were trained (Finn et al., 2017)."""
    assert learner.inner_lr is not None  # scripts name their method
    trained = learner.method.inner.steps if schedule == "halved" else steps
    return [learner.inner_lr if step < trained else learner.inner_lr / 2 for step in range(steps)]
