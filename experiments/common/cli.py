"""What the scripts share on the command line: arguments from a dataclass, one-line errors, exit codes."""

import importlib
import io
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import tyro

from metarl import MetaLearner, NonFiniteError
from metarl.callbacks import Callback
from metarl.devices import pick_device as pick_device
from metarl.envs.workers import WorkerError
from metarl.errors import StateError
from metarl.processes import ALONE, Processes, joined

Config = TypeVar("Config")

FAILED, BAD_INPUT = 1, 2
SIGNAL_BASE = 128  # a shell's exit code of a program ended by signal n is 128 + n


def parse(
    config: type[Config],
    arguments: list[str] | None,
    script: str,
    description: str | None,
    default: Config | None = None,
    processes: Processes = ALONE,
) -> Config:
    """The arguments as `config`, over `default` where it is given; a wrong one is one line and exit code 2."""
    given: dict[str, Any] = {} if default is None else {"default": default}
    markers = (tyro.conf.FlagCreatePairsOff,)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            parsed: Config = tyro.cli(
                config, args=arguments, prog=script, description=description, config=markers, **given
            )
            return parsed
    except SystemExit as end:
        if end.code != BAD_INPUT:
            raise
    _refuse(_one_line(said.getvalue()), processes)


def _one_line(box: str) -> str:
    """What the argument parser drew as a box with a title and a help text, as one sentence."""
    lines = [line.strip("│| ") for line in box.splitlines() if not re.search("[─-]{4}", line)]  # no borders, no title
    text = " ".join(line for line in lines if line)
    text = re.split(r"\s*(?:Argument helptext:|For full helptext)", text)[0].strip()
    return re.sub(r"^[A-Z][a-z]+ [a-z]+ (?=[A-Z])", "", text).removeprefix("Error ")  # a title drawn without a border


def prepared(prepare: Callable[[], Config], processes: Processes = ALONE) -> Config:
    """`prepare()`; its `ValueError` becomes one line and exit code 2. To be called before anything is written.

    So do files and folders that cannot be used, and sizes that do not fit into memory.
    With several processes, it must be the same error in all (see `Processes.together`).
    """
    try:
        return prepare()
    except ValueError as error:
        _refuse(error, processes)
    except BAD_CONDITIONS as error:
        if (reason := condition(error)) is None:
            raise
        _refuse(reason, processes)


def _refuse(error: object, processes: Processes) -> NoReturn:
    if processes.is_first:
        _say(f"error: {error}")
    processes.gather_objects(None)  # the first one that leaves takes the others with it: not before the line is out
    raise SystemExit(BAD_INPUT)


@contextmanager
def together() -> Iterator[Processes]:
    """The processes torchrun has started, or this one alone; only the first one prints and warns."""
    with ExitStack() as stack:
        stack.enter_context(one_line_errors())
        processes = prepared(lambda: stack.enter_context(joined()))
        if not processes.is_first:
            stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            stack.callback(logging.disable, logging.NOTSET)
        yield processes


class Stopped(BaseException):
    """A signal asked the program to end; not an `Exception`, so that nothing in between takes it for an error."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@contextmanager
def one_line_errors(hint: str = "", processes: Processes = ALONE) -> Iterator[None]:
    """End the program with one line, and `hint`, where it ends for a reason that a user can see to.

    Exit codes: 1 at a NaN, when another process has ended, or a worker that steps environments; 2 when a file or folder
    cannot be read or written, or memory does not suffice; 128 + n at signal n (Ctrl-C, SIGTERM, SIGHUP, and SIGPIPE,
    without a word, when nobody reads the output any more).
    What happened to all processes, the first one says.
    """
    _open_standard_streams()
    try:
        with _signals_raise(), _quiet_writers():
            yield
            sys.stdout.flush()  # what cannot be printed is to be known here
    except NonFiniteError as error:
        fail(f"{error}{hint}", FAILED, silent=error.task is None and not processes.is_first)
    except KeyboardInterrupt:
        fail(f"interrupted{hint}", SIGNAL_BASE + signal.SIGINT, silent=not processes.is_first)
    except Stopped as error:
        fail(f"stopped by {error}{hint}", SIGNAL_BASE + error.number, silent=not processes.is_first)
    except WorkerError as error:
        fail(f"{error}{hint}", FAILED)
    except StateError as error:  # a callback's, which is read when training begins
        fail(f"checkpoint does not fit: {error}", BAD_INPUT, silent=not processes.is_first)
    except BrokenPipeError:
        fail("", SIGNAL_BASE + signal.SIGPIPE, silent=True)
    except ConnectionError as error:
        fail(f"{error}{hint}", FAILED, silent=not processes.is_first)
    except BAD_CONDITIONS as error:
        if (reason := condition(error)) is None:
            raise
        fail(f"{reason}{hint}", BAD_INPUT)


BAD_CONDITIONS = (OSError, MemoryError, RecursionError, OverflowError, RuntimeError, ValueError)
"""Kinds of exceptions among which are those of the machine, and of sizes and files beyond its limits."""


def condition(error: BaseException) -> str | None:
    """What is wrong outside the program, in a few words, or nothing where `error` may be a fault of the program."""
    if isinstance(error, ConnectionError):
        return None
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        return f"{shortened(str(error.filename))} cannot be used: {what}" if error.filename else f"{what}"
    if isinstance(error, RecursionError):
        return "a file or an argument is nested too deeply"
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        reason = str(error).strip().split("\n")[0]
        return f"the sizes asked for do not fit into memory{f' ({reason})' if reason else ''}; choose smaller ones"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, Python or numpy say that something is too large for the memory, or for any memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, ValueError):  # of numpy, where the number of bytes overflows
        return re.search("array is too big|Maximum allowed dimension exceeded", str(error)) is not None
    if isinstance(error, OverflowError):
        return re.search("too large to convert|cannot fit|too many items", str(error)) is not None
    said = "allocate memory|not enough memory|size calculation overflow|multiplication overflow|without overflow"
    return isinstance(error, RuntimeError) and re.search(said, str(error)) is not None


def shortened(text: str, length: int = 120) -> str:
    """`text`, its middle left out where it is long."""
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 2 :]}"


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Stopped` here, unless they are ignored (as `nohup` does) or handled already."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [signal.Signals[name] for name in names if signal.getsignal(signal.Signals[name]) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may set handlers

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(number)

    for number in numbers:
        signal.signal(number, stop)
    try:
        with _sent_again():
            yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _open_standard_streams() -> None:
    """Where one of the three was closed, the null device takes its place, before another file gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


@contextmanager
def _quiet_writers() -> Iterator[None]:
    """What a thread that writes files cannot write, it says when it is given more; its traceback is left out."""
    usual = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            usual(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual


@contextmanager
def _sent_again() -> Iterator[None]:
    """A signal that arrives in a finalizer, where Python drops what a handler raises, is sent again a moment later."""
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not isinstance(error, Stopped | KeyboardInterrupt):
            usual(unraisable)
            return
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        again = threading.Timer(0.01, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = usual


def check_output(argument: str, path: Path, what: str = "a file that can be written") -> Path:
    """`path`, where a file can be written; tried now, as minutes may pass before it is.

    Raises:
        ValueError: naming the argument, where it cannot.
    """
    wanted = f"{argument} must be {what}, got {shortened(str(path))}"
    try:
        if path.is_dir():
            raise ValueError(f"{wanted}, a folder")
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        if not existing.is_dir():
            raise ValueError(f"{wanted}: {existing} is not a folder")
        with tempfile.TemporaryDirectory(dir=existing) as tried:
            Path(tried, path.name).touch()  # also a name too long
        if path.exists():
            os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        raise ValueError(f"{wanted} ({error.strerror})") from None
    return path


def check_output_folder(argument: str, folder: Path) -> Path:
    """`folder`, in which files can be written, or which can be made; likewise.

    Raises:
        ValueError: naming the argument, where it cannot.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{argument} must be a folder, got {shortened(str(folder))}, a file")
        check_output(argument, folder / "file")
    except OSError as error:
        reason = f"({error.strerror})"
        raise ValueError(
            f"{argument} must be a folder that can be made, got {shortened(str(folder))} {reason}"
        ) from None
    return folder


def fail(error: object, code: int, *, silent: bool = False) -> NoReturn:
    """Print one line to stderr and exit."""
    if silent:
        _drop_unprintable()
    else:
        _say(f"error: {error}")
    raise SystemExit(code)


def _say(line: str) -> None:
    """A line to stderr, if it can be."""
    _drop_unprintable()
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _drop_unprintable() -> None:
    """What stdout cannot take any more is dropped, or Python would complain about it when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def learn(learner: MetaLearner, iterations: int, callbacks: Iterable[Callback] = ()) -> None:
    """Train; a signal, at which the learner only ends its run early, ends the program: what follows wants all of it."""
    learner.learn(iterations, callbacks)
    if learner.stopped_by is not None:
        fail(f"stopped by {learner.stopped_by}", SIGNAL_BASE + signal.Signals[learner.stopped_by])


def import_plugins(modules: Iterable[str]) -> None:
    """Import modules that register outer updates or environments.

    Raises:
        ValueError: when one cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, SyntaxError, TypeError) as error:
            raise ValueError(f"plugins must be importable modules, but {module!r} is not: {error}") from error
