"""Independent draws with replacement from finite data: all of them at once for exact expectations, or at random.

The theorems' draws are independent and identically distributed. Over finite data every expectation over small draws is
a finite sum, and sigma, sigma~ and sigma_H are exact.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from metarl import Method, tree
from metarl.derivatives import gradients
from metarl.experiments.reports.theory.numerics import Vector
from metarl.random import torch_generator
from metarl.supervised import BatchSizes, FiniteSumTaskBatch, ResamplingTaskBatch
from metarl.types import Batch, Params, Role

ALL = BatchSizes()
"""All data in every draw."""


class Enumeration(NamedTuple):
    """Every combination of a task and one draw for each of the three roles, as a batch of tasks."""

    tasks: ResamplingTaskBatch
    shape: tuple[int, int, int, int]  # tasks, inner draws, outer draws, Hessian draws


def enumerate_draws(tasks: FiniteSumTaskBatch, sizes: BatchSizes) -> Enumeration:
    """All draws with replacement of these sizes, in order, so each has the same probability; `None` is all data."""
    points = next(iter(tasks.support.values())).shape[1]
    choices = [
        torch.arange(points)[None]
        if size is None
        else torch.tensor(list(itertools.product(range(points), repeat=size)))
        for size in sizes
    ]  # [draws, size] each
    shape = (tasks.num_tasks, *(len(choice) for choice in choices))
    index = torch.cartesian_prod(*(torch.arange(n) for n in shape))  # [combinations, 4]

    def sampler(role: Role, generator: torch.Generator) -> Batch:
        place = BatchSizes._fields.index(role)
        rows, chosen = index[:, 0], choices[place][index[:, 1 + place]]
        return {key: leaf[rows[:, None], chosen] for key, leaf in tasks.support.items()}

    every = ResamplingTaskBatch(tasks.loss, len(index), sampler, torch.Generator())
    return Enumeration(every, (shape[0], shape[1], shape[2], shape[3]))


def estimates(method: Method, tasks: FiniteSumTaskBatch, sizes: BatchSizes, w: Vector) -> Tensor:
    """The library's estimator of every task for every draw, `[tasks, draws, d]`."""
    every, shape = enumerate_draws(tasks, sizes)
    return method.update({"w": w}, every, method.inner).grads["w"].reshape(shape[0], -1, len(w))


class Spreads(NamedTuple):
    """The constants of a problem at given points, exactly."""

    sigma: float  # of the tasks' gradients around their mean
    sample: float  # sigma~: the largest standard deviation of one sample's gradient
    hessian: float  # sigma_H: the same of one sample's Hessian, in Frobenius norm


def spreads(tasks: FiniteSumTaskBatch, w: Vector, also: Tensor | None = None) -> Spreads:
    """sigma at `w`; sigma~ and sigma_H of all tasks at `w` and at the points `also`, `[tasks, points, d]`."""
    at = w.expand(tasks.num_tasks, 1, -1)
    at = at if also is None else torch.cat([at, also], dim=1)
    grads = sample_gradients(tasks, at)  # [tasks, points, samples, d]
    own = grads.mean(2)
    sample = (grads - own[:, :, None]).square().sum(-1).mean(2).max().sqrt()
    sigma = (own[:, 0] - own[:, 0].mean(0)).square().sum(-1).mean().sqrt()
    hessians = sample_hessians(tasks, at)
    spread = (hessians - hessians.mean(2, keepdim=True)).square().sum((-1, -2)).mean(2).max().sqrt()
    return Spreads(float(sigma), float(sample), float(spread))


def sample_gradients(tasks: FiniteSumTaskBatch, at: Tensor) -> Tensor:
    """The gradient on every sample at points `[tasks, points, d]`: `[tasks, points, samples, d]`."""
    shape, params, data = _each_sample(tasks, at)
    return gradients(tasks, params, data)["w"].reshape(*shape, -1)


def sample_hessians(tasks: FiniteSumTaskBatch, at: Tensor) -> Tensor:
    """The Hessian on every sample at points `[tasks, points, d]`: `[tasks, points, samples, d, d]`."""
    shape, params, data = _each_sample(tasks, at)

    def loss(w: Tensor, batch: Batch) -> Tensor:
        return tasks.loss({"w": w}, batch)

    found: Tensor = vmap(jacrev(grad(loss)))(params["w"], data)
    return found.reshape(*shape, *found.shape[1:])


def _each_sample(tasks: FiniteSumTaskBatch, at: Tensor) -> tuple[tuple[int, int, int], Params, Batch]:
    """Every task, point and sample as a task with a batch of one sample."""
    samples = next(iter(tasks.support.values())).shape[1]
    number, points = at.shape[:2]
    params = {"w": at[:, :, None].expand(-1, -1, samples, -1).flatten(0, 2)}
    data = {
        key: leaf[:, None].expand(-1, points, *leaf.shape[1:]).flatten(0, 2)[:, None]
        for key, leaf in tasks.support.items()
    }
    return (number, points, samples), params, data


class ResampledSource:
    """Tasks and samples of a finite sum, both drawn with replacement."""

    score_name = "minus_loss"

    def __init__(self, tasks: FiniteSumTaskBatch, sizes: BatchSizes, start: Vector) -> None:
        self.tasks, self.sizes, self.start = tasks, sizes, start
        sizes.check_all_given("sizes")

    def initial_params(self) -> Params:
        """Where training starts."""
        return tree.detach({"w": self.start})

    def sample(self, num_tasks: int, rng: np.random.Generator) -> ResamplingTaskBatch:
        """Independent tasks; one may come twice."""
        rows = torch.from_numpy(rng.integers(self.tasks.num_tasks, size=num_tasks))[:, None]

        def sampler(role: Role, generator: torch.Generator) -> Batch:
            points = next(iter(self.tasks.support.values())).shape[1]
            chosen = torch.randint(points, (num_tasks, getattr(self.sizes, role)), generator=generator)
            return {key: leaf[rows, chosen] for key, leaf in self.tasks.support.items()}

        return ResamplingTaskBatch(self.tasks.loss, num_tasks, sampler, torch_generator(rng))
