"""Shared by the checks: records of environments, their differences, and the wording of problems."""

import itertools
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from metarl.random import under_two_global_seeds
from metarl.types import TaskDistribution, TaskParams

Array: TypeAlias = npt.NDArray[Any]
AnyEnv: TypeAlias = gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]
Call: TypeAlias = Literal["make", "make_vec"]

SHORT = 50  # steps for which behaviour is compared
LONG = 1_000  # steps for which values are checked
LONGEST = 10_000  # steps to wait for the end of an episode
SHORTER = 20  # steps per episode where means are compared
SEEDS = 8  # seeds that must agree for an environment to count as deterministic
MANY = 64  # tasks of a large draw, and episodes of a comparison of means
STDERRS = 6.0  # standard errors by which two means may differ
TOLERANCE = 1e-5  # absolute and relative: environments may compute in float32
FLAGS = (("terminated", "bool", "b"), ("truncated", "bool", "b"))  # names, types and kinds of arrays
FINITE = "look for a wrong division, logarithm or root, or for a state that grows without bound"

HERE = (os.path.dirname(__file__), under_two_global_seeds.__code__.co_filename)  # frames that are not the author's
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {"<"})


class Problem(Exception):
    """What is wrong with a distribution. A check yields it, or raises it to stop there."""

    def __init__(self, subject: str, wanted: str, found: object, fix: str) -> None:
        super().__init__(f"{subject} must {wanted}; got {found}. Fix: {fix}.")


class Record(NamedTuple):
    """Copies of what N environments returned in a reset and S - 1 steps, each `[S, N, ...]`, or one result."""

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any

    @property
    def running(self) -> Array:
        """Whether the episode had not ended before each step, `[S, N]`; true in the step that ends it."""
        ended = np.logical_or.accumulate(self.terminated | self.truncated, axis=0)
        return np.concatenate([np.ones_like(ended[:1]), ~ended[:-1]])

    def start(self) -> "Record":
        """Only what the reset returned."""
        return Record(*(value[:1] for value in self))


def random_actions(space: gymnasium.Space[Any], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random actions inside the space, `[*shape, *action]`, from Gymnasium's `sample`."""
    many: gymnasium.Space[Any] = batch_space(space, int(np.prod(shape)))
    many.seed(int(rng.integers(2**31)))
    return np.reshape(many.sample(), (*shape, *(space.shape or ())))


def as_action(action: Array, like: Any) -> Any:
    """A copy that the environment may write to: a tensor if `like` is one; a number instead of a 0-d array."""
    copied = np.array(action)
    return torch.from_numpy(copied) if isinstance(like, Tensor) else copied[()]


def to_array(value: Any) -> Array:
    """A copy as an array."""
    copied: Array = np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
    return copied


def steps(env: AnyEnv, actions: Array, seed: int) -> Iterator[Record]:
    """Yields what the environment returns, unchanged. A single environment stops at its end, a vector one does not."""
    start = env.reset(seed=seed)[0]
    shape = (env.num_envs,) if isinstance(env, VectorEnv) else ()
    yield Record(start, np.zeros(shape)[()], *np.zeros((2, *shape), np.bool_))
    for action in actions:
        yield (result := Record(*env.step(as_action(action, start))[:4]))
        if not shape and (result.terminated or result.truncated):
            return


def play(actions: Array, seed: int, *envs: AnyEnv) -> list[Record]:
    """A record of each environment. All get the same actions and seed, one step of each in turn."""

    def copies(env: AnyEnv) -> Iterator[list[Array]]:
        for result in steps(env, actions, seed):
            yield [to_array(value) if isinstance(env, VectorEnv) else to_array(value)[None] for value in result]

    def stack(values: Sequence[Array]) -> Array:  # a value of another shape than the first becomes NaN: never compared
        shape = values[0].shape
        return np.stack([value if value.shape == shape else np.full(shape, np.nan) for value in values])

    records = []
    for results in zip(*itertools.zip_longest(*map(copies, envs)), strict=True):
        observation, reward, *flags = map(stack, zip(*filter(None, results), strict=True))
        records.append(Record(observation, reward, *(flag.astype(bool) for flag in flags)))
    return records


def join(records: Sequence[Record]) -> Record:
    """Records of single environments as one; the last values of shorter ones are repeated."""
    numbers = np.arange(max(len(record.reward) for record in records))
    columns = ([value.take(numbers, 0, mode="clip") for value in column] for column in zip(*records, strict=True))
    return Record(*(np.concatenate(column, axis=1) for column in columns))


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
    """A distribution, tasks drawn from it, actions to try and records of its environments.

    `call` is the method that builds environments. `number` is the task for `make`, and the first of all tasks for
    `make_vec`.
    """

    def __init__(self, distribution: TaskDistribution, num_tasks: int, episodes: int, seed: int) -> None:
        self.distribution, self.num_tasks, self.episodes, self.seed = distribution, num_tasks, episodes, seed
        self.num_envs = num_tasks * episodes

    @cached_property
    def tasks(self) -> TaskParams:
        """All tasks, `[T, ...]`; the distribution gets copies."""
        return self.draw(self.seed, self.num_tasks)

    def draw(self, seed: Any, number: int = MANY) -> TaskParams:
        """Copies of sampled tasks; `seed` is a generator or a seed."""
        drawn = self.distribution.sample(number, np.random.default_rng(seed))
        return {name: np.array(value) for name, value in drawn.items()}

    def task(self, call: Call, number: int = 0) -> TaskParams:
        """A copy of the task or tasks for `call`."""
        if call == "make":
            return {name: np.array(value[number]) for name, value in self.tasks.items()}
        return {name: np.roll(value, -number, axis=0) for name, value in self.tasks.items()}

    @cached_property
    def other(self) -> int:
        """The number of the first task that differs from task 0, or 1."""
        different = (t for t in range(self.num_tasks) if not equal(self.task("make", t), self.task("make")))
        return next(different, 1)

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

    def create(self, call: Call, task: TaskParams, episodes: int) -> AnyEnv:
        """What `call` returns."""
        if call == "make":
            return self.distribution.make(task)
        return self.distribution.make_vec(task, episodes, "cpu")

    def build(self, call: Call, task: TaskParams | None = None) -> "closing[AnyEnv]":
        """An environment of `task`, or of the first one, closed at the end of a `with` statement."""
        return closing(self.create(call, self.task(call) if task is None else task, self.episodes))

    def tries(self, call: Call, *most: int) -> Iterator[tuple[str, AnyEnv, Array]]:
        """For each task its name, an environment and actions: up to `most[0]` for the first, then `most[-1]`."""
        for number in range(self.num_tasks if call == "make" else 1):
            with self.build(call, self.task(call, number)) as env:
                name = f"make(task {number})" if call == "make" else call
                yield name, env, self.actions(most[-1] if number else most[0], call, key=number)

    def run(self, call: Call, actions: Array, seed: int, number: int = 0) -> Record:
        """One episode in each environment, newly built."""
        with self.build(call, self.task(call, number)) as env:
            return play(actions, seed, env)[0]

    @cached_property
    def samples(self) -> list[list[Record]]:
        """For each task, episodes that differ only in the seed."""
        actions, seeds = self.actions(SHORT, "make"), range(self.seed, self.seed + SEEDS)
        return [[self.run("make", actions, seed, task) for seed in seeds] for task in range(self.num_tasks)]

    @cached_property
    def random_starts(self) -> bool:
        """Whether what a reset returns depends on its seed."""
        return any(self.compare(runs[0].start(), other.start()) for runs in self.samples for other in runs[1:])

    def compare(self, a: Record, b: Record, tolerance: float = 0.0) -> str:
        """The largest difference in each quantity, in words; nothing is compared after the first end of an episode."""
        length = min(len(a.reward), len(b.reward))
        running = a.running[:length] & b.running[:length]
        # another check tests truncation at the horizon
        a, b = (record._replace(terminated=record.terminated & ~record.truncated) for record in (a, b))
        found = []
        for quantity in ("observation", "reward", "terminated"):
            x, y = (getattr(record, quantity)[:length] for record in (a, b))
            sizes = np.where(running, _distances(x, y, tolerance), 0.0)
            if sizes.any():
                i = int(sizes.max(0).argmax())
                where = self.where(i) if sizes.shape[1] > 1 else ""
                step, size = first(sizes[:, i]), sizes[:, i].max()
                found.append(f"{quantity} differs by up to {size:.3g}, first at step {step}{where}")
        return ", and ".join(found)

    def require_same(self, a: Record, b: Record, subject: str, wanted: str, fix: str) -> None:
        """Raises a problem that says in what the records differ."""
        if found := self.compare(a, b):
            raise Problem(subject, wanted, found, fix)

    def where(self, i: int) -> str:
        """Environment i of a vector environment, in words."""
        return f" in environment {i} (task {i // self.episodes}, episode {i % self.episodes})"


def other_means(probe: Probe) -> str:
    """The first mean over episodes in which `make_vec` and `make` differ by more than chance allows, in words."""
    actions, everywhere = probe.actions(SHORTER, "make"), probe.actions_of_make(SHORTER)
    with probe.build("make_vec") as vec:
        rounds = [_summaries(play(everywhere, probe.seed + k, vec)[0]) for k in range(-(-MANY // probe.episodes))]
    for t in range(probe.num_tasks):
        alone = join([probe.run("make", actions, probe.seed + k, t) for k in range(MANY)])
        together = [summaries[t * probe.episodes : (t + 1) * probe.episodes] for summaries in rounds]
        one, other = _summaries(alone), np.concatenate(together)
        stderr = np.sqrt(one.var(0) / len(one) + other.var(0) / len(other))
        allowed = STDERRS * stderr + TOLERANCE * (1 + np.abs(one.mean(0)))
        if (far := np.abs(one.mean(0) - other.mean(0)) > allowed).any():
            k = first(far)
            name = ("mean return", "frequency of termination", "mean of the first or last observation")[min(k, 2)]
            return f"{name} {other.mean(0)[k]:.4g} instead of {one.mean(0)[k]:.4g} +- {stderr[k]:.2g} in task {t}"
    return ""


def _summaries(run: Record) -> Array:
    """The return, termination, first and last observation of each episode, `[N, 2 + 2 obs]`."""
    envs, last = np.arange(run.reward.shape[1]), run.running.sum(0) - 1
    ends = [obs.reshape(len(envs), -1) for obs in (run.observation[0], run.observation[last, envs])]
    return np.column_stack([(run.reward * run.running).sum(0), run.terminated[last, envs], *ends])


def equal(one: TaskParams, other: TaskParams) -> bool:
    """Whether both have the same parameters."""
    return all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


Checks: TypeAlias = dict[str, tuple[Callable[[Probe], Iterable[Problem] | None], list[str]]]
"""Checks by name, with the names of the checks that must pass before."""


def find_problems(check: Callable[[Probe], Iterable[Problem] | None], probe: Probe) -> list[str]:
    """The problems that `check` yields or raises; another exception is one more problem."""
    found: list[Exception] = []
    try:
        found.extend(check(probe) or ())  # one by one: problems before an exception are kept
    except Problem as problem:
        found.append(problem)
    except Exception as error:  # the author's code may raise anything, and the other checks still run
        found.append(_describe_exception(error, probe.distribution))
    return list(map(str, found))


def _describe_exception(error: Exception, distribution: TaskDistribution) -> Problem:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(HERE + LIBRARIES)]
    what = f"{type(error).__name__}: {error}"
    if not own:
        return Problem(
            "what is returned", "be as documented", what, "return what metarl.types.TaskDistribution documents"
        )
    # a line in the author's file is more helpful than one in the code that it calls
    home = getattr(sys.modules.get(type(distribution).__module__), "__file__", None)
    place = ([frame for frame in own if frame.filename == home] or own)[-1]
    found = f"{what}, raised at {place.filename}:{place.lineno} (in {place.name})"
    return Problem(f"{own[0].name}()", "work", found, f"correct it; {own[0].name} was called as documented")


def mismatch(
    array: Array, space: gymnasium.Space[Any], name: str, where: Callable[[int], str], size: tuple[int, ...] = (MANY,)
) -> tuple[str, str, str] | None:
    """What is wanted and found and the fix, if `array` is not `[*size, ...]` with values in the space."""
    element = space.shape or ()
    if array.shape != (shape := (*size, *element)):
        return f"have shape {shape}", str(array.shape), f"reshape it, or correct the shape of {name}"
    if array.dtype != space.dtype:
        fix = f"convert it with .astype({space.dtype}), or correct the dtype of {name}"
        return f"have dtype {space.dtype}", str(array.dtype), fix
    rows = array.reshape(-1, *element)
    if (bad := ~np.isfinite(rows)).any():
        return "be finite", f"NaN or infinity{where(first(bad))}", FINITE
    if isinstance(space, spaces.Box):
        bad = (rows < space.low) | (rows > space.high)
    else:
        bad = np.array([not space.contains(row) for row in rows])
    if not bad.any():
        return None
    fix = f"keep it inside the bounds, or widen the bounds of {name}"
    return f"lie inside {space}", f"{rows[bad][0]}{where(first(bad))}", fix


def step_mismatches(result: Record, probe: Probe, call: Call) -> Iterator[tuple[str, str, str, str]]:
    """Yields (quantity, wanted, found, fix) for each value of the step that is wrong."""
    space, size = probe.distribution.observation_space, () if call == "make" else (probe.num_envs,)
    where, observation = probe.where if size else lambda i: "", to_array(result.observation)
    if isinstance(space, spaces.Discrete) and observation.dtype.kind in "iu":
        observation = observation.astype(space.dtype)  # any integer type is accepted
    if not isinstance(result.observation, (np.ndarray, Tensor) if size else (np.ndarray, np.generic, int)):
        wanted = "be a numpy array" + (" or a torch tensor" if size else "")
        yield "observation", wanted, type(result.observation).__name__, "convert it: return a numpy array"
    elif wrong := mismatch(observation, space, "observation_space", where, size):
        yield "observation", *wrong
    for name, kind, codes in (("reward", "float", "f" if size else "iuf"), *FLAGS):
        value = getattr(result, name)
        array = to_array(value)
        if (
            array.shape != size
            or array.dtype.kind not in codes
            or (not size and isinstance(value, np.ndarray | Tensor))
        ):
            wanted = f"be {size[0]} values of type {kind}, one per environment" if size else f"be one {kind}"
            fix = "stack one value per environment" if size else f"return {kind}({name})"
            yield name, wanted, f"shape {array.shape} of {array.dtype}", fix
        elif kind == "float" and (bad := ~np.isfinite(array)).any():
            yield name, "be finite", f"{array[bad][0]}{where(first(np.atleast_1d(bad)))}", FINITE
