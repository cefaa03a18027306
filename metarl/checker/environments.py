"""Checks of the environments that `make` and `make_vec` build, and whether both agree."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import vector

from metarl.checker.probe import (
    LONG,
    LONGEST,
    SEEDS,
    SHORT,
    TOLERANCE,
    Call,
    Checks,
    Probe,
    Problem,
    Record,
    as_action,
    join,
    other_means,
    play,
    step_mismatches,
    steps,
    to_array,
)
from metarl.random import under_two_global_seeds

REPEATS = "give the same numbers for the same seed and actions"


def gives_an_environment(call: Call, probe: Probe) -> None:
    """Its class and size are right, `reset` and `step` return the right number of values, also for one environment."""
    kind: Any = gymnasium.Env if call == "make" else vector.VectorEnv
    name = "gymnasium.Env" if call == "make" else "gymnasium.vector.VectorEnv"
    for number, episodes in ((1, 1),) if call == "make" else ((probe.num_tasks, probe.episodes), (1, 1)):
        subject = "make(task)" if call == "make" else f"make_vec({number} tasks, {episodes} episodes)"
        task: Any = probe.task(call) if call == "make" else {key: v[:number] for key, v in probe.task(call).items()}
        env: Any = probe.create(call, task, episodes)
        if not isinstance(env, kind):
            raise Problem(subject, f"return a {name}", type(env).__name__, f"derive it from {name}")
        with closing(env):
            size = number * episodes
            if call == "make_vec" and env.num_envs != size:
                fix = "build one environment per episode of each task, and set self.num_envs to their number"
                raise Problem(f"{subject}.num_envs", f"be {size}, tasks times episodes", env.num_envs, fix)
            try:
                inspect.signature(env.reset).bind(seed=probe.seed, options={})
            except TypeError as error:
                fix = "define reset(self, *, seed=None, options=None)"
                raise Problem(f"{subject}.reset", "take seed and options", error, fix) from error
            start = env.reset(seed=probe.seed, options=None)
            _check_form(f"{subject}.reset(seed)", start, "observation", "info")
            action = probe.actions(1, call)[0] if call == "make" else probe.actions(1, call)[0][:size]
            result = env.step(as_action(action, start[0]))
            _check_form(f"{subject}.step(action)", result, "observation", "reward", "terminated", "truncated", "info")


def _check_form(subject: str, returned: Any, *names: str) -> None:
    """Environments for older versions of Gym return fewer values."""
    wanted = f"return ({', '.join(names)})"
    if not isinstance(returned, tuple) or len(returned) != len(names):
        length = f" of length {len(returned)}" if hasattr(returned, "__len__") else ""
        raise Problem(subject, wanted, f"{type(returned).__name__}{length}", "return all of them; info may be {}")
    if not isinstance(returned[-1], dict):
        found, fix = type(returned[-1]).__name__, "return a dictionary as info, such as {}"
        raise Problem(subject, f"{wanted}, where info is a dictionary", found, fix)


def has_the_spaces_of_the_distribution(call: Call, probe: Probe) -> Iterator[Problem]:
    """Each task's observation and action space equal those of the distribution."""
    prefix = "" if call == "make" else "single_"
    for _, env, _ in probe.tries(call, 1):
        for name in ("observation_space", "action_space"):
            wanted, found = getattr(probe.distribution, name), getattr(env, prefix + name, None)
            if found != wanted:
                fix = f"set {prefix}{name} of the environment from {name} of the distribution"
                yield Problem(f"{prefix}{name} of {call}", f"equal the distribution's {wanted}", found, fix)


def returns_what_it_promises(call: Call, probe: Probe) -> Iterator[Problem]:
    """Observations are in their space, rewards finite, flags booleans; yields the first problem of each."""
    found: set[str] = set()
    for name, env, actions in probe.tries(call, LONG):
        for step, result in enumerate(steps(env, actions, probe.seed)):
            for quantity, *wrong in step_mismatches(result, probe, call):
                if quantity not in found:
                    yield Problem(f"{quantity} of {name} at step {step}", *wrong)
                found.add(quantity)


def ends_episodes_at_the_horizon(call: Call, probe: Probe) -> None:
    """Episodes are truncated at the horizon, not before it, and not in the step in which they terminate."""
    subject, horizon = f"an episode of {call}", probe.distribution.horizon
    wanted = f"be truncated at step {horizon}, the horizon, if it has not terminated"
    fix = "count the steps since reset, and return truncated=True at the distribution's horizon, not before"
    for _, env, actions in probe.tries(call, LONGEST, LONG):
        ended = np.zeros(1 if call == "make" else probe.num_envs, bool)
        for step, result in enumerate(steps(env, actions, probe.seed)):
            terminated, truncated = (np.atleast_1d(to_array(flag)).astype(bool) & ~ended for flag in result[2:])
            # nothing ended; the end of running episodes is due at the horizon only
            if step < horizon and not (terminated | truncated).any():
                continue
            if (terminated & truncated).any():
                both = f"terminated and truncated, both at step {step}"
                raise Problem(subject, "end in one way", both, "set truncated to steps >= horizon and not terminated")
            if truncated.any() and step < horizon:
                raise Problem(subject, wanted, f"truncated at step {step}", fix)
            ended |= terminated | truncated
            if step == horizon and not ended.all():
                raise Problem(subject, wanted, "an episode that continues", fix)
            if ended.all():
                break


def repeats_itself_with_the_seed(call: Call, probe: Probe) -> None:
    """New and used environments repeat an episode, for any state of the global generators."""
    actions = probe.actions(SHORT, call)
    one, other, used = under_two_global_seeds(lambda: probe.run(call, actions, probe.seed))
    fix = "draw from self.np_random, after super().reset(seed=seed), or from generators that reset(seed=...) seeds"
    fix += f"; now it draws from the global generator of {used}" if used else ""
    probe.require_same(one, other, call, REPEATS, fix)
    with probe.build(call) as env:
        play(probe.actions(SHORT, call, key=1), probe.seed + 1, env)
        (again,) = play(actions, probe.seed, env)
    fix = "let reset set everything that an episode changes"
    probe.require_same(one, again, call, f"{REPEATS}, also after other episodes", fix)


def shares_nothing(call: Call, probe: Probe) -> None:
    """Environments do not change each other."""
    actions, numbers = probe.actions(SHORT, call), (0, probe.other)
    alone = [probe.run(call, actions, probe.seed, number) for number in numbers]
    with probe.build(call) as one, probe.build(call, probe.task(call, probe.other)) as other:
        beside = play(actions, probe.seed, one, other)
    subject, wanted = f"an environment of {call}", "not change when another one is made and stepped"
    fix = "keep the state of an environment in its self, not in class or module variables or in a shared object"
    for records in zip(alone, beside, strict=True):
        probe.require_same(*records, subject, wanted, fix)


def leaves_the_task_alone(call: Call, probe: Probe) -> None:
    """An environment neither writes into the caller's arrays nor reads them later."""
    actions, task, other = probe.actions(SHORT, call), probe.task(call), probe.task(call, probe.other)
    with probe.build(call, task) as env:
        (expected,) = play(actions, probe.seed, env)
    if changed := [key for key, value in probe.task(call).items() if not np.array_equal(value, task[key], True)]:
        raise Problem(
            call, "not write into the caller's task", f"other values in {changed}", "change a copy: np.array(...)"
        )
    with probe.build(call, task) as env:
        for key, value in task.items():
            value[...] = other[key]
        (found,) = play(actions, probe.seed, env)
    fix = "copy what is kept: np.array(...) or torch.tensor(...), not np.asarray(...) or torch.from_numpy(...)"
    probe.require_same(expected, found, call, "not depend on what the caller later writes into the task", fix)


def tasks_make_a_difference(probe: Probe) -> None:
    """Rewards or observations depend on the task. Constant rewards are accepted, because they may be sparse."""
    tries = [probe.actions(SHORT, "make", key=key) for key in range(4)]
    runs = [[probe.run("make", actions, probe.seed, t) for actions in tries] for t in range(probe.num_tasks)]
    same = not any(probe.compare(*pair) for others in runs for pair in zip(runs[0], others, strict=True))
    varied = len(np.unique(np.concatenate([run.reward[1:] for run in runs[0]]))) > 1
    if same and varied and any((value != value[:1]).any() for value in probe.tasks.values()):
        found = f"the same observations and rewards in all {probe.num_tasks} tasks tried, {len(tries)} episodes each"
        fix = f"use the values in task; check their keys; if random actions reach no difference in {SHORT} steps"
        raise Problem("make(task)", "depend on the task", found, f"{fix}, pass waive=['tasks_make_a_difference']")


def leaves_ended_environments_alone(call: Call, probe: Probe) -> None:
    """Autoreset is disabled: flags and observations stay, rewards are 0."""
    with probe.build(call) as vec:
        mode = vec.metadata.get("autoreset_mode")
        if hasattr(vector, "AutoresetMode") and mode is not vector.AutoresetMode.DISABLED:
            fix = "set it in metadata, or pass autoreset_mode to SyncVectorEnv or AsyncVectorEnv"
            wanted = "be gymnasium.vector.AutoresetMode.DISABLED"
            raise Problem("metadata['autoreset_mode'] of make_vec", wanted, mode, fix)
        results = steps(vec, probe.actions(LONGEST, "make_vec", beyond=2), probe.seed)
        copies = (Record(*map(to_array, result)) for result in results)
        for step, (before, now) in enumerate(itertools.pairwise(copies), start=1):
            ended = before.terminated.astype(bool) | before.truncated.astype(bool)
            expected = before._replace(reward=np.zeros_like(now.reward))
            changed = [not np.array_equal(a[ended], b[ended]) for a, b in zip(expected, now, strict=True)]
            if any(changed):
                found = f"another {' and '.join(itertools.compress(Record._fields, changed))} at step {step}"
                fix = "keep the observation and flags of an ended environment and give it reward 0 until reset"
                wanted = "stay unchanged, with reward 0, until reset"
                raise Problem("an ended environment of make_vec", wanted, found, fix)


def returns_fresh_arrays(call: Call, probe: Probe) -> None:
    """Later steps do not change what was returned before."""
    with probe.build(call) as vec:
        results = steps(vec, probe.actions(1, "make_vec", beyond=2), probe.seed)
        kept = [(result, list(map(to_array, result))) for result in results]
        vec.reset(seed=probe.seed + 1)
    for result, copies in kept:
        for name, value, copied in zip(Record._fields, result, copies, strict=True):
            if not np.array_equal(to_array(value), copied, equal_nan=copied.dtype.kind == "f"):
                fix = "return a copy: .copy() in numpy, .clone() in torch"
                raise Problem(f"the {name} that make_vec returned", "not change in later steps", "other values", fix)


def resets_where_the_mask_says(call: Call, probe: Probe) -> Iterator[Problem]:
    """There, and nowhere else."""
    subject = "reset(options={'reset_mask': mask}) of make_vec"
    fix = "reset states, step counts and flags where the mask (bool, one per environment) is true, and only there"
    mask = np.arange(probe.num_envs) % 2 == 0
    with probe.build(call) as vec:
        like = vec.reset(seed=probe.seed)[0]
        start, (action, *rest) = to_array(like), probe.actions(LONG, call)
        after = to_array(vec.step(as_action(action, like))[0])
        got = to_array(vec.reset(options={"reset_mask": mask.copy()})[0])
        ends_soon = 1 < probe.distribution.horizon <= LONG
        for action in rest if ends_soon else ():  # the rest of the horizon: only the others end now
            flags = vec.step(as_action(action, like))[2:4]
    if not np.array_equal(got[~mask], after[~mask]):
        raise Problem(subject, "not change the other environments", "other observations there", fix)
    if not probe.random_starts and not np.allclose(got[mask], start[mask], TOLERANCE, TOLERANCE):
        raise Problem(subject, "begin new episodes where mask is true", "other observations there", fix)
    if ends_soon:
        terminated, truncated = (to_array(flag).astype(bool) for flag in flags)
        if not (terminated | truncated)[~mask].all():
            yield Problem(subject, "keep the step counts of the other environments", "a later end there", fix)
        if truncated[mask].any():
            yield Problem(subject, "count steps from 0 where mask is true", "an end one step too early", fix)


def is_as_random_as_make(call: Call, probe: Probe) -> None:
    """If episodes of `make` differ by their seed, so do those of `make_vec`, between calls and between environments."""

    def part(run: Record) -> Record:  # if starts are random, they must differ
        return run.start() if probe.random_starts else run

    if not any(all(probe.compare(part(runs[0]), part(other)) for other in runs[1:]) for runs in probe.samples):
        return  # where randomness is rare, equal episodes prove nothing
    actions, seeds = probe.actions_of_make(SHORT), range(probe.seed, probe.seed + 100 * SEEDS, 100)
    runs = [part(probe.run(call, actions, seed)) for seed in seeds]
    first_of_task = np.arange(probe.num_envs) // probe.episodes * probe.episodes
    if not any(probe.compare(runs[0], run) for run in runs):
        fix = "seed every generator in reset(seed=...) from its argument"
        raise Problem(call, "give different episodes for different seeds, as make does", "identical ones", fix)
    firsts = (Record(*(value[:, first_of_task] for value in run)) for run in runs)
    if probe.episodes > 1 and not any(map(probe.compare, runs, firsts)):
        fix = "draw noise of shape [num_envs, ...]; seed environment i with seed + i"
        raise Problem(call, "draw every episode of a task independently, as make does", "identical ones", fix)


def behaves_as_make(call: Call, probe: Probe) -> None:
    """Environment i equals `make` of task `i // episodes`, reset with seed + i; if random, their means are equal."""
    actions = probe.actions(SHORT, call)
    together = probe.run(call, actions, probe.seed)

    def differences(tasks: Iterable[int]) -> str:
        alone = [probe.run("make", actions[:, i], probe.seed + i, task) for i, task in enumerate(tasks)]
        return probe.compare(join(alone), together, TOLERANCE)

    order = "repeat the tasks with np.repeat(value, episodes, axis=0), not np.tile"
    if not (found := differences(i // probe.episodes for i in range(probe.num_envs))):
        return
    if probe.episodes > 1 and not differences(i % probe.num_tasks for i in range(probe.num_envs)):
        raise Problem(call, "have all episodes of task 0 first, then those of task 1", "the tasks in turn", order)
    if not any(probe.compare(runs[0], other) for runs in probe.samples for other in runs[1:]):
        fix = "step both side by side: the same task and actions, environment i reset with seed + i"
        raise Problem(call, "behave as make", found, fix)
    if found := other_means(probe):
        fix = f"compare starts, transitions and rewards with those of make, and {order}"
        raise Problem(call, "have the means of make, whose episodes are random", found, fix)


def _rows(calls: str, after: str, *checks: Callable[[Any, Probe], Iterable[Problem] | None]) -> Checks:
    pairs = itertools.product(checks, calls.split())
    return {f"{call}_{check.__name__}": (partial(check, call), after.format(call).split()) for check, call in pairs}


ENVIRONMENT_CHECKS: Checks = {
    **_rows("make make_vec", "sample_has_the_form_of_the_space", gives_an_environment),
    **_rows("make make_vec", "{}_gives_an_environment", has_the_spaces_of_the_distribution, returns_what_it_promises),
    **_rows("make make_vec", "{}_gives_an_environment", ends_episodes_at_the_horizon, repeats_itself_with_the_seed),
    **_rows("make make_vec", "{}_repeats_itself_with_the_seed", shares_nothing, leaves_the_task_alone),
    "tasks_make_a_difference": (tasks_make_a_difference, ["make_repeats_itself_with_the_seed"]),
    **_rows("make_vec", "{}_gives_an_environment", returns_fresh_arrays),
    **_rows(
        "make_vec", "{0}_ends_episodes_at_the_horizon {0}_returns_what_it_promises", leaves_ended_environments_alone
    ),
    **_rows("make_vec", "make_gives_an_environment {}_leaves_ended_environments_alone", resets_where_the_mask_says),
    **_rows("make_vec", "make_repeats_itself_with_the_seed {}_gives_an_environment", is_as_random_as_make),
    **_rows("make_vec", "{}_is_as_random_as_make", behaves_as_make),
}
"""Checks for `make`, `make_vec` or both; the check of a method needs those of the same method."""
