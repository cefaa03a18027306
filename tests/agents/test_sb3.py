"""The bridge: what metarl trained is what SB3 plays, learns on with, saves and loads."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common import callbacks
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor
from torch.func import functional_call

from metarl import MetaLearner
from metarl.agents import PolicyModule, from_sb3, make_policy, to_sb3
from metarl.envs import Navigation
from metarl.rl import ReinforcementLearning

SMALL = {"net_arch": [8, 8]}
PPO_KWARGS: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "device": "cpu", "seed": 0}


class Image(gymnasium.Env[Any, Any]):
    """Random pixels, channels last; three steps long."""

    observation_space = Box(0, 255, (8, 8, 1), np.uint8)
    action_space = Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._pixels(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._pixels(), float(action == 1), self.steps == 3, False, {}

    def _pixels(self) -> Any:
        return self.np_random.integers(0, 256, (8, 8, 1), dtype=np.uint8)


class Switches(gymnasium.Env[Any, Any]):
    """Several choices at once, or several bits; three steps long."""

    observation_space = Box(-1, 1, (3,), np.float32)

    def __init__(self, action_space: Any) -> None:
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.steps == 3, False, {}


ENVS = {
    "multi_discrete": (lambda: Switches(MultiDiscrete([2, 4, 3])), SMALL),
    "multi_binary": (lambda: Switches(MultiBinary(4)), SMALL),
    "box": (lambda: gymnasium.make("Pendulum-v1"), SMALL | {"log_std_init": -0.5}),
    "discrete": (lambda: gymnasium.make("CartPole-v1"), SMALL),
    "vector_env": (lambda: DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * 2), SMALL),
    "image": (Image, {"features_extractor_class": FlattenExtractor, "net_arch": [8]}),
}


@pytest.fixture(params=ENVS)
def env_and_policy(request: pytest.FixtureRequest) -> Any:
    make, kwargs = ENVS[request.param]
    env: Any = make()
    yield env, make_policy(env.observation_space, env.action_space, policy_kwargs=kwargs, seed=1)
    env.close()


@pytest.fixture
def pendulum() -> Any:
    env = gymnasium.make("Pendulum-v1")
    yield env
    env.close()


def adapted(policy: PolicyModule) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: p.detach() + torch.randn(p.shape, generator=generator) for k, p in policy.named_parameters()}


def actor(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in params.items() if "value_net" not in k}


def mode(policy: PolicyModule, params: dict[str, Tensor], obs: Any) -> Any:
    outputs = functional_call(policy, params, (torch.as_tensor(obs),))
    space = policy.action_space
    if isinstance(space, Box):
        return outputs[0].detach().numpy().clip(space.low, space.high)
    if isinstance(space, MultiBinary):
        return (outputs[0] > 0).numpy()
    if isinstance(space, MultiDiscrete):
        return np.stack([part.argmax(-1).numpy() for part in outputs[0].split(space.nvec.tolist(), -1)], -1)
    return outputs[0].argmax(-1).numpy()


def samples(env: Any) -> Any:
    space, rng = env.observation_space, np.random.default_rng(0)
    if space.dtype == np.uint8:
        return rng.integers(0, 256, (20, *space.shape), dtype=np.uint8)
    return rng.normal(size=(20, *space.shape)).astype(np.float32)


@pytest.mark.parametrize("choose", [dict, actor], ids=["all parameters", "actor only"])
def test_predict_is_the_mode(env_and_policy: Any, choose: Any) -> None:
    env, policy = env_and_policy
    params, obs = choose(adapted(policy)), samples(env)
    model = to_sb3(policy, params, env, **PPO_KWARGS)
    actions, _ = model.predict(obs, deterministic=True)
    np.testing.assert_allclose(actions, mode(policy, params, obs), rtol=1e-5, atol=1e-5)
    assert len(np.unique(actions)) > 1  # the comparison says something


def test_learns_saves_and_loads(env_and_policy: Any, tmp_path: Path) -> None:
    env, policy = env_and_policy
    obs, params = samples(env), adapted(policy)
    model = to_sb3(policy, params, env, **PPO_KWARGS)
    model.learn(64)
    assert any(
        not torch.equal(value, params["policy." + name].detach()) for name, value in model.policy.named_parameters()
    )
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_there_and_back(env_and_policy: Any) -> None:
    env, policy = env_and_policy
    params, obs = adapted(policy), samples(env)
    model = to_sb3(policy, params, env, **PPO_KWARGS)
    back = from_sb3(model)
    expected = functional_call(policy, params, (torch.as_tensor(obs),))
    torch.testing.assert_close(back(torch.as_tensor(obs)), expected)
    model.learn(32)  # leaves a graph in SB3's policy, and must not move the copy
    torch.testing.assert_close(back(torch.as_tensor(obs)), expected)
    assert from_sb3(model)(torch.as_tensor(obs))[0].shape == expected[0].shape


def test_policy_itself_is_not_changed(pendulum: Any) -> None:
    policy = make_policy(pendulum.observation_space, pendulum.action_space, policy_kwargs=SMALL)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    to_sb3(policy, adapted(policy), pendulum, **PPO_KWARGS).learn(32)
    torch.testing.assert_close(dict(policy.state_dict()), before, rtol=0, atol=0)


def test_without_params_it_is_the_policys_own(pendulum: Any) -> None:
    policy = make_policy(pendulum.observation_space, pendulum.action_space, policy_kwargs=SMALL)
    model = to_sb3(policy, None, pendulum, **PPO_KWARGS)
    torch.testing.assert_close(model.policy.state_dict(), policy.policy.state_dict(), rtol=0, atol=0)


def test_from_a2c(pendulum: Any) -> None:
    model = A2C("MlpPolicy", pendulum, device="cpu", policy_kwargs={"net_arch": [8]})
    policy, obs = from_sb3(model), torch.rand(5, 3)
    torch.testing.assert_close(policy(obs)[0], model.policy.get_distribution(obs).distribution.mean)


def test_params_that_are_refused(pendulum: Any) -> None:
    policy = make_policy(pendulum.observation_space, pendulum.action_space, policy_kwargs=SMALL)
    for params, message in [
        ({"policy.log_sdt": torch.zeros(1)}, "got 'policy.log_sdt'; did you mean 'policy.log_std'"),
        ({"policy.log_std": torch.zeros(2)}, r"must have shape \(1,\), got \(2,\)$"),
        ({"policy.log_std": torch.zeros(20, 1)}, "it looks stacked .* pick one task"),
    ]:
        with pytest.raises(ValueError, match=message):
            to_sb3(policy, params, pendulum, **PPO_KWARGS)


@pytest.mark.parametrize("name", ["policy_kwargs", "use_sde"])
def test_kwargs_that_are_refused(pendulum: Any, name: str) -> None:
    policy = make_policy(pendulum.observation_space, pendulum.action_space)
    with pytest.raises(ValueError, match="it follows from the policy"):
        to_sb3(policy, None, pendulum, **{name: None})


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (Box(-1, 1, (3,)), Box(-2, 2, (1,)), "the policy's observation_space"),
        (None, Box(-1, 1, (1,)), "the policy's action_space"),
        (None, Discrete(2), "the policy's action_space"),
    ],
)
def test_spaces_that_do_not_match(pendulum: Any, observation_space: Any, action_space: Any, message: str) -> None:
    policy = make_policy(observation_space or pendulum.observation_space, action_space)
    with pytest.raises(ValueError, match=message):
        to_sb3(policy, None, pendulum, **PPO_KWARGS)


def test_unbounded_actions_are_refused(pendulum: Any) -> None:
    pendulum.action_space = Box(-np.inf, np.inf, (1,))
    policy = make_policy(pendulum.observation_space, pendulum.action_space)  # fine for metarl
    with pytest.raises(ValueError, match="finite bounds"):
        to_sb3(policy, None, pendulum, **PPO_KWARGS)


class Sharpened(ActorCriticPolicy):
    def get_distribution(self, obs: Any) -> Any:
        return super().get_distribution(2 * obs)


def test_models_that_are_refused(pendulum: Any) -> None:
    with pytest.raises(ValueError, match="must not use gSDE"):
        from_sb3(PPO("MlpPolicy", pendulum, use_sde=True, device="cpu"))
    with pytest.raises(ValueError, match="must not override get_distribution, Sharpened does"):
        from_sb3(PPO(Sharpened, pendulum, device="cpu"))
    with pytest.raises(ValueError, match="model must be a PPO or A2C model"):
        from_sb3(DQN("MlpPolicy", gymnasium.make("CartPole-v1"), buffer_size=10, device="cpu"))


# Algorithms, and policies of a learner


def test_an_a2c_model_plays_learns_saves_and_loads(env_and_policy: Any, tmp_path: Path) -> None:
    env, policy = env_and_policy
    params, obs = adapted(policy), samples(env)
    model = to_sb3(policy, params, env, algorithm="A2C", n_steps=8, seed=0, device="cpu")
    assert isinstance(model, A2C)
    before, _ = model.predict(obs, deterministic=True)
    np.testing.assert_allclose(before, mode(policy, params, obs), rtol=1e-5, atol=1e-5)
    model.learn(32)
    model.save(tmp_path / "model")
    loaded = A2C.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_other_algorithms_are_refused(pendulum: Any) -> None:
    policy = make_policy(pendulum.observation_space, pendulum.action_space)
    with pytest.raises(ValueError, match=r"algorithm must be one of .*'A2C', 'PPO'"):
        to_sb3(policy, None, pendulum, algorithm="SAC")  # type: ignore[call-overload]


@pytest.mark.parametrize("normalize", [False, True])
def test_meta_trained_and_adapted_policies(normalize: bool) -> None:
    """With learned step sizes, which are no parameters of the policy, and with normalised observations."""
    tasks = Navigation(horizon=10)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs=SMALL)
    source = ReinforcementLearning(tasks, policy, episodes=3, normalize_observations=normalize)
    learner = MetaLearner(source, "maml", outer_options={"learn_inner_lr": "layer"}, meta_batch_size=2).learn(1)
    assert any(name.startswith("meta/") for name in learner.params)
    env, obs = tasks.make({"goal": np.array([0.3, -0.2])}), np.array([[0.5, -0.3], [0.0, 1.0]], np.float32)
    one_step = learner.adapt(env, 1)
    for params, wanted in [(learner.params, learner.adapt(env, 0)), (one_step.params, one_step)]:
        model = to_sb3(source.policy, params, env, **PPO_KWARGS)
        seen = model.get_vec_normalize_env().normalize_obs(obs) if normalize else obs  # type: ignore[union-attr]
        found, _ = model.predict(seen, deterministic=True)
        np.testing.assert_allclose(found, wanted.predict(obs, deterministic=True)[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(learner.adapt(env, 0).predict(obs, deterministic=True)[0], found)


@pytest.mark.parametrize(
    ("callback", "use"),
    [
        (callbacks.EvalCallback(gymnasium.make("CartPole-v1")), "use metarl.callbacks.HeldOutEvaluation"),
        (callbacks.CheckpointCallback(10, "."), "use metarl.callbacks.Checkpointing"),
        (callbacks.ProgressBarCallback, None),
        (callbacks.StopTrainingOnMaxEpisodes(3), "write a metarl.callbacks.Callback"),
    ],
)
def test_callbacks_of_sb3_are_refused_with_what_to_use(callback: Any, use: str | None) -> None:
    tasks = Navigation(horizon=5)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs=SMALL)
    learner = MetaLearner(ReinforcementLearning(tasks, policy, episodes=2), meta_batch_size=2)
    with pytest.raises(ValueError, match=f"Stable-Baselines3.*{use}" if use else "callbacks must be"):
        learner.learn(1, [callback])
    assert learner.iterations == 0
