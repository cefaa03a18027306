"""Stable-Baselines3's actor as a pure function of its parameters.

The network *is* SB3's: the same `policy_kwargs`, the same initialisation, the same parameter names. Only the output
differs: `forward` returns the parameters of the action distribution instead of sampling, so that it can be batched over
tasks, differentiated twice and traced.
"""

import copy
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from stable_baselines3.common import torch_layers
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import Tensor, nn

from metarl.errors import check_int, check_real, check_type, did_you_mean
from metarl.random import DrawingFrom

CRITIC = [32, 32]
"""The critic's hidden layers unless `net_arch` has some: the critic is not meta-trained, so it is small."""

NET_ARCH = "policy_kwargs['net_arch'] must be a list of layers such as [64, 64], or {'pi': [64, 64], 'vf': [64, 64]}"
TOO_SMALL = "; SB3's CNN needs at least 36 x 36 pixels, pass a features_extractor_class for smaller images"

GSDE = {"use_sde", "full_std", "use_expln", "squash_output"}
OWN = {"self", "observation_space", "action_space", "lr_schedule"}
POLICY_KWARGS = set(inspect.signature(ActorCriticPolicy.__init__).parameters) - OWN - GSDE


class PolicyModule(nn.Module):
    """The actor of an SB3 `ActorCriticPolicy`, in a form that `torch.func` can transform.

    `forward` depends on the observations and the parameters only: it keeps no state, builds no distribution and
    computes in the dtype of the parameters. So `vmap(functional_call)`, `vmap(vjp(grad))`, `make_fx` and `.double()`
    work on it. The critic is there for fine-tuning with SB3 (`to_sb3`); `forward` does not use it, so it is not
    meta-trained.
    """

    def __init__(
        self, policy: ActorCriticPolicy, policy_kwargs: Mapping[str, Any] | None = None, channels_last: bool = False
    ) -> None:
        """Wrap `policy`, which was built with `policy_kwargs`; prefer `make_policy` and `from_sb3`.

        `channels_last` means that observations are `[B, H, W, C]`; SB3's networks take the channels first.
        """
        super().__init__()
        self.policy = policy
        self.policy_kwargs = dict(policy_kwargs or {})
        self.channels_last = channels_last
        self.action_space: gymnasium.Space[Any] = policy.action_space
        self._classes = int(policy.observation_space.n) if isinstance(policy.observation_space, Discrete) else None
        self._divisor = 255.0 if policy.normalize_images and is_image_space(policy.observation_space) else 1.0

    def forward(self, obs: Tensor) -> tuple[Tensor, ...]:
        """The parameters of the action distribution.

        Args:
            obs: `[B, *obs_shape]`, as the environment gives them.

        Returns:
            `(loc, scale)`, each `[B, A]`, of an independent normal distribution for a Box;
            `(logits,)`, not normalised, `[B, A]`, for a Discrete action space; for a MultiDiscrete the logits of all
            components side by side, `[B, sum nvec]`; for a MultiBinary the log-odds of 1, `[B, n]`.
        """
        policy = self.policy
        features = policy.pi_features_extractor(self._preprocess(obs))
        out = policy.action_net(policy.mlp_extractor.forward_actor(features))  # [B, A]
        if not isinstance(self.action_space, Box):
            return (out,)
        return out, policy.log_std.exp().expand_as(out)

    def _preprocess(self, obs: Tensor) -> Tensor:
        """SB3's `preprocess_obs`, but in the dtype of the parameters instead of always float32."""
        dtype = next(self.policy.action_net.parameters()).dtype
        if self._classes is not None:
            # nn.functional.one_hot reads the values, which vmap over grad forbids
            return (obs.unsqueeze(-1) == torch.arange(self._classes, device=obs.device)).to(dtype)
        if obs.ndim == 1:  # observations of a scalar Box
            obs = obs[:, None]
        if self.channels_last:
            obs = obs.permute(0, 3, 1, 2)
        return obs.to(dtype) if self._divisor == 1.0 else obs.to(dtype) / self._divisor


def make_policy(
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    *,
    policy_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> PolicyModule:
    """A freshly initialised policy on the CPU; the global random generators are neither read nor changed.

    Args:
        observation_space: Box or Discrete. A `uint8` image in [0, 255] gets SB3's CNN, channels first or last.
        action_space: a Box, MultiDiscrete or MultiBinary of one dimension, or a Discrete.
        policy_kwargs: as in `PPO(..., policy_kwargs=...)`: `net_arch`, `activation_fn`, `log_std_init`, `ortho_init`,
            `features_extractor_class`, `features_extractor_kwargs`, `normalize_images` and so on. The critic
            has two layers of 32 units unless `net_arch` sets them, because it is not meta-trained.
        seed: of the initial weights.

    Raises:
        ValueError: other spaces, gSDE or squashed outputs, or unknown `policy_kwargs`.

    Example:
        >>> import gymnasium, torch
        >>> env = gymnasium.make("Pendulum-v1")
        >>> policy = make_policy(env.observation_space, env.action_space, policy_kwargs={"net_arch": [100, 100]})
        >>> loc, scale = policy(torch.zeros(5, 3))
        >>> loc.shape, scale.shape
        (torch.Size([5, 1]), torch.Size([5, 1]))
    """
    check_spaces(observation_space, action_space)
    kwargs = check_policy_kwargs(policy_kwargs or {})
    if (layers := kwargs.get("net_arch")) is not None:
        kwargs["net_arch"] = {"vf": CRITIC, **(layers if isinstance(layers, Mapping) else {"pi": layers})}
    is_image = is_image_space(observation_space)
    channels_last = is_image and not is_image_space_channels_first(observation_space)  # type: ignore[arg-type]
    if channels_last:
        observation_space = VecTransposeImage.transpose_space(observation_space)  # type: ignore[arg-type]
    if observation_space.shape == () and isinstance(observation_space, Box):  # SB3's networks take a vector
        low, high = (np.asarray(bound).reshape(1) for bound in (observation_space.low, observation_space.high))
        observation_space = Box(low, high, dtype=np.float32)
    policy_class = ActorCriticCnnPolicy if is_image else ActorCriticPolicy
    policy = build(policy_class, observation_space, action_space, kwargs, seed)
    return PolicyModule(policy, kwargs, channels_last)


def build(
    policy_class: type[ActorCriticPolicy],
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    policy_kwargs: Mapping[str, Any],
    seed: int,
) -> ActorCriticPolicy:
    """SB3's policy, with weights that depend on `seed` only."""
    # copies: SB3 writes into these dictionaries, and its CNN draws a sample from the space
    spaces = copy.deepcopy((observation_space, action_space))
    kwargs = copy.deepcopy(dict(policy_kwargs))
    generator = torch.Generator().manual_seed(check_int("seed", seed, minimum=0))
    with DrawingFrom(generator), torch.device("cpu"):
        try:
            return policy_class(*spaces, lambda _: 0.0, **kwargs)
        except Exception as error:  # a features extractor may raise anything
            extractor = kwargs.get("features_extractor_class")
            own_cnn = issubclass(policy_class, ActorCriticCnnPolicy) and extractor in (None, NatureCNN)
            hint = TOO_SMALL if own_cnn and isinstance(error, RuntimeError) else ""
            name = getattr(extractor, "__name__", "features extractor")
            raise ValueError(
                f"policy_kwargs must build a network for observation_space {observation_space}, but {name} raised"
                f" {type(error).__name__}: {error}{hint}"
            ) from error


def check_spaces(observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]) -> None:
    """Raise a ValueError that names the space unless `PolicyModule` handles both spaces."""
    if not isinstance(observation_space, Box | Discrete):
        fix = "; flatten it: gymnasium.wrappers.FlattenObservation" if isinstance(observation_space, Dict) else ""
        raise ValueError(f"observation_space must be a Box or a Discrete, got {observation_space}{fix}")
    if not isinstance(action_space, Box | Discrete | MultiDiscrete | MultiBinary):
        kinds = "a Box, a Discrete, a MultiDiscrete or a MultiBinary"
        raise ValueError(f"action_space must be {kinds}, got {action_space}")
    for name, space in [("observation_space", observation_space), ("action_space", action_space)]:
        if isinstance(space, Discrete | MultiDiscrete) and np.any(space.start):
            raise ValueError(f"{name} must be a {type(space).__name__} that starts at 0, got {space}")
    if isinstance(action_space, MultiDiscrete | MultiBinary) and len(action_space.shape or ()) != 1:
        raise ValueError(f"action_space must be a {type(action_space).__name__} of one dimension, got {action_space}")
    if isinstance(action_space, Box) and len(action_space.shape) != 1:
        fix = "wrap it: gymnasium.wrappers.TransformAction(env, lambda a: a.reshape(shape), Box(low, high, (n,)))"
        raise ValueError(f"action_space must be a Box of one dimension, got shape {action_space.shape}; {fix}")
    if isinstance(observation_space, Box) and 0 in observation_space.shape:
        raise ValueError(f"observation_space must have observations of at least one number, got {observation_space}")


def check_policy_kwargs(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `policy_kwargs` without gSDE's options, and with `net_arch` in the current form.

    Raises:
        ValueError: gSDE is on, a name is unknown, or a value does not fit.
    """
    check_type("policy_kwargs", policy_kwargs, Mapping, "a mapping, as PPO takes it")
    for name in policy_kwargs:
        if name in {"use_sde", "squash_output"} and policy_kwargs[name]:
            raise ValueError(f"policy_kwargs[{name!r}] must be False: its distribution is not a plain normal one")
        if name not in POLICY_KWARGS | GSDE:
            hint = did_you_mean(name, POLICY_KWARGS)
            raise ValueError(f"policy_kwargs must have names among {sorted(POLICY_KWARGS)}, got {name!r}{hint}")
    kwargs = {name: value for name, value in policy_kwargs.items() if name not in GSDE}
    if kwargs.get("net_arch") is not None:
        kwargs["net_arch"] = _parse_net_arch(kwargs["net_arch"])
    if "log_std_init" in kwargs:
        check_real("policy_kwargs['log_std_init']", kwargs["log_std_init"], -torch.inf)
    _check_class("activation_fn", kwargs, nn.Module, nn)
    _check_class("features_extractor_class", kwargs, BaseFeaturesExtractor, torch_layers)
    _check_class("optimizer_class", kwargs, torch.optim.Optimizer, torch.optim)
    return kwargs


def _parse_net_arch(net_arch: Any) -> Any:
    """`net_arch` in the form that SB3 documents: a list of layers, or a mapping of pi and vf to lists.

    Raises:
        ValueError: another form, or layers that are not positive integers.
    """
    if isinstance(net_arch, list | tuple) and any(isinstance(part, Mapping) for part in net_arch):
        if len(net_arch) > 1:
            raise ValueError(f"{NET_ARCH}, got {net_arch!r}: SB3 no longer has shared layers")
        warnings.warn(
            f"net_arch as a list of a dict is from old versions of Stable-Baselines3; write net_arch={net_arch[0]!r}",
            stacklevel=4,
        )
        net_arch = net_arch[0]
    named = net_arch if isinstance(net_arch, Mapping) else {"pi": net_arch}
    for name, layers in named.items():
        if name not in ("pi", "vf") or not isinstance(layers, list | tuple):
            raise ValueError(f"{NET_ARCH}, got {net_arch!r}")
        for units in layers:
            check_int("policy_kwargs['net_arch'] units", units)
    return dict(net_arch) if isinstance(net_arch, Mapping) else list(net_arch)


def _check_class(argument: str, kwargs: Mapping[str, Any], base: type, module: Any) -> None:
    found = kwargs.get(argument)
    if found is None or (isinstance(found, type) and issubclass(found, base)):
        return
    classes = {name.lower(): name for name, x in vars(module).items() if isinstance(x, type) and issubclass(x, base)}
    near = classes.get(found.lower()) if isinstance(found, str) else None
    hint = f"; did you mean {module.__name__}.{near}?" if near else ""
    raise ValueError(f"policy_kwargs[{argument!r}] must be a class derived from {base.__name__}, got {found!r}{hint}")
