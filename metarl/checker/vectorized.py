"""Checks of `make_vec`: many environments at once, without autoreset."""

import itertools
from collections.abc import Iterator
from contextlib import closing

import numpy as np
from gymnasium import vector

from metarl.checker.episodes import (
    Array,
    Episode,
    StepRecord,
    VectorEnv,
    as_action,
    one_by_one,
    plain,
    plain_record,
    play_vec,
    side_by_side,
    vec_records,
)
from metarl.checker.gaps import TOLERANCE, differ, first
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
from metarl.types import TaskParams


def make_vec_gives_a_vector_environment(probe: Probe) -> Iterator[str]:
    """`num_envs`, and what `reset` and `step` return, also for a single environment."""
    one = {name: value[:1] for name, value in probe.tasks().items()}
    tries = [(probe.tasks(), probe.episodes), (one, 1)]
    yield from first_found(_other_vector(probe, task, episodes) for task, episodes in tries)


def _other_vector(probe: Probe, task: TaskParams, episodes: int) -> Iterator[str]:
    number = len(next(iter(task.values())))
    call = f"make_vec({number} tasks, {episodes} episodes)"
    vec = probe.distribution.make_vec(task, episodes, "cpu")
    if not isinstance(vec, vector.VectorEnv):
        yield say(call, "return a gymnasium.vector.VectorEnv", type(vec).__name__, "derive yours from it")
        return
    with closing(vec):
        if vec.num_envs != number * episodes:
            mend = "make an environment for every episode of every task, and set self.num_envs to their number"
            yield say(f"{call}.num_envs", f"be {number * episodes}, tasks times episodes", vec.num_envs, mend)
            return
        yield from other_returns(call, vec, probe.actions(1, vec.num_envs)[0], probe.seed)


def make_vec_has_the_spaces_of_the_distribution(probe: Probe) -> Iterator[str]:
    """Those of a single environment."""
    with probe.make_vec() as vec:
        yield from other_spaces("make_vec(...)", vec, probe.distribution, "single_")


def make_vec_returns_what_it_promises(probe: Probe) -> Iterator[str]:
    """Observations of the space, finite rewards, flags."""
    found: dict[str, str] = {}  # the first of each quantity
    with probe.make_vec() as vec:
        for step, record in enumerate(vec_records(vec, probe.actions(LONG, vec.num_envs), probe.seed)):
            for quantity, misfit in _misfits(record, probe):
                found.setdefault(quantity, say(f"{quantity} of make_vec at step {step}", *misfit))
    yield from found.values()


def _misfits(record: StepRecord, probe: Probe) -> Iterator[tuple[str, Misfit]]:
    number = probe.num_envs
    if misfit := observation_misfit(record.observation, probe.distribution.observation_space, number):
        yield "observation", misfit
    for name, kind in [("reward", np.floating), ("terminated", np.bool_), ("truncated", np.bool_)]:
        array = plain(getattr(record, name))
        if array.shape != (number,) or not np.issubdtype(array.dtype, kind):
            wanted = f"be {number} values of type {'bool' if kind is np.bool_ else 'float'}, one for each environment"
            yield name, Misfit(wanted, f"shape {array.shape} of {array.dtype}", "stack one value for each environment")
        elif not np.isfinite(array).all():
            i = first(~np.isfinite(array))
            yield name, Misfit("be finite", f"{array[i]} in {probe.which(i)}", FINITE)


def make_vec_truncates_at_the_horizon(probe: Probe) -> Iterator[str]:
    """As `make` has to."""
    ended = np.zeros(probe.num_envs, bool)
    horizon = probe.distribution.horizon
    with probe.make_vec() as vec:
        for step, record in enumerate(vec_records(vec, probe.actions(LONGEST, vec.num_envs), probe.seed)):
            terminated, truncated = (plain(flag).astype(bool) for flag in record[2:])
            for i in np.flatnonzero(~ended):
                if problem := wrong_end("make_vec", terminated[i], truncated[i], step, horizon):
                    yield problem
                    return
            ended |= terminated | truncated
            if ended.all():
                return


def make_vec_leaves_ended_environments_alone(probe: Probe) -> Iterator[str]:
    """Autoreset is disabled: flags and observations stay, rewards are 0."""
    with probe.make_vec() as vec:
        mode = vec.metadata.get("autoreset_mode")
        if hasattr(vector, "AutoresetMode") and mode is not vector.AutoresetMode.DISABLED:
            mend = "put it into metadata, or into the argument autoreset_mode of SyncVectorEnv and AsyncVectorEnv"
            wanted = "be gymnasium.vector.AutoresetMode.DISABLED"
            yield say("metadata['autoreset_mode'] of make_vec", wanted, mode, mend)
            return
        actions = probe.actions(LONGEST, vec.num_envs, beyond=2)
        pairs = itertools.pairwise(map(plain_record, vec_records(vec, actions, probe.seed)))
        for step, (before, now) in enumerate(pairs, start=1):
            if changed := _changed_after_the_end(before, now):
                mend = "remember which have ended; keep their observation and flags and give them reward 0 until reset"
                wanted = "stay as it is, with reward 0, until reset"
                yield say("make_vec: an ended environment", wanted, f"another {changed} at step {step}", mend)
                return


def _changed_after_the_end(before: StepRecord, now: StepRecord) -> str:
    ended = before.terminated.astype(bool) | before.truncated.astype(bool)
    expected = before._replace(reward=np.zeros_like(now.reward))
    changed = [differ(a[ended], b[ended]) for a, b in zip(expected, now, strict=True)]
    return " and ".join(itertools.compress(StepRecord._fields, changed))


def make_vec_repeats_itself_with_the_seed(probe: Probe) -> Iterator[str]:
    """A fresh one, and a used one, whatever the global generators' state."""
    actions = probe.actions(SHORT, probe.num_envs)
    one, other, used = under_two_global_seeds(lambda: probe.together(actions, probe.seed))
    if found := probe.apart(one, other):
        mend = "draw everything from generators that reset(seed=...) seeds" + draws_from(used)
        yield say("make_vec", REPEATS, found, mend)
        return
    with probe.make_vec() as vec:
        play_vec(vec, probe.actions(SHORT, vec.num_envs, key=1), probe.seed + 1)
        again = play_vec(vec, actions, probe.seed)
    if found := probe.apart(one, again):
        mend = "let reset set everything that episodes change"
        yield say("make_vec", f"{REPEATS}, after other episodes, too", found, mend)


def make_vec_returns_fresh_arrays(probe: Probe) -> Iterator[str]:
    """What was returned earlier stays."""
    with probe.make_vec() as vec:
        actions = probe.actions(1, vec.num_envs, beyond=2)
        kept = [(record, plain_record(record)) for record in vec_records(vec, actions, probe.seed)]
        vec.reset(seed=probe.seed + 1)
    for was, copies in kept:
        for name, value, copy in zip(StepRecord._fields, was, copies, strict=True):
            if differ(plain(value), copy):
                wanted = "stay as it is when the environment goes on"
                mend = "return a copy: .copy() in numpy, .clone() in torch"
                yield say(f"the {name} that make_vec returned", wanted, "other values in it after later steps", mend)
                return


def make_vec_resets_where_the_mask_says(probe: Probe) -> Iterator[str]:
    """There, and nowhere else."""
    mask = np.arange(probe.num_envs) % 2 == 0
    actions = probe.actions(1, probe.num_envs)
    with probe.make_vec() as vec:
        start, after = (plain(record.observation) for record in vec_records(vec, actions, probe.seed))
        got = plain(vec.reset(options={"reset_mask": mask.copy()})[0])
        if differ(got[~mask], after[~mask]):
            yield say(MASKED, "leave the other environments alone", "other observations of them", MASK)
        elif not probe.random_starts and differ(got[mask], start[mask], TOLERANCE):
            yield say(MASKED, "begin new episodes where mask is true", "no first observations there", MASK)
        elif 1 < probe.distribution.horizon <= LONG:
            yield from _wrong_clocks(probe, vec, mask)


MASKED = "reset(options={'reset_mask': mask}) of make_vec"
MASK = "reset states, step counts and flags where the mask (bool, one for each environment) is true, and only there"


def _wrong_clocks(probe: Probe, vec: VectorEnv, mask: Array) -> Iterator[str]:
    """After one step and a reset under `mask`: those that were not reset end one step before the others."""
    like = vec.reset(seed=probe.seed)[0]
    action, *rest = probe.actions(LONG, vec.num_envs)
    vec.step(as_action(action, like))
    vec.reset(options={"reset_mask": mask.copy()})
    for action in rest:
        terminated, truncated = (plain(flag).astype(bool) for flag in vec.step(as_action(action, like))[2:4])
    if not (terminated | truncated)[~mask].all():
        yield say(MASKED, "leave the other environments' step counts alone", "later ends of theirs", MASK)
    if truncated[mask].any():
        yield say(MASKED, "count steps from 0 where mask is true", "an end one step too early", MASK)


def vector_environments_share_nothing(probe: Probe) -> Iterator[str]:
    """One is the same whatever happens to another one."""
    actions = probe.actions(SHORT, probe.num_envs)
    expected = probe.together(actions, probe.seed)
    with probe.make_vec() as vec, probe.make_vec(probe.other_tasks()) as other:
        whole, _ = side_by_side(*(vec_records(env, actions, probe.seed) for env in (vec, other)))
    if found := probe.apart(expected, one_by_one(whole)):
        yield say("a vector environment", "not change when another one is made and stepped", found, SHARED)


def make_vec_leaves_the_task_alone(probe: Probe) -> Iterator[str]:
    """The caller's arrays: neither written to nor looked at later."""
    actions = probe.actions(SHORT, probe.num_envs)

    def make(task: TaskParams) -> VectorEnv:
        return probe.distribution.make_vec(task, probe.episodes, "cpu")

    def whole(vec: VectorEnv) -> list[Episode]:
        return play_vec(vec, actions, probe.seed)

    yield from task_is_touched("make_vec", make, whole, probe.tasks(), probe.other_tasks())
