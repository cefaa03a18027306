"""Data of your own as tasks: arrays, a CSV file with a column for the task, or a torch Dataset for each task.

    tasks = read_csv("houses.csv", task="city", inputs=["area", "rooms"], target="price")
    train, test = split_tasks(tasks, test=5)
    source = OwnTasks(train, network, loss="mse", shots=10, queries=10)

A task is its points: `TaskData(x, y)`, with x `[n, ...]` and y `[n, ...]`. Tasks may have different numbers of points.
"""

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import Dataset

from metarl.devices import pick_device
from metarl.errors import check_choice, check_int, did_you_mean, shorten
from metarl.network_check import check_network
from metarl.random import torch_generator
from metarl.supervised.networks import NetworkSource
from metarl.supervised.oracle import FiniteSumTaskBatch, ResamplingTaskBatch
from metarl.types import Batch, Params, Role

PointLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`(predictions [n, ...], y [n, ...]) -> scalar`: a mean over points."""

LOSSES: dict[str, PointLoss] = {"mse": mse_loss, "cross_entropy": cross_entropy}


class TaskData(NamedTuple):
    """The points of one task."""

    x: Tensor  # [n, ...]
    y: Tensor  # [n, ...]: floats, or the numbers of classes, int64
    name: str = ""


def from_arrays(x: Sequence[npt.ArrayLike], y: Sequence[npt.ArrayLike], names: Sequence[str] = ()) -> list[TaskData]:
    """Tasks from arrays: an entry of `x` `[n, ...]` and of `y` `[n, ...]` for each task; also arrays `[T, n, ...]`.

    Raises:
        ValueError: for different numbers of tasks, or of points in a task, naming it.

    Example:
        >>> [task.x.shape for task in from_arrays([np.zeros((5, 2)), np.zeros((7, 2))], [np.zeros(5), np.zeros(7)])]
        [torch.Size([5, 2]), torch.Size([7, 2])]
    """
    names = list(names) or [str(k) for k in range(len(x))]
    if not len(x) == len(y) == len(names) or not len(x):
        raise ValueError(f"x, y and names must have one entry for each task, got {len(x)}, {len(y)} and {len(names)}")
    return [
        _make_task(name, _to_tensor("x", name, a), _to_tensor("y", name, b))
        for name, a, b in zip(names, x, y, strict=True)
    ]


def from_datasets(datasets: Mapping[str, Dataset[Any]] | Sequence[Dataset[Any]]) -> list[TaskData]:
    """Tasks from a torch Dataset for each; a dataset has a length and gives points `(x, y)`.

    Raises:
        ValueError: naming the dataset that is empty, or whose points are not pairs of equal shapes.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from_datasets([TensorDataset(torch.zeros(4, 3), torch.zeros(4))])[0].x.shape
        torch.Size([4, 3])
    """
    named = datasets.items() if isinstance(datasets, Mapping) else ((str(k), one) for k, one in enumerate(datasets))
    tasks = []
    for name, dataset in named:
        length = len(dataset) if hasattr(dataset, "__len__") else 0
        if not length:
            raise ValueError(f"dataset {name!r} must have a length of at least 1, got {shorten(dataset)}")
        points = [dataset[i] for i in range(length)]
        if not all(isinstance(point, tuple | list) and len(point) == 2 for point in points):
            raise ValueError(f"dataset {name!r} must give pairs (x, y), got {shorten(points[0])}")
        columns = zip(*points, strict=True)
        x, y = (_stack(part, name, column) for part, column in zip("xy", columns, strict=True))
        tasks.append(_make_task(name, x, y))
    return tasks


def read_csv(path: str | Path, task: str, inputs: Sequence[str], target: str) -> list[TaskData]:
    """Tasks from a CSV file with a header: rows with the same value in the column `task` are the points of a task.

    Args:
        path: the file, UTF-8, with commas.
        task: the column with the task's name; tasks come in the order of their first rows.
        inputs: columns of numbers, which become x `[n, len(inputs)]`.
        target: a column of numbers, y `[n]`. Where all are whole numbers, y is int64: the numbers of classes.

    Raises:
        ValueError: naming the column that the file lacks or has twice, or the line without a task, with more values
            than columns, or with something that is not a finite number.
        OSError: when the file cannot be read.
    """
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        for column in (task, *inputs, target):
            if column not in header:
                near = did_you_mean(column, header)
                raise ValueError(f"{path} must have a column {column!r}, got {list(header)}{near}")
            if list(header).count(column) > 1:
                raise ValueError(f"{path} must have one column {column!r}, got {list(header)}")
        rows: dict[str, list[list[float]]] = {}
        for row in reader:
            if None in row:  # DictReader puts further values there
                raise ValueError(f"{path}, line {reader.line_num}: there must be {len(header)} values, got more")
            if not row[task]:
                raise ValueError(f"{path}, line {reader.line_num}: {task} must name a task, got {row[task]!r}")
            numbers = [_to_number(path, reader.line_num, column, row[column]) for column in (*inputs, target)]
            rows.setdefault(row[task], []).append(numbers)
    if not rows:
        raise ValueError(f"{path} must have rows below its header, got none")
    tables = {name: np.asarray(points, np.float64) for name, points in rows.items()}
    y = [table[:, -1] for table in tables.values()]
    whole = all(((values == values.round()) & (abs(values) < 2**53)).all() for values in y)
    targets = [values.astype(np.int64) if whole else values for values in y]
    return from_arrays([table[:, :-1] for table in tables.values()], targets, list(tables))


def split_tasks(tasks: Sequence[TaskData], test: int, seed: int = 0) -> tuple[list[TaskData], list[TaskData]]:
    """Training tasks and `test` test tasks, at random: tasks are split, never the points of one.

    Raises:
        ValueError: unless some tasks are left for training.
    """
    if not 0 < check_int("test", test) < len(tasks):
        raise ValueError(f"test must leave tasks for training: fewer than {len(tasks)}, got {test}")
    order = np.random.default_rng(check_int("seed", seed, minimum=0)).permutation(len(tasks))
    return [tasks[k] for k in order[test:]], [tasks[k] for k in order[:test]]


@dataclass
class OwnTasks(NetworkSource):
    """A source of tasks from your own data, and the network that predicts y from x.

    `dataclasses.replace(source, tasks=test)` makes the same kind of source from other tasks, such as for testing.

    Args:
        tasks: from `from_arrays`, `from_datasets` or `read_csv`.
        network: a module from x `[n, ...]` to predictions: a logit for each class `[n, C]` for `cross_entropy`,
            else the shape of y (or `[n, 1]` for y `[n]`). Its parameters are the starting point; they never change.
        loss: `mse`, `cross_entropy` (y are the numbers of classes), or a function `(predictions, y) -> scalar`.
        score: what is plotted, a function like `loss`, higher is better; default: the accuracy for `cross_entropy`,
            else minus the loss.
        shots: K, points of a support set.
        queries: points of a query set.
        setting: `finite_sum` draws a task's support and query set once, without common points; `resampling` draws fresh
            points of the task at every draw.
        device: where parameters and data live.

    Raises:
        ValueError: naming the argument, or the task with too few points or points of another shape.

    Example:
        >>> from metarl.supervised.networks import mlp
        >>> tasks = from_arrays(np.zeros((6, 20, 3)), np.zeros((6, 20)))
        >>> source = OwnTasks(tasks, mlp(3, 1), shots=5, queries=10)
        >>> source.sample(4, np.random.default_rng(0)).support["x"].shape
        torch.Size([4, 5, 3])
    """

    tasks: Sequence[TaskData]
    network: nn.Module
    _: KW_ONLY
    loss: str | PointLoss = "mse"
    score: PointLoss | None = None
    shots: int = 5
    queries: int = 15
    setting: Literal["finite_sum", "resampling"] = "finite_sum"
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        check_int("shots", self.shots)
        check_int("queries", self.queries)
        check_choice("setting", self.setting, ("finite_sum", "resampling"))
        if not callable(self.loss):
            check_choice("loss", self.loss, LOSSES)
        if not isinstance(self.network, nn.Module):
            raise ValueError(f"network must be a torch.nn.Module, got {self.network!r}")
        self._check_tasks()
        self._set_fixed(device=pick_device(self.device))
        self.network.to(self.device)
        takes = f"x of shape {list(self.tasks[0].x.shape[1:])} for each point"
        predictions = check_network("network", self.network, self._probe(), takes)
        self._check_loss(predictions)

    @property
    def score_name(self) -> str:
        """The name of the score in logs."""
        if self.score is not None:
            return "score"
        return {"cross_entropy": "accuracy", "mse": "minus_mse"}.get(str(self.loss), "minus_loss")

    def sample(self, num_tasks: int, rng: np.random.Generator) -> FiniteSumTaskBatch | ResamplingTaskBatch:
        """`num_tasks` different tasks.

        Raises:
            ValueError: when there are fewer tasks.
        """
        if check_int("num_tasks", num_tasks) > len(self.tasks):
            raise ValueError(f"num_tasks must be at most {len(self.tasks)}, the number of tasks, got {num_tasks}")
        chosen = [self.tasks[k] for k in rng.choice(len(self.tasks), num_tasks, replace=False)]
        generator = torch_generator(rng)
        if self.setting == "finite_sum":
            data = self._draw(chosen, self.shots + self.queries, generator)
            support, query = (
                {k: v[:, part] for k, v in data.items()} for part in (slice(self.shots), slice(self.shots, None))
            )
            return FiniteSumTaskBatch(self._loss, support, query, self._score)

        def sampler(role: Role, generator: torch.Generator) -> Batch:
            return self._draw(chosen, self.queries if role == "outer" else self.shots, generator)

        return ResamplingTaskBatch(self._loss, num_tasks, sampler, generator, self._score)

    def predict(self, params: Params, batch: Batch) -> Tensor:
        """The network's output for one task's points, `[n, ...]`."""
        predictions = self._predict(params, batch["x"])
        return predictions if self.loss == "cross_entropy" else _drop_last(predictions, batch["y"])

    def _loss(self, params: Params, batch: Batch) -> Tensor:
        """The loss of one task."""
        return self._point_loss(self.predict(params, batch), batch["y"])

    def _score(self, params: Params, batch: Batch) -> Tensor:
        """The score of one task."""
        predictions, y = self.predict(params, batch), batch["y"]
        if self.score is not None:
            return self.score(predictions, y)
        if self.loss == "cross_entropy":
            return (predictions.argmax(-1) == y).to(predictions.dtype).mean()
        return -self._point_loss(predictions, y)

    @property
    def _point_loss(self) -> PointLoss:
        return self.loss if callable(self.loss) else LOSSES[self.loss]

    def _draw(self, tasks: Sequence[TaskData], number: int, generator: torch.Generator) -> Batch:
        """`number` different points of each task, leaves `[T, number, ...]`."""
        rows = [torch.randperm(len(task.x), generator=generator)[:number] for task in tasks]
        x = torch.stack([task.x[row] for task, row in zip(tasks, rows, strict=True)]).to(self._leaf())
        y = torch.stack([task.y[row] for task, row in zip(tasks, rows, strict=True)]).to(x.device)
        return {"x": x, "y": y.to(x.dtype) if self._has_numbers else y}

    @property
    def _has_numbers(self) -> bool:
        """Whether y are numbers to predict, not classes."""
        return self.loss == "mse" or self.tasks[0].y.is_floating_point()

    def _probe(self) -> Tensor:
        """Two points of the first task."""
        return self.tasks[0].x[[0, -1]].to(self._leaf())

    def _check_tasks(self) -> None:
        if not self.tasks or not all(isinstance(task, TaskData) for task in self.tasks):
            raise ValueError(f"tasks must be from from_arrays, from_datasets or read_csv, got {shorten(self.tasks)}")
        once = self.setting == "finite_sum"
        wanted = self.shots + self.queries if once else max(self.shots, self.queries)
        like = self.tasks[0]
        for task in self.tasks:
            if len(task.x) < wanted:
                sum_ = f"shots + queries = {self.shots} + {self.queries}" if once else f"{wanted}"
                found = f"got {len(task.x)}; use fewer shots or queries"
                raise ValueError(f"task {task.name!r} must have at least {sum_} points, {found}")
            for part, own, first in (("x", task.x, like.x), ("y", task.y, like.y)):
                if own.shape[1:] != first.shape[1:] or own.is_floating_point() != first.is_floating_point():
                    found = f"{list(own.shape[1:])} {own.dtype} after {list(first.shape[1:])} {first.dtype}"
                    raise ValueError(
                        f"task {task.name!r} must have {part} of the shape and type of task {like.name!r}, got {found}"
                    )

    def _check_loss(self, predictions: Any) -> None:
        y = self.tasks[0].y[[0, -1]].to(predictions.device)
        if self.loss == "mse":
            shape = list(_drop_last(predictions, y).shape)
            if shape != list(y.shape):
                raise ValueError(f"network must return the shape of y, {list(y.shape)} for two points, got {shape}")
        if self.loss == "cross_entropy":
            labels = [label for task in self.tasks for label in (int(task.y.min()), int(task.y.max()))]
            if min(labels) < 0:
                raise ValueError(f"y must be the numbers of classes, from 0, for cross_entropy, got {min(labels)}")
            classes = 0 if y.is_floating_point() else 1 + max(labels)
            logits = predictions.shape[1] if predictions.ndim == 2 else 0
            if not classes or logits < classes:
                found = f"{list(predictions.shape)} for two points, and y of {y.dtype}"
                raise ValueError(f"network must return logits [n, C] with C above all y (int64), got {found}")


def _drop_last(predictions: Tensor, y: Tensor) -> Tensor:
    """Predictions `[n, 1]` as `[n]` where y are `[n]`: their difference would have the shape `[n, n]`."""
    return predictions[..., 0] if predictions.shape == (*y.shape, 1) else predictions


def _make_task(name: str, x: Tensor, y: Tensor) -> TaskData:
    if x.ndim < 2 or y.ndim < 1 or len(x) != len(y) or not len(x):
        raise ValueError(f"task {name!r} must have x [n, ...] and y [n], got {list(x.shape)} and {list(y.shape)}")
    return TaskData(x, y, name)


def _to_tensor(part: str, name: str, value: npt.ArrayLike) -> Tensor:
    array = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    if array.is_floating_point() and not bool(torch.isfinite(array).all()):
        raise ValueError(f"{part} of task {name!r} must be finite, got NaN or infinity")
    return array.long() if part == "y" and not array.is_floating_point() else array


def _stack(part: str, name: str, column: Iterable[Any]) -> Tensor:
    try:
        return _to_tensor(part, name, torch.stack([torch.as_tensor(value) for value in column]))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"dataset {name!r} must give {part} of one shape, got: {error}") from error


def _to_number(path: str | Path, line: int, column: str, text: str | None) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path}, line {line}: {column} must be a finite number, got {text!r}")
    return number
