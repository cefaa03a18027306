"""The command line of every script: arguments from a dataclass, one-line errors, exit codes.

Exit codes: 0 for success, 1 for a run that failed, 2 for bad input, 128 + n after signal n.
"""

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import tyro

from metarl import MetaLearner, NonFiniteError
from metarl.callbacks import Callback
from metarl.envs.workers import WorkerError
from metarl.errors import StateError
from metarl.processes import ALONE, Processes, joined

T = TypeVar("T")

FAILED, BAD_INPUT = 1, 2
SIGNAL_BASE = 128  # a shell's exit code of a program ended by signal n is 128 + n


# Before anything is written.


def parse(
    config: type[T],
    arguments: Sequence[str] | None,
    script: str,
    description: str | None,
    default: T | None = None,
    processes: Processes = ALONE,
) -> T:
    """The arguments as a `config`, over `default` if it is given. A wrong argument prints one line and exits with 2."""
    given: dict[str, Any] = {} if default is None else {"default": default}
    given |= {"args": arguments, "prog": script, "description": description}
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            parsed: T = tyro.cli(config, config=(tyro.conf.FlagCreatePairsOff,), **given)
            return parsed
    except SystemExit as end:
        if end.code != BAD_INPUT:
            raise
    _refuse(_to_one_line(box.getvalue()), processes)


def _to_one_line(box: str) -> str:
    """The argument parser's message, a box with a title and a help text, as one sentence."""
    lines = [line.strip("│| ") for line in box.splitlines() if not re.search("[─-]{4}", line)]  # no borders, no title
    text = " ".join(line for line in lines if line)
    text = re.split(r"\s*(?:Argument helptext:|For full helptext)", text)[0].strip()
    text = re.sub(r"\s*(?:Perhaps you meant|Similar arguments):?\s*(--[\w-]+).*", r"; did you mean \1?", text)
    return re.sub(r"^[A-Z][a-z]+ [a-z]+ (?=[A-Z])", "", text).removeprefix("Error ")  # a title drawn without a border


def prepare(function: Callable[[], T], processes: Processes = ALONE) -> T:
    """The result of `function()`. A `ValueError` prints one line and exits with 2. Call it before anything is written.

    Files that cannot be used and sizes that do not fit into memory end the program in the same way.
    With several processes, the error must be the same in all of them (see `Processes.together`).
    """
    try:
        return function()
    except ValueError as error:
        _refuse(error, processes)
    except CONDITIONS as error:
        if (reason := explain(error)) is None:
            raise
        _refuse(reason, processes)


def _refuse(error: object, processes: Processes) -> NoReturn:
    if processes.is_first:
        _print_error(f"error: {error}")
    processes.gather_objects(None)  # the first process that exits ends the others: wait for the line
    raise SystemExit(BAD_INPUT)


def import_plugins(modules: Sequence[str], argument: str = "plugins") -> None:
    """Import modules that register outer updates or environments; they may lie in the working folder.

    Errors name `argument`.

    Raises:
        ValueError: when one cannot be imported.
    """
    if modules and "" not in sys.path:
        sys.path.append("")  # an installed command, unlike `python -m`, does not look there
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, SyntaxError, TypeError) as error:
            raise ValueError(f"{argument} must name importable modules, but {module!r} is not: {error}") from error


def check_output(argument: str, path: Path, what: str = "a file that can be written") -> Path:
    """`path`, if a file can be written there. It is tried now, since minutes may pass before the file is written.

    Raises:
        ValueError: naming the argument.
    """
    wanted = f"{argument} must be {what}, got {shorten(str(path))}"
    try:
        if path.is_dir():
            raise ValueError(f"{wanted}, a folder")
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        if not existing.is_dir():
            raise ValueError(f"{wanted}: {existing} is not a folder")
        with tempfile.TemporaryDirectory(dir=existing) as tried:
            Path(tried, path.name).touch()  # also finds a name that is too long
        if path.exists():
            os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        raise ValueError(f"{wanted} ({error.strerror})") from None
    return path


def check_output_folder(argument: str, folder: Path) -> Path:
    """`folder`, if files can be written in it, or it can be made.

    Raises:
        ValueError: naming the argument.
    """
    return check_output(argument, folder / "file", "a folder for files").parent


def shorten(text: str, length: int = 120) -> str:
    """`text`, without its middle if it is long."""
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 2 :]}"


# While a script runs.


@contextmanager
def join_processes() -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone. Only the first one prints and warns."""
    with ExitStack() as stack:
        stack.enter_context(one_line_errors())
        processes = prepare(lambda: stack.enter_context(joined()))
        if not processes.is_first:
            stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            stack.callback(logging.disable, logging.NOTSET)
        yield processes


def learn(learner: MetaLearner, iterations: int, callbacks: Iterable[Callback] = ()) -> None:
    """Train. A signal that ends the learner's training early ends the program: what follows needs all iterations."""
    learner.learn(iterations, callbacks)
    if learner.stopped_by is not None:
        fail(f"stopped by {learner.stopped_by}", SIGNAL_BASE + signal.Signals[learner.stopped_by])


class Stopped(BaseException):
    """A signal asked the program to end. Not an `Exception`, so that no handler in between takes it for an error."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@contextmanager
def one_line_errors(hint: str = "", processes: Processes = ALONE) -> Iterator[None]:
    """End the program with one line, and `hint`, for errors that a user can fix.

    Exit code 1: a NaN, another process or a worker that ended. Exit code 2: a file or folder that cannot be read or
    written, too little memory. Exit code 128 + n: signal n (Ctrl-C, SIGTERM, SIGHUP, and silently SIGPIPE, when nobody
    reads the output any more). If all processes fail, only the first one prints.
    """
    _open_standard_streams()
    silent = not processes.is_first
    try:
        with _raise_at_signals(), _silence_writers():
            yield
            sys.stdout.flush()  # a closed pipe must be noticed here
    except NonFiniteError as error:
        fail(f"{error}{hint}", FAILED, silent=silent and error.task is None)
    except KeyboardInterrupt:
        fail(f"interrupted{hint}", SIGNAL_BASE + signal.SIGINT, silent=silent)
    except Stopped as error:
        fail(f"stopped by {error}{hint}", SIGNAL_BASE + error.number, silent=silent)
    except WorkerError as error:
        fail(f"{error}{hint}", FAILED)
    except StateError as error:  # of a callback, which reads its state when training begins
        fail(f"checkpoint does not fit: {error}", BAD_INPUT, silent=silent)
    except BrokenPipeError:
        fail("", SIGNAL_BASE + signal.SIGPIPE, silent=True)
    except ConnectionError as error:
        fail(f"{error}{hint}", FAILED, silent=silent)
    except CONDITIONS as error:
        if (reason := explain(error)) is None:
            raise
        fail(f"{reason}{hint}", BAD_INPUT)


CONDITIONS = (OSError, MemoryError, RecursionError, OverflowError, RuntimeError, ValueError)
"""Kinds of exceptions that missing memory, files and sizes beyond the machine's limits can raise."""


def explain(error: BaseException) -> str | None:
    """What is wrong outside the program, in a few words, or nothing if `error` may be a bug."""
    if isinstance(error, ConnectionError):
        return None
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        return f"{shorten(str(error.filename))} cannot be used: {what}" if error.filename else f"{what}"
    if isinstance(error, RecursionError):
        return "a file or an argument is nested too deeply"
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        reason = str(error).strip().split("\n")[0]
        return f"the sizes asked for do not fit into memory{f' ({reason})' if reason else ''}; choose smaller ones"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, Python or numpy report that something is too large for the memory, or for any memory."""
    messages: dict[type[BaseException], str] = {
        ValueError: "array is too big|Maximum allowed dimension exceeded",  # numpy, when the number of bytes overflows
        OverflowError: "too large to convert|cannot fit|too many items",
        RuntimeError: "allocate memory|not enough memory|(size calculation|multiplication|without) overflow",
    }
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(isinstance(error, kind) and re.search(text, str(error)) for kind, text in messages.items())


def fail(error: object, code: int, *, silent: bool = False) -> NoReturn:
    """Print one line to stderr and exit."""
    if silent:
        _drop_unprintable()
    else:
        _print_error(f"error: {error}")
    raise SystemExit(code)


def _print_error(line: str) -> None:
    """A line to stderr, if it is open."""
    _drop_unprintable()
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _drop_unprintable() -> None:
    """Drop output that a closed stdout cannot take; Python would report it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_streams() -> None:
    """Open the null device for each closed standard stream, before another file gets its number."""
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
def _raise_at_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Stopped` here, unless they are ignored (as `nohup` does) or handled already.

    A signal that came during a finalizer, where Python drops exceptions, is sent again.
    """
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [signal.Signals[name] for name in names if signal.getsignal(signal.Signals[name]) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may set handlers
    usual = sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(number)

    def send_again(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not isinstance(error, Stopped | KeyboardInterrupt):
            usual(unraisable)
            return
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        again = threading.Timer(0.01, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    for number in numbers:
        signal.signal(number, stop)
    try:
        with replaced(sys, "unraisablehook", send_again):
            yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _silence_writers() -> Iterator[None]:
    """Hide the traceback of a thread that cannot write a file: its next input raises the error again."""
    usual = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            usual(arguments)

    with replaced(threading, "excepthook", hook):
        yield


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute inside the block."""
    usual = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, usual)
