"""Rollouts against plain loops over single Gymnasium environments that are fed the same actions."""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from metarl import tree
from metarl.agents import make_policy
from metarl.engine import Engine
from metarl.envs import FunctionalDistribution, FunctionalEnv, Navigation, PointVelocity, TorchVectorEnv
from metarl.functional_env import FunctionalEnvs
from metarl.rl import Actor, ReinforcementLearning, policy_params
from metarl.rl.actor import Environments
from metarl.rl.distributions import distribution_for
from metarl.rl.rollout import Rollout
from metarl.rl.streams import Streams
from metarl.types import Params, TaskParams

Array = npt.NDArray[Any]


class WalkEnv(FunctionalEnv):
    """One step left or right; ends at a wall, at a distance of its own for each task."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def initial(self, task: Any, noise: Tensor) -> Tensor:
        return torch.zeros(len(task["wall"]), 1)

    def transition(self, state: Tensor, action: Tensor, task: Any, noise: Tensor) -> Tensor:
        return state + 2.0 * action[:, None] - 1.0

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: Any) -> Tensor:
        return 1.0 + next_state[:, 0]

    def observation(self, state: Tensor, task: Any) -> Tensor:
        return state

    def terminal(self, state: Tensor, task: Any) -> Tensor:
        return state[:, 0].abs() >= task["wall"]


class Walk(FunctionalDistribution):
    def __init__(self, horizon: int = 9) -> None:
        super().__init__(WalkEnv(), spaces.Dict({"wall": spaces.Box(1.0, 4.0, (), np.float32)}), horizon)


DISTRIBUTIONS = {
    "walk": Walk(),
    "navigation": Navigation(horizon=6),
    "ending": Navigation(horizon=40, goal_low=0.09, goal_high=0.11),  # a box within reach
    "velocity": PointVelocity(horizon=6),
}


class NumpyVec(VectorEnv[Array, Array, Array]):
    """Single environments in a loop, speaking numpy; the same buffers in every step, rubbish after an end."""

    def __init__(self, envs: list[gymnasium.Env[Any, Any]]) -> None:
        self.envs, self.num_envs = envs, len(envs)
        self.single_observation_space, self.single_action_space = envs[0].observation_space, envs[0].action_space
        self.obs = np.zeros((self.num_envs, *envs[0].observation_space.shape), np.float32)
        self.reward = np.zeros(self.num_envs)  # float64, as Gymnasium's are
        self.terminated, self.truncated = np.zeros((2, self.num_envs), dtype=bool)
        self.actions: list[Array] = []

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        self.obs[:] = [env.reset(seed=seed)[0] for env in self.envs]
        self.terminated[:] = self.truncated[:] = False
        return self.obs, {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        assert isinstance(actions, np.ndarray)
        self.actions.append(actions.copy())
        self.reward[:] = 1e6  # what ended environments return must not matter
        self.obs[self.terminated | self.truncated] = 1e6
        for i in np.flatnonzero(~(self.terminated | self.truncated)):
            self.obs[i], self.reward[i], self.terminated[i], self.truncated[i], _ = self.envs[i].step(actions[i])
        return self.obs, self.reward, self.terminated, self.truncated, {}


def rollout(environments: Environments, policy: nn.Module, params: Params, horizon: int, seed: int = 0) -> Rollout:
    if isinstance(environments, FunctionalEnvs):
        space, number = environments.env.action_space, len(next(iter(environments.task.values())))
    else:
        space, number = environments.single_action_space, environments.num_envs
    actor, leaf = Actor(policy, distribution_for(space)), next(iter(params.values()))
    noise = actor.noise(environments, Streams(seed, len(leaf)), horizon, number // len(leaf), leaf.dtype)
    with Engine().current():
        return actor.rollout(environments, params, noise)


def functional(tasks: FunctionalDistribution, task: TaskParams, episodes: int) -> FunctionalEnvs:
    found = tasks.make_functional(task, episodes)
    assert found is not None
    return found


def setup(name: str, num_tasks: int = 3, seed: int = 0) -> tuple[FunctionalDistribution, nn.Module, Params, TaskParams]:
    tasks = DISTRIBUTIONS[name]
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [8]}, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    params = policy_params(policy, torch.zeros(1, *tasks.observation_space.shape))
    params = {k: v + 0.5 * torch.randn(num_tasks, *v.shape, generator=generator) for k, v in params.items()}
    return tasks, policy, params, tasks.sample(num_tasks, np.random.default_rng(seed))


def run(name: str, episodes: int = 4, seed: int = 0, vec: Any = None) -> Rollout:
    tasks, policy, params, task = setup(name)
    environments = functional(tasks, task, episodes) if vec is None else vec
    return rollout(environments, policy, params, tasks.horizon, seed)


def numpy_vec(name: str, episodes: int = 4) -> NumpyVec:
    tasks, _, _, task = setup(name)
    return NumpyVec([tasks.make({k: v[t] for k, v in task.items()}) for t in range(3) for _ in range(episodes)])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_equals_a_loop_over_single_environments(name: str) -> None:
    """The recorded actions, fed to ordinary environments one by one."""
    tasks, policy, params, task = setup(name)
    (obs, rewards, mask, final_obs, terminated), actions, log_probs, _ = run(name)
    distribution = distribution_for(tasks.action_space)
    for t, e in np.ndindex(3, 4):
        env = tasks.make({k: v[t] for k, v in task.items()})
        seen, alive, ended = torch.from_numpy(env.reset(seed=0)[0]), True, False
        for h in range(tasks.horizon):
            assert bool(mask[t, e, h]) == alive
            if not alive:
                assert rewards[t, e, h] == 0
                continue
            torch.testing.assert_close(obs[t, e, h], seen)
            outputs = torch.func.functional_call(policy, tree.take(params, t), (seen[None],))
            wanted = distribution.log_prob(outputs, actions[t, e, h][None])[0]
            torch.testing.assert_close(log_probs[t, e, h], wanted, rtol=1e-4, atol=1e-5)
            action = actions[t, e, h].numpy()
            clipped = np.clip(action, -1, 1) if action.ndim else action
            observed, reward, ended, truncated, _ = env.step(clipped)
            seen, alive = torch.from_numpy(observed), not (ended or truncated)
            assert float(rewards[t, e, h]) == pytest.approx(reward, abs=1e-6)
        torch.testing.assert_close(final_obs[t, e], seen)
        assert bool(terminated[t, e]) == ended


def test_the_cases_are_there() -> None:
    """Some episodes terminate, some reach the limit; some actions are clipped."""
    for name in ("walk", "ending"):
        episodes = run(name).episodes
        assert 0 < int(episodes.terminated.sum()) < episodes.terminated.numel(), name
        assert 0 < float(episodes.mask.mean()) < 1, name
    assert not run("velocity").episodes.terminated.any()
    assert run("velocity").episodes.mask.all()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_numpy_environments_that_reuse_their_buffers(name: str) -> None:
    ours, theirs = run(name), run(name, vec=numpy_vec(name))
    mask = ours.episodes.mask.bool()
    assert torch.equal(mask, theirs.episodes.mask.bool())
    assert torch.equal(ours.episodes.terminated, theirs.episodes.terminated)
    torch.testing.assert_close(ours.episodes.rewards, theirs.episodes.rewards)
    torch.testing.assert_close(ours.episodes.final_obs, theirs.episodes.final_obs)
    for a, b in [(ours.episodes.obs, theirs.episodes.obs), (ours.actions, theirs.actions)]:
        torch.testing.assert_close(a[mask], b[mask])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_vector_environment_of_torch_makes_the_same_steps(name: str) -> None:
    """Bit for bit: these environments have no noise."""
    tasks, _, _, task = setup(name)
    ours, theirs = run(name), run(name, vec=tasks.make_vec(task, 4))
    for a, b in zip([*ours.episodes, *ours[1:3]], [*theirs.episodes, *theirs[1:3]], strict=True):
        assert torch.equal(a, b)


class StepsTwice(Walk):
    """With vector environments of its own."""

    def make_vec(self, task: TaskParams, episodes: int, device: Any = "cpu") -> TorchVectorEnv:
        return TorchVectorEnv(self.env, task, episodes, 3, device)


def test_a_distribution_with_another_make_vec_is_stepped() -> None:
    _, policy, _, task = setup("walk")
    assert StepsTwice().make_functional(task, 4) is None
    source = ReinforcementLearning(StepsTwice(), policy, episodes=4)
    mask = (
        source.tasks(task, np.random.default_rng(0)).rollout(tree.broadcast(source.initial_params(), 3)).episodes.mask
    )
    assert int(mask.sum(-1).max()) == 3


def test_actions_are_clipped_for_the_environment_alone() -> None:
    vec = numpy_vec("navigation")
    actions = run("navigation", vec=vec).actions  # [T, E, H, 2]
    sent = np.stack(vec.actions, axis=1).reshape(3, 4, 6, 2)
    assert float(actions.abs().max()) > 1
    np.testing.assert_array_equal(sent, actions.clamp(-1, 1).numpy())


def test_early_exit_pads_with_zeros() -> None:
    tasks, policy, params, _ = setup("walk")
    vec = NumpyVec([tasks.make({"wall": 1.0}) for _ in range(6)])
    episodes, actions, log_probs, _ = rollout(vec, policy, params, 9)
    assert len(vec.actions) == 1  # the wall is one step away: nothing is run for nothing
    assert actions.shape == log_probs.shape == episodes.mask.shape == (3, 2, 9)
    assert episodes.obs.shape == (3, 2, 9, 1)
    assert episodes.mask.sum(-1).tolist() == [[1.0] * 2] * 3
    assert episodes.terminated.all()
    for padded in (episodes.obs, episodes.rewards, actions, log_probs):
        assert not padded[:, :, 1:].any()
    assert episodes.final_obs.abs().unique().tolist() == [1.0]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_same_seed_same_numbers(name: str) -> None:
    first, second, other = (run(name, seed=seed) for seed in (0, 0, 1))
    for a, b in zip([*first.episodes, *first[1:3]], [*second.episodes, *second[1:3]], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.actions, other.actions)


def test_each_task_acts_with_its_own_parameters() -> None:
    tasks, policy, params, task = setup("navigation")

    def actions(params: Params) -> Tensor:
        return rollout(functional(tasks, task, 4), policy, params, 6).actions

    before = actions(params)
    bias = "policy.action_net.bias"
    shift = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    after = actions({**params, bias: params[bias] + shift})
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    torch.testing.assert_close(after[1, :, 0], before[1, :, 0] + shift[1])


def test_no_graph_and_float64() -> None:
    tasks, policy, params, task = setup("navigation")
    doubled = {k: v.double().requires_grad_() for k, v in params.items()}
    episodes, actions, log_probs, _ = rollout(functional(tasks, task, 4), policy.double(), doubled, 6)
    for x in (episodes.obs, episodes.rewards, episodes.mask, actions, log_probs):
        assert x.dtype == torch.float64
        assert not x.requires_grad


@pytest.mark.parametrize(("env_threads", "expected"), [(2, 1), (1, 2)])
def test_torch_leaves_the_cores_to_environments_that_step_in_threads(env_threads: int, expected: int) -> None:
    _, policy, params, _ = setup("navigation")
    vec = numpy_vec("navigation")
    seen, step, before = [], vec.step, torch.get_num_threads()

    def watched(actions: Array) -> Any:
        seen.append(torch.get_num_threads())
        return step(actions)

    vec.step, vec.threads = watched, env_threads  # type: ignore[method-assign, attr-defined]
    try:
        torch.set_num_threads(2)
        rollout(vec, policy, params, 3)
        assert seen == [expected] * 3
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
