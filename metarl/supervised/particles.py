"""Several networks of one kind in one set of parameters: the particles of `bmaml`, or the members of an ensemble.

    f(theta_1, ..., theta_M) = sum_m f(theta_m),    prediction = (1/M) sum_m prediction(theta_m)

Every leaf is `[M, ...]`. The gradient of the sum is the stack of the particles' own gradients. So an update whose steps
treat every number separately, such as `maml`, trains M independent networks on the same tasks: a deep ensemble. `bmaml`
makes the particles depend on each other. The score is that of the averaged prediction, in both cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from metarl.derivatives import one_number
from metarl.errors import check_has, check_int, check_tensors, check_type
from metarl.settings import FixedSettings
from metarl.supervised.oracle import SupervisedTaskBatch
from metarl.types import Batch, ChecksSecondDerivatives, Loss, Params, Role, TaskBatch
from metarl.wrappers import TaskSlice


@runtime_checkable
class PredictiveSource(Protocol):
    """A task source whose tasks are predictions, which can be averaged. Its data do not depend on the parameters."""

    @property
    def score_name(self) -> str:
        """The name of the score in logs."""

    def initial_params(self) -> Params:
        """The parameters of one network."""

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskBatch:
        """A batch of tasks."""

    def predict(self, params: Params, batch: Batch) -> Tensor:
        """The predictions of one network in one task: values `[n]`, or probabilities of the classes `[n, ways]`."""

    def score_predictions(self, predictions: Tensor, batch: Batch) -> Tensor:
        """The score of predictions in one task, a scalar."""


class ParticleTasks(SupervisedTaskBatch):
    """Tasks of M particles, from tasks of one network.

    Args:
        tasks: of one network; their data must not depend on the parameters.
        particles: M.
        score: of all particles, `(params, batch) -> scalar`; default: minus the mean of their losses.
    """

    def __init__(self, tasks: TaskBatch, particles: int, score: Loss | None = None) -> None:
        self.particles = check_int("particles", particles)
        super().__init__(_sum_over_particles(tasks.loss), _minus_mean(tasks.loss) if score is None else score)
        self.tasks = tasks
        self.num_tasks = tasks.num_tasks

    def draw(self, params: Params, role: Role) -> Batch:
        """The data of the tasks, the same for all particles."""
        return self.tasks.draw(params, role)

    def shard(self, first: int, last: int) -> TaskSlice:
        """The tasks `first` ... `last` - 1, cut out of the draws for all tasks."""
        return TaskSlice(self, first, last)


@dataclass
class Particles(FixedSettings):
    """A source of tasks of M networks.

    Args:
        source: of the tasks of one network, such as `Sinusoids` or `FewShot`.
        starts: the initial parameters of each network. Start them at different points.

    Raises:
        ValueError: for a source without predictions, such as one of reinforcement learning, and for starts that do not
            fit it.

    Example:
        >>> from metarl import MetaLearner
        >>> from metarl.supervised.sinusoid import Sinusoids
        >>> source = Particles(Sinusoids(), [Sinusoids(seed=seed).initial_params() for seed in range(3)])
        >>> source.initial_params()["head.weight"].shape
        torch.Size([3, 1, 40])
        >>> MetaLearner(source, "bmaml", inner_lr=0.01, meta_batch_size=2).learn(2).iterations
        2
    """

    source: PredictiveSource
    starts: Sequence[Params]

    def __post_init__(self) -> None:
        methods = ("sample", "initial_params", "predict", "score_predictions")
        check_has("source", self.source, methods, "a supervised source with predictions: Sinusoids or FewShot")
        check_type("starts", self.starts, Sequence, "a sequence of parameters, one set for each particle")
        if not self.starts:
            raise ValueError("starts must have the parameters of at least one particle, got none")
        wanted = _shapes(self.source.initial_params())
        for number, start in enumerate(self.starts):
            check_tensors(f"starts[{number}]", start)
            if _shapes(start) != wanted:
                raise ValueError(f"starts[{number}] must have the source's shapes {wanted}, got {_shapes(start)}")

    @property
    def particles(self) -> int:
        """M."""
        return len(self.starts)

    @property
    def score_name(self) -> str:
        """The source's: the score of the averaged prediction."""
        return self.source.score_name

    def initial_params(self) -> Params:
        """The starts, stacked: `[M, ...]`."""
        like = self.source.initial_params()
        return {key: torch.stack([start[key].detach().to(leaf) for start in self.starts]) for key, leaf in like.items()}

    def sample(self, num_tasks: int, rng: np.random.Generator) -> ParticleTasks:
        """The source's tasks."""
        return ParticleTasks(self.source.sample(num_tasks, rng), self.particles, self.score)

    @property
    def score(self) -> Loss:
        """The score of the averaged prediction in one task."""
        predict, score = self.predict, self.source.score_predictions
        return lambda params, batch: score(predict(params, batch).mean(0), batch)

    @property
    def predict(self) -> Loss:
        """Every particle's predictions in one task, `[M, n, ...]`."""
        predict = self.source.predict  # without `starts`: sources with other starts share the engine's records
        return lambda params, batch: vmap(predict, (0, None))(params, batch)

    def check_second_derivatives(self) -> None:
        """Check that the source's network can be differentiated twice."""
        if isinstance(self.source, ChecksSecondDerivatives):
            self.source.check_second_derivatives()


def _sum_over_particles(loss: Loss) -> Loss:
    checked = one_number("loss", loss)
    return lambda params, batch: vmap(checked, (0, None))(params, batch).sum()


def _minus_mean(loss: Loss) -> Loss:
    checked = one_number("loss", loss)
    return lambda params, batch: -vmap(checked, (0, None))(params, batch).mean()


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {key: tuple(leaf.shape) for key, leaf in params.items()}
