"""Checks of the environments that `make` and `make_vec` build, and whether both agree.

Gymnasium's `check_env` checks the API of one environment; the checks here cover what task distributions add.
"""

import itertools
import re
import traceback
import warnings
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
from gymnasium import vector
from gymnasium.utils import env_checker

from metarl.checker.probe import (
    LONG,
    LONGEST,
    MANY,
    SEEDS,
    SHORT,
    TOLERANCE,
    Array,
    Call,
    Checks,
    Probe,
    Problems,
    Run,
    StepResult,
    as_action,
    differ,
    first,
    join,
    play,
    play_side_by_side,
    problem,
    rows,
    rows_for_both,
    step_mismatches,
    steps,
    to_array,
)
from metarl.random import under_two_global_seeds

SHORTER = 20  # steps per episode where means are compared
STDERRS = 6.0  # standard errors by which two means may differ
REPEATS = "give the same numbers for the same seed and actions"
RESET = ("observation", "info")
STEP = ("observation", "reward", "terminated", "truncated", "info")

FORM = {  # messages of Gymnasium's `check_env`, and how to fix their cause
    "result returned by `env.reset|reset method did not return": f"return ({', '.join(RESET)}); info may be {{}}",
    "reset with|does not provide": "define reset(self, *, seed=None, options=None)",
    "old step API|step result to be a tuple|element tuple": f"return ({', '.join(STEP)})",
    "expecting a numpy array, actual": "return a numpy array",
    "reward returned by": "return float(reward)",
    "`terminated` signal": "return bool(terminated)",
    "`truncated` signal": "return bool(truncated)",
    "dictionary, actual type": "return a dictionary as info, such as {}",
}


def make_gives_an_environment(probe: Probe) -> Problems:
    """Gymnasium's `check_env` accepts the environment; the other checks are stricter about values and seeds."""
    env: Any = probe.distribution.make(probe.task("make"))
    if not isinstance(env, gymnasium.Env):
        fix = "derive the environment from gymnasium.Env"
        yield problem("make(task)", "return a gymnasium.Env", type(env).__name__, fix)
        return
    raised = []
    with closing(env), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            env.action_space.seed(probe.seed)
            env_checker.check_env(env, skip_render_check=True, skip_close_check=True)
        except Exception as error:
            if "env_checker" not in traceback.extract_tb(error.__traceback__)[-1].filename:
                raise  # the environment raised it
            raised.append(str(error))
    messages = [re.sub(r"\x1b\[\d+m|WARN: ", "", str(warning.message)) for warning in caught] + raised
    for pattern, fix in FORM.items():
        if said := [message.split("The error was: ")[-1] for message in messages if re.search(pattern, message)]:
            yield problem("make(task)", "pass Gymnasium's check_env", f'"{said[0].strip(". ")}"', fix)


def make_vec_gives_an_environment(probe: Probe) -> Problems:
    """`num_envs` is right and `reset` and `step` return the right values, also for a single environment."""
    one = {name: value[:1] for name, value in probe.task("make_vec").items()}
    for task, number, episodes in ((probe.task("make_vec"), probe.num_tasks, probe.episodes), (one, 1, 1)):
        call = f"make_vec({number} tasks, {episodes} episodes)"
        vec: Any = probe.distribution.make_vec(task, episodes, "cpu")
        if not isinstance(vec, vector.VectorEnv):
            fix = "derive it from gymnasium.vector.VectorEnv"
            yield problem(call, "return a gymnasium.vector.VectorEnv", type(vec).__name__, fix)
            return
        with closing(vec):
            if vec.num_envs != number * episodes:
                fix = "build one environment per episode of each task, and set self.num_envs to their number"
                yield problem(f"{call}.num_envs", f"be {number * episodes}, tasks times episodes", vec.num_envs, fix)
                return
            start = vec.reset(seed=probe.seed)
            result = vec.step(as_action(probe.actions(1, "make_vec")[0][: vec.num_envs], start[0]))
        # environments for older versions of Gym return fewer values
        for method, returned, wanted in (("reset(seed)", start, RESET), ("step(action)", result, STEP)):
            if not isinstance(returned, tuple) or len(returned) != len(wanted):
                found = f"{type(returned).__name__} of length {len(returned)}"
                yield problem(f"{call}.{method}", f"return ({', '.join(wanted)})", found, "return all of them")
                return


def has_the_spaces_of_the_distribution(call: Call, probe: Probe) -> Problems:
    """Each task's observation and action space equal those of the distribution."""
    prefix = "" if call == "make" else "single_"
    for _, env, _ in probe.tries(call, 1):
        for name in ("observation_space", "action_space"):
            wanted, found = getattr(probe.distribution, name), getattr(env, prefix + name, None)
            if found != wanted:
                fix = f"set {prefix}{name} of the environment from {name} of the distribution"
                yield problem(f"{prefix}{name} of {call}", f"equal the distribution's {wanted}", found, fix)


def returns_what_it_promises(call: Call, probe: Probe) -> Problems:
    """Observations are in their space, rewards finite, flags booleans; yields the first problem of each."""
    found: dict[str, str] = {}
    for name, env, actions in probe.tries(call, LONG):
        for step, result in enumerate(steps(env, actions, probe.seed)):
            for quantity, *wrong in step_mismatches(result, probe, call):
                found.setdefault(quantity, problem(f"{quantity} of {name} at step {step}", *wrong))
    yield from found.values()


def ends_episodes_at_the_horizon(call: Call, probe: Probe) -> Problems:
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
                found = f"terminated and truncated, both at step {step}"
                yield problem(subject, "end in one way", found, "set truncated to steps >= horizon and not terminated")
                return
            if truncated.any() and step < horizon:
                yield problem(subject, wanted, f"truncated at step {step}", fix)
                return
            ended |= terminated | truncated
            if step == horizon and not ended.all():
                yield problem(subject, wanted, "an episode that continues", fix)
                return
            if ended.all():
                break


def repeats_itself_with_the_seed(call: Call, probe: Probe) -> Problems:
    """New and used environments repeat an episode, for any state of the global generators."""
    actions = probe.actions(SHORT, call)
    one, other, used = under_two_global_seeds(lambda: probe.run(call, actions, probe.seed))
    if found := probe.compare(one, other):
        fix = "draw from self.np_random, after super().reset(seed=seed), or from generators that reset(seed=...) seeds"
        fix += f"; now it draws from the global generator of {used}" if used else ""
        yield problem(call, REPEATS, found, fix)
        return
    with probe.build(call) as env:
        play(env, probe.actions(SHORT, call, key=1), probe.seed + 1)
        again = play(env, actions, probe.seed)
    if found := probe.compare(one, again):
        wanted = f"{REPEATS}, also after other episodes"
        yield problem(call, wanted, found, "let reset set everything that an episode changes")


def shares_nothing(call: Call, probe: Probe) -> Problems:
    """Environments do not change each other."""
    actions = probe.actions(SHORT, call)
    alone = [probe.run(call, actions, probe.seed, number) for number in (0, probe.other)]
    with probe.build(call) as one, probe.build(call, probe.task(call, probe.other)) as other:
        beside = play_side_by_side([one, other], actions, probe.seed)
    if found := probe.compare(alone[0], beside[0]) or probe.compare(alone[1], beside[1]):
        wanted = "not change when another one is made and stepped"
        fix = "keep the state of an environment in its self, not in class or module variables or in a shared object"
        yield problem(f"an environment of {call}", wanted, found, fix)


def leaves_the_task_alone(call: Call, probe: Probe) -> Problems:
    """An environment neither writes into the caller's arrays nor reads them later."""
    actions, task, other = probe.actions(SHORT, call), probe.task(call), probe.task(call, probe.other)
    with probe.build(call, task) as env:
        expected = play(env, actions, probe.seed)
    if changed := [key for key, value in probe.task(call).items() if not np.array_equal(value, task[key], True)]:
        fix = "change a copy: np.array(...)"
        yield problem(call, "not write into the caller's task", f"other values in {changed}", fix)
        return
    with probe.build(call, task) as env:
        for key, value in task.items():
            value[...] = other[key]
        found = probe.compare(expected, play(env, actions, probe.seed))
    if found:
        wanted = "not depend on what the caller later writes into the task"
        fix = "copy what is kept: np.array(...) or torch.tensor(...), not np.asarray(...) or torch.from_numpy(...)"
        yield problem(call, wanted, found, fix)


def tasks_make_a_difference(probe: Probe) -> Problems:
    """Rewards or observations depend on the task. Constant rewards are accepted, because they may be sparse."""
    tries = [probe.actions(SHORT, "make", key=key) for key in range(4)]
    runs = [[probe.run("make", actions, probe.seed, t) for actions in tries] for t in range(probe.num_tasks)]
    same = not any(probe.compare(*pair) for others in runs for pair in zip(runs[0], others, strict=True))
    varied = len(np.unique(np.concatenate([run.reward[1:] for run in runs[0]]))) > 1
    if same and varied and any((value != value[:1]).any() for value in probe.tasks.values()):
        found = f"the same observations and rewards in all {probe.num_tasks} tasks tried, {len(tries)} episodes each"
        fix = f"use the values in task; check their keys; if random actions reach no difference in {SHORT} steps"
        yield problem("make(task)", "depend on the task", found, f"{fix}, pass waive=['tasks_make_a_difference']")


def make_vec_leaves_ended_environments_alone(probe: Probe) -> Problems:
    """Autoreset is disabled: flags and observations stay, rewards are 0."""
    with probe.build("make_vec") as vec:
        mode = vec.metadata.get("autoreset_mode")
        if hasattr(vector, "AutoresetMode") and mode is not vector.AutoresetMode.DISABLED:
            fix = "set it in metadata, or pass autoreset_mode to SyncVectorEnv or AsyncVectorEnv"
            wanted = "be gymnasium.vector.AutoresetMode.DISABLED"
            yield problem("metadata['autoreset_mode'] of make_vec", wanted, mode, fix)
            return
        results = steps(vec, probe.actions(LONGEST, "make_vec", beyond=2), probe.seed)
        copies = (StepResult(*map(to_array, result)) for result in results)
        for step, (before, now) in enumerate(itertools.pairwise(copies), start=1):
            ended = before.terminated.astype(bool) | before.truncated.astype(bool)
            expected = before._replace(reward=np.zeros_like(now.reward))
            changed = [differ(a[ended], b[ended]) for a, b in zip(expected, now, strict=True)]
            if any(changed):
                found = f"another {' and '.join(itertools.compress(StepResult._fields, changed))} at step {step}"
                fix = "keep the observation and flags of an ended environment and give it reward 0 until reset"
                wanted = "stay unchanged, with reward 0, until reset"
                yield problem("an ended environment of make_vec", wanted, found, fix)
                return


def make_vec_returns_fresh_arrays(probe: Probe) -> Problems:
    """Later steps do not change what was returned before."""
    with probe.build("make_vec") as vec:
        results = steps(vec, probe.actions(1, "make_vec", beyond=2), probe.seed)
        kept = [(result, list(map(to_array, result))) for result in results]
        vec.reset(seed=probe.seed + 1)
    for result, copies in kept:
        for name, value, copied in zip(StepResult._fields, result, copies, strict=True):
            if differ(to_array(value), copied):
                fix = "return a copy: .copy() in numpy, .clone() in torch"
                yield problem(f"the {name} that make_vec returned", "not change in later steps", "other values", fix)
                return


def make_vec_resets_where_the_mask_says(probe: Probe) -> Problems:
    """There, and nowhere else."""
    subject = "reset(options={'reset_mask': mask}) of make_vec"
    fix = "reset states, step counts and flags where the mask (bool, one per environment) is true, and only there"
    mask = np.arange(probe.num_envs) % 2 == 0
    with probe.build("make_vec") as vec:
        start, after = (to_array(result.observation) for result in steps(vec, probe.actions(1, "make_vec"), probe.seed))
        got = to_array(vec.reset(options={"reset_mask": mask.copy()})[0])
        if differ(got[~mask], after[~mask]):
            yield problem(subject, "not change the other environments", "other observations there", fix)
        elif not probe.random_starts and differ(got[mask], start[mask], TOLERANCE):
            yield problem(subject, "begin new episodes where mask is true", "other observations there", fix)
        elif 1 < probe.distribution.horizon <= LONG:
            # one step, a reset under the mask, and the rest of the horizon: only the others end now
            like = vec.reset(seed=probe.seed)[0]
            action, *rest = probe.actions(LONG, "make_vec")
            vec.step(as_action(action, like))
            vec.reset(options={"reset_mask": mask.copy()})
            for action in rest:
                terminated, truncated = (to_array(flag).astype(bool) for flag in vec.step(as_action(action, like))[2:4])
            if not (terminated | truncated)[~mask].all():
                yield problem(subject, "keep the step counts of the other environments", "a later end there", fix)
            if truncated[mask].any():
                yield problem(subject, "count steps from 0 where mask is true", "an end one step too early", fix)


def make_vec_is_as_random_as_make(probe: Probe) -> Problems:
    """If episodes of `make` differ by their seed, so do those of `make_vec`, between calls and between environments."""

    def part(run: Run) -> Run:  # if starts are random, they must differ
        return run.start() if probe.random_starts else run

    if not any(all(probe.compare(part(runs[0]), part(other)) for other in runs[1:]) for runs in probe.samples):
        return  # where randomness is rare, equal episodes prove nothing
    actions, seeds = probe.actions_of_make(SHORT), range(probe.seed, probe.seed + 100 * SEEDS, 100)
    runs = [part(probe.run("make_vec", actions, seed)) for seed in seeds]
    first_of_task = np.arange(probe.num_envs) // probe.episodes * probe.episodes
    if not any(probe.compare(runs[0], run) for run in runs):
        fix = "seed every generator in reset(seed=...) from its argument"
        yield problem("make_vec", "give different episodes for different seeds, as make does", "identical ones", fix)
    elif probe.episodes > 1 and not any(probe.compare(run, run.envs(first_of_task)) for run in runs):
        fix = "draw noise of shape [num_envs, ...]; seed environment i with seed + i"
        yield problem("make_vec", "draw every episode of a task independently, as make does", "identical ones", fix)


def make_vec_behaves_as_make(probe: Probe) -> Problems:
    """Environment i equals `make` of task `i // episodes`, reset with seed + i; if random, their means are equal."""
    actions = probe.actions(SHORT, "make_vec")
    together = probe.run("make_vec", actions, probe.seed)

    def differences(tasks: Iterable[int]) -> str:
        alone = [probe.run("make", actions[:, i], probe.seed + i, task) for i, task in enumerate(tasks)]
        return probe.compare(join(alone), together, TOLERANCE)

    order = "repeat the tasks with np.repeat(value, episodes, axis=0), not np.tile"
    if not (found := differences(i // probe.episodes for i in range(probe.num_envs))):
        return
    if probe.episodes > 1 and not differences(i % probe.num_tasks for i in range(probe.num_envs)):
        wanted = "have all episodes of task 0 first, then those of task 1"
        yield problem("make_vec", wanted, "the tasks in turn", order)
    elif not probe.random:
        fix = "step both side by side: the same task and actions, environment i reset with seed + i"
        yield problem("make_vec", "behave as make", found, fix)
    elif found := _other_means(probe):
        fix = f"compare starts, transitions and rewards with those of make, and {order}"
        yield problem("make_vec", "have the means of make, whose episodes are random", found, fix)


def _other_means(probe: Probe) -> str:
    """The first mean over episodes in which `make_vec` and `make` differ by more than chance allows, in words."""
    actions, everywhere = probe.actions(SHORTER, "make"), probe.actions_of_make(SHORTER)
    with probe.build("make_vec") as vec:
        rounds = [_summaries(play(vec, everywhere, probe.seed + k)) for k in range(-(-MANY // probe.episodes))]
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


def _summaries(run: Run) -> Array:
    """The return, termination, first and last observation of each episode, `[N, 2 + 2 obs]`."""
    envs, last = np.arange(run.reward.shape[1]), run.running.sum(0) - 1
    ends = [obs.reshape(len(envs), -1) for obs in (run.observation[0], run.observation[last, envs])]
    return np.column_stack([(run.reward * run.running).sum(0), run.terminated[last, envs], *ends])


ENVIRONMENT_CHECKS: Checks = {
    **rows("sample_has_the_form_of_the_space", make_gives_an_environment, make_vec_gives_an_environment),
    **rows_for_both("gives_an_environment", has_the_spaces_of_the_distribution, returns_what_it_promises),
    **rows_for_both("gives_an_environment", ends_episodes_at_the_horizon, repeats_itself_with_the_seed),
    **rows_for_both("repeats_itself_with_the_seed", shares_nothing, leaves_the_task_alone),
    **rows("make_repeats_itself_with_the_seed", tasks_make_a_difference),
    **rows("make_vec_gives_an_environment", make_vec_returns_fresh_arrays),
    **rows("make_vec_ends_episodes_at_the_horizon", make_vec_leaves_ended_environments_alone),
    **rows("make_gives_an_environment make_vec_leaves_ended_environments_alone", make_vec_resets_where_the_mask_says),
    **rows("make_repeats_itself_with_the_seed make_vec_gives_an_environment", make_vec_is_as_random_as_make),
    **rows("make_vec_is_as_random_as_make", make_vec_behaves_as_make),
}
