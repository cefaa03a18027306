"""Every update a second time: for one task, on one flat vector, with plain autograd and dense matrices.

Nothing here uses the library's mathematics. `Data` holds the losses of one task as functions of the flat parameters,
each on the batch it was drawn; an `Answer` is the meta-gradient and the points the paper draws data at.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Tensor, Tensor], Tensor]


class Sampled(NamedTuple):
    """What one task's data say about how they were sampled."""

    frozen: list[Function]  # log-probabilities times advantages, on D_j
    log_likelihood: list[Function]  # of every trajectory in D_j, [n]
    values: list[Tensor]  # the objective as these trajectories sample it, [n]
    outcome: Tensor  # the mean objective of D_o
    others: Tensor  # the same of all other tasks, [T - 1]
    parts: list[list[Function]] = []  # noqa: RUF012 (the frozen loss of each single trajectory in D_j)


class Data(NamedTuple):
    """The losses of one task."""

    inner: list[Function]  # f(.; D_j)
    outer: Function  # f(.; D_o)
    hessian: list[Function]  # f(.; D_h) of step j
    sampled: Sampled | None = None
    earlier: list[Function] = []  # noqa: RUF012 (f(.; D_o) at the points before the last one)
    particles: Tensor | None = None  # where each particle's numbers are in the flat parameters, [M, P]
    sizes: tuple[int, int] = (1, 1)  # points in an inner and an outer batch
    score: Callable[[str, Tensor], float] = lambda role, w: 0.0  # of the support (inner) or the query set (outer)
    normal: Callable[..., Tensor] = torch.zeros  # this task's random direction with a label, [P]


class Answer(NamedTuple):
    """What an update should return, and where it should have drawn data."""

    gradient: Tensor
    points: list[Tensor]  # w_0 ... w_N: the inner draws, and the outer one at the end
    hessian_at: list[Tensor]  # in the order of drawing
    outer_at: list[Tensor] = []  # noqa: RUF012 (if there is more than the end)


def gradient(f: Function, w: Tensor) -> Tensor:
    leaf = w.detach().clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


def hessian(f: Function, w: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(f, w.detach())


def sgd_step(alpha: float) -> Step:
    return lambda w, g, anchor: w - alpha * g


def sign_step(alpha: float) -> Step:
    return lambda w, g, anchor: w - alpha * ((g > 0).to(g) - (g < 0).to(g))


def prox_step(alpha: float, lam: float) -> Step:
    return lambda w, g, anchor: w - alpha * g - alpha * lam * (w - anchor)


def restart_step(alpha: float) -> Step:
    return lambda w, g, anchor: anchor - alpha * g


def path(step: Step, w: Tensor, data: Data) -> list[Tensor]:
    points = [w]
    for f in data.inner:
        points.append(step(points[-1], gradient(f, points[-1]), w))
    return points


def by_step(points: list[Tensor], functions: list[Function]) -> list[tuple[Tensor, Function]]:
    """The points before each step with what was drawn for it."""
    assert len(functions) == len(points) - 1, f"{len(functions)} Hessian batches for {len(points) - 1} steps"
    return list(zip(points[:-1], functions, strict=True))


def unrolled(step: Step, w: Tensor, data: Data) -> Answer:
    """Autograd through the whole inner loop: D_h is D_j."""
    leaf = w.detach().clone().requires_grad_()
    points = [leaf]
    for f in data.inner:
        g = torch.autograd.grad(f(points[-1]), points[-1], create_graph=True)[0]
        points.append(step(points[-1], g, leaf))
    g = torch.autograd.grad(data.outer(points[-1]), leaf)[0]
    return Answer(g, [p.detach() for p in points], [])


def product(w: Tensor, data: Data, alpha: float) -> Answer:
    """Ji et al., eq. 2.4, as written: a product of dense matrices times a vector."""
    points = path(sgd_step(alpha), w, data)
    matrix = torch.eye(len(w), dtype=w.dtype)
    for z, f in by_step(points, data.hessian):
        matrix = matrix @ (torch.eye(len(w), dtype=w.dtype) - alpha * hessian(f, z))
    return Answer(matrix @ gradient(data.outer, points[-1]), points, points[-2::-1])


def unrolled_sgd(w: Tensor, data: Data, alpha: float) -> Answer:
    return unrolled(sgd_step(alpha), w, data)


def first_order(w: Tensor, data: Data, alpha: float) -> Answer:
    points = path(sgd_step(alpha), w, data)
    return Answer(gradient(data.outer, points[-1]), points, [])


def sign(w: Tensor, data: Data, alpha: float) -> Answer:
    return unrolled(sign_step(alpha), w, data)


def moreau(w: Tensor, data: Data, alpha: float) -> Answer:
    z = [w]
    for f in data.inner:
        z.append(w - alpha * gradient(f, z[-1]))
    return Answer(gradient(data.outer, z[-1]), z, [])


def reptile(w: Tensor, data: Data, alpha: float) -> Answer:
    """`w - w_N` is alpha times the sum of the gradients on the way."""
    points = path(sgd_step(alpha), w, data)
    total = sum(gradient(f, z) for f, z in zip(data.inner, points[:-1], strict=True))
    return Answer(alpha * total, points, [])


def hessian_free(
    w: Tensor, data: Data, alpha: float, delta: str = "relative", rho: float = 1.0, hessian_data: str = "fresh"
) -> Answer:
    """Fallah et al., eq. 1.7-1.9, for each step: the probe goes along v, which reaches |delta v|."""
    points = path(sgd_step(alpha), w, data)
    v = gradient(data.outer, points[-1])
    functions = data.hessian if hessian_data == "fresh" else data.inner
    for z, f in reversed(by_step(points, functions)):
        reach = 1e-4 * (1 + z.norm()) if delta == "relative" else 1 / (6 * rho * alpha)
        d = reach / v.norm()
        v = v - alpha * (gradient(f, z + d * v) - gradient(f, z - d * v)) / (2 * d)
    return Answer(v, points, points[-2::-1] if hessian_data == "fresh" else [])


def implicit(w: Tensor, data: Data, alpha: float, lam: float) -> Answer:
    """`(I + H / lam) d = g` by a dense solve."""
    points = path(prox_step(alpha, lam), w, data)
    matrix = torch.eye(len(w), dtype=w.dtype) + hessian(data.hessian[-1], points[-1]) / lam
    return Answer(torch.linalg.solve(matrix, gradient(data.outer, points[-1])), points, [points[-1]])


def before_adaptation(w: Tensor, data: Data, alpha: float) -> Answer:
    return Answer(gradient(data.outer, w), [w], [])


def binomial(w: Tensor, data: Data, alpha: float, order: int, hessian_data: str = "fresh") -> Answer:
    """The sum over all choices of at most `order` steps, each a product of dense matrices in the path's order."""
    points = path(sgd_step(alpha), w, data)
    functions = data.hessian if hessian_data == "fresh" and order else data.inner
    matrices = [-alpha * hessian(f, z) for z, f in by_step(points, functions)]
    total = torch.zeros_like(matrices[0])
    for number in range(min(order, len(matrices)) + 1):
        for chosen in itertools.combinations(matrices, number):
            total = total + functools.reduce(torch.matmul, chosen, torch.eye(len(w), dtype=w.dtype))
    fresh = hessian_data == "fresh" and order > 0
    return Answer(total @ gradient(data.outer, points[-1]), points, points[-2::-1] if fresh else [])


def smoothed(
    w: Tensor,
    data: Data,
    alpha: float,
    directions: int = 5,
    smoothing: float | None = None,
    hessian_data: str = "fresh",
) -> Answer:
    """The matrix `sum_k (difference of gradients) u_k^T / (2 s K)` in the place of each Hessian."""
    points = path(sgd_step(alpha), w, data)
    v = gradient(data.outer, points[-1])
    used = data.hessian if hessian_data == "fresh" else data.inner
    for number, (z, f) in enumerate(reversed(by_step(points, used))):
        s = 1e-4 * (1 + z.norm()) / math.sqrt(len(z)) if smoothing is None else smoothing
        matrix = torch.zeros(len(z), len(z), dtype=z.dtype)
        for k in range(directions):
            u = data.normal(number, k)
            matrix += torch.outer(gradient(f, z + s * u) - gradient(f, z - s * u), u) / (2 * s * directions)
        v = v - alpha * (matrix @ v)
    return Answer(v, points, points[-2::-1] if hessian_data == "fresh" else [])


def linearised(w: Tensor, data: Data, alpha: float) -> Answer:
    """A dense Hessian of the frozen loss, and one trajectory after the other credited with its linear effect."""
    s, points = data.sampled, path(sgd_step(alpha), w, data)
    assert s is not None
    v = gradient(data.outer, points[-1])
    for z, frozen, log_likelihood, parts in reversed(
        list(zip(points[:-1], s.frozen, s.log_likelihood, s.parts, strict=True))
    ):
        pulled = v - alpha * (hessian(frozen, z) @ v)
        for n, part in enumerate(parts):
            credit = -alpha / len(parts) * (gradient(part, z) @ v)
            pulled = pulled + credit * gradient(lambda x, n=n, f=log_likelihood: f(x)[n], z)
        v = pulled
    return Answer(v, points, [])


def evolution(
    w: Tensor,
    data: Data,
    alpha: float,
    adaptation: str = "es",
    directions: int = 1,
    queries: int = 2,
    smoothing: float = 0.02,
) -> Answer:
    """ES-MAML, whose draws on a finite sum are the whole support or query set."""
    total, score = torch.zeros_like(w), functools.partial(data.score, "inner")
    for k in range(directions):
        u = data.normal(1, k)
        for sign in (1, -1):
            z = w + sign * smoothing * u
            for j in range(len(data.inner)):
                around = [data.normal(2, k, j, m) for m in range(queries)]
                if adaptation == "es":
                    found = np.array([[score(z + t * smoothing * v) for t in (1, -1)] for v in around])
                    found = (found - found.mean()) / (found.std() or 1.0)
                    moves = [(x - y) / (2 * queries) * v for (x, y), v in zip(found, around, strict=True)]
                    z = z + alpha * sum(moves)
                else:
                    for v in around:
                        z = z + alpha * v if score(z + alpha * v) > score(z) else z
            total = total - sign * data.score("outer", z) / (2 * smoothing * directions) * u
    return Answer(total, [w], [])


def sampled_objective(w: Tensor, data: Data, alpha: float, baseline: str = "none") -> Answer:
    """Autograd of the outcome and of all data's log-likelihoods times the outcome, through the whole inner loop."""
    s = data.sampled
    assert s is not None
    leaf = w.detach().clone().requires_grad_()
    points, total = [leaf], torch.zeros((), dtype=w.dtype)
    for f, log_likelihood, values in zip(s.frozen, s.log_likelihood, s.values, strict=True):
        for n, log_p in enumerate(log_likelihood(points[-1])):
            left_out = {"none": [0.0], "tasks": s.others.tolist(), "trajectories": np.delete(values.numpy(), n)}[
                baseline
            ]
            total = total + (s.outcome - float(np.mean(left_out))) * log_p
        g = torch.autograd.grad(f(points[-1]), points[-1], create_graph=True)[0]
        points.append(points[-1] - alpha * g)
    g = torch.autograd.grad(data.outer(points[-1]) + total, leaf)[0]
    return Answer(g, [p.detach() for p in points], [])


def several_losses(
    w: Tensor, data: Data, alpha: float, progress: float, second_order: bool, hessian_data: str = "fresh"
) -> Answer:
    """MAML++: autograd of the weighted sum of the losses at w_1 ... w_N through the whole inner loop.

    With fresh D_h each step is replaced by its linearisation with that Hessian, so that autograd multiplies by it.
    """
    n, leaf = len(data.inner), w.detach().clone().requires_grad_()
    points = [leaf]
    for j, f in enumerate(data.inner):
        z = points[-1]
        if hessian_data == "reuse" and second_order:
            g = torch.autograd.grad(f(z), z, create_graph=True)[0]
        else:
            g = gradient(f, z)
            if second_order:
                g = g + hessian(data.hessian[j], z) @ (z - z.detach())
        points.append(z - alpha * g)
    weights = [max((1 - progress) / n, 0.03 / n) if progress < 1 else 0.0] * (n - 1)
    losses = [f(z) for f, z in zip([*data.earlier, data.outer], points[1:], strict=True)]
    loss = sum(v * x for v, x in zip([*weights, 1 - sum(weights)], losses, strict=True))
    g = torch.autograd.grad(loss, leaf)[0]
    at = [p.detach() for p in points]
    return Answer(g, at, at[-2::-1] if second_order and hessian_data == "fresh" else [], at[1:])


def kernel_step(
    theta: Tensor, grads: Tensor, eps: float, temperature: float, prior_precision: float, fixed_bandwidth: bool = False
) -> Tensor:
    """Liu, Wang (2016), eq. 8, particle by particle `[M, P]`: the kernel's gradient by autograd, h fixed within it."""
    number = len(theta)
    pairs = [(theta[i] - theta[j]).square().sum() for i in range(number) for j in range(i)]
    median = torch.quantile(torch.stack(pairs), 0.5) if pairs else torch.ones(())
    h = median / np.log(number) if number > 1 else median
    h = h.detach() if fixed_bandwidth else h
    moved = []
    for m in range(number):
        direction = torch.zeros_like(theta[m])
        for j in range(number):
            other = theta[j].clone()  # a separate variable: h does not move with it
            k = torch.exp(-((other - theta[m]) ** 2).sum() / h)
            repulsion = torch.autograd.grad(k, other, create_graph=True)[0]
            log_p = -grads[j] / temperature - prior_precision * theta[j]
            direction = direction + k * log_p + repulsion
        moved.append(theta[m] + eps / number * direction)
    return torch.stack(moved)


def bayesian(
    w: Tensor,
    data: Data,
    alpha: float,
    temperature: float = 0.01,
    prior_precision: float = 0.0,
    leader_steps: int = 1,
    objective: str = "chaser",
    fixed_bandwidth: bool = False,
    attached: bool = False,
) -> Answer:
    """Autograd through all steps of the chaser; the leader goes on without a graph, unless it is `attached`."""
    assert data.particles is not None
    where, back = data.particles, data.particles.flatten().argsort()

    def step(flat: Tensor, g: Tensor, at: float) -> Tensor:
        return kernel_step(flat[where], g[where], alpha * at, at, prior_precision, fixed_bandwidth).flatten()[back]

    leaf = w.detach().clone().requires_grad_()
    points = [leaf]
    for f in data.inner:
        g = torch.autograd.grad(f(points[-1]), points[-1], create_graph=True)[0]
        points.append(step(points[-1], g, temperature))
    if objective == "chaser":
        (n, o), leader = data.sizes, points[-1]
        for _ in range(leader_steps):
            total = (n * data.inner[-1](leader) + o * data.outer(leader)) / (n + o)
            g = torch.autograd.grad(total, leader, create_graph=True)[0]
            leader = step(leader, g, temperature * n / (n + o))
        loss = (points[-1] - (leader if attached else leader.detach())).square().sum()
    else:
        loss = data.outer(points[-1]) / len(where)
    return Answer(torch.autograd.grad(loss, leaf)[0], [p.detach() for p in points], [])
