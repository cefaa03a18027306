"""Divergences and Fisher matrices of policies against `torch.distributions` and against dense Hessians by autograd."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Distribution, Normal
from torch.distributions import kl_divergence as torch_kl
from torch.func import jacrev

from metarl.agents import make_policy
from metarl.derivatives import divergences, fisher_products
from metarl.engine import Engine
from metarl.envs import GridWorld, Navigation
from metarl.rl import ReinforcementLearning
from metarl.rl.distributions import (
    ActionDistribution,
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    SquashedGaussian,
)
from metarl.tree import broadcast
from metarl.types import Params

DOUBLE = torch.float64


def gaussian(seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    loc, raw = torch.randn(2, 5, 3, generator=generator, dtype=DOUBLE)
    return loc, raw.exp()


def logits(seed: int) -> tuple[Tensor, ...]:
    return (torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE),)


def two_logits(seed: int) -> tuple[Tensor, ...]:
    return (torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE),)


def as_torch(outputs: tuple[Tensor, ...]) -> Distribution:
    return TorchCategorical(logits=outputs[0]) if len(outputs) == 1 else Normal(*outputs)


KINDS: list[Any] = [(DiagonalGaussian(3), gaussian), (SquashedGaussian(3), gaussian), (Categorical(3), logits)]


PRODUCTS: list[Any] = [(MultiCategorical([2, 3]), two_logits), (Bernoulli(5), two_logits)]


def as_torch_parts(distribution: ActionDistribution, outputs: tuple[Tensor, ...]) -> list[Distribution]:
    if isinstance(distribution, Bernoulli):
        return [TorchBernoulli(logits=bit) for bit in outputs[0].unbind(-1)]
    assert isinstance(distribution, MultiCategorical)
    return [TorchCategorical(logits=part) for part in torch.split(outputs[0], list(distribution.sizes), -1)]


@pytest.mark.parametrize(("distribution", "make"), PRODUCTS)
def test_kl_of_products_is_the_sum_of_their_parts(distribution: ActionDistribution, make: Any) -> None:
    old, new = make(0), make(1)
    pairs = zip(as_torch_parts(distribution, old), as_torch_parts(distribution, new), strict=True)
    assert torch.allclose(distribution.kl(old, new), torch.stack([torch_kl(a, b) for a, b in pairs]).sum(0))


@pytest.mark.parametrize(("distribution", "make"), KINDS)
def test_kl_is_that_of_torch_distributions(distribution: ActionDistribution, make: Any) -> None:
    old, new = make(0), make(1)
    wanted = torch_kl(as_torch(old), as_torch(new))
    wanted = wanted.sum(-1) if len(old) == 2 else wanted  # torch: one for each action dimension
    assert torch.allclose(distribution.kl(old, new), wanted)
    assert torch.allclose(distribution.kl(old, old), torch.zeros(5, dtype=DOUBLE), atol=1e-14)


def test_kl_of_squashed_actions_is_that_of_the_actions_after_tanh() -> None:
    """A sample estimate: the mean of log pi_old - log pi_new over actions of pi_old, with the slope of tanh in both."""
    squashed, generator = SquashedGaussian(1), torch.Generator().manual_seed(0)
    old, new = [(torch.full((1,), m, dtype=DOUBLE), torch.full((1,), s, dtype=DOUBLE)) for m, s in ((0, 1), (0.3, 0.8))]
    actions = squashed.sample(old, torch.randn(200_000, 1, generator=generator, dtype=DOUBLE))
    differences = squashed.log_prob(old, actions) - squashed.log_prob(new, actions)
    error = differences.std() / len(differences) ** 0.5
    assert abs(differences.mean() - squashed.kl(old, new)) < 4 * error < 0.02


@pytest.mark.parametrize(("distribution", "make"), [*KINDS, *PRODUCTS])
def test_fisher_product_is_the_hessian_of_kl(distribution: ActionDistribution, make: Any) -> None:
    outputs, tangents = make(0), make(2)
    got = distribution.fisher_product(outputs, tangents)
    for row in range(5):
        own = torch.stack([x[row] for x in outputs])  # [parameters, A]
        dense = jacrev(jacrev(lambda x, own=own: distribution.kl(tuple(own), tuple(x))))(own)
        wanted = torch.einsum("iajb,jb->ia", dense, torch.stack([x[row] for x in tangents]))
        assert torch.allclose(torch.stack([x[row] for x in got]), wanted)


def source(kind: str, normalized: bool = False) -> ReinforcementLearning:
    tasks: Any = Navigation(horizon=6) if kind == "box" else GridWorld(horizon=6)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]}).double()
    with torch.no_grad():  # away from zero, where actions hardly depend on the first layer
        for leaf in policy.parameters():
            leaf.add_(0.3 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(leaf.numel())))
    return ReinforcementLearning(tasks, policy, episodes=3, normalize_observations=normalized)


def near(params: Params, seed: int, scale: float) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {k: scale * torch.randn(2, *v.shape, generator=generator, dtype=DOUBLE) for k, v in params.items()}


@pytest.mark.parametrize("kind", ["box", "discrete"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("record", [False, True])
def test_of_policies_over_their_states(kind: str, normalized: bool, record: bool) -> None:
    made = source(kind, normalized)
    tasks, params = made.sample(2, np.random.default_rng(0)), made.initial_params()
    stacked = broadcast(params, 2)
    batch = tasks.draw(stacked, "outer")
    moved = {k: stacked[k] + step for k, step in near(params, 1, 0.1).items()}
    vectors = near(params, 2, 1.0)
    with Engine(record=record).current():
        kls, products = divergences(tasks, stacked, moved, batch), fisher_products(tasks, stacked, batch, vectors)
    network: nn.Module = made.policy
    for task in range(2):
        keep = batch["mask"][task].bool()
        obs = batch["obs"][task][keep]

        def outputs(w: Params, obs: Tensor = obs) -> tuple[Tensor, ...]:
            return torch.func.functional_call(network, w, obs)  # type: ignore[no-any-return]

        own = {k: v[task] for k, v in stacked.items()}
        new = {k: v[task] for k, v in moved.items()}
        of_states = torch_kl(as_torch(outputs(own)), as_torch(outputs(new)))
        wanted = (of_states.sum(-1) if kind == "box" else of_states).mean()
        assert torch.allclose(kls[task], wanted, rtol=1e-8)

        # the dense Fisher matrix, the Hessian of torch's divergence by autograd
        names, sizes = list(own), [leaf.numel() for leaf in own.values()]
        flat = torch.cat([leaf.flatten() for leaf in own.values()])

        def mean_kl(x: Tensor, own: Params = own, names: Any = names, sizes: Any = sizes) -> Tensor:
            pieces = {n: piece.view(own[n].shape) for n, piece in zip(names, x.split(sizes), strict=True)}
            found = torch_kl(as_torch(outputs(own)), as_torch(outputs(pieces)))
            return (found.sum(-1) if kind == "box" else found).mean()

        dense = torch.autograd.functional.hessian(mean_kl, flat)
        vector = torch.cat([vectors[n][task].flatten() for n in names])
        got = torch.cat([products[n][task].flatten() for n in names])
        assert torch.allclose(got, dense @ vector, rtol=1e-6, atol=1e-10)
        assert vector @ got > 0
