"""Running any policy network for all tasks at once.

A policy is an `nn.Module` whose `forward(obs [B, ...])` returns the parameters of its action distribution. `vmap` with
`functional_call` runs it with one set of parameters per task.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.func import vmap

from metarl import tree
from metarl.functional import call
from metarl.rl.distributions import DistParams
from metarl.types import Params


def policy_params(policy: nn.Module, obs: Tensor) -> Params:
    """The parameters of `policy` that its action distribution depends on, detached, in the module's order.

    An actor-critic's value network is not among them, so nothing is ever computed for it.
    """
    outputs = sum(output.sum() for output in policy(obs))
    named = [(name, leaf) for name, leaf in policy.named_parameters() if leaf.requires_grad]
    grads = torch.autograd.grad(outputs, [leaf for _, leaf in named], allow_unused=True)
    return {name: leaf.detach().clone() for (name, leaf), g in zip(named, grads, strict=True) if g is not None}


def stacked_forward(policy: nn.Module, params: Params, shared: Params, obs: Tensor) -> DistParams:
    """A policy's forward for T tasks, `params [T, ...], obs [T, E, ...] -> parameters [T, E, ...]`.

    `shared` is what all tasks have in common: what the module holds beside `params` (see `shared_state`), and `params`
    themselves where these are empty.
    """

    def one(w: Params, o: Tensor) -> DistParams:
        output: DistParams = call(policy, w, o)
        return output

    # One product over the rows of all tasks would round otherwise for another number of tasks.
    everything = {**tree.stack(shared, len(obs)), **params}
    outputs: DistParams = vmap(one)(everything, obs)
    return outputs


def shared_state(policy: nn.Module, params: Params) -> Params:
    """What a module holds beside `params` (frozen parameters, a normaliser's buffers): the same for all tasks."""
    everything = itertools.chain(policy.named_parameters(), policy.named_buffers())
    return {name: leaf.detach() for name, leaf in everything if name not in params}
