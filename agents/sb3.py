"""The bridge to Stable-Baselines3 and back: a meta-trained or adapted policy becomes a model that learns on."""

import copy
from collections.abc import Mapping
from typing import Any, Literal, overload

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage, is_vecenv_wrapped
from torch import Tensor, nn

from metarl.agents.policy import PolicyModule, build, check_policy_kwargs, check_spaces
from metarl.context import WithContext
from metarl.errors import check_choice, check_type, did_you_mean
from metarl.learned_rules import visible
from metarl.random import DrawingFrom
from metarl.rl.actions import check_actions
from metarl.rl.normalization import CLIP, EPSILON, Moments, NormalizedPolicy

PREFIX = "policy."  # a PolicyModule's parameter names have it, SB3's own do not


ALGORITHMS: Mapping[str, type[PPO | A2C]] = {"PPO": PPO, "A2C": A2C}


@overload
def to_sb3(
    policy: nn.Module,
    params: Mapping[str, Tensor] | None,
    env: gymnasium.Env[Any, Any] | VecEnv,
    *,
    algorithm: Literal["PPO"] = "PPO",
    actions: str = "clip",
    **kwargs: Any,
) -> PPO: ...


@overload
def to_sb3(
    policy: nn.Module,
    params: Mapping[str, Tensor] | None,
    env: gymnasium.Env[Any, Any] | VecEnv,
    *,
    algorithm: Literal["A2C"],
    actions: str = "clip",
    **kwargs: Any,
) -> A2C: ...


def to_sb3(
    policy: nn.Module,
    params: Mapping[str, Tensor] | None,
    env: gymnasium.Env[Any, Any] | VecEnv,
    *,
    algorithm: str = "PPO",
    actions: str = "clip",
    **kwargs: Any,
) -> PPO | A2C:
    """A model of Stable-Baselines3 on `env` with the architecture of `policy`.

    Its deterministic `predict` is the mode of `policy` at `params`, clipped to the bounds of a Box; it can `learn`,
    `save` and `load`. The critic is that of `policy` and was not meta-trained, so the
    first gradients are noisier than those of meta-training, whose baseline is fitted to every draw: prefer parameters
    that have been adapted to the task.

    Args:
        policy: a `PolicyModule`: the architecture, and the values of all parameters that `params` does not have. For a
            `NormalizedPolicy`, `env` is wrapped in SB3's `VecNormalize` with fixed statistics, and `predict` takes
            `model.get_vec_normalize_env().normalize_obs(obs)`.
        params: the parameters of ONE task, keys as in `policy.named_parameters()`; the actor's are enough. They are
            `learner.params` for a meta-trained policy, and `learner.adapt(env).params` for an adapted one.
        env: one environment or SB3's vector environment, with the spaces of `policy`.
        actions: how training sent the policy's actions: `clip`, or `rescale`, for which a single environment
            is wrapped in Gymnasium's `RescaleAction`, so that `predict` gives actions in [-1, 1].
        algorithm: `PPO` or `A2C`.
        **kwargs: further arguments of the algorithm: `learning_rate`, `n_steps`, `seed`, `device` (default: that of
            `policy`) and so on.

    Raises:
        ValueError: unknown keys or other shapes in `params`, spaces other than the policy's, action bounds that are not
            finite, `actions` that SB3 does not support, or `kwargs` that would change the architecture.

    Example:
        >>> from metarl.agents import make_policy
        >>> env = gymnasium.make("CartPole-v1")
        >>> policy = make_policy(env.observation_space, env.action_space)
        >>> model = to_sb3(policy, None, env, n_steps=64, device="cpu")
        >>> obs, _ = env.reset(seed=0)
        >>> action, _ = model.predict(obs, deterministic=True)
    """
    make = ALGORITHMS[check_choice("algorithm", algorithm, ALGORITHMS)]
    params, moments = visible(dict(params or {})), None  # without learned step sizes
    network: Any = policy
    if isinstance(policy, NormalizedPolicy):
        moments, params, network = policy.moments, policy.own(dict(params)), policy.network
    if isinstance(network, WithContext):
        raise ValueError("policy must be without context inputs: SB3 has no place for the context; got WithContext")
    check_type("policy", network, PolicyModule, "a PolicyModule, as make_policy returns")
    _check_params(network, params)
    _check_env(network, env)
    env = _wrap_actions(env, actions)
    env = env if moments is None else _normalize(env, moments)
    for name in ("policy_kwargs", "use_sde"):
        if name in kwargs:
            raise ValueError(f"kwargs must not have {name!r}: it follows from the policy")
    kwargs = {"device": next(network.parameters()).device} | kwargs
    with DrawingFrom(torch.Generator()):  # SB3's initial weights are overwritten below
        model = make(type(network.policy), env, policy_kwargs=copy.deepcopy(network.policy_kwargs), **kwargs)
    model.policy.load_state_dict(network.policy.state_dict())
    weights = dict(model.policy.named_parameters())
    with torch.no_grad():
        for name, value in params.items():
            weights[name.removeprefix(PREFIX)].copy_(value)
    return model


def from_sb3(model: OnPolicyAlgorithm) -> PolicyModule:
    """The policy of a PPO or A2C model as a `PolicyModule`; the parameters are copies.

    Raises:
        ValueError: the policy is not an `ActorCriticPolicy` with plain normal, categorical or Bernoulli actions and a
            Box or Discrete observation space, or overrides how its distribution is computed.
    """
    check_type("model", model, OnPolicyAlgorithm, "a PPO or A2C model of Stable-Baselines3")
    source = model.policy
    if not isinstance(source, ActorCriticPolicy):
        raise ValueError(f"model must have an ActorCriticPolicy (PPO, A2C), got {type(source).__name__}")
    if source.use_sde:
        raise ValueError("model must not use gSDE: its distribution is not a plain normal one")
    for name in ("get_distribution", "extract_features", "_get_action_dist_from_latent"):
        if getattr(type(source), name) is not getattr(ActorCriticPolicy, name):
            raise ValueError(f"model's policy must not override {name}, {type(source).__name__} does")
    if model.env is not None and is_vecenv_wrapped(model.env, VecNormalize):
        raise ValueError(
            "model must use raw observations, but its environment is wrapped in VecNormalize; train without it, or"
            " normalise in metarl: ReinforcementLearning(..., normalize_observations=True)"
        )
    check_spaces(source.observation_space, source.action_space)
    kwargs = check_policy_kwargs(model.policy_kwargs)
    policy = build(type(source), source.observation_space, source.action_space, kwargs, seed=0).to(model.device)
    policy.load_state_dict(source.state_dict())
    channels_last = model.env is not None and is_vecenv_wrapped(model.env, VecTransposeImage)
    return PolicyModule(policy, kwargs, channels_last)


def _wrap_actions(env: gymnasium.Env[Any, Any] | VecEnv, actions: str) -> gymnasium.Env[Any, Any] | VecEnv:
    check_actions(actions, env.action_space)
    if actions == "clip":
        return env
    if actions == "squash" or isinstance(env, VecEnv):
        raise ValueError(
            f"actions must be 'clip', or 'rescale' with one environment, got {actions!r} with {type(env).__name__}:"
            " PPO does not squash actions; wrap a VecEnv's environments: gymnasium.wrappers.RescaleAction(env, -1, 1)"
        )
    return gymnasium.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))


def _normalize(env: gymnasium.Env[Any, Any] | VecEnv, moments: Moments) -> VecNormalize:
    vec = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: Monitor(env)])
    wrapped = VecNormalize(vec, training=False, norm_reward=False, clip_obs=CLIP, epsilon=EPSILON)
    assert isinstance(wrapped.obs_rms, RunningMeanStd)  # one Box
    wrapped.obs_rms.mean, wrapped.obs_rms.var = moments.mean.numpy().copy(), moments.variance.numpy().copy()
    wrapped.obs_rms.count = float(moments.count)
    return wrapped


def _check_params(policy: PolicyModule, params: Mapping[str, Tensor]) -> None:
    shapes = {name: parameter.shape for name, parameter in policy.named_parameters()}
    for name, value in params.items():
        if name not in shapes:
            raise ValueError(
                f"params must have keys of policy.named_parameters(), got {name!r}{did_you_mean(name, shapes)}"
            )
        if value.shape == shapes[name]:
            continue
        stacked = value.shape[1:] == shapes[name]
        hint = "; it looks stacked [T, ...], pick one task: {k: v[i] for k, v in params.items()}" if stacked else ""
        raise ValueError(f"params[{name!r}] must have shape {tuple(shapes[name])}, got {tuple(value.shape)}{hint}")


def _check_env(policy: PolicyModule, env: gymnasium.Env[Any, Any] | VecEnv) -> None:
    space = env.observation_space
    if is_image_space(space) and not is_image_space_channels_first(space):  # type: ignore[arg-type]
        # SB3 will do the same
        space = VecTransposeImage.transpose_space(space)  # type: ignore[arg-type]
    for name, wanted, found in [
        ("observation_space", policy.policy.observation_space, space),
        ("action_space", policy.action_space, env.action_space),
    ]:
        if wanted != found:
            raise ValueError(f"env must have the policy's {name}, {wanted}, got {found}")
    action_space = env.action_space
    if isinstance(action_space, Box) and not np.isfinite([action_space.low, action_space.high]).all():
        raise ValueError(f"env must have an action_space with finite bounds for PPO, got {action_space}")
