"""Advantages against plain loops, numpy's least squares and values known in closed form."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.errors import NonFiniteError
from metarl.rl.advantages import (
    Episodes,
    LinearBaseline,
    ZeroBaseline,
    generalized_advantages,
    last_steps,
    normalize,
)
from metarl.rl.sums import discounted_sums

LENGTHS = torch.tensor([[7, 3, 1, 5], [7, 7, 7, 7], [2, 7, 4, 6]])  # of 3 tasks x 4 episodes, horizon 7
HORIZON = 7


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_episodes(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Episodes:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(HORIZON) < LENGTHS[..., None]).to(dtype)  # [T, E, H]
    obs = torch.randn(*mask.shape, 2, generator=generator, dtype=dtype)
    rewards = torch.randn(mask.shape, generator=generator, dtype=dtype) * mask
    final = torch.randn(*LENGTHS.shape, 2, generator=generator, dtype=dtype)
    terminated = torch.tensor([[7], [8], [5]]) > LENGTHS  # ended early, and at the limit
    return Episodes(obs, rewards, mask, final, terminated)._replace(**changes)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99, 1.0])
def test_discounted_sums(discount: float) -> None:
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    wanted = torch.zeros_like(x)
    running = torch.zeros(2, 3, dtype=torch.float64)
    for t in reversed(range(6)):
        running = x[..., t] + discount * running
        wanted[..., t] = running
    torch.testing.assert_close(discounted_sums(x, discount), wanted)


def test_last_steps() -> None:
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert last_steps(mask).tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_gae_against_a_loop(discount: float, gae_lambda: float) -> None:
    episodes = make_episodes()
    values = torch.randn(3, 4, HORIZON, dtype=torch.float64)  # also where nothing happened: must not matter
    last = torch.randn(3, 4, dtype=torch.float64) * ~episodes.terminated
    got = generalized_advantages(episodes.rewards, values, last, episodes.mask, discount, gae_lambda)
    for i, j in np.ndindex(3, 4):
        length, advantage = int(LENGTHS[i, j]), 0.0
        assert not got[i, j, length:].any()
        for t in reversed(range(length)):
            following = values[i, j, t + 1] if t + 1 < length else last[i, j]
            delta = episodes.rewards[i, j, t] + discount * following - values[i, j, t]
            advantage = delta + discount * gae_lambda * advantage
            assert float(got[i, j, t]) == pytest.approx(float(advantage), abs=1e-12)


def test_normalized_per_task_over_the_steps_that_happened() -> None:
    mask = make_episodes().mask
    x = 5.0 + torch.tensor([1.0, 100.0, 0.01])[:, None, None] * torch.randn(mask.shape, dtype=torch.float64)
    got, scale = normalize(x, mask)
    for i in range(3):
        there = x[i][mask[i] > 0].numpy()
        np.testing.assert_allclose(got[i][mask[i] > 0], (there - there.mean()) / there.std(), rtol=1e-5)
        assert float(scale[i]) == pytest.approx(there.std() + 1e-8)
    assert not got[mask == 0].any()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_normalizing_constants_gives_zeros(value: float) -> None:
    mask = make_episodes().mask
    mask[1] = 0.0  # and a task in which nothing happened
    assert not normalize(value * mask, mask)[0].any()


def by_numpy(episodes: Episodes, task: int, discount: float, observations: bool, ridge: float = 1e-5) -> Any:
    """Ridge regression of one task's returns, through the augmented least-squares system."""
    rows, returns, where = [], [], []
    for e in range(episodes.mask.shape[1]):
        length = int(episodes.mask[task, e].sum())
        for t in range(length):
            o = episodes.obs[task, e, t].double().numpy().ravel().clip(-10, 10)
            time = [t / 100, (t / 100) ** 2, (t / 100) ** 3, 1.0]
            rows.append([*o, *o**2, *time] if observations else time)
            returns.append(sum(discount**k * float(episodes.rewards[task, e, t + k]) for k in range(length - t)))
            where.append((e, t))
    x = np.array(rows)
    augmented = np.vstack([x, np.sqrt(ridge) * np.eye(x.shape[1])])
    weights = np.linalg.lstsq(augmented, np.array([*returns, *np.zeros(x.shape[1])]), rcond=None)[0]
    values = np.zeros(episodes.mask.shape[1:])
    values[tuple(np.array(where).T)] = x @ weights
    return values


@pytest.mark.parametrize("observations", [True, False])
@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_linear_baseline_is_ridge_regression_per_task(observations: bool, discount: float) -> None:
    obs = make_episodes().obs
    obs[0, 0, 0] = torch.tensor([1e3, -50.0])  # clipped
    episodes = make_episodes(obs=obs)
    values, last = LinearBaseline(observations).values(episodes, discount, bootstrap=False)
    for i in range(3):
        np.testing.assert_allclose(values[i], by_numpy(episodes, i, discount, observations), atol=1e-6)
    assert not last.any()  # the horizon is part of the task


def test_unmasked_observations_do_not_matter() -> None:
    episodes = make_episodes()
    elsewhere = torch.where(episodes.mask[..., None] > 0, episodes.obs, 1e9)
    for bootstrap in (False, True):
        wanted = LinearBaseline().values(episodes, 0.9, bootstrap)
        got = LinearBaseline().values(episodes._replace(obs=elsewhere), 0.9, bootstrap)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_tasks_are_fitted_each_on_their_own(bootstrap: bool) -> None:
    episodes, others = make_episodes(0), make_episodes(1)
    mixed = Episodes(*(torch.cat([a[:1], b[1:2], a[2:]]) for a, b in zip(episodes, others, strict=True)))
    got, wanted = (LinearBaseline().values(x, 0.9, bootstrap) for x in (mixed, episodes))
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
    assert not torch.allclose(got[0][1], wanted[0][1])


def task_constant(episodes: Episodes) -> Episodes:
    return episodes._replace(obs=torch.full_like(episodes.obs, 3.0), final_obs=torch.full_like(episodes.final_obs, 3.0))


def task_without_steps(episodes: Episodes) -> Episodes:
    mask = episodes.mask.clone()
    mask[1] = 0.0
    return episodes._replace(mask=mask, rewards=episodes.rewards * mask)


@pytest.mark.parametrize(
    "change",
    [
        task_constant,
        task_without_steps,
        lambda e: e._replace(obs=0 * e.obs, final_obs=0 * e.final_obs),
        lambda e: e._replace(
            obs=e.obs[..., :1].expand_as(e.obs), final_obs=e.final_obs[..., :1].expand_as(e.final_obs)
        ),
        lambda e: e._replace(rewards=0 * e.rewards),
        lambda e: e._replace(rewards=1e8 * e.rewards),
        lambda e: Episodes(*(x[:, :1] for x in e)),  # fewer steps than features
        lambda e: e._replace(obs=e.obs.repeat(1, 1, 1, 50), final_obs=e.final_obs.repeat(1, 1, 50)),
    ],
)
@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("discount", [0.99, 1.0])
def test_singular_features_do_not_fail(change: Any, bootstrap: bool, discount: float) -> None:
    for baseline in (LinearBaseline(), LinearBaseline(observations=False)):
        values, last = baseline.values(change(make_episodes(dtype=torch.float32)), discount, bootstrap)
        assert torch.isfinite(values).all()
        assert torch.isfinite(last).all()
        assert values.dtype == last.dtype == torch.float32


def test_the_growth_of_the_ridge_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    episodes = make_episodes()
    constant = task_constant(episodes)
    mixed = episodes._replace(obs=torch.cat([constant.obs[:1], episodes.obs[1:]]))
    with caplog.at_level(logging.WARNING):
        values, _ = LinearBaseline(ridge=1e-30).values(mixed, 0.9, bootstrap=False)
    assert "singular features in 1 tasks, ridge now" in caplog.text
    assert torch.isfinite(values).all()
    np.testing.assert_allclose(
        values[1], by_numpy(mixed, 1, 0.9, True, ridge=1e-30), atol=1e-5
    )  # not this task's ridge


def test_observations_that_are_no_numbers_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(message: str, *args: object, tries: list[int] = []) -> None:  # noqa: B006
        tries.append(1)
        assert len(tries) < 500

    monkeypatch.setattr(logging.getLogger("metarl.rl.advantages"), "warning", limited)
    episodes = make_episodes()
    episodes.obs[1] *= float("nan")
    with pytest.raises(NonFiniteError, match="observations of a rollout, task 1"):
        LinearBaseline().values(episodes, 0.9, bootstrap=False)


def constant_reward(terminated: Tensor, mask: Tensor) -> Episodes:
    obs = torch.randn(*mask.shape, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Episodes(obs, mask.clone(), mask, obs[:, :, 0] + 0.1, terminated)


def test_the_value_of_an_endless_task() -> None:
    """Reward 1 for ever at discount 0.9 is worth 10, wherever the time limit cuts."""
    mask = torch.ones(2, 6, 15, dtype=torch.float64)
    for i, length in enumerate([15, 14, 11, 5, 9, 15]):
        mask[:, i, length:] = 0.0
    episodes = constant_reward(torch.zeros(2, 6, dtype=torch.bool), mask)
    values, last = LinearBaseline().values(episodes, 0.9, bootstrap=True)
    torch.testing.assert_close(values, 10 * mask, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(last, torch.full_like(last, 10.0), rtol=1e-3, atol=0)
    for gae_lambda in (0.0, 0.95, 1.0):
        advantages = generalized_advantages(episodes.rewards, values, last, mask, 0.9, gae_lambda)
        assert float(advantages.abs().max()) < 0.01
    values, last = LinearBaseline().values(episodes, 0.9, bootstrap=False)
    assert not last.any()
    assert float(values.max()) < 9  # within the horizon there is less to get


def test_nothing_follows_a_terminal_state() -> None:
    episodes = make_episodes()
    assert 0 < int(episodes.terminated.sum()) < episodes.terminated.numel()
    _, last = LinearBaseline().values(episodes, 0.9, bootstrap=True)
    assert not last[episodes.terminated].any()
    assert last[~episodes.terminated].all()


def test_bootstrapping_solves_the_projected_equation() -> None:
    """Values linear in the observation are found exactly: o halves in every step and the reward is o."""
    start = torch.linspace(1, 3, 8, dtype=torch.float64)[None, :, None]  # [1, E, 1]
    o = start * 0.5 ** torch.arange(6, dtype=torch.float64)  # [1, E, H]
    ended = torch.zeros(1, 8, dtype=torch.bool)
    episodes = Episodes(o[..., None], o, torch.ones_like(o), o[..., -1:] / 2, ended)
    values, last = LinearBaseline(ridge=1e-12).values(episodes, 0.9, bootstrap=True)
    torch.testing.assert_close(values, o / (1 - 0.45), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(last, o[..., -1] / 2 / (1 - 0.45), rtol=1e-6, atol=1e-9)


def test_bootstrapping_is_consistent() -> None:
    """A random walk on three states, cut off after a random number of steps: the fits are right on average.

    Where an episode is cut off depends on chance, as its rewards do, so least squares on the difference of the
    features finds 4.16 for 3.45, 4.55 for 4.46 and 4.86 for 5.27, with any number of episodes.
    """
    move = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]], dtype=torch.float64)
    reward, discount = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 0.9
    wanted = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - discount * move, reward)
    tasks, number, horizon = 40, 2000, 4
    generator = torch.Generator().manual_seed(0)
    states = [torch.randint(3, (tasks * number,), generator=generator)]
    for _ in range(horizon):
        states.append(torch.multinomial(move[states[-1]], 1, generator=generator)[:, 0])
    walk = torch.stack(states, -1).view(tasks, number, horizon + 1)
    length = torch.randint(1, horizon + 1, (tasks, number), generator=generator)
    mask = (torch.arange(horizon) < length[..., None]).double()
    obs = (walk - 1).double()[..., None]  # o, o^2 and 1 can have any value in three states
    final = obs.gather(2, length[..., None, None])[:, :, 0]
    never = torch.zeros(tasks, number, dtype=torch.bool)
    episodes = Episodes(obs[:, :, :-1], reward[walk[..., :-1]] * mask, mask, final, never)
    values, last = LinearBaseline(ridge=1e-10).values(episodes, discount, bootstrap=True)
    for found, state in ((values[..., 0], walk[..., 0]), (last, walk.gather(2, length[..., None])[..., 0])):
        each = torch.stack([torch.stack([v[s == k][0] for v, s in zip(found, state, strict=True)]) for k in range(3)])
        off = (each.mean(1) - wanted) / (each.std(1) / tasks**0.5)  # [3], in standard errors
        assert float(off.abs().max()) < 4
        assert float(each.std(1).max()) < 0.2


def test_bootstrapping_ends_at_terminal_states() -> None:
    """Reward 1 until a terminal state; the observation is how many steps are left, and so is the value."""
    left = torch.tensor([3.0, 6.0, 8.0, 10.0, 2.0], dtype=torch.float64)[None, :, None] - torch.arange(6)  # [1, E, H]
    mask = (left > 0).double()
    terminated = left[..., 0] <= 6
    final = torch.where(terminated, 5.0, left[..., 0] - 6)  # what a terminal state looks like must not matter
    episodes = Episodes(left[..., None], mask.clone(), mask, final[..., None], terminated)
    values, last = LinearBaseline(ridge=1e-12).values(episodes, 1.0, bootstrap=True)
    torch.testing.assert_close(values, left * mask, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(last, torch.where(terminated, 0.0, final), rtol=1e-6, atol=1e-6)


def test_rewards_may_be_scaled_and_shifted() -> None:
    """With a baseline that knows the time, the normalised advantages of whole episodes stay what they were."""
    mask = torch.ones(2, 20, HORIZON, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    obs, rewards = (
        torch.randn(2, 20, HORIZON, 2, generator=generator, dtype=torch.float64),
        torch.randn(mask.shape, generator=generator, dtype=torch.float64),
    )
    ended = torch.zeros(2, 20, dtype=torch.bool)

    def advantages(rewards: Tensor) -> Tensor:
        episodes = Episodes(obs, rewards, mask, obs[:, :, 0], ended)
        values, last = LinearBaseline(ridge=1e-10).values(episodes, 1.0, bootstrap=False)
        return normalize(generalized_advantages(rewards, values, last, mask, 1.0, 1.0), mask)[0]

    torch.testing.assert_close(advantages(7 * rewards - 3), advantages(rewards), rtol=1e-4, atol=1e-4)


def test_no_baseline() -> None:
    values, last = ZeroBaseline().values(make_episodes(), 0.9, bootstrap=True)
    assert not values.any()
    assert not last.any()
    assert values.shape == (3, 4, HORIZON)
    assert last.shape == (3, 4)
