"""Checks of `make`: one environment, and several side by side."""

from collections.abc import Iterator
from contextlib import closing

import gymnasium
import numpy as np

from metarl.checker.episodes import Env, Episode, Space, StepRecord, play, records, side_by_side
from metarl.checker.gaps import gaps
from metarl.checker.global_generators import draws_from, under_two_global_seeds
from metarl.checker.probe import LONG, LONGEST, SHORT, Probe
from metarl.checker.promises import (
    FINITE,
    REPEATS,
    SHARED,
    Misfit,
    observation_misfit,
    other_returns,
    other_spaces,
    task_is_touched,
    wrong_end,
)
from metarl.checker.reporting import first_found, say


def make_gives_an_environment(probe: Probe) -> Iterator[str]:
    """What `make`, `reset` and `step` return has the form Gymnasium says."""
    env = probe.distribution.make(probe.task(0))
    if not isinstance(env, gymnasium.Env):
        yield say("make(task)", "return a gymnasium.Env", type(env).__name__, "derive your environment from it")
        return
    with closing(env):
        yield from other_returns("make(task)", env, probe.actions(1)[0], probe.seed)


def make_has_the_spaces_of_the_distribution(probe: Probe) -> Iterator[str]:
    """Both spaces, for each task."""

    def other(number: int) -> Iterator[str]:
        with probe.make(number) as env:
            yield from other_spaces(f"make(task {number})", env, probe.distribution, "")

    yield from first_found(map(other, range(probe.num_tasks)))


def make_returns_what_it_promises(probe: Probe) -> Iterator[str]:
    """Observations of the space, finite rewards and flags, in an episode of each task."""
    found: dict[str, str] = {}  # the first of each quantity
    for number in range(probe.num_tasks):
        with probe.make(number) as env:
            for step, record in enumerate(records(env, probe.actions(LONG, key=number), probe.seed)):
                for quantity, misfit in _misfits(record, probe.distribution.observation_space):
                    subject = f"{quantity} of make at step {step} of task {number}"
                    found.setdefault(quantity, say(subject, *misfit))
    yield from found.values()


def _misfits(record: StepRecord, space: Space) -> Iterator[tuple[str, Misfit]]:
    if misfit := observation_misfit(record.observation, space):
        yield "observation", misfit
    reward = record.reward
    if isinstance(reward, bool) or not isinstance(reward, int | float | np.integer | np.floating):
        yield "reward", Misfit("be a float", type(reward).__name__, "return float(reward)")
    elif not np.isfinite(reward):
        yield "reward", Misfit("be finite", str(reward), FINITE)
    for name in ("terminated", "truncated"):
        if not isinstance(flag := getattr(record, name), bool | np.bool_):
            yield name, Misfit("be a bool", type(flag).__name__, f"return bool({name})")


def make_ends_episodes_at_the_horizon(probe: Probe) -> Iterator[str]:
    """Truncated at the horizon and nowhere else, and not where it terminates."""
    horizon = probe.distribution.horizon
    for number in range(probe.num_tasks):
        actions = probe.actions(LONG if number else LONGEST, key=number)
        with probe.make(number) as env:
            for step, last in enumerate(records(env, actions, probe.seed)):  # noqa: B007
                pass
        if problem := wrong_end("make", bool(last.terminated), bool(last.truncated), step, horizon):
            yield problem
            return


def make_repeats_itself_with_the_seed(probe: Probe) -> Iterator[str]:
    """A fresh environment, and a used one, whatever the global generators' state."""
    actions = probe.actions(SHORT)
    one, other, used = under_two_global_seeds(lambda: probe.alone(0, actions, probe.seed))
    if found := gaps(one, other):
        mend = "draw from self.np_random, after super().reset(seed=seed)" + draws_from(used)
        yield say("make(task)", REPEATS, str(found[0]), mend)
        return
    with probe.make(0) as env:
        play(env, probe.actions(SHORT, key=1), probe.seed + 1)
        again = play(env, actions, probe.seed)
    if found := gaps(one, again):
        mend = "let reset set everything that an episode changes"
        yield say("make(task)", f"{REPEATS}, after another episode, too", str(found[0]), mend)


def environments_share_nothing(probe: Probe) -> Iterator[str]:
    """An environment is the same whatever happens to another one."""
    actions = probe.actions(SHORT)
    first, second = probe.pair
    alone = [probe.alone(number, actions, probe.seed) for number in probe.pair]
    with probe.make(first) as env, probe.make(second):
        found = gaps(alone[0], play(env, actions, probe.seed))
    if found:
        yield say("an environment", "not change when make is called again", str(found[0]), SHARED)
        return
    with probe.make(first) as one, probe.make(second) as other:
        beside = side_by_side(*(records(env, actions, probe.seed) for env in (one, other)))
    if found := [gap for pair in zip(alone, beside, strict=True) for gap in gaps(*pair)]:
        wanted = "not change when an environment of another task is stepped"
        yield say("an environment", wanted, str(found[0]), SHARED)


def make_leaves_the_task_alone(probe: Probe) -> Iterator[str]:
    """The caller's arrays: neither written to nor looked at later."""
    actions = probe.actions(SHORT)

    def whole(env: Env) -> list[Episode]:
        return [play(env, actions, probe.seed)]

    yield from task_is_touched("make", probe.distribution.make, whole, *map(probe.task, probe.pair))


def tasks_make_a_difference(probe: Probe) -> Iterator[str]:
    """To rewards or observations; where rewards never vary they may just be sparse, and nothing is said."""
    tries = [probe.actions(SHORT, key=key) for key in range(4)]
    several = [[probe.alone(t, actions, probe.seed) for actions in tries] for t in range(probe.num_tasks)]
    rewards = {float(record.reward.sum()) for episode in several[0] for record in episode[1:]}
    same = not any(gaps(*pair) for other in several for pair in zip(several[0], other, strict=True))
    if same and len(rewards) > 1 and any((value != value[:1]).any() for value in probe.tasks().values()):
        found = f"the same observations and rewards in all {probe.num_tasks} tasks tried, {len(tries)} episodes of each"
        mend = "use the values in task; check their keys; if they matter only where random actions do not come in"
        mend += f" {SHORT} steps, pass waive=['tasks_make_a_difference']"
        yield say("make(task)", "depend on the task", found, mend)
