"""The few types of the framework.

A batch of tasks is a stochastic oracle: `draw` gives every task a fresh batch of data at its parameters, `loss` is the
pure loss of one task. Reinforcement learning and finite sums differ only in the oracle.

"Stacked" means that every leaf has the tasks as its first dimension: `[T, ...]`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metarl.tree import Params as Params

Batch: TypeAlias = dict[str, Tensor]
"""The data of one draw. Only the task batch that made it, with its `loss` and `score`, knows the keys."""

Role: TypeAlias = Literal["inner", "outer", "hessian"]
"""The use of a draw: D_in, D_o or D_h of the papers."""

TaskParams: TypeAlias = dict[str, npt.NDArray[Any]]
"""Environment parameters of T tasks: every array is `[T, ...]`."""

Loss: TypeAlias = Callable[[Params, Batch], Tensor]


class TaskBatch(Protocol):
    """The oracle of a batch of tasks."""

    @property
    def num_tasks(self) -> int:
        """T, the number of tasks."""

    def draw(self, params: Params, role: Role) -> Batch:
        """Fresh data for every task at its own parameters; stacked in, stacked out, no gradient."""

    def loss(self, params: Params, batch: Batch, /) -> Tensor:
        """The loss of ONE task, a scalar; pure and twice differentiable."""

    def score(self, params: Params, batch: Batch, /) -> Tensor:
        """The score of ONE task, the number to plot: mean return, accuracy, minus the squared error."""

    def cost(self, batch: Batch) -> Mapping[str, int]:
        """The cost of a batch, in the units of convergence plots (`samples`, `env_steps`)."""


@runtime_checkable
class Shardable(Protocol):
    """What a task batch also needs for training in several processes."""

    def shard(self, first: int, last: int) -> TaskBatch:
        """The tasks `first` ... `last` - 1, which draw bit for bit what they draw as part of the whole batch.

        The whole batch is not drawn from afterwards.
        """


@runtime_checkable
class HasEqualLengths(Protocol):
    """A task batch with arrays whose length follows from the data and must be the same in all processes."""

    agree: Callable[[int], int]
    """A function from the length needed here to the largest length needed in any process."""


@runtime_checkable
class SampledTaskBatch(Protocol):
    """What a task batch also needs for E-MAML: how it samples. All three methods are of ONE task, as `loss` is."""

    def frozen_loss(self, params: Params, batch: Batch) -> Tensor:
        """The loss whose gradient is the inner step's, as a function of `params` with the batch held fixed."""

    def log_likelihood(self, params: Params, batch: Batch) -> Tensor:
        """The log-probability of each sampled trajectory, `[n]`; zero where it does not depend on `params`."""

    def objective(self, batch: Batch) -> Tensor:
        """The objective that the loss's gradient descends, as each trajectory samples it, `[n]`."""


@runtime_checkable
class LinearisedTaskBatch(SampledTaskBatch, Protocol):
    """What a sampled task batch also needs for the linearised score function."""

    def frozen_losses(self, params: Params, batch: Batch) -> Tensor:
        """The part of each sampled trajectory in `frozen_loss`, `[n]`, which is their mean.

        It may be zero for trajectories whose log-probability does not depend on `params`.
        """


@runtime_checkable
class PolicyTaskBatch(Protocol):
    """What a task batch also needs for steps that limit how far policies move. All is of ONE task, as `loss` is."""

    def kl(self, old: Params, new: Params, batch: Batch) -> Tensor:
        """The mean divergence KL(pi_old || pi_new) over the states of the batch, in nats."""

    def fisher_product(self, params: Params, batch: Batch, vector: Params) -> Params:
        """The Hessian of `kl(params, new, batch)` at `new = params`, times `vector`."""


@runtime_checkable
class ClippedTaskBatch(PolicyTaskBatch, Protocol):
    """What a task batch also needs for several steps on the same draws. All is of ONE task, as `loss` is."""

    def clipped_loss(self, params: Params, batch: Batch, clip: Tensor) -> Tensor:
        """`loss`, without what it gains where the policy's ratio to the one that acted leaves 1 - clip ... 1 + clip."""

    def clipped_share(self, params: Params, batch: Batch, clip: Tensor) -> Tensor:
        """The share of the batch's actions whose ratio is outside 1 - clip ... 1 + clip."""


@runtime_checkable
class DescribesPolicies(Protocol):
    """What a task batch also needs for diagnostics of its policies (see `metarl.diagnostics`)."""

    def statistics(self, batch: Batch) -> dict[str, Tensor]:
        """Values of the last draw by tag, `[T]` each."""

    def excerpt(self, batch: Batch, states: int) -> Batch:
        """A few episodes of each task, with about `states` states in all tasks of the batch together."""

    def describe(self, old: Params, new: Params, before: Batch, after: Batch) -> dict[str, Tensor]:
        """Values of ONE task's policies by tag: `before` is an excerpt of a draw at `old`, `after` of one at `new`."""


@runtime_checkable
class HasTaskParams(Protocol):
    """A task batch that knows the parameters of its tasks."""

    @property
    def task(self) -> TaskParams:
        """Arrays `[T, ...]`."""


@runtime_checkable
class ChoosesTasks(Protocol):
    """A source that makes batches of chosen tasks."""

    distribution: "TaskDistribution"

    def tasks(self, task: TaskParams, rng: np.random.Generator) -> TaskBatch:
        """The given tasks, every array `[T, ...]`; `rng` seeds their randomness."""


@runtime_checkable
class EpisodicTaskBatch(Protocol):
    """A task batch whose draws are episodes of a policy."""

    deterministic: bool
    """Whether the policy takes its most likely actions in the draws from now on; `False` at first."""

    success: Tensor | None
    """The share of the last draw's episodes that succeeded, `[T]`; `None` if the environments do not report it."""


@runtime_checkable
class HasThreads(Protocol):
    """A vector environment that steps its environments in threads."""

    threads: int


@runtime_checkable
class HasName(Protocol):
    """A vector environment that knows what one of its environments is called in messages."""

    env_name: str


class TaskSource(Protocol):
    """Where batches of tasks come from, and the parameters training starts at."""

    @property
    def score_name(self) -> str:
        """The name of the score in logs: `return`, `accuracy`, `minus_loss`."""

    def initial_params(self) -> Params:
        """The parameters before training."""

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskBatch:
        """A batch of `num_tasks` tasks; everything random in them follows from `rng`."""


@runtime_checkable
class HasBatchNorm(Protocol):
    """A source whose network may have batch normalisation."""

    @property
    def batch_norm_params(self) -> list[str]:
        """The names of its weights and biases among the parameters."""


@runtime_checkable
class HasEpisodes(Protocol):
    """A source whose draws are episodes."""

    episodes: int


@runtime_checkable
class HasSurrogate(Protocol):
    """A source whose losses are surrogates of a policy's return (see `metarl.rl.surrogates`)."""

    surrogate: str


@runtime_checkable
class HasParticles(Protocol):
    """A source, or a batch of tasks, whose parameters are particles: every leaf is `[M, ...]`."""

    @property
    def particles(self) -> int:
        """M."""


@runtime_checkable
class ChecksSize(Protocol):
    """A source that can tell early whether its draws fit into memory."""

    def check_size(self, num_tasks: int, argument: str = "num_tasks") -> None:
        """Raise a `ValueError` that names `argument` if a draw for `num_tasks` tasks cannot fit."""


@runtime_checkable
class ChecksSecondDerivatives(Protocol):
    """A source that can tell early whether its loss can be differentiated twice."""

    def check_second_derivatives(self) -> None:
        """Raise a `ValueError` if it cannot."""


@runtime_checkable
class HasHessianWarning(Protocol):
    """A source whose loss may have another Hessian than the objective."""

    @property
    def hessian_warning(self) -> str | None:
        """The reason in a sentence, or `None` if both have the same Hessian."""


@runtime_checkable
class LearningSource(Protocol):
    """What a source also needs if it learns something itself, such as how to normalise observations.

    It does not learn during an iteration, nor in evaluations.
    """

    def learn_from(self, tasks: TaskBatch, sum_everywhere: Callable[[Tensor], Tensor]) -> None:
        """Learn from the tasks of a finished iteration, of which each process has a share.

        `sum_everywhere` sums one row for each own task, `[t, ...]`, over the tasks of all processes.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """The state for checkpoints."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`; raises a `ValueError` if it does not fit."""


class Rule(Protocol):
    """One inner step of ONE task, `rule(params, grads, anchor) -> params`; `anchor` is the start of adaptation."""

    def __call__(self, params: Params, grads: Params, anchor: Params) -> Params: ...


@runtime_checkable
class ScoreRule(Rule, Protocol):
    """A rule that uses scores instead of gradients. It draws data itself, at the points it needs."""

    def move(
        self, tasks: TaskBatch, params: Params, at: Params, label: tuple[int, ...], names: tuple[str, ...] | None = None
    ) -> Params:
        """One step of all tasks, stacked in and out, of the parameters `names`; `None` for all.

        Random directions follow from `at`, the start of adaptation (not stacked), and from `label`.
        """


class Inner(NamedTuple):
    """The inner loop: a rule and its number of steps."""

    rule: Rule
    steps: int = 1


class MetaGrad(NamedTuple):
    """The result of an outer update."""

    grads: Params  # stacked [T, ...]: the mean moves w, the spread is logged (see `metarl.step.MeanGrad`)
    score: Tensor  # [T], after adaptation
    info: Mapping[str, Tensor] = MappingProxyType({})  # [T] each: other values for the log


class OuterUpdate(Protocol):
    """The extension point: alternates `tasks.draw` with mathematics over all tasks."""

    def __call__(self, params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad: ...


class TaskDistribution(Protocol):
    """A distribution over environments that differ in the parameters of `space`."""

    space: gymnasium.spaces.Dict
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    horizon: int

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskParams:
        """Parameters of `num_tasks` tasks, each array `[T, ...]`."""

    def make(self, task: TaskParams) -> gymnasium.Env[Any, Any]:
        """One ordinary environment; the arrays of `task` are without the leading T."""

    def make_vec(
        self, task: TaskParams, episodes: int, device: torch.device | str = "cpu"
    ) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
        """T x `episodes` environments in task-major order, autoreset disabled, one episode each."""
