"""Shared by the checks: runs of environments, their differences, and the wording of problems."""

import itertools
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from metarl.random import under_two_global_seeds
from metarl.types import TaskDistribution, TaskParams

Array: TypeAlias = npt.NDArray[Any]
AnyEnv: TypeAlias = gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]
Call: TypeAlias = Literal["make", "make_vec"]
Problems: TypeAlias = Iterator[str]

SHORT = 50  # steps for which behaviour is compared
LONG = 1_000  # steps for which values are checked
LONGEST = 10_000  # steps to wait for the end of an episode
SEEDS = 8  # seeds that must agree for an environment to count as deterministic
MANY = 64  # tasks of a large draw, and episodes of a comparison of means
TOLERANCE = 1e-5  # absolute and relative: environments may compute in float32
FINITE = "look for a wrong division, logarithm or root, or for a state that grows without bound"

HERE = (os.path.dirname(__file__), under_two_global_seeds.__code__.co_filename)  # frames that are not the author's
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {"<"})


class StepResult(NamedTuple):
    """What `reset` or `step` returned; a reset returns only observations."""

    observation: Any
    reward: Any = 0.0
    terminated: Any = False
    truncated: Any = False


class Run(NamedTuple):
    """Copies of what N environments returned in a reset and S - 1 steps, each `[S, N, ...]`."""

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array

    @property
    def running(self) -> Array:
        """Whether the episode had not ended before each step, `[S, N]`; true in the step that ends it."""
        ended = np.logical_or.accumulate(self.terminated | self.truncated, axis=0)
        return np.concatenate([np.ones_like(ended[:1]), ~ended[:-1]])

    def start(self) -> "Run":
        """Only what the reset returned."""
        return Run(*(value[:1] for value in self))

    def envs(self, numbers: Any) -> "Run":
        """Only these environments, in this order."""
        return Run(*(value[:, numbers] for value in self))


def random_actions(space: gymnasium.Space[Any], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random actions inside the space, `[*shape, *action]`: uniform between bounds, Gaussian without both bounds."""
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.start, space.start + space.n, shape)
    assert isinstance(space, spaces.Box)
    size = (*shape, *space.shape)
    if space.dtype.kind in "iu":
        return rng.integers(space.low, space.high, size, space.dtype, endpoint=True)
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = (np.where(bounded, bound, 0.0).astype(np.float64) for bound in (space.low, space.high))
    chosen = np.where(bounded, low + (high - low) * rng.random(size), rng.normal(size=size))
    inside: Array = np.clip(chosen.astype(space.dtype), space.low, space.high)
    return inside


def as_action(action: Array, like: Any) -> Any:
    """A copy that the environment may write to: a tensor if `like` is one; a number instead of a 0-d array."""
    copied = np.array(action)
    return torch.from_numpy(copied) if isinstance(like, Tensor) else copied[()]


def to_array(value: Any) -> Array:
    """A copy as an array."""
    copied: Array = np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
    return copied


def steps(env: AnyEnv, actions: Array, seed: int) -> Iterator[StepResult]:
    """Yields what the environment returns, unchanged. A single environment stops at its end, a vector one does not."""
    start = env.reset(seed=seed)[0]
    many = env.num_envs if isinstance(env, VectorEnv) else 0
    yield StepResult(start, np.zeros(many), *np.zeros((2, many), np.bool_)) if many else StepResult(start)
    for action in actions:
        yield (result := StepResult(*env.step(as_action(action, start))[:4]))
        if not many and (result.terminated or result.truncated):
            return


def play(env: AnyEnv, actions: Array, seed: int) -> Run:
    """Run one episode in each environment."""
    return play_side_by_side([env], actions, seed)[0]


def play_side_by_side(envs: Iterable[AnyEnv], actions: Array, seed: int) -> list[Run]:
    """Run all with the same actions and seed, one step of each in turn."""

    def copies(env: AnyEnv) -> Iterator[list[Array]]:
        for result in steps(env, actions, seed):
            yield [to_array(value) if isinstance(env, VectorEnv) else to_array(value)[None] for value in result]

    results = itertools.zip_longest(*map(copies, envs))
    return [_join([result for result in column if result is not None]) for column in zip(*results, strict=True)]


def _join(results: list[list[Array]]) -> Run:
    """One array per quantity; a value of another shape than the first becomes NaN, which is never compared."""
    shapes = [value.shape for value in results[0]]
    columns = (
        np.stack([value if value.shape == shape else np.full(shape, np.nan) for value in column])
        for shape, column in zip(shapes, zip(*results, strict=True), strict=True)
    )
    observation, reward, *flags = columns
    return Run(observation, reward, *(flag.astype(bool) for flag in flags))


def join(runs: Sequence[Run]) -> Run:
    """Runs of single environments as one run; the last values of shorter runs are repeated."""
    numbers = np.arange(max(len(run.reward) for run in runs))
    columns = ([value.take(numbers, 0, mode="clip") for value in column] for column in zip(*runs, strict=True))
    return Run(*(np.concatenate(column, axis=1) for column in columns))


def differ(a: Array, b: Array, tolerance: float = 0.0) -> bool:
    """Whether two arrays `[N, ...]` differ."""
    return bool(_distances(a[None], b[None], tolerance).any())


def _distances(a: Array, b: Array, tolerance: float) -> Array:
    """The largest difference `[S, N]` between arrays `[S, N, ...]`.

    0 within `tolerance` or where a value is not finite, infinite where sizes differ.
    """
    x, y = (value.reshape(*value.shape[:2], int(np.prod(value.shape[2:]))).astype(np.float64) for value in (a, b))
    if x.shape != y.shape:
        return np.full(x.shape[:2], np.inf)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        size = np.abs(x - y)
        far = np.where(np.isfinite(size) & (size > tolerance * (1 + np.abs(y))), size, 0.0)
    return np.array(far.max(2, initial=0.0))


def first(mask: Array) -> int:
    """The number of the first row with a true value."""
    return int(np.argwhere(mask)[0][0])


class Probe:
    """A distribution, tasks drawn from it, actions to try and runs of its environments.

    `call` is the method that builds environments. `number` is the task for `make`, and the first of all tasks for
    `make_vec`.
    """

    def __init__(self, distribution: TaskDistribution, num_tasks: int, episodes: int, seed: int) -> None:
        self.distribution, self.num_tasks, self.episodes, self.seed = distribution, num_tasks, episodes, seed
        self.num_envs = num_tasks * episodes

    @cached_property
    def tasks(self) -> TaskParams:
        """All tasks, `[T, ...]`; the distribution gets copies."""
        return copy_task(self.distribution.sample(self.num_tasks, np.random.default_rng(self.seed)))

    def draw(self, seed: Any) -> TaskParams:
        """Copies of `MANY` tasks; `seed` is a generator or a seed."""
        return copy_task(self.distribution.sample(MANY, np.random.default_rng(seed)))

    def task(self, call: Call, number: int = 0) -> TaskParams:
        """A copy of the task or tasks for `call`."""
        if call == "make":
            return {name: np.array(value[number]) for name, value in self.tasks.items()}
        return {name: np.roll(value, -number, axis=0) for name, value in self.tasks.items()}

    @cached_property
    def other(self) -> int:
        """The number of the first task that differs from task 0, or 1."""
        tasks = [self.task("make", number) for number in range(self.num_tasks)]
        return next((number for number, task in enumerate(tasks) if not equal(task, tasks[0])), 1)

    def actions(self, most: int, call: Call, key: int = 0, beyond: int = 0) -> Array:
        """Random actions `[steps, *action]`, or `[steps, N, *action]` for `make_vec`; each `key` gives different ones.

        The number of steps is `min(horizon, most) + beyond`.
        """
        length = min(self.distribution.horizon, most) + beyond
        shape = (length,) if call == "make" else (length, self.num_envs)
        return random_actions(self.distribution.action_space, shape, np.random.default_rng([self.seed, key]))

    def actions_of_make(self, most: int) -> Array:
        """Actions for `make_vec` with which all environments get the actions of `make`."""
        return np.repeat(self.actions(most, "make")[:, None], self.num_envs, axis=1)

    def build(self, call: Call, task: TaskParams | None = None) -> "closing[AnyEnv]":
        """An environment of `task`, or of the first one, closed at the end of a `with` statement."""
        task = self.task(call) if task is None else task
        if call == "make":
            return closing(self.distribution.make(task))
        return closing(self.distribution.make_vec(task, self.episodes, "cpu"))

    def tries(self, call: Call, *most: int) -> Iterator[tuple[str, AnyEnv, Array]]:
        """For each task its name, an environment and actions: up to `most[0]` for the first, then `most[-1]`."""
        for number in range(self.num_tasks if call == "make" else 1):
            name = f"make(task {number})" if call == "make" else call
            with self.build(call, self.task(call, number)) as env:
                yield name, env, self.actions(most[-1] if number else most[0], call, key=number)

    def run(self, call: Call, actions: Array, seed: int, number: int = 0) -> Run:
        """One episode in each environment, newly built."""
        with self.build(call, self.task(call, number)) as env:
            return play(env, actions, seed)

    @cached_property
    def samples(self) -> list[list[Run]]:
        """For each task, episodes that differ only in the seed."""
        actions, seeds = self.actions(SHORT, "make"), range(self.seed, self.seed + SEEDS)
        return [[self.run("make", actions, seed, task) for seed in seeds] for task in range(self.num_tasks)]

    @cached_property
    def random_starts(self) -> bool:
        """Whether what a reset returns depends on its seed."""
        return any(self.compare(runs[0].start(), other.start()) for runs in self.samples for other in runs[1:])

    @cached_property
    def random(self) -> bool:
        """Whether an episode depends on the seed."""
        return any(self.compare(runs[0], other) for runs in self.samples for other in runs[1:])

    def compare(self, a: Run, b: Run, tolerance: float = 0.0) -> str:
        """The largest difference in each quantity, in words; nothing is compared after the first end of an episode."""
        length = min(len(a.reward), len(b.reward))
        running = (a.running[:length] & b.running[:length]).astype(bool)
        # another check tests truncation at the horizon
        a, b = (run._replace(terminated=run.terminated & ~run.truncated) for run in (a, b))
        found = []
        for quantity in ("observation", "reward", "terminated"):
            x, y = (getattr(run, quantity)[:length] for run in (a, b))
            sizes = np.where(running, _distances(x, y, tolerance), 0.0)
            if sizes.any():
                i = int(sizes.max(0).argmax())
                where = self.where(i) if sizes.shape[1] > 1 else ""
                step, size = first(sizes[:, i]), sizes[:, i].max()
                found.append(f"{quantity} differs by up to {size:.3g}, first at step {step}{where}")
        return ", and ".join(found)

    def where(self, i: int) -> str:
        """Environment i of a vector environment, in words."""
        return f" in environment {i} (task {i // self.episodes}, episode {i % self.episodes})"


def copy_task(task: TaskParams) -> TaskParams:
    """The same values in new arrays."""
    return {name: np.array(value) for name, value in task.items()}


def equal(one: TaskParams, other: TaskParams) -> bool:
    """Whether both have the same parameters."""
    return all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


Checks: TypeAlias = dict[str, tuple[Callable[[Probe], Problems], list[str]]]
"""Checks by name, with the names of the checks that must pass before."""


def rows(after: str, *checks: Callable[[Probe], Problems]) -> Checks:
    """Entries of `CHECKS` for checks that run only if those named in `after` pass."""
    return {check.__name__: (check, after.split()) for check in checks}


def rows_for_both(after: str, *checks: Callable[[Call, Probe], Problems]) -> Checks:
    """Entries of `CHECKS` for `make` and `make_vec`; each runs only if the check `after` of the same method passes."""
    calls: tuple[Call, ...] = ("make", "make_vec")
    pairs = ((call, check) for check in checks for call in calls)
    return {f"{call}_{check.__name__}": (partial(check, call), [f"{call}_{after}"]) for call, check in pairs}


def problem(subject: str, wanted: str, found: object, fix: str) -> str:
    """The text of a problem."""
    return f"{subject} must {wanted}; got {found}. Fix: {fix}."


def find_problems(check: Callable[[Probe], Iterator[str]], probe: Probe) -> list[str]:
    """The problems that `check` yields; an exception is one more problem."""
    found: list[str] = []
    try:
        found.extend(check(probe))  # one by one: problems before an exception are kept
    except Exception as error:  # the author's code may raise anything, and the other checks still run
        found.append(_describe_exception(error, probe.distribution))
    return found


def _describe_exception(error: Exception, distribution: TaskDistribution) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(HERE)]
    own = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)]
    what = f"{type(error).__name__}: {error}"
    if not own:
        fix = "return what metarl.types.TaskDistribution documents"
        return problem("what is returned", "be as documented", what, fix)
    # a line in the author's file is more helpful than one in the code that it calls
    home = getattr(sys.modules.get(type(distribution).__module__), "__file__", None)
    place = ([frame for frame in own if frame.filename == home] or own)[-1]
    found = f"{what}, raised at {place.filename}:{place.lineno} (in {place.name})"
    return problem(f"{own[0].name}()", "work", found, f"correct it; {own[0].name} was called as documented")


def mismatch(
    array: Array, space: gymnasium.Space[Any], name: str, where: Callable[[int], str], size: tuple[int, ...] = (MANY,)
) -> Iterator[tuple[str, str, str]]:
    """Yields (wanted, found, fix) if `array` is not `[*size, ...]` with values in the space."""
    shape = (*size, *(space.shape or ()))
    if array.shape != shape:
        yield f"have shape {shape}", str(array.shape), f"reshape it, or correct the shape of {name}"
        return
    if array.dtype != space.dtype:
        fix = f"convert it with .astype({space.dtype}), or correct the dtype of {name}"
        yield f"have dtype {space.dtype}", str(array.dtype), fix
        return
    rows = array.reshape(-1, *(space.shape or ()))
    if (bad := ~np.isfinite(rows)).any():
        yield "be finite", f"NaN or infinity{where(first(bad))}", FINITE
        return
    if isinstance(space, spaces.Box):
        bad = (rows < space.low) | (rows > space.high)
    else:
        bad = np.array([not space.contains(row) for row in rows])
    if bad.any():
        fix = f"keep it inside the bounds, or widen the bounds of {name}"
        yield f"lie inside {space}", f"{rows[bad][0]}{where(first(bad))}", fix


def step_mismatches(result: StepResult, probe: Probe, call: Call) -> Iterator[tuple[str, str, str, str]]:
    """Yields (quantity, wanted, found, fix) for each value of the step that is wrong."""
    space, size = probe.distribution.observation_space, () if call == "make" else (probe.num_envs,)
    where, observation = probe.where if size else lambda i: "", to_array(result.observation)
    if isinstance(space, spaces.Discrete) and observation.dtype.kind in "iu":
        observation = observation.astype(space.dtype)  # any integer type is accepted
    if not isinstance(result.observation, (np.ndarray, Tensor) if size else (np.ndarray, np.generic, int)):
        wanted = "be a numpy array" + (" or a torch tensor" if size else "")
        yield "observation", wanted, type(result.observation).__name__, "convert it"
    else:
        for wrong in mismatch(observation, space, "observation_space", where, size):
            yield "observation", *wrong
    for name, kind, codes in (("reward", "float", "f"), ("terminated", "bool", "b"), ("truncated", "bool", "b")):
        array = to_array(getattr(result, name))
        if array.shape != size or array.dtype.kind not in (codes if size or kind == "bool" else "iuf"):
            wanted = f"be {size[0]} values of type {kind}, one per environment" if size else f"be one {kind}"
            fix = "stack one value per environment" if size else f"return {kind}({name})"
            yield name, wanted, f"shape {array.shape} of {array.dtype}", fix
        elif kind == "float" and (bad := ~np.isfinite(array)).any():
            yield name, "be finite", f"{array[bad][0]}{where(first(np.atleast_1d(bad)))}", FINITE
