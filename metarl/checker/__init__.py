"""Is a task distribution what `metarl.types.TaskDistribution` promises? One call names everything that is not.

    >>> from metarl.envs import Navigation
    >>> check_task_distribution(Navigation(horizon=10))

A check is a function of a `Probe` that yields the problems it finds; `CHECKS` lists them, each with those that must
have passed before it makes sense. Random actions show what they show: an error that they never meet stays unseen.
"""

from collections.abc import Collection, Iterable

from metarl.checker.action_range import warn_of_action_range
from metarl.checker.checks import CHECKS, WORKER_CHECKS
from metarl.checker.global_generators import global_seed
from metarl.checker.probe import Check, Probe
from metarl.checker.reporting import problems_of
from metarl.errors import check_choice, check_int
from metarl.types import TaskDistribution

__all__ = ["CHECKS", "WORKER_CHECKS", "TaskDistributionError", "check_task_distribution"]


class TaskDistributionError(ValueError):
    """What is wrong with a task distribution.

    Attributes:
        problems: for each, what was wanted, what was found and how to mend it.
        unchecked: what could not be looked at because of them.
    """

    def __init__(self, name: str, problems: Iterable[str], unchecked: Iterable[str] = ()) -> None:
        self.name, self.problems, self.unchecked = name, tuple(problems), tuple(unchecked)
        lines = [f"{name} breaks what a task distribution promises; to be mended ({len(self.problems)}):"]
        lines += [f"  {number}. {problem}" for number, problem in enumerate(self.problems, start=1)]
        lines += [f"Not checked before that is mended: {', '.join(self.unchecked)}."] if self.unchecked else []
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
    """Return if `distribution` keeps every promise of `metarl.types.TaskDistribution`, as far as trying it shows.

    It is tried with random actions inside the action space: its types and shapes, its randomness, the ends of its
    episodes, what its environments share, and whether `make_vec` behaves as `make`. Environment i of
    `vec.reset(seed=s)` should start as `make(task).reset(seed=s + i)`; if episodes are random, the same means will do.
    Behaviours are compared for 50 steps, values looked at for 1000, the end waited for 10 000. The global random
    generators are left as they were.

    Args:
        distribution: the tasks.
        episodes: per task, of the vector environments tried.
        num_tasks: of the vector environments tried, at least two.
        seed: of the tasks, the environments and the actions.
        workers: also ask that it survives pickling, as worker processes need.
        waive: names of checks that are left out, such as `tasks_make_a_difference` where tasks differ only at a goal
            that short random episodes do not reach.

    Warns:
        UserWarning: actions are integers, or their bounds are far from where policies start.

    Raises:
        TaskDistributionError: naming every problem, and how to mend it.
        ValueError: `episodes`, `num_tasks` or `seed` cannot work, or `waive` has another name than a check's.
    """
    every = CHECKS | WORKER_CHECKS
    waived = _named(waive, every)
    probe = Probe(
        distribution,
        num_tasks=check_int("num_tasks", num_tasks, 2),
        episodes=check_int("episodes", episodes),
        seed=check_int("seed", seed, 0),
    )
    found: dict[str, None] = {}  # in order, each once: what one check trips over, others do, too
    blocked: set[Check] = set()
    unchecked = []
    with global_seed(probe.seed):
        for check, needs in (every if workers else CHECKS).items():
            if check in waived:
                continue
            if blocked.intersection(needs):
                unchecked.append(check.__name__.replace("_", " "))
                blocked.add(check)
            elif problems := problems_of(check, probe):
                found.update(dict.fromkeys(problems))
                blocked.add(check)
    if found:
        raise TaskDistributionError(type(distribution).__name__, found, unchecked)
    warn_of_action_range(distribution.action_space)


def _named(names: Collection[str], checks: Iterable[Check]) -> set[Check]:
    by_name = {check.__name__: check for check in checks}
    if isinstance(names, str):
        raise ValueError(f"waive must be a collection of names, such as [{names!r}], got {names!r}")
    return {by_name[check_choice("waive", name, by_name)] for name in names}
