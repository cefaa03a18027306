"""First and second derivatives of the tasks' losses.

Every outer update takes its derivatives here, for all tasks at once. So they are counted and checked in one place, and
the current `metarl.engine.Engine` decides how they are computed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp

from metarl.engine import Stacked, current_engine
from metarl.types import (
    Batch,
    ClippedTaskBatch,
    HasParticles,
    LinearisedTaskBatch,
    Loss,
    Params,
    PolicyTaskBatch,
    SampledTaskBatch,
    TaskBatch,
)
from metarl.wrappers import first_task, gather, report, report_scores, unwrap, wants_scores


def over_tasks(name: str, function: Callable[..., Any], *stacked: Stacked) -> Any:
    """`vmap(function)(*stacked)`, computed by the current engine; `name` says what is computed.

    `function` should refer to losses and other functions of long-lived objects, not to a batch of tasks: then the next
    batch needs no new record.
    """
    return current_engine().over_tasks(name, function, *stacked)


Names: TypeAlias = tuple[str, ...] | None
"""Some of the parameters; `None` for all."""


def gradients(tasks: TaskBatch, params: Params, batch: Batch, names: Names = None) -> Params:
    """The gradient of every task's loss at its own parameters: stacked in, stacked out.

    With `names` it is the gradient with respect to these parameters alone.
    """
    if wants_scores(tasks, params, batch):
        return gradients_and_scores(tasks, params, batch, names)[0]
    grads, losses = over_tasks("gradients", partial(_gradient, tasks.loss, names), params, batch)
    report(tasks, "gradients", grads, losses)
    return cast(Params, grads)


def gradients_and_scores(tasks: TaskBatch, params: Params, batch: Batch, names: Names = None) -> tuple[Params, Tensor]:
    """`gradients` and `scores`, computed together: a record does what both need only once."""
    function = partial(_gradient_and_score, tasks.loss, tasks.score, names)
    (grads, losses), found = over_tasks("gradients and scores", function, params, batch)
    report(tasks, "gradients", grads, losses)
    report_scores(tasks, params, batch, found)
    return grads, found


def _gradient(loss: Loss, names: Names, w: Params, data: Batch) -> tuple[Params, Tensor]:
    """The gradient and the loss of one task."""
    own, function = _restrict(one_number("loss", loss), names, w, data)
    return cast(tuple[Params, Tensor], grad_and_value(function)(own))


def _restrict(loss: Loss, names: Names, w: Params, data: Batch) -> tuple[Params, Callable[[Params], Tensor]]:
    """Some of the parameters `w`, and the loss as a function of these; the others stay at `w`."""
    if names is None:
        return w, lambda own: loss(own, data)
    return {name: w[name] for name in names}, lambda own: loss({**w, **own}, data)


def _gradient_and_score(
    loss: Loss, score: Loss, names: Names, w: Params, data: Batch
) -> tuple[tuple[Params, Tensor], Tensor]:
    return _gradient(loss, names, w, data), one_number("score", score)(w, data).detach()


def hessian_vector_products(
    tasks: TaskBatch, params: Params, batch: Batch, vectors: Params, loss: Loss | None = None
) -> Params:
    """`H_i(w_i; D_i) u_i` for every task, exactly: reverse over reverse, without forming H.

    H is the Hessian of the tasks' loss, or of `loss` if that is given. Leaves that `vectors` lack count as zero; the
    products have all leaves of `params`.
    """
    name = "Hessian-vector products" + ("" if loss is None else " of another loss")
    function = partial(_hessian_vector_product, tasks.loss if loss is None else loss)
    products: Params = over_tasks(name, function, params, batch, vectors)
    report(tasks, "hessian_vector_products", products)
    return products


def _hessian_vector_product(loss: Loss, w: Params, data: Batch, u: Params) -> Params:
    names = None if u.keys() == w.keys() else tuple(u)

    def gradient(v: Params) -> Params:
        own, function = _restrict(one_number("loss", loss), names, v, data)
        return cast(Params, grad(function)(own))

    return cast(Params, vjp(gradient, w)[1](u)[0])


def score_terms(tasks: TaskBatch, params: Params, batch: Batch, weights: Tensor) -> Params:
    """`sum_tau weight_tau grad log p(tau; w_i)` for every task, over the trajectories tau of its sampled batch.

    Args:
        tasks: a `SampledTaskBatch`; see `as_sampled` for the error otherwise.
        params: stacked `[T, ...]`.
        batch: stacked.
        weights: `[T, n]`, or `[T, 1]` for the same weight for all trajectories of a task.
    """
    log_likelihood = as_sampled(tasks).log_likelihood

    def weighted(w: Params, data: Batch, weight: Tensor) -> Tensor:
        return (weight * log_likelihood(w, data)).sum()

    terms: Params = over_tasks("score terms", grad(weighted), params, batch, weights)
    report(tasks, "gradients", terms)
    return terms


def linear_effects(tasks: TaskBatch, params: Params, batch: Batch, vectors: Params) -> Tensor:
    """`<g(tau; w_i), v_i>` for every task and each trajectory tau of its sampled batch, `[T, n]`.

    g(tau) is the gradient of the part of `frozen_loss` that belongs to tau. Leaves that `vectors` lack count as 0. See
    `as_linearised` for the error.
    """
    function = partial(_linear_effects, as_linearised(tasks).frozen_losses)
    effects: Tensor = over_tasks("linear effects", function, params, batch, vectors)
    report(tasks, "gradients", {"of single trajectories": effects})
    return effects


def _linear_effects(losses: Loss, w: Params, data: Batch, v: Params) -> Tensor:
    found, pull = vjp(lambda own: losses({**w, **own}, data), {name: w[name] for name in v})[:2]
    # v -> <g(tau), v> is the transpose of c -> sum_tau c_tau g(tau), which is linear (forward mode warns)
    push = vjp(lambda c: pull(c)[0], torch.zeros_like(found))[1]
    return cast(Tensor, push(v)[0])


def one_number(name: str, function: Loss) -> Loss:
    """`function` of one task, with a check: it raises a `ValueError` unless the result is a tensor of one number."""

    def checked(params: Params, batch: Batch) -> Tensor:
        result = function(params, batch)
        if not isinstance(result, Tensor) or result.dim() != 0:
            found = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"{name} must return one number for one task, a tensor of shape (), got {found}")
        return result

    return checked


def scores(tasks: TaskBatch, params: Params, batch: Batch) -> Tensor:
    """The score of every task, `[T]`."""
    result: Tensor = over_tasks("scores", partial(_score, tasks.score), params, batch)
    return result.detach()


def _score(score: Loss, w: Params, data: Batch) -> Tensor:
    return one_number("score", score)(w, data)


def losses(tasks: TaskBatch, params: Params, batch: Batch) -> Tensor:
    """The loss of every task at its own parameters, `[T]`; no derivative is taken."""
    result: Tensor = over_tasks("losses", partial(_loss, tasks.loss), params, batch)
    return result.detach()


def _loss(loss: Loss, w: Params, data: Batch) -> Tensor:
    return one_number("loss", loss)(w, data)


def as_sampled(tasks: TaskBatch) -> SampledTaskBatch:
    """The task batch inside all wrappers, as a `SampledTaskBatch`.

    Raises:
        ValueError: when it lacks a method.
    """
    source = unwrap(tasks)
    if not isinstance(source, SampledTaskBatch):
        raise _lacking("e_maml", source, "frozen_loss", "log_likelihood", "objective")
    return source


def as_linearised(tasks: TaskBatch) -> LinearisedTaskBatch:
    """The task batch inside all wrappers, as a `LinearisedTaskBatch`.

    Raises:
        ValueError: when it lacks a method.
    """
    source = unwrap(tasks)
    if not isinstance(source, LinearisedTaskBatch):
        raise _lacking("lsf", source, "frozen_loss", "frozen_losses", "log_likelihood", "objective")
    return source


def _lacking(update: str, source: TaskBatch, *methods: str) -> ValueError:
    missing = [name for name in methods if not hasattr(source, name)]
    return ValueError(f"{update} needs tasks with the methods {list(methods)}; {type(source).__name__} lacks {missing}")


def as_policies(tasks: TaskBatch) -> PolicyTaskBatch:
    """The task batch inside all wrappers, as a `PolicyTaskBatch`.

    Raises:
        ValueError: when it has no policies.
    """
    source = unwrap(tasks)
    if not isinstance(source, PolicyTaskBatch):
        raise ValueError(f"this outer step needs the policies of reinforcement learning; got {type(source).__name__}")
    return source


def as_clipped(tasks: TaskBatch) -> ClippedTaskBatch:
    """The task batch inside all wrappers, as a `ClippedTaskBatch`.

    Raises:
        ValueError: when it has no policies whose ratios can be clipped.
    """
    source = as_policies(tasks)
    if not isinstance(source, ClippedTaskBatch):
        methods = [name for name in ("clipped_loss", "clipped_share") if not hasattr(source, name)]
        raise ValueError(f"this outer step needs tasks with the methods {methods}; {type(source).__name__} lacks them")
    return source


def divergences(tasks: TaskBatch, old: Params, new: Params, batch: Batch) -> Tensor:
    """KL(pi_old || pi_new) of every task's policy, the mean over its states in `batch`: `[T]`, in nats."""
    result: Tensor = over_tasks("divergences", as_policies(tasks).kl, old, new, batch)
    return result


def divergence_gradients(tasks: TaskBatch, old: Params, new: Params, batch: Batch) -> Params:
    """The gradient of `divergences` with respect to `new`, for every task."""
    function = partial(_divergence_gradient, as_policies(tasks).kl)
    grads: Params = over_tasks("gradients of divergences", function, old, new, batch)
    report(tasks, "gradients", grads)
    return grads


def _divergence_gradient(
    kl: Callable[[Params, Params, Batch], Tensor], old: Params, new: Params, data: Batch
) -> Params:
    return cast(Params, grad(kl, argnums=1)(old, new, data))


def fixed_hessians(tasks: TaskBatch, params: Params, batch: Batch) -> Callable[[Params], Params]:
    """`hessian_vector_products` for many vectors: what does not depend on the vector is computed only once.

    Leaves that the vectors lack count as zero.
    """
    function = partial(_hessian_vector_product, tasks.loss)
    product = current_engine().linearize("Hessian-vector products", function, params, batch)

    def multiply(vectors: Params) -> Params:
        products: Params = product(
            {k: vectors[k] if k in vectors else torch.zeros_like(leaf) for k, leaf in params.items()}
        )
        report(tasks, "hessian_vector_products", products)
        return products

    return multiply


def fixed_fishers(tasks: TaskBatch, params: Params, batch: Batch) -> Callable[[Params], Params]:
    """`fisher_products` for many vectors: what does not depend on the vector is computed only once."""
    return current_engine().linearize("Fisher products", as_policies(tasks).fisher_product, params, batch)


def fisher_products(tasks: TaskBatch, params: Params, batch: Batch, vectors: Params) -> Params:
    """The Fisher matrix of every task's policy, the mean over its states in `batch`, times its vector."""
    products: Params = over_tasks("Fisher products", as_policies(tasks).fisher_product, params, batch, vectors)
    return products


def as_particles(tasks: TaskBatch, params: Params) -> HasParticles:
    """The task batch inside all wrappers, whose parameters are particles, `[M, ...]`.

    Raises:
        ValueError: when they are not, or `params` (not stacked over tasks) are not those of M particles.
    """
    source = unwrap(tasks)
    if not isinstance(source, HasParticles):
        needed = "tasks of particles, from metarl.supervised.particles.Particles"
        raise ValueError(f"this update needs {needed}; got {type(source).__name__}")
    for key, leaf in params.items():
        if leaf.shape[:1] != (source.particles,):
            raise ValueError(f"{key} must be [{source.particles}, ...], one for each particle, got {list(leaf.shape)}")
    return source


def task_numbers(tasks: TaskBatch) -> range:
    """The numbers of these tasks in the whole batch, of which other processes may have the rest."""
    first = first_task(tasks)
    return range(first, first + tasks.num_tasks)


def gather_tasks(tasks: TaskBatch, own: Tensor) -> tuple[Tensor, slice]:
    """The values of the whole batch `[T, ...]` from those of these tasks `[t, ...]`, and the slice of these tasks."""
    first = first_task(tasks)
    return gather(tasks, own), slice(first, first + len(own))
