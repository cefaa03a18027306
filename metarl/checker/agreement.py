"""Checks that `make_vec` and `make` agree: the same episodes or, where chance decides, the same means."""

from collections.abc import Iterable, Iterator

import numpy as np

from metarl.checker.episodes import Array, Episode, play_vec
from metarl.checker.gaps import TOLERANCE, first, gaps
from metarl.checker.probe import MANY, SEEDS, SHORT, Probe
from metarl.checker.reporting import say

SHORTER = 20  # steps of an episode whose means are compared
STDERRS = 6.0  # that two means may differ by


def make_vec_is_as_random_as_make(probe: Probe) -> Iterator[str]:
    """Where episodes of `make` differ by their seed, so do those of `make_vec`, with each other and the next time."""
    part = slice(1 if probe.random_starts else None)  # if the starts are random, they alone can tell
    if not any(all(gaps(one[part], other[part]) for other in others) for one, *others in probe.samples):
        return  # where chance is rare, equal episodes say nothing
    actions = _for_all(probe.actions(SHORT), probe.num_envs)
    seeds = range(probe.seed, probe.seed + 100 * SEEDS, 100)
    runs = [[episode[part] for episode in probe.together(actions, seed)] for seed in seeds]
    firsts = [i - i % probe.episodes for i in range(probe.num_envs)]
    if not any(gaps(*pair) for run in runs for pair in zip(runs[0], run, strict=True)):
        mend = "seed every generator in reset(seed=...) from its argument"
        yield say("make_vec", "begin other episodes with another seed, as make does", "the same ones", mend)
    elif probe.episodes > 1 and not any(gaps(run[i], run[k]) for run in runs for i, k in enumerate(firsts)):
        mend = "draw noise of shape [num_envs, ...]; seed environment i with seed + i"
        yield say("make_vec", "draw every episode of a task on its own, as make does", "the same episode in all", mend)


def _for_all(actions: Array, number: int) -> Array:
    """The same actions in all environments, `[steps, number, ...]`."""
    return np.repeat(actions[:, None], number, axis=1)


def make_vec_behaves_as_make(probe: Probe) -> Iterator[str]:
    """Environment i as `make` of task `i // episodes`, reset with seed + i; or with its means, if it is random."""
    actions = probe.actions(SHORT, probe.num_envs)
    together = probe.together(actions, probe.seed)

    def found_alone(tasks: Iterable[int]) -> str:
        alone = [probe.alone(task, actions[:, i], probe.seed + i) for i, task in enumerate(tasks)]
        return probe.apart(alone, together, TOLERANCE)

    found = found_alone(i // probe.episodes for i in range(probe.num_envs))
    if not found:
        return
    if probe.episodes > 1 and not found_alone(i % probe.num_tasks for i in range(probe.num_envs)):
        yield say("make_vec", "have all episodes of task 0 first, then those of task 1", "the tasks in turn", ORDER)
    elif not probe.random:
        mend = "step both side by side to there: the same task and actions, reset with seed + i in environment i"
        yield say("make_vec", "behave as make", found, mend)
    elif found := _other_means(probe):
        mend = f"compare starts, transitions and rewards with make's, and {ORDER}"
        yield say("make_vec", "have the means of make, whose episodes are random", found, mend)


ORDER = "repeat the tasks with np.repeat(value, episodes, axis=0), not np.tile"


def _other_means(probe: Probe) -> str:
    """The first mean over episodes in which both differ by more than chance allows, in words."""
    actions = probe.actions(SHORTER)
    everywhere = _for_all(actions, probe.num_envs)
    with probe.make_vec() as vec:
        rounds = [play_vec(vec, everywhere, probe.seed + k) for k in range(-(-MANY // probe.episodes))]
    for t in range(probe.num_tasks):
        alone = [probe.alone(t, actions, probe.seed + k) for k in range(MANY)]
        together = [e for run in rounds for e in run[t * probe.episodes : (t + 1) * probe.episodes]]
        one, other = (np.stack([_summary(episode) for episode in episodes]) for episodes in (alone, together))
        stderr = np.sqrt(one.var(0) / len(one) + other.var(0) / len(other))
        allowed = STDERRS * stderr + TOLERANCE * (1 + np.abs(one.mean(0)))
        if (far := np.abs(one.mean(0) - other.mean(0)) > allowed).any():
            k = first(far)
            return f"{_quantity(k)} of task {t} {other.mean(0)[k]:.4g} against {one.mean(0)[k]:.4g} +- {stderr[k]:.2g}"
    return ""


def _summary(episode: Episode) -> Array:
    """Return, whether it terminated, first and last observation."""
    total = sum(float(record.reward.sum()) for record in episode)
    ends = [np.ravel(episode[k].observation).astype(np.float64) for k in (0, -1)]
    return np.concatenate([[total, float(episode[-1].terminated)], *ends])


def _quantity(k: int) -> str:
    return ("mean return", "frequency of termination", "mean of the first or last observation")[min(k, 2)]
