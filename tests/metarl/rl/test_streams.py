"""A task draws the same whatever is drawn beside it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.agents import make_policy
from metarl.envs import make_distribution
from metarl.rl import ReinforcementLearning
from metarl.rl.streams import MOST_STREAMS, Streams
from metarl.tree import broadcast
from metarl.types import Batch, Params


def numbers(streams: Streams) -> Tensor:
    return streams.draw(lambda n, generator: torch.rand(n, 3, generator=generator))


@pytest.mark.parametrize("tasks", [1, 7, MOST_STREAMS, MOST_STREAMS + 1, 3000])
def test_shards_are_parts_of_the_whole(tasks: int) -> None:
    whole = Streams(5, tasks)
    draws = [numbers(whole), numbers(whole)]
    seeds = [whole.seed(4), whole.seed(4)]
    assert draws[0].shape == (tasks, 3)
    assert len(torch.cat(draws).unique()) > 0.99 * 6 * tasks  # every task and every draw has its own
    for first, last in [(0, tasks), (tasks // 3, tasks - tasks // 4), (tasks - 1, tasks)]:
        shard = Streams(5, tasks).shard(first, last)
        for draw, seed in zip(draws, seeds, strict=True):
            assert torch.equal(numbers(shard), draw[first:last])
            assert shard.seed(4) == seed + 4 * first


def test_a_shard_of_a_shard_and_other_seeds() -> None:
    whole = numbers(Streams(5, 20))
    assert torch.equal(numbers(Streams(5, 20).shard(4, 18).shard(3, 6)), whole[7:10])
    assert not torch.equal(numbers(Streams(6, 20)), whole)


def source(env: str) -> ReinforcementLearning:
    tasks = make_distribution(env, horizon=4)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [8]})
    return ReinforcementLearning(tasks, policy, episodes=3, baseline="none", normalize_advantages=False)


def draws(tasks: object, params: Params) -> list[Batch]:
    return [tasks.draw(params, role) for role in ("inner", "outer")]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "env", ["navigation", "linear_gaussian", "tabular_mdp", "cart_pole_goal", "half_cheetah_velocity", "ant_goal"]
)
def test_tasks_of_a_shard_see_what_they_would_see_in_the_whole(env: str) -> None:
    learned = source(env)
    params = broadcast(learned.initial_params(), 5)
    params = {name: leaf + 0.01 * torch.arange(5.0).view(5, *[1] * (leaf.ndim - 1)) for name, leaf in params.items()}
    whole = draws(learned.sample(5, np.random.default_rng(0)), params)
    for first, last in [(0, 2), (2, 5)]:
        shard = learned.sample(5, np.random.default_rng(0)).shard(first, last)
        assert shard.num_tasks == last - first
        part = {name: leaf[first:last] for name, leaf in params.items()}
        for found, wanted in zip(draws(shard, part), whole, strict=True):
            for name, value in found.items():
                torch.testing.assert_close(value, wanted[name][first:last], rtol=1e-5, atol=1e-6, msg=f"{env} {name}")
    assert not torch.equal(whole[0]["actions"], whole[1]["actions"])
    assert not torch.equal(whole[0]["actions"][0], whole[0]["actions"][1])
