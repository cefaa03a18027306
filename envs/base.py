"""Task distributions: they sample the parameters of tasks and make environments from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from metarl.errors import check_int
from metarl.settings import FixedSettings
from metarl.task_params import Ends
from metarl.types import TaskParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class EnvDistribution(FixedSettings, ABC):
    """The base class of this package's task distributions: a `metarl.types.TaskDistribution` with plots.

    The default `sample` draws every entry uniformly. `make` and `make_vec` also accept parameters outside the space,
    for out-of-distribution tests.

    Args:
        space: the space of ONE task's parameters.
        observation_space: of one environment.
        action_space: of one environment.
        horizon: steps per episode, at most.

    Raises:
        ValueError: an argument that does not fit, which the message names. This holds for all subclasses, too.
    """

    space: gymnasium.spaces.Dict
    horizon: int

    def __init__(
        self,
        space: gymnasium.spaces.Dict,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        horizon: int,
    ) -> None:
        self._set_fixed(space=space, horizon=check_int("horizon", horizon))
        self.observation_space, self.action_space = observation_space, action_space

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskParams:
        """Parameters of `num_tasks` tasks, uniform over `space`: arrays `[T, ...]` of its types.

        Raises:
            ValueError: `num_tasks` is not a positive integer, or `rng` is not a numpy generator.
        """
        check_int("num_tasks", num_tasks)
        check_rng(rng)
        return {name: _sample_entry(name, entry, num_tasks, rng) for name, entry in self.space.items()}

    @abstractmethod
    def make(self, task: TaskParams, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        """One ordinary environment; the arrays of `task` have no leading T.

        Raises:
            ValueError: keys or shapes of `task` differ from `space`, or a value is not finite.
        """

    @abstractmethod
    def make_vec(
        self, task: TaskParams, episodes: int, device: torch.device | str = "cpu"
    ) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
        """T x `episodes` environments, task-major, autoreset disabled; `task` has arrays `[T, ...]`.

        Raises:
            ValueError: as for `make`; leading sizes that differ; `episodes` is not a positive integer; a bad `device`.
        """

    def example(self) -> TaskParams:
        """The default task of the registered environment; drawn from seed 0 unless overridden."""
        return {name: values[0] for name, values in self.sample(1, np.random.default_rng(0)).items()}

    def out_of_distribution(self) -> EnvDistribution:
        """A distribution of tasks outside this one, to test on.

        Raises:
            ValueError: this distribution defines none.
        """
        raise ValueError(f"{type(self).__name__} defines no out-of-distribution tasks")

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """Draw ONE task (arrays without the leading T) into `ax`; by default its numbers as a label."""
        ax.set_xlabel(describe_task(task), fontsize=8)

    def plot_episode(self, ax: Axes, observations: npt.NDArray[Any], **line_kwargs: Any) -> None:
        """Draw one episode, `observations` `[n_steps, obs]`, into `ax`.

        By default the first components over the steps, each with its own colour and label. Lines with a label get into
        the legend of the picture. Override it to draw what you want to see.
        """
        columns = observations.reshape(len(observations), -1).T
        for k, column in enumerate(columns[:COMPONENTS]):
            own = {"color": f"C{k}", "label": f"observation {k}"} if len(columns) > 1 else {}
            ax.plot(column, **{**own, **line_kwargs})


COMPONENTS = 6
"""Observation components in a picture, at most."""


def describe_task(task: Mapping[str, Any]) -> str:
    """A task's parameters in a few words: three significant digits, and the first numbers of large arrays.

    >>> describe_task({"goal": np.array([0.12345, -2.0]), "mass": np.array(1234.5), "sizes": np.arange(9)})
    'goal 0.123 -2, mass 1.23e+03, sizes 0 1 2 3 ...'
    """
    return ", ".join(f"{name} {_describe_numbers(np.ravel(value))}" for name, value in task.items())


def _describe_numbers(values: npt.NDArray[Any], shown: int = 4) -> str:
    return " ".join([*(f"{value:.3g}" for value in values[:shown]), *(["..."] if len(values) > shown else [])])


def check_rng(rng: object) -> np.random.Generator:
    """`rng` if it is a numpy generator; a ValueError otherwise."""
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng must be a numpy.random.Generator, such as numpy.random.default_rng(0), got {rng!r}")
    return rng


def check_device(device: torch.device | str) -> torch.device:
    """`device` as a torch.device; a ValueError if torch does not know it."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch device such as 'cpu' or 'cuda:0', got {device!r}") from error


def _sample_entry(name: str, entry: gymnasium.Space[Any], num_tasks: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    """`num_tasks` values of one entry, uniform over its space."""
    if isinstance(entry, Discrete | MultiDiscrete):
        number = entry.n if isinstance(entry, Discrete) else entry.nvec
        return rng.integers(entry.start, entry.start + number, (num_tasks, *(entry.shape or ())), entry.dtype)
    if isinstance(entry, Ends):
        return entry.draw(num_tasks, rng)
    if not isinstance(entry, Box) or not entry.is_bounded():
        wanted = f"space[{name!r}] must be a bounded Box, a Discrete or a MultiDiscrete to be drawn uniformly"
        raise ValueError(f"{wanted}, got {entry}; override sample")
    if np.issubdtype(entry.dtype, np.integer):
        return rng.integers(entry.low, entry.high, (num_tasks, *entry.shape), entry.dtype, endpoint=True)
    return rng.uniform(entry.low, entry.high, size=(num_tasks, *entry.shape)).astype(entry.dtype)
