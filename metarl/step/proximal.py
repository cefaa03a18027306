"""Proximal epochs, as in ProMP (Rothfuss et al., 2019): several steps of an optimiser on the draws of one iteration.

    J(w) = mean_t min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t) - eta / N sum_{j<N} KL(pi_{w_j, old} || pi_{w_j})

    r_t = pi_{w_N}(a_t | s_t) / pi_{w_N, old}(a_t | s_t) on D_o,    w_{j+1} = w_j - alpha grad f(w_j; D_j)

Both are means over tasks. The divergences are those of the policies before adaptation and between inner steps, over the
states of D_j. Every epoch adapts again, from where the last one arrived, and takes the meta-gradient of the same update
on the same draws: the ratios of the loss `f` correct for the policies that acted (eq. 6.4 and 6.5). In the first epoch
all ratios are 1 and all divergences 0: it is the optimiser's plain step.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from metarl import tree
from metarl.derivatives import as_clipped, as_policies, hessian_vector_products, over_tasks
from metarl.errors import StateError, check_int, check_real
from metarl.outer.hf_maml import central_difference, relative_length
from metarl.outer.pull_back import Multiply
from metarl.outer.registry import Method
from metarl.state_dict import check_keys, check_like
from metarl.step.mean_grad import MeanGrad
from metarl.step.optimizer import OptimizerFactory, OptimizerStep, Schedule, Stepped, Update
from metarl.step.replay import Point, Replay
from metarl.types import Batch, HasSurrogate, Loss, Params, Role, TaskBatch, TaskSource
from metarl.wrappers import Derivative, RecordDraws, ReplayDraws, TaskWrapper, gather, unwrap

CLIP = "clip"
"""The leaf `[T]` of an outer batch whose loss is clipped: it has eps for each task."""

ClippedLoss: TypeAlias = Callable[[Params, Batch, Tensor], Tensor]
"""`(params, batch, eps) -> loss`, or share of ratios, of one task."""

KL: TypeAlias = Callable[[Params, Params, Batch], Tensor]
"""`(old, new, batch) -> divergence` of one task."""


class ProximalStep:
    """Several steps of an optimiser along the meta-gradient of the proximal objective, all on the same draws.

    The update must follow the loss after adaptation, and its estimate must stay right on draws made at other parameters
    (`Method.follows_adapted_loss`, `Method.replays`): `maml` and its first-order, Hessian-free, multi-step and sign
    relatives, `maml_plus_plus`, with learned step sizes or without. The surrogate of the source must be `ratio`.

    It logs `kl_before` (the mean divergence in J), `kl_after` (that of the adapted policies, over the states of D_o),
    `clip_fraction` (of the ratios on D_o), `epochs`, `kl_coefficient` (the one used), `surrogate_first` and
    `surrogate_last` (the first mean in J, before the first epoch and after the last), and `learning_rate`.

    Args:
        params: the initial parameters, those of the inner rule included: `method.initial_params(source)`.
        method: the method that is trained.
        learning_rate: beta, the optimiser's step size in every epoch.
        epochs: K, steps for each iteration, at most.
        clip: eps; `None`: no clipping.
        kl_coefficient: eta, at first; 0: no penalty.
        adaptive_kl: the divergence that eta aims at: it is halved if `kl_before` is below 2/3 of it, and doubled above
            3/2 of it; `None`: eta stays.
        target_kl: no more epochs once `kl_after` exceeds it; the epoch that did is kept. `None`: no limit.
        optimizer: as for `OptimizerStep`, like the two arguments after it; its state goes on over the iterations.
        max_grad_norm: clips the gradient of each epoch.
        schedule: from the number of finished iterations to a factor of the learning rate.
        inner_lr_rate: the optimiser's step size for learned inner step sizes.

    Raises:
        ValueError: for numbers that cannot work, and for a method for which the step is not defined.

    Example:
        >>> from metarl import MetaLearner, make_method
        >>> from metarl.agents import make_policy
        >>> from metarl.envs import Navigation
        >>> from metarl.rl import ReinforcementLearning
        >>> tasks, method = Navigation(horizon=10), make_method("maml")
        >>> policy = make_policy(tasks.observation_space, tasks.action_space)
        >>> source = ReinforcementLearning(tasks, policy, episodes=4)
        >>> step = ProximalStep(method.initial_params(source), method, epochs=3)
        >>> learner = MetaLearner.from_parts(source, method, step, meta_batch_size=2).learn(2)
        >>> learner.outer_step.optimizer.steps, learner.counts["env_steps"]  # three draws in each iteration
        (2, 480)
    """

    def __init__(
        self,
        params: Params,
        method: Method,
        *,
        learning_rate: float = 1e-3,
        epochs: int = 5,
        clip: float | None = 0.3,
        kl_coefficient: float = 5e-4,
        adaptive_kl: float | None = None,
        target_kl: float | None = None,
        optimizer: OptimizerFactory = torch.optim.Adam,
        max_grad_norm: float | None = None,
        schedule: Schedule | None = None,
        inner_lr_rate: float | None = None,
    ) -> None:
        check_method(method)
        self.method = method
        self.epochs = check_int("epochs", epochs)
        self.clip = None if clip is None else check_real("clip", clip)
        self.kl_coefficient = self._first_coefficient = check_real("kl_coefficient", kl_coefficient, open_low=False)
        self.adaptive_kl = None if adaptive_kl is None else check_real("adaptive_kl", adaptive_kl)
        self.target_kl = None if target_kl is None else check_real("target_kl", target_kl)
        if adaptive_kl is not None and not kl_coefficient:
            raise ValueError("kl_coefficient must be positive to be adapted (adaptive_kl), got 0: it would stay 0")
        self.optimizer = OptimizerStep(params, optimizer, learning_rate, max_grad_norm, schedule, inner_lr_rate)

    def config(self) -> dict[str, Any]:
        """Its own settings: `ProximalStep(params, method, **config)`, with those of the optimiser."""
        own = ("epochs", "clip", "adaptive_kl", "target_kl")
        return {**{name: getattr(self, name) for name in own}, "kl_coefficient": self._first_coefficient}

    def check_source(self, source: TaskSource) -> None:
        """Raise a `ValueError` if `source` has no policies, or losses without ratios of single actions."""
        if not isinstance(source, HasSurrogate):
            raise ValueError(f"proximal needs the policies of reinforcement learning, got {type(source).__name__}")
        if source.surrogate != "ratio":
            raise ValueError(
                f"surrogate must be 'ratio' for proximal, which needs the ratios of single actions, got"
                f" {source.surrogate!r}"
            )

    def __call__(self, params: Params, tasks: TaskBatch, update: Update) -> Stepped:
        """Draw and step in the first epoch; replay, adapt again and step in the others."""
        # the first epoch draws
        recording, iterations = RecordUpdate(tasks), self.optimizer.steps
        stepped = self.optimizer(params, self._clipped(recording), update)
        meta_grad, epochs = stepped.meta_grad, 1

        # the others replay, until the adapted policies have moved too far
        replay = Replay(tasks, recording.draws, self.method.inner_in_training)
        point = replay.at(stepped.params)
        while epochs < self.epochs and not self._is_far(tasks, point):
            again = partial(self._penalized, update=update, recording=recording, point=point)
            self.optimizer.steps = iterations  # the schedule counts iterations, not epochs
            stepped = self.optimizer(stepped.params, tasks, again)
            point, epochs = replay.at(stepped.params), epochs + 1

        info = {**self._describe(replay, point), "epochs": float(epochs), "kl_coefficient": self.kl_coefficient}
        self._adapt_coefficient(info["kl_before"])
        return Stepped(stepped.params, meta_grad, {**stepped.info, **info})

    def _penalized(
        self, params: Params, tasks: TaskBatch, update: Update, recording: "RecordUpdate", point: Point
    ) -> MeanGrad:
        """The gradient of -J at `params`, where `point` is."""
        meta_grad = update(params, self._clipped(ReplayDraws(tasks, recording.draws)))
        if not self.kl_coefficient or not point.steps:
            return meta_grad
        slopes = point.kl_gradient(recording.multiply(self.method))
        slope = tree.mean(slopes, lambda rows: tree.mean_rows(gather(tasks, rows)))
        return meta_grad._replace(grads=tree.add_scaled(meta_grad.grads, self.kl_coefficient, slope))

    def _clipped(self, tasks: TaskBatch) -> TaskBatch:
        return tasks if self.clip is None else ClipOuter(tasks, self.clip)

    def _is_far(self, tasks: TaskBatch, point: Point) -> bool:
        if self.target_kl is None:
            return False
        return means(tasks, {"kl_after": point.kl_after()})["kl_after"] > self.target_kl

    def _describe(self, replay: Replay, point: Point) -> dict[str, float]:
        """Values for the log, at the end of the last epoch."""
        tasks, end = self._clipped(replay.tasks), replay.end
        batch, share = end.batch, None
        if isinstance(tasks, ClipOuter):
            batch, share = tasks.mark(batch), as_clipped(tasks).clipped_share
        compare = partial(_compare, tasks.loss, as_policies(tasks).kl, share)
        at_end: dict[str, Tensor] = over_tasks("policies at the end", compare, end.params, point.adapted, batch)
        return means(tasks, {"kl_before": point.kl_before(), **at_end})

    def _adapt_coefficient(self, kl: float) -> None:
        if self.adaptive_kl is None:
            return
        if kl < self.adaptive_kl / 1.5:
            self.kl_coefficient /= 2
        elif kl > self.adaptive_kl * 1.5:
            self.kl_coefficient *= 2

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, with the number of finished iterations, and the coefficient."""
        return {**self.optimizer.state_dict(), "kl_coefficient": self.kl_coefficient}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            StateError: when it does not fit, naming the entry.
        """
        where = ("outer_step",)
        found = check_keys(state, self.state_dict(), where)
        coefficient = found.pop("kl_coefficient")
        check_like(coefficient, 0.0, (*where, "kl_coefficient"))
        if not 0 <= coefficient < float("inf"):
            raise StateError(f"outer_step.kl_coefficient must be a finite number at least 0, found {coefficient}")
        self.optimizer.load_state_dict(found)
        self.kl_coefficient = float(coefficient)


class RecordUpdate(RecordDraws):
    """Keeps the draws of an update, and whether it took exact Hessian-vector products."""

    has_products = False

    def on_derivative(self, kind: Derivative, result: Params, losses: Tensor | None) -> None:
        self.has_products = self.has_products or kind == "hessian_vector_products"

    def multiply(self, method: Method) -> Multiply | None:
        """How the update multiplied by Hessians; MAML++ may begin with none."""
        if self.has_products:
            return hessian_vector_products
        if method.needs_hessian and not method.differentiates_twice:
            return central_difference(relative_length)
        return None


class ClipOuter(TaskWrapper):
    """Clips the loss of outer batches, which it marks with a leaf; other batches keep the tasks' own loss.

    Raises:
        ValueError: for tasks without such a loss, or in a wrapper that gives them another one.
    """

    def __init__(self, tasks: TaskBatch, clip: float) -> None:
        super().__init__(tasks)
        if tasks.loss != unwrap(tasks).loss:
            raise ValueError(
                "clip must be None for tasks in a wrapper that changes the loss, because clipping would ignore it"
            )
        self.clip, self._clipped_loss = clip, as_clipped(tasks).clipped_loss

    @property
    def loss(self) -> Loss:  # made of long-lived functions: a new wrapper needs no new record
        return partial(_loss, self._clipped_loss, self.tasks.loss)

    def draw(self, params: Params, role: Role) -> Batch:
        batch = super().draw(params, role)
        return self.mark(batch) if role == "outer" else batch

    def mark(self, batch: Batch) -> Batch:
        """The batch whose loss is clipped."""
        like = tree.float_leaf(batch)
        return {**batch, CLIP: like.new_full((self.num_tasks,), self.clip)}


def _loss(clipped_loss: ClippedLoss, loss: Loss, params: Params, batch: Batch) -> Tensor:
    """The loss of one task: clipped if the batch is marked."""
    if CLIP not in batch:
        return loss(params, batch)
    return clipped_loss(params, {key: leaf for key, leaf in batch.items() if key != CLIP}, batch[CLIP])


def _compare(
    loss: Loss, kl: KL, clipped_share: ClippedLoss | None, old: Params, new: Params, batch: Batch
) -> dict[str, Tensor]:
    """One task's adapted policies before the first epoch and after the last; together, so each is evaluated once."""
    share = {} if clipped_share is None else {"clip_fraction": clipped_share(new, batch, batch[CLIP])}
    surrogates = {"surrogate_first": -loss(old, batch), "surrogate_last": -loss(new, batch)}
    return {"kl_after": kl(old, new, batch), **share, **surrogates}


def means(tasks: TaskBatch, columns: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean over tasks, of all processes, of each column `[t]`."""
    table = torch.stack([column.detach().cpu().double() for column in columns.values()], 1)  # [t, columns]
    return dict(zip(columns, tree.mean_rows(gather(tasks, table)).tolist(), strict=True))


def check_method(method: Method) -> None:
    """Check that the step is defined for the method.

    Raises:
        ValueError: otherwise, saying why.
    """
    name = "this outer update" if method.recipe is None else repr(method.recipe.name)
    if not method.follows_adapted_loss:
        raise ValueError(
            f"proximal needs an update whose meta-gradient is that of the loss after adaptation, such as 'maml'; that"
            f" of {name} is not"
        )
    if not method.replays:
        raise ValueError(
            f"proximal needs an update that is right on replayed draws, such as 'maml'; {name} does not say that it is"
            " (Method.replays)"
        )
