"""Options given as name=value on a command line, read by the types of the function that receives them.

    read("outer_options", ("lam=2", "cg_steps=5"), make_imaml)  ->  {"lam": 2.0, "cg_steps": 5}

The types are the annotations of the receiver's parameters, or the types of their defaults. An option that the receiver
does not have is guessed from its text, and the receiver refuses it.
"""

import contextlib
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin

from metarl.errors import check_choice, check_int

WORDS = {**dict.fromkeys(("true", "yes", "on"), True), **dict.fromkeys(("false", "no", "off"), False)}
BOOLEANS = {**WORDS, "1": True, "0": False}
NONES = {"none": None, "null": None}
WANTED = {bool: "true or false", int: "an integer", float: "a number", str: "a word", type(None): "none"}


def read(argument: str, entries: Iterable[str], receiver: Callable[..., Any]) -> dict[str, Any]:
    """The options in `entries` as keyword arguments of `receiver`.

    Booleans are true, yes, on, 1 or false, no, off, 0; None is none or null; case does not matter. A sequence is a JSON
    list, or its members separated by commas.

    Raises:
        ValueError: for an entry without `=`, a name given twice, or a value of another type than the receiver's.

    Example:
        >>> def receiver(contact_forces: bool = True, goals: tuple[float, ...] = (), threads: int | None = 1): ...
        >>> read("env_options", ["contact_forces=False", "goals=1,2", "threads=None"], receiver)
        {'contact_forces': False, 'goals': (1.0, 2.0), 'threads': None}
        >>> read("env_options", ["contact_forces=maybe"], receiver)
        Traceback (most recent call last):
        ValueError: env_options: contact_forces must be true or false, got 'maybe'
    """
    parameters = inspect.signature(receiver, eval_str=True).parameters
    options: dict[str, Any] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals or not name:
            raise ValueError(f"{argument} must be name=value, got {entry!r}")
        if name in options:
            raise ValueError(f"{argument} must name an option once, got {name!r} twice")
        wanted = _type(parameters[name]) if name in parameters else Any
        try:
            options[name] = read_value(text, wanted)
        except ValueError:
            if get_origin(wanted) is Literal:
                check_choice(f"{argument}: {name}", text, [str(choice) for choice in get_args(wanted)])
            raise ValueError(f"{argument}: {name} must be {describe(wanted)}, got {_guess(text)!r}") from None
    return options


def check_distinct(argument: str, values: Sequence[object]) -> None:
    """Raise a `ValueError` for a list that is empty or names something twice."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{argument} must name at least one, and none twice, got {values}")


def check_each(argument: str, values: Sequence[Any], check: Callable[[str, Any], object]) -> None:
    """`check_distinct`, and `check(argument, value)` for every value."""
    check_distinct(argument, values)
    for value in values:
        check(argument, value)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise a `ValueError` unless `seeds` are different integers from 0."""
    check_each("seeds", seeds, partial(check_int, minimum=0))


def read_value(text: str, wanted: Any) -> Any:
    """`text` as a value of the type `wanted`. A union's words and numbers are tried before its strings.

    Raises:
        ValueError: when it is not one.
    """
    origin, members = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        for member in sorted(members, key=lambda member: member is str):
            with contextlib.suppress(ValueError):
                return read_value(text, member)
        raise ValueError
    if origin is typing.Annotated:
        return read_value(text, members[0])
    if origin is Literal:
        choices = {str(choice): choice for choice in members}
        # tried before None: `None` is the choice `none`, if there is one
        return choices[check_choice("value", text if text in choices else text.lower(), list(choices))]
    if wanted in READERS:
        return READERS[wanted](text)
    if isinstance(container := origin or wanted, type) and issubclass(container, tuple | list | Sequence):
        return _sequence(text, container, members)
    return _guess(text)


def describe(wanted: Any) -> str:
    """The type `wanted` in words."""
    origin, members = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(member) for member in members)
    if origin is not None and members and isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each member {describe(members[0])}"
    return WANTED.get(wanted, "a list" if isinstance(wanted, type) and issubclass(wanted, Sequence) else str(wanted))


def _type(parameter: inspect.Parameter) -> Any:
    """A parameter's annotation, or else the type of its default, unless that is `None`."""
    if parameter.annotation is not parameter.empty:
        return parameter.annotation
    return Any if parameter.default in (parameter.empty, None) else type(parameter.default)


def _read_word(text: str, meanings: Mapping[str, bool | None]) -> bool | None:
    word = text.strip().lower()
    if word not in meanings:
        raise ValueError
    return meanings[word]


READERS: dict[Any, Callable[[str], Any]] = {
    bool: partial(_read_word, meanings=BOOLEANS),
    int: int,
    float: float,
    str: str,
    type(None): partial(_read_word, meanings=NONES),
    None: partial(_read_word, meanings=NONES),
}


def _sequence(text: str, container: type, members: tuple[Any, ...]) -> Any:
    """A JSON list or members separated by commas, each of the member's type."""
    found = _read_json(text)
    if not isinstance(found, list):
        found = [part.strip() for part in text.split(",") if part.strip()]
    texts = [part if isinstance(part, str) else json.dumps(part) for part in found]
    kinds: Sequence[Any] = [member for member in members if member is not Ellipsis] or [Any]
    fixed = container is tuple and len(kinds) > 1
    if fixed and len(kinds) != len(texts):
        raise ValueError
    values = [read_value(part, kinds[i if fixed else 0]) for i, part in enumerate(texts)]
    return values if issubclass(container, list) else tuple(values)


def _guess(text: str) -> Any:
    """A boolean or None by its word, JSON if it is valid, else a string."""
    word = text.strip().lower()
    if word in WORDS or word in NONES:
        return WORDS.get(word)
    found = _read_json(text)
    return text if found is NO_JSON else found


NO_JSON = object()


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NO_JSON
