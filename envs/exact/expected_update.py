"""What meta-gradient estimators are held against where the expected loss is known, and what they are on average."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad

from metarl import tree
from metarl.errors import check_int, check_real
from metarl.outer import Method
from metarl.rl.oracle import ReinforcementLearning
from metarl.types import Params, TaskParams


def product_form(expected_loss: Callable[[Params], Tensor], params: Params, alpha: float, steps: int = 1) -> Params:
    """The gradient of `w -> f(w_N)` with exact inner gradients: `prod_j (I - alpha H(w_j)) grad f(w_N)`.

    Args:
        expected_loss: f of ONE task, twice differentiable by `torch.func`, in the units `alpha` is meant in.
        params: w.
        alpha: the inner step size.
        steps: N.

    Raises:
        ValueError: for a negative `alpha`, or `steps` that are no number of steps.

    Example:
        >>> product_form(lambda w: (w["x"] - 1) ** 2, {"x": torch.tensor(0.0)}, alpha=0.25)
        {'x': tensor(-0.5000)}
    """
    check_real("alpha", alpha, open_low=False)
    check_int("steps", steps, minimum=0)

    def at_the_end(w: Params) -> Tensor:
        for _ in range(steps):
            g = grad(expected_loss)(w)
            w = {key: w[key] - alpha * g[key] for key in w}
        return expected_loss(w)

    result: Params = grad(at_the_end)(params)
    return result


class Estimate(NamedTuple):
    """A mean over sampled tasks, all leaves in one vector."""

    mean: Tensor  # [P]
    stderr: Tensor  # [P]
    std: float  # of one task's meta-gradient: the root of the summed variances
    samples: int

    def off(self, target: Tensor) -> float:
        """How far the mean is from `target` `[P]`, in standard errors; of the worst component, with its sign."""
        scores = (self.mean - target) / self.stderr
        return float(scores[scores.abs().argmax()])


def expected_update(
    source: ReinforcementLearning,
    task: TaskParams,
    params: Params,
    method: Method,
    samples: int,
    seed: int = 0,
    chunk: int = 100_000,
) -> Estimate:
    """The expectation of a meta-gradient on ONE task, by Monte Carlo through the real oracle.

    Args:
        source: the oracle's source.
        task: arrays without a leading T.
        params: w.
        method: the update and its inner loop.
        samples: copies of the task, every one of which samples its own data.
        seed: of everything random.
        chunk: copies at a time.

    Raises:
        ValueError: for fewer than two samples, or an empty chunk.
    """
    check_int("samples", samples, minimum=2)
    check_int("chunk", chunk)
    rng, total, squares = np.random.default_rng(seed), torch.zeros(()), torch.zeros(())
    for begin in range(0, samples, chunk):
        copies = {key: np.repeat(np.asarray(x)[None], min(chunk, samples - begin), axis=0) for key, x in task.items()}
        rows = tree.flatten(method.update(params, source.tasks(copies, rng), method.inner).grads).double()  # [n, P]
        total, squares = total + rows.sum(0), squares + rows.square().sum(0)
    mean = total / samples
    variance = (squares - samples * mean.square()) / (samples - 1)
    return Estimate(mean, (variance / samples).sqrt(), float(variance.sum().sqrt()), samples)
