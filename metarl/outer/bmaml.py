"""Bayesian MAML (Kim et al., 2018): M particles that adapt together by SVGD, trained with the chaser loss.

    theta_m <- theta_m + eps/M sum_j [k(theta_j, theta_m) grad log p(theta_j) + grad_{theta_j} k(theta_j, theta_m)]
    G(w) = grad_w sum_m |theta_m^n(w) - stop(theta_m^{n+s})|^2,      k(x, y) = exp(-|x - y|^2 / h)

w holds the M initial particles. The chaser, theta^n, takes n steps on D_in. The leader, theta^{n+s}, goes on from there
for s steps on D_in and D_o together, and is held fixed. The first term of a step moves a particle along its own and its
neighbours' gradients; the second one pushes particles apart, so that they stay a sample of the posterior. The equations
are our reading of the paper. These choices are ours:

- log p(theta) = -f(theta; D_in) / temperature - (prior_precision / 2) |theta|^2 with f the *mean* loss of the data, and
  eps = inner_lr * temperature, so `inner_lr` multiplies grad f as in MAML. The posterior of n points has the
  temperature 1/n for a mean cross-entropy, and 2 sigma^2 / n for a squared error with noise of variance sigma^2.
- The leader sees n_in + n_o points, so its temperature is lower by n_in / (n_in + n_o), at the same `inner_lr`.
- h is the median of the squared distances between two particles over log M, as for SVGD (Liu, Wang, 2016). Within a
  step it is a constant for grad k. The meta-gradient is that of the steps as they are taken, so it goes through h, too.
- Hessians are those of the inner steps' own data.

If inner steps adapt only some parameters, the kernel compares particles by these alone.

A single particle has k = 1 and no repulsion: without a prior it takes MAML's steps.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.func import vmap

from metarl.derivatives import as_particles, gradients, hessian_vector_products, scores
from metarl.errors import check_choice, check_int, check_real
from metarl.inner import adaptation_path, inner_step
from metarl.outer.pull_back import pull_back
from metarl.outer.registry import Method, register
from metarl.partial import Partial, adapted
from metarl.tree import flatten, subtract, tree_map, unflatten
from metarl.types import Batch, Inner, MetaGrad, Params, Rule, TaskBatch

Objective: TypeAlias = Literal["chaser", "loss"]
"""The meta-loss: the chaser loss, or the particles' mean loss on D_o, as in MAML."""


@dataclass(frozen=True)
class Svgd:
    """One SVGD step of all particles of one task; every leaf is `[M, ...]`.

    Args:
        learning_rate: eps / temperature, which multiplies the gradient of the mean loss.
        temperature: of the likelihood; 0 leaves out the repulsion and the prior.
        prior_precision: of the Gaussian prior around zero; 0 is a flat prior.
    """

    learning_rate: float
    temperature: float
    prior_precision: float = 0.0

    def __call__(self, params: Params, grads: Params, anchor: Params) -> Params:
        theta = flatten(params)  # [M, P]
        # -temperature grad log p
        descent = flatten(grads) + self.temperature * self.prior_precision * theta
        kernel, bandwidth = rbf_kernel(theta)
        # sum_j grad_{theta_j} k(theta_j, theta_m) = sum_j (2 / h) k(theta_j, theta_m) (theta_m - theta_j)
        centred = theta - theta.mean(0)  # the differences are the same, and lose no digits
        repulsion = (kernel.sum(1, keepdim=True) * centred - kernel @ centred) * (2 / bandwidth)
        direction = (self.temperature * repulsion - kernel @ descent) / len(theta)
        return unflatten(theta + self.learning_rate * direction, params)


def rbf_kernel(theta: Tensor) -> tuple[Tensor, Tensor]:
    """`exp(-|theta_i - theta_j|^2 / h)`, `[M, M]`, and h by the median heuristic; for particles `[M, P]`.

    Where most particles coincide the median is 0, and h is 1.
    """
    number = len(theta)
    if number == 1:
        return theta.new_ones(1, 1), theta.new_ones(())
    squared = squared_distances(theta)
    ordered = squared.sort().values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    bandwidth = torch.where(median > 0, median / math.log(number), 1.0)
    # one entry for each pair, and a last one for the diagonal
    entries = torch.cat([torch.exp(-squared / bandwidth), torch.ones_like(squared[:1])])
    return entries[pairs(number).place.to(theta.device)], bandwidth


def squared_distances(theta: Tensor) -> Tensor:
    """`|theta_i - theta_j|^2` of every pair i < j of particles `[M, P]`, in the order of `pairs`; rounding counts as 0.

    From inner products of the centred particles: that takes memory for M P numbers, not for every pair's difference.
    """
    first, second, _ = (index.to(theta.device) for index in pairs(len(theta)))
    centred = theta - theta.mean(0)
    gram = centred @ centred.T
    sizes = gram.diag()[first] + gram.diag()[second]
    squared = sizes - 2 * gram[first, second]
    return torch.where(squared > 10 * torch.finfo(theta.dtype).eps * sizes, squared, 0.0)


class Pairs(NamedTuple):
    """The pairs i < j of M particles, and the number of each pair in a matrix, whose diagonal has one number more."""

    first: Tensor  # [M (M - 1) / 2]
    second: Tensor
    place: Tensor  # [M, M]


@lru_cache
def pairs(number: int) -> Pairs:
    """The pairs of `number` particles."""
    first, second = torch.triu_indices(number, number, 1)
    place = torch.full((number, number), len(first))
    place[first, second] = place[second, first] = torch.arange(len(first))
    return Pairs(first, second, place)


def as_svgd(rule: Rule) -> Svgd:
    """The rule itself, or the one of the adapted parameters.

    Raises:
        ValueError: unless it is `Svgd`.
    """
    inner = rule.rule if isinstance(rule, Partial) else rule
    if not isinstance(inner, Svgd):
        raise ValueError(f"the inner rule of bmaml must be metarl.outer.bmaml.Svgd, got {rule!r}")
    return inner


def lead(tasks: TaskBatch, start: Params, batches: tuple[Batch, Batch], rule: Rule, steps: int) -> Params:
    """The particles after `steps` more steps on both batches together, `[T, M, ...]`; `rule` is `Svgd`, or partial."""
    points = [tasks.cost(batch)["samples"] for batch in batches]
    shares = [number / sum(points) for number in points]
    svgd = as_svgd(rule)
    leading: Rule = replace(svgd, temperature=svgd.temperature * shares[0])
    if isinstance(rule, Partial):
        leading = replace(rule, rule=leading)
    theta = start
    for _ in range(steps):
        both = [gradients(tasks, theta, batch, adapted(rule, theta)) for batch in batches]
        mean_grads = tree_map(lambda a, b: shares[0] * a + shares[1] * b, *both)
        theta = inner_step(leading, theta, mean_grads, start)
    return theta


def particle_distance(particles: Params) -> Tensor:
    """The mean distance between two particles of each task, `[T]`, for leaves `[T, M, ...]`; 0 for one particle."""
    theta = vmap(flatten)(particles)  # [T, M, P]
    if theta.shape[1] == 1:
        return theta.new_zeros(len(theta))
    distances: Tensor = vmap(squared_distances)(theta).sqrt().mean(1)
    return distances


@register("bmaml")
def bmaml(
    inner_lr: float = 0.25,
    inner_steps: int = 1,
    *,
    temperature: float = 0.01,
    prior_precision: float = 0.0,
    leader_steps: int = 1,
    objective: Objective = "chaser",
) -> Method:
    """Bayesian MAML; it needs a source of particles, `metarl.supervised.particles.Particles`.

    `temperature` and `prior_precision` are those of the posterior above; 0.01 is a squared error with noise of standard
    deviation 0.22 in ten points. `leader_steps` is s. `objective` is the meta-loss: `chaser`, or `loss`, the particles'
    mean loss on D_o. Logs `particle_distance`, and `chaser_loss` for the chaser.

    Example, two particles at 0 and 1 on (x - 1)^2, without repulsion, so that each moves along both gradients, with
    k = 1 and 1/2:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> from metarl.supervised.particles import ParticleTasks
        >>> base = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> tasks, method = ParticleTasks(base, 2), bmaml(inner_lr=0.5, temperature=0.0)
        >>> theta = {"x": torch.tensor([[0.0, 1.0]])}  # [T, M]
        >>> inner_step(method.inner.rule, theta, {"x": 2 * (theta["x"] - 1)}, theta)["x"]  # 0 + 2 / 4, 1 + 1 / 4
        tensor([[0.5000, 1.2500]])
        >>> method.update({"x": theta["x"][0]}, tasks, method.inner).score  # of both particles' mean loss
        tensor([-0.1562])
    """
    check_real("temperature", temperature, open_low=False)
    check_real("prior_precision", prior_precision, open_low=False)
    check_int("leader_steps", leader_steps)
    check_choice("objective", objective, ("chaser", "loss"))

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        number = as_particles(tasks, params).particles
        as_svgd(inner.rule)
        path = adaptation_path(params, tasks, inner)
        end = path.params[-1]
        batch = tasks.draw(end, "outer")
        info = {"particle_distance": particle_distance(end)}
        # the gradient of the meta-loss at the adapted particles
        if objective == "chaser":
            gap = subtract(end, lead(tasks, end, (path.batches[-1], batch), inner.rule, leader_steps))
            info["chaser_loss"] = flatten(gap).square().sum(1)
            cotangent = tree_map(lambda x: 2 * x, gap)
        else:
            cotangent = tree_map(lambda x: x / number, gradients(tasks, end, batch))
        # pulled back to the initial particles, with the Hessians of the inner steps' own data
        grads = pull_back(tasks, path, inner, cotangent, hessian_vector_products, "reuse")
        return MetaGrad(grads, scores(tasks, end, batch), info)

    inner = Inner(Svgd(inner_lr, temperature, prior_precision), inner_steps)
    return Method(
        update,
        inner,
        needs_hessian=True,
        differentiates_twice=True,
        follows_adapted_loss=False,
        needs_particles=True,
    )
