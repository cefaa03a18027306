"""Running any policy network for all tasks at once, without Python's overhead in every step.

A policy is an `nn.Module` whose `forward(obs [B, ...])` returns the parameters of its action distribution. `vmap` with
`functional_call` runs it with one set of parameters per task, at a millisecond a step; tracing that once into a flat
list of tensor operations, and computing what does not depend on the observation once per rollout, takes most of it
back.
"""

import itertools
import logging
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.execution import drop_identities
from metarl.functional import call
from metarl.rl.distributions import DistParams
from metarl.types import Params

log = logging.getLogger(__name__)

Forward: TypeAlias = Callable[[Tensor], DistParams]


def policy_params(policy: nn.Module, obs: Tensor) -> Params:
    """The parameters of `policy` that its action distribution depends on, detached, in the module's order.

    An actor-critic's value network is not among them, so nothing is ever computed for it.
    """
    outputs = sum(output.sum() for output in policy(obs))
    named = [(name, leaf) for name, leaf in policy.named_parameters() if leaf.requires_grad]
    grads = torch.autograd.grad(outputs, [leaf for _, leaf in named], allow_unused=True)
    return {name: leaf.detach().clone() for (name, leaf), g in zip(named, grads, strict=True) if g is not None}


class StackedPolicy:
    """A policy's forward for T tasks, `params [T, ...], obs [T, E, ...] -> parameters [T, E, ...]`.

    What the module holds beside `params` (frozen parameters, buffers such as a normaliser's) is the same for all tasks.
    """

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy
        self._traced: dict[tuple[object, ...], tuple[fx.GraphModule, fx.GraphModule] | None] = {}

    def __call__(self, params: Params, obs: Tensor) -> DistParams:
        """The plain vmapped forward."""
        return self._forward(params, self._shared(params), obs)

    @torch.no_grad()
    def bind(self, params: Params, obs: Tensor) -> Forward:
        """The forward at fixed `params`, as a fast function of observations shaped like `obs`.

        Traced once per shape. A network that cannot be traced runs plainly, and the reason is logged.
        """
        shared = self._shared(params)
        key = (tuple((k, v.shape, v.dtype, v.device) for k, v in params.items()), obs.shape, obs.dtype)
        if key not in self._traced:
            try:
                self._traced[key] = self._trace(params, shared, obs)
            except Exception as error:  # whatever tracing trips over, the plain forward is right
                log.warning("the policy cannot be traced and runs slower: %s", error)
                self._traced[key] = None
        traced = self._traced[key]
        if traced is None:
            return lambda o: self._forward(params, shared, o)
        once, every_step = traced
        constants = once(*params.values(), *shared.values())
        return lambda o: every_step(*constants, o)

    def _shared(self, params: Params) -> Params:
        everything = itertools.chain(self.policy.named_parameters(), self.policy.named_buffers())
        return {name: leaf.detach() for name, leaf in everything if name not in params}

    def _forward(self, params: Params, shared: Params, obs: Tensor) -> DistParams:
        def one(w: Params, o: Tensor) -> DistParams:
            output: DistParams = call(self.policy, {**shared, **w}, o)
            return output

        outputs: DistParams = vmap(one)(params, obs)
        return outputs

    def _trace(self, params: Params, shared: Params, obs: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
        def flat(*leaves: Tensor) -> DistParams:
            split = len(params)
            w, rest = dict(zip(params, leaves, strict=False)), dict(zip(shared, leaves[split:], strict=False))
            return self._forward(w, rest, leaves[-1])

        inputs = [*params.values(), *shared.values()]
        traced = make_fx(flat, tracing_mode="fake")(*inputs, obs)
        drop_identities(traced.graph)
        once, every_step = _split(traced)
        for got, plain in zip(every_step(*once(*inputs), obs), self._forward(params, shared, obs), strict=True):
            torch.testing.assert_close(got, plain)
        return once, every_step


def _split(traced: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a graph in two: what follows from the parameters alone, and what needs the observation (the last input)."""
    nodes = list(traced.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    varying = {inputs[-1]}
    for node in nodes:
        if node.op != "output" and varying.intersection(node.all_input_nodes):
            varying.add(node)
    output = nodes[-1]
    needed = [n for n in nodes if n not in varying and n is not output and (varying | {output}).intersection(n.users)]

    once, every_step = fx.Graph(), fx.Graph()
    first: dict[fx.Node, fx.Node] = {}
    second: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node not in varying and node is not output:
            first[node] = once.node_copy(node, lambda n: first[n])
    once.output(tuple(first[n] for n in needed))
    for i, node in enumerate(needed):
        second[node] = every_step.placeholder(f"constant_{i}")
    for node in nodes:
        if node in varying:
            second[node] = every_step.node_copy(node, lambda n: second[n])
    every_step.output(fx.map_arg(output.args[0], lambda n: second[n]))
    modules = fx.GraphModule(traced, once), fx.GraphModule(traced, every_step)
    for module in modules:
        module.graph.eliminate_dead_code()
        module.recompile()
    return modules
