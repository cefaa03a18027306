"""A fault that is done to a run, and whether the run survived it."""

import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Result(NamedTuple):
    """What became of one fault: `problem` says in a line which promise was broken, or nothing where all were kept."""

    name: str
    problem: str | None = None


class Fault(NamedTuple):
    """A fault, or several that are done one after the other to save time: `results(folder)` in a new folder."""

    group: str
    name: str
    results: Callable[[Path], Iterator[Result]]


FAULTS: list[Fault] = []


def fault(group: str, *rows: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register `function(folder, *row)` once for each of `rows`; it fails by raising."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for row in rows or ((),):
            arguments = row if isinstance(row, tuple) else (row,)
            name = " ".join([function.__name__.replace("_", " "), *map(str, arguments)])
            FAULTS.append(Fault(group, name, functools.partial(_one, name, function, arguments)))
        return function

    return add


def faults(group: str, *rows: Any) -> Callable[[Callable[..., Iterator[Result]]], Callable[..., Iterator[Result]]]:
    """Register `function(folder, *row)`, which does several faults, once for each of `rows`."""

    def add(function: Callable[..., Iterator[Result]]) -> Callable[..., Iterator[Result]]:
        for row in rows or ((),):
            arguments = row if isinstance(row, tuple) else (row,)
            name = " ".join([function.__name__.replace("_", " "), *map(str, arguments)])
            FAULTS.append(Fault(group, name, functools.partial(_several, name, function, arguments)))
        return function

    return add


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


def _one(name: str, function: Callable[..., None], arguments: tuple[Any, ...], folder: Path) -> Iterator[Result]:
    try:
        function(folder, *arguments)
    except Exception as error:
        yield Result(name, reason(error))
    else:
        yield Result(name)


def _several(
    name: str, function: Callable[..., Iterator[Result]], arguments: tuple[Any, ...], folder: Path
) -> Iterator[Result]:
    try:
        yield from function(folder, *arguments)
    except Exception as error:
        yield Result(name, reason(error))


class Once:
    """Calls a function once for each argument, in whichever thread comes first; the others wait for its result."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._guard = function, threading.Lock()
        self._locks: dict[Any, threading.Lock] = {}
        self._results: dict[Any, Any] = {}

    def __call__(self, *key: Any) -> Any:
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._results:
                self._results[key] = self._function(*key)
        return self._results[key]
