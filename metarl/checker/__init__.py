"""Check that a task distribution keeps the contract of `metarl.types.TaskDistribution`; every problem is reported.

    >>> from metarl.envs import Navigation
    >>> check_task_distribution(Navigation(horizon=10))

A check takes a `Probe` and yields or raises each `Problem`; `CHECKS` lists all of them. Actions are random, so states
that they never reach are not checked.
"""

import copy
import inspect
import itertools
import operator
import pickle
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.checker.environments import ENVIRONMENT_CHECKS
from metarl.checker.probe import MANY, SHORT, Checks, Probe, Problem, equal, find_problems, mismatch
from metarl.errors import check_choice, check_int
from metarl.random import global_seed, under_two_global_seeds
from metarl.rl.actions import warn_of_action_range
from metarl.rl.distributions import has_distribution
from metarl.types import TaskDistribution

CONTRACT = {  # what is wanted of each attribute, and the fix
    "space": (
        "be a gymnasium.spaces.Dict with an entry for every parameter of a task",
        "in the constructor set self.space = gymnasium.spaces.Dict({'goal': gymnasium.spaces.Box(-1, 1, (2,))})",
    ),
    "observation_space": (
        "be a Box, or a Discrete that starts at 0",
        "flatten a composite space into one Box (gymnasium.spaces.flatten_space); count from 0",
    ),
    "action_space": (
        "be a Box, MultiDiscrete or MultiBinary of one dimension, or a Discrete, and start at 0",
        "flatten arrays to one dimension, and count from 0",
    ),
    "horizon": (
        "be a positive integer",
        "in the constructor set self.horizon to the maximum number of steps of an episode",
    ),
}


class TaskDistributionError(ValueError):
    """A task distribution breaks its contract.

    Attributes:
        problems: a text for each: what was wanted, what was found and how to fix it.
        unchecked: the checks that could not run because of these problems.
    """

    def __init__(self, name: str, problems: Iterable[str], unchecked: Iterable[str] = ()) -> None:
        self.name, self.problems, self.unchecked = name, tuple(problems), tuple(unchecked)
        lines = [f"{name} is not a valid task distribution; problems ({len(self.problems)}):"]
        lines += [f"  {number}. {problem}" for number, problem in enumerate(self.problems, start=1)]
        lines += [f"Not checked until these are fixed: {', '.join(self.unchecked)}."] if self.unchecked else []
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type["TaskDistributionError"], tuple[str, tuple[str, ...], tuple[str, ...]]]:
        return type(self), (self.name, self.problems, self.unchecked)


def check_task_distribution(
    distribution: TaskDistribution,
    *,
    episodes: int = 2,
    num_tasks: int = 3,
    seed: int = 0,
    workers: bool = False,
    waive: Collection[str] = (),
) -> None:
    """Check that `distribution` keeps the contract of `metarl.types.TaskDistribution`; return if it does.

    Random actions test types and shapes, randomness, the ends of episodes, whether environments share state, and
    whether `make_vec` behaves as `make`. Environment i of `vec.reset(seed=s)` should start as
    `make(task).reset(seed=s + i)`; if episodes are random, equal means are enough. Behaviour is compared for 50 steps,
    values are checked for 1000, ends of episodes for 10 000. The global random generators are restored.

    Args:
        distribution: the tasks.
        episodes: episodes per task in the vector environments.
        num_tasks: tasks in the vector environments, at least two.
        seed: of the tasks, the environments and the actions.
        workers: also check that the distribution can be pickled, as worker processes need.
        waive: names of checks to leave out, such as `tasks_make_a_difference` where tasks differ only at a goal that
            short random episodes do not reach.

    Warns:
        UserWarning: actions are integers, or their bounds are far from where policies start.

    Raises:
        TaskDistributionError: names every problem, and how to fix it.
        ValueError: `episodes`, `num_tasks` or `seed` is out of range, or `waive` names an unknown check.
    """
    if isinstance(waive, str):
        raise ValueError(f"waive must be a collection of names, such as [{waive!r}], got {waive!r}")
    skipped = {check_choice("waive", name, CHECKS) for name in waive} | (set() if workers else {"survives_pickling"})
    num_tasks, episodes = check_int("num_tasks", num_tasks, 2), check_int("episodes", episodes)
    probe = Probe(distribution, num_tasks, episodes, check_int("seed", seed, 0))
    found: dict[str, None] = {}  # in order and without duplicates: several checks may hit the same exception
    failed: set[str] = set()
    unchecked = []
    # run each check whose requirements passed; a check that could not run fails the checks that need it
    with global_seed(probe.seed):
        for name, (check, needs) in CHECKS.items():
            if name in skipped:
                continue
            if failed.intersection(needs):
                unchecked.append(name.replace("_", " "))
                failed.add(name)
            elif problems := find_problems(check, probe):
                found.update(dict.fromkeys(problems))
                failed.add(name)
    if found:
        raise TaskDistributionError(type(distribution).__name__, found, unchecked)
    warn_of_action_range(distribution.action_space)


def spaces_and_horizon_are_supported(probe: Probe) -> Iterator[Problem]:
    """Tasks are a Dict, observations a Box or a Discrete, actions something that a policy has a distribution for."""
    tasks: Any
    tasks, observations, actions, horizon = (getattr(probe.distribution, name, None) for name in CONTRACT)
    a_dict = isinstance(tasks, spaces.Dict) and bool(tasks.spaces)
    right = (
        a_dict,
        isinstance(observations, spaces.Box) or (isinstance(observations, spaces.Discrete) and observations.start == 0),
        has_distribution(actions),
        isinstance(horizon, int | np.integer) and not isinstance(horizon, bool) and horizon > 0,
    )
    for name in itertools.compress(CONTRACT, map(operator.not_, right)):
        wanted, fix = CONTRACT[name]
        yield Problem(name, wanted, getattr(probe.distribution, name, None), fix)
    for name, entry in tasks.items() if a_dict else ():
        if entry.shape is None or entry.dtype is None:
            yield Problem(f"space[{name!r}]", "describe one array", entry, "use a Box, Discrete or MultiDiscrete")


def methods_take_the_documented_arguments(probe: Probe) -> Iterator[Problem]:
    """The methods exist and take the arguments that metarl passes."""
    calls = {"sample": ("num_tasks", "rng"), "make": ("task",), "make_vec": ("task", "episodes", "device")}
    for name, arguments in calls.items():
        method = getattr(probe.distribution, name, None)
        wanted = f"be a method {name}({', '.join(arguments)})".replace("device", "device='cpu'")
        if not callable(method):
            yield Problem(name, wanted, method, f"define {name} as in metarl.types.TaskDistribution")
            continue
        signature = inspect.signature(method)
        try:
            signature.bind(*arguments)
            signature.bind(*arguments[:2])  # the device has a default
        except TypeError as error:
            fix = f"give {name} the arguments of metarl.types.TaskDistribution, device with default 'cpu'"
            yield Problem(name, wanted, f"{name}{signature} ({error})", fix)


def sample_has_the_form_of_the_space(probe: Probe) -> None:
    """Samples have the keys of the space and shapes `[T, ...]`, also for one task."""
    space = probe.distribution.space
    for number in (probe.num_tasks, 1):
        call, drawn = f"sample({number}, rng)", probe.distribution.sample(number, np.random.default_rng(probe.seed))
        if not isinstance(drawn, Mapping) or set(drawn) != set(space):
            found = f"the keys {sorted(drawn)}" if isinstance(drawn, Mapping) else type(drawn).__name__
            wanted = f"be a dictionary with the keys of space, {sorted(space)}"
            raise Problem(call, wanted, found, "use the same names in both")
        for name, entry in space.items():
            shape, value = (number, *(entry.shape or ())), drawn[name]
            if not isinstance(value, np.ndarray) or value.shape != shape:
                found = f"shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
                fix = f"draw with size=(num_tasks, ...), or correct the shape of space[{name!r}]"
                raise Problem(f"{call}[{name!r}]", f"be an array of shape {shape}, one row per task", found, fix)


def sample_is_inside_the_space(probe: Probe) -> Iterator[Problem]:
    """Many sampled tasks have the types of the space and are inside its bounds."""
    for name, value in probe.draw(probe.seed).items():
        if wrong := mismatch(value, probe.distribution.space[name], f"space[{name!r}]", " in task {}".format):
            yield Problem(f"sample(...)[{name!r}]", *wrong)


def sample_uses_only_the_generator_it_is_given(probe: Probe) -> None:
    """The same generator gives the same tasks, and no other generator is used."""
    one, other, used = under_two_global_seeds(lambda: probe.draw(probe.seed))
    if used:
        fix = "draw from the argument rng: rng.uniform(...), not np.random.uniform(...)"
        raise Problem("sample", "not use the global random generators", f"draws from {used}", fix)
    if not equal(one, other):
        fix = "draw everything from the argument rng; create no generator in sample, keep none in self"
        raise Problem("sample", "give the same tasks for the same rng", "different tasks the second time", fix)


def sample_draws_different_tasks(probe: Probe) -> None:
    """Tasks differ between generators, between calls and within one call, unless the space has only one."""
    space = copy.deepcopy(probe.distribution.space)
    space.seed(probe.seed)
    if len({str(space.sample()) for _ in range(MANY)}) == 1:
        return
    rng = np.random.default_rng([probe.seed, 1])
    one, other, third = probe.draw(rng), probe.draw(rng), probe.draw([probe.seed, 2])
    fix = "draw from the argument rng itself, not from a copy or from a generator with a fixed seed"
    if equal(one, third):
        raise Problem("sample", "give different tasks for different rngs", "identical ones", fix)
    if equal(one, other):
        raise Problem("sample", "give different tasks in the next call with the same rng", "identical ones", fix)
    if all((value == value[:1]).all() for value in one.values()):
        fix = "draw with size=(num_tasks, ...) instead of repeating one draw"
        raise Problem(f"sample({MANY}, rng)", "draw each task independently", f"one task {MANY} times", fix)


def survives_pickling(probe: Probe) -> None:
    """Worker processes get the same distribution."""
    try:
        restored: TaskDistribution = pickle.loads(pickle.dumps(probe.distribution))
    except Exception as error:  # pickle raises the errors of the objects
        found = f"{type(error).__name__}: {error}"
        fix = "use functions and classes of a module, not lambdas or local ones; open files and devices in make"
        raise Problem("the distribution", "survive pickling, for worker processes", found, fix) from error
    again, actions = Probe(restored, probe.num_tasks, probe.episodes, probe.seed), probe.actions(SHORT, "make")
    one, other = (each.run("make", actions, probe.seed) for each in (probe, again))
    if not equal(probe.tasks, again.tasks) or probe.compare(one, other):
        fix = "let __getstate__, __setstate__ or __reduce__ keep everything that sample and make use"
        raise Problem("the distribution", "be the same after pickling", "other tasks or another environment", fix)


def _rows(after: str, *checks: Callable[[Probe], Iterable[Problem] | None]) -> Checks:
    return {check.__name__: (check, after.split()) for check in checks}


CHECKS: Checks = {
    **_rows("", spaces_and_horizon_are_supported, methods_take_the_documented_arguments),
    **_rows("spaces_and_horizon_are_supported methods_take_the_documented_arguments", sample_has_the_form_of_the_space),
    **_rows("sample_has_the_form_of_the_space", sample_is_inside_the_space, sample_uses_only_the_generator_it_is_given),
    **_rows("sample_has_the_form_of_the_space", sample_draws_different_tasks),
    **ENVIRONMENT_CHECKS,
    **_rows("make_repeats_itself_with_the_seed", survives_pickling),
}
"""Every check by its name, with the names of the checks that must pass before it makes sense."""
