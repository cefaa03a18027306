"""Running any policy network for all tasks at once.

A policy is an `nn.Module` whose `forward(obs [B, ...])` returns the parameters of its action distribution. `vmap` with
`functional_call` runs it with one set of parameters per task.
"""

import copy
import itertools
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import vmap

from metarl import tree
from metarl.functional_call import call
from metarl.network_check import check_network
from metarl.rl.distributions import DistParams, parameter_shapes
from metarl.tree import float_leaf
from metarl.types import Params


def policy_params(policy: nn.Module, obs: Tensor) -> Params:
    """The parameters of `policy` that its action distribution depends on, detached, in the module's order.

    They leave out an actor-critic's value network, so nothing is computed for it.
    """
    outputs = sum(output.sum() for output in policy(obs))
    named = [(name, leaf) for name, leaf in policy.named_parameters() if leaf.requires_grad]
    grads = torch.autograd.grad(outputs, [leaf for _, leaf in named], allow_unused=True)
    return {name: leaf.detach().clone() for (name, leaf), g in zip(named, grads, strict=True) if g is not None}


def check_policy(policy: nn.Module, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Check that `policy` can be meta-trained on these spaces.

    Raises:
        ValueError: naming the layer that cannot be batched over tasks (see `metarl.network_check`), or when the outputs
            are not the parameters of an action distribution.
    """
    obs = probe_observations(policy, observation_space)
    outputs = check_network("policy", policy, obs, f"observations {list(obs.shape)}", rows_apart=True)
    parameters = parameter_shapes(action_space)
    wanted = f"({', '.join(parameters)}{',' if len(parameters) == 1 else ''})"
    shapes = [(len(obs), *shape) for shape in parameters.values()]
    found = [tuple(output.shape) for output in outputs] if isinstance(outputs, tuple | list) else type(outputs).__name__
    if found != shapes:
        raise ValueError(f"policy's forward must return {wanted} of shapes {shapes} for {action_space}, got {found}")
    if len(shapes) == 2 and not bool((outputs[1] > 0).all()):
        raise ValueError("policy's forward must return (loc, scale) with a positive scale")


def probe_observations(policy: nn.Module, space: spaces.Space[Any]) -> Tensor:
    """Three observations `[3, ...]` of the space, in the dtype of the policy's parameters."""
    number, rng = 3, copy.deepcopy(space)
    rng.seed(0)
    obs = np.stack([np.asarray(rng.sample()) for _ in range(number)])
    if isinstance(space, spaces.Discrete):  # different ones, if the space has several
        obs = space.start + np.arange(number) % space.n
    elif np.issubdtype(obs.dtype, np.floating):
        obs = obs.clip(-10, 10)
    return torch.as_tensor(obs).to(float_leaf(policy.parameters()))


def stacked_forward(policy: nn.Module, params: Params, shared: Params, obs: Tensor) -> DistParams:
    """A policy's forward for T tasks, `params [T, ...], obs [T, E, ...] -> parameters [T, E, ...]`.

    `shared` is the same for all tasks: the module's state besides `params` (see `shared_state`), and the parameters
    themselves if `params` is empty.
    """

    def one(w: Params, o: Tensor) -> DistParams:
        output: DistParams = call(policy, w, o)
        return output

    # a single product over the rows of all tasks would round differently for another number of tasks
    everything = {**tree.broadcast(shared, len(obs)), **params}
    outputs: DistParams = vmap(one)(everything, obs)
    return outputs


def shared_state(policy: nn.Module, params: Params) -> Params:
    """The state of a module besides `params`, the same for all tasks: frozen parameters, buffers of a normaliser."""
    everything = itertools.chain(policy.named_parameters(), policy.named_buffers())
    return {name: leaf.detach() for name, leaf in everything if name not in params}
