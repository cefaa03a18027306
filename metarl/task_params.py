"""Parameters of tasks: checks, and the columns of a table: `goal[0]`, `goal[1]`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from metarl.errors import shorten
from metarl.types import TaskParams

NAME = re.compile(r"(?P<name>.+?)(?P<index>(\[\d+\])*)")


class Ends(Box):
    """A Box of which only the two ends are tasks: `Ends(-1.0, 1.0, ())` has backward (-1) and forward (1).

    Values between or outside them are refused.
    """

    def sample(self, mask: None = None, probability: None = None) -> npt.NDArray[Any]:
        """One of the ends for each number, with equal probability."""
        if mask is not None or probability is not None:
            raise ValueError("mask and probability must be None: ends are drawn with equal probability")
        sample: npt.NDArray[Any] = self.draw(1, self.np_random)[0]
        return sample

    def draw(self, size: int, rng: np.random.Generator) -> npt.NDArray[Any]:
        """`size` samples, `[size, ...]`."""
        ends: npt.NDArray[Any] = np.where(rng.integers(2, size=(size, *self.shape)), self.high, self.low)
        return ends

    def contains(self, x: Any) -> bool:
        """Whether all numbers of `x` are ends."""
        return super().contains(x) and not _has_stranger(self, np.asarray(x))

    def __repr__(self) -> str:
        """As of a Box, with this name."""
        return super().__repr__().replace("Box", "Ends", 1)


def check_task(space: gymnasium.spaces.Dict, task: Mapping[str, Any]) -> TaskParams:
    """ONE task's parameters as arrays of the space's types and shapes.

    Raises:
        ValueError: other keys, other shapes, a value that is not a finite number of the space's type, or one that an
            entry of whole numbers or `Ends` does not have. Values outside the bounds of a Box are allowed.
    """
    arrays = _check_finite(space, task)
    for name, array in arrays.items():
        if array.shape != space[name].shape:
            raise ValueError(f"task[{name!r}] must have shape {space[name].shape}, got {array.shape}")
    _check_members(space, arrays)
    return arrays


def check_tasks(space: gymnasium.spaces.Dict, task: Mapping[str, Any]) -> TaskParams:
    """T tasks' parameters as arrays `[T, ...]` of the space's types and shapes.

    Raises:
        ValueError: as for `check_task`; no tasks, or leading sizes that differ.
    """
    arrays = _check_finite(space, task)
    for name, array in arrays.items():
        if array.shape[1:] != space[name].shape or array.shape[:1] in ((), (0,)):
            wanted = ", ".join(map(str, ("T", *(space[name].shape or ()))))
            raise ValueError(f"task[{name!r}] must have shape ({wanted}) with T >= 1, got {array.shape}")
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"task must have one leading size T, got {sizes}")
    _check_members(space, arrays)
    return arrays


def read_tasks(space: gymnasium.spaces.Dict, tasks: object) -> TaskParams:
    """Arrays `[T, ...]` of the space's types, from these arrays, or from a list with the parameters of each task.

    Raises:
        ValueError: for anything else, other keys, other shapes, or values that are not finite.

    Example:
        >>> space = gymnasium.spaces.Dict({"mass": gymnasium.spaces.Box(0, 9, ())})
        >>> read_tasks(space, [{"mass": 1}, {"mass": 2.5}])
        {'mass': array([1. , 2.5], dtype=float32)}
    """
    if isinstance(tasks, Mapping):
        return check_tasks(space, tasks)
    if isinstance(tasks, str) or not isinstance(tasks, Sequence) or not tasks:
        wanted = "a list with a dictionary of parameters for each task, or one dictionary of arrays [T, ...]"
        raise ValueError(f"tasks must be {wanted}, got {shorten(tasks)}")
    each = []
    for number, task in enumerate(tasks):
        try:
            each.append(check_task(space, task))
        except ValueError as error:
            raise ValueError(f"tasks[{number}]: {error}") from None
    return {name: np.stack([task[name] for task in each]) for name in space}


def _check_finite(space: gymnasium.spaces.Dict, task: Mapping[str, Any]) -> TaskParams:
    if not isinstance(task, Mapping) or set(task) != set(space.spaces):
        found = list(task) if isinstance(task, Mapping) else repr(task)
        raise ValueError(f"task must have the keys {sorted(space.spaces)}, got {found}")
    return {name: _to_finite_array(name, task[name], entry) for name, entry in space.items()}


def _to_finite_array(name: str, value: Any, entry: gymnasium.Space[Any]) -> npt.NDArray[Any]:
    try:
        with np.errstate(over="ignore"):  # values too large for float32 become infinite and are refused below
            # same_kind refuses fractions for integers and strings for numbers
            given = np.asarray(value)
            array = given.astype(entry.dtype, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise ValueError(f"task[{name!r}] must be numbers of type {entry.dtype}, got {value!r}") from error
    if not np.isfinite(array).all():
        raise ValueError(f"task[{name!r}] must be finite, got {value!r}")
    if array.dtype.kind in "iu" and (array != given).any():  # a type with fewer bits keeps the last ones
        raise ValueError(f"task[{name!r}] must be numbers of type {entry.dtype}, got {value!r}")
    return array


def _check_members(space: gymnasium.spaces.Dict, arrays: TaskParams) -> None:
    """Raises where an entry that has only some values is given another one; arrays as its shape or `[T, ...]`."""
    for name, entry in space.items():
        if _has_stranger(entry, arrays[name]):
            wanted = f"{entry.low} or {entry.high}" if isinstance(entry, Ends) else f"in {entry}"
            raise ValueError(f"task[{name!r}] must be {wanted}, got {shorten(arrays[name].tolist())}")


def _has_stranger(entry: gymnasium.Space[Any], array: npt.NDArray[Any]) -> bool:
    if isinstance(entry, Ends):
        members = (array == entry.low) | (array == entry.high)
    elif isinstance(entry, Discrete | MultiDiscrete):
        size = entry.n if isinstance(entry, Discrete) else entry.nvec
        members = (array >= entry.start) & (array < entry.start + size)
    elif isinstance(entry, MultiBinary):
        members = (array == 0) | (array == 1)
    else:
        return False
    return not members.all()


def column_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """The columns of a parameter of this shape: its name, and the indices in brackets.

    Example:
        >>> column_names("mass", ()), column_names("goal", (2,))
        (['mass'], ['goal[0]', 'goal[1]'])
    """
    return [name + "".join(f"[{i}]" for i in index) for index in np.ndindex(*shape)]


def split_columns(tasks: TaskParams) -> dict[str, npt.NDArray[Any]]:
    """Each number of the parameters, arrays `[T, ...]`, as a column `[T]`.

    Example:
        >>> split_columns({"goal": np.array([[0.5, -1.0]])})
        {'goal[0]': array([0.5]), 'goal[1]': array([-1.])}
    """
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, values in tasks.items():
        array = np.asarray(values)
        names = column_names(name, array.shape[1:])
        columns.update(zip(names, array.reshape(len(array), -1).T, strict=True))
    return columns


def join_columns(columns: Mapping[str, npt.NDArray[Any]]) -> TaskParams:
    """The parameters whose numbers are in `columns`, `[T]` each.

    Raises:
        ValueError: when a column is missing between others.

    Example:
        >>> join_columns({"goal[0]": np.array([0.5]), "goal[1]": np.array([-1.0])})
        {'goal': array([[ 0.5, -1. ]])}
    """
    found: dict[str, dict[tuple[int, ...], npt.NDArray[Any]]] = {}
    for column, values in columns.items():
        parts = NAME.fullmatch(column)
        assert parts is not None
        index = tuple(map(int, re.findall(r"\d+", parts["index"])))
        found.setdefault(parts["name"], {})[index] = np.asarray(values)
    tasks: TaskParams = {}
    for name, entries in found.items():
        shape = tuple(size + 1 for size in np.max(list(entries), axis=0).astype(int)) if () not in entries else ()
        if wanted := [column for column in column_names(name, shape) if column not in columns]:
            raise ValueError(f"columns must have every number of {name!r}, but {wanted[0]!r} is missing")
        if len(entries) != len(column_names(name, shape)):
            raise ValueError(f"columns of {name!r} must have the same number of indices, got {sorted(entries)}")
        rows = np.stack([entries[index] for index in np.ndindex(*shape)], axis=-1)
        tasks[name] = rows.reshape(len(rows), *shape)
    return tasks
