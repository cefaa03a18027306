"""The product form of the meta-gradient, where the expected loss is known, and the mean of an update by Monte Carlo."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad

from metarl import tree
from metarl.engine import Engine, current_engine
from metarl.errors import check_int, check_real
from metarl.outer import Method
from metarl.rl.oracle import ReinforcementLearning
from metarl.types import Params, TaskParams


def product_form(expected_loss: Callable[[Params], Tensor], params: Params, alpha: float, steps: int = 1) -> Params:
    """The gradient of `w -> f(w_N)` with exact inner gradients: `prod_j (I - alpha H(w_j)) grad f(w_N)`.

    Args:
        expected_loss: f of ONE task, twice differentiable by `torch.func`, in the units of `alpha`.
        params: w.
        alpha: the inner step size.
        steps: N.

    Raises:
        ValueError: `alpha` is negative, or `steps` is not an integer of at least 0.

    Example:
        >>> product_form(lambda w: (w["x"] - 1) ** 2, {"x": torch.tensor(0.0)}, alpha=0.25)
        {'x': tensor(-0.5000)}
    """
    check_real("alpha", alpha, open_low=False)
    check_int("steps", steps, minimum=0)

    def adapted_loss(w: Params) -> Tensor:
        for _ in range(steps):
            g = grad(expected_loss)(w)
            w = {key: w[key] - alpha * g[key] for key in w}
        return expected_loss(w)

    result: Params = grad(adapted_loss)(params)
    return result


class Estimate(NamedTuple):
    """A mean over sampled tasks, all leaves in one vector."""

    mean: Tensor  # [P]
    stderr: Tensor  # [P]
    std: float  # of one task's meta-gradient: the root of the sum of the variances
    samples: int

    def z_score(self, target: Tensor) -> float:
        """The distance of the mean from `target` `[P]` in standard errors, of the worst component, with its sign."""
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
        source: draws the data.
        task: arrays without a leading T.
        params: w.
        method: the update and its inner loop.
        samples: number of copies of the task; each samples its own data.
        seed: of all random numbers.
        chunk: number of copies computed at a time.

    Raises:
        ValueError: `samples` is below 2, or `chunk` below 1.
    """
    check_int("samples", samples, minimum=2)
    check_int("chunk", chunk)
    rng, total, squares = np.random.default_rng(seed), torch.zeros(()), torch.zeros(())
    with current_engine(Engine()).current():
        for begin in range(0, samples, chunk):
            number = min(chunk, samples - begin)
            copies = {key: np.repeat(np.asarray(x)[None], number, axis=0) for key, x in task.items()}
            grads = method.update(params, source.tasks(copies, rng), method.inner).grads
            rows = tree.flatten(grads).double()  # [n, P]
            total, squares = total + rows.sum(0), squares + rows.square().sum(0)
    mean = total / samples
    variance = (squares - samples * mean.square()) / (samples - 1)
    return Estimate(mean, (variance / samples).sqrt(), float(variance.sum().sqrt()), samples)
