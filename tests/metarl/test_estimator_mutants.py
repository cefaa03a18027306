"""Deliberately wrong LSF, binomial, GGS-MAML, ES-MAML and multi-task updates, which their references must reject."""

import pytest
import torch
from torch.func import vmap

from metarl import MetaGrad, Method, make_method
from metarl.derivatives import as_linearised, gradients, hessian_vector_products, linear_effects, score_terms
from metarl.inner import adaptation_path
from metarl.outer import outer_gradient
from metarl.outer.directions import normal_directions
from metarl.tree import add_scaled, dot, subtract, tree_map
from metarl.types import Inner, OuterUpdate, Params, TaskBatch
from tests.metarl.test_mutants import ALPHA, Check, N, method, on_its_draws, reference
from tests.reference import updates

# Estimators between MAML and E-MAML: `linearised`, `binomial` and `smoothed` are right with their defaults.


def linearised(
    sign: float = -1.0, mean: bool = True, chained: bool = True, score: bool = True, cross: bool = False
) -> OuterUpdate:
    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        source, path = as_linearised(tasks), adaptation_path(params, tasks, inner)
        end = outer_gradient(tasks, path.params[-1])
        v = end.grads
        for w, data in zip(path.params[-2::-1], path.batches[::-1], strict=True):
            effects = linear_effects(tasks, w, data, v if chained else end.grads)
            effects = effects.flip(1) if cross else effects
            weights = sign * ALPHA * effects / (effects.shape[1] if mean else 1)
            v = add_scaled(v, -ALPHA, hessian_vector_products(tasks, w, data, v, source.frozen_loss))
            v = add_scaled(v, float(score), score_terms(tasks, w, data, weights))
        return end._replace(grads=v)

    return update


LINEARISED = on_its_draws(updates.linearised)


def binomial(backwards: bool = True, last_only: bool = False, at: int | None = None) -> OuterUpdate:
    """Of order 2: all pairs of steps; `last_only` is truncated backpropagation."""

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        path = adaptation_path(params, tasks, inner)
        end = outer_gradient(tasks, path.params[-1])
        steps = list(range(inner.steps))[::-1] if backwards else list(range(inner.steps))
        sums = [end.grads] + [tree_map(torch.zeros_like, end.grads)] * 2
        for j in steps[:2] if last_only else steps:
            w = path.params[j if at is None else at]
            for number in (2, 1):
                product = hessian_vector_products(tasks, w, path.batches[j], sums[number - 1])
                sums[number] = add_scaled(sums[number], -ALPHA, product)
        return end._replace(grads=add_scaled(add_scaled(sums[0], 1.0, sums[1]), 1.0, sums[2]))

    return update


BINOMIAL = reference(updates.binomial, order=2)


def smoothed(below: float = -1.0, weighted: bool = True, same: bool = False, ones: bool = False) -> OuterUpdate:
    """One direction a product; `below` is where the second point is, in perturbations from w."""

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        path = adaptation_path(params, tasks, inner)
        end, s = outer_gradient(tasks, path.params[-1]), 0.1
        v = end.grads
        for number, (w, data) in enumerate(zip(path.params[-2::-1], path.batches[::-1], strict=True)):
            u = normal_directions(params, (0 if same else number, 0), range(tasks.num_tasks), w)
            u = tree_map(torch.ones_like, u) if ones else u
            points = (vmap(add_scaled, (0, None, 0))(w, shift * s, u) for shift in (1.0, below))
            above, under = (gradients(tasks, point, data) for point in points)
            weight = vmap(dot)(u, v) if weighted else torch.ones(tasks.num_tasks, dtype=torch.float64)
            v = vmap(add_scaled)(v, -ALPHA / (2 * s) * weight, subtract(above, under))
        return end._replace(grads=v)

    return update


SMOOTHED = reference(updates.smoothed, directions=1, smoothing=0.1)


def evolution(factor: float = 1.0, pull: float = -1.0) -> OuterUpdate:
    """Of options that are right, with the sign or the size of one side changed."""

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        right = make_method("es_maml", ALPHA, N)
        result = right.update(params, tasks, right.inner)
        return result._replace(grads=tree_map(lambda g: -pull * factor * g, result.grads))

    return update


EVOLUTION = reference(updates.evolution)

MUTANTS: dict[str, tuple[Method, Check]] = {
    "LSF without the score term": (method(linearised(score=False)), LINEARISED),
    "LSF with the wrong sign": (method(linearised(sign=1.0)), LINEARISED),
    "LSF with a sum over trajectories": (method(linearised(mean=False)), LINEARISED),
    "LSF credited with the effect on the end only": (method(linearised(chained=False)), LINEARISED),
    "LSF with the credit of another trajectory": (method(linearised(cross=True)), LINEARISED),
    "E-MAML passed off as LSF": (make_method("e_maml", ALPHA, N), LINEARISED),
    "MAML passed off as LSF": (make_method("maml", ALPHA, N, hessian_data="reuse"), LINEARISED),
    "binomial in the reversed order": (method(binomial(backwards=False)), BINOMIAL),
    "binomial of the last two steps only": (method(binomial(last_only=True)), BINOMIAL),
    "binomial with every Hessian at w_0": (method(binomial(at=0)), BINOMIAL),
    "exact MAML passed off as binomial": (make_method("maml", ALPHA, N), BINOMIAL),
    "GGS with the second point from the shifted first one": (method(smoothed(below=0.0)), SMOOTHED),
    "GGS without <u, v>": (method(smoothed(weighted=False)), SMOOTHED),
    "GGS with one direction for all steps": (method(smoothed(same=True)), SMOOTHED),
    "GGS along ones": (method(smoothed(ones=True)), SMOOTHED),
    "the adapted gradient passed off as multitask": (
        make_method("fo_maml", ALPHA, N),
        reference(updates.before_adaptation),
    ),
    "ES uphill": (method(evolution(pull=1.0)), EVOLUTION),
    "ES without the 1/2": (method(evolution(factor=2.0)), EVOLUTION),
    "hill climbing passed off as ES": (make_method("es_maml", ALPHA, N, adaptation="hill_climbing"), EVOLUTION),
    "ES with other directions": (make_method("es_maml", ALPHA, N, directions=2), EVOLUTION),
}


@pytest.mark.parametrize(("mutant", "check"), MUTANTS.values(), ids=MUTANTS)
def test_check_rejects(mutant: Method, check: Check) -> None:
    with pytest.raises(AssertionError):
        check(mutant)


SOUND: dict[str, tuple[Method, Check]] = {
    "LSF": (method(linearised()), LINEARISED),
    "binomial": (method(binomial()), BINOMIAL),
    "GGS": (method(smoothed()), SMOOTHED),
    "ES": (method(evolution()), EVOLUTION),
}


@pytest.mark.parametrize(("unchanged", "check"), SOUND.values(), ids=SOUND)
def test_the_mutants_are_right_but_for_the_mutation(unchanged: Method, check: Check) -> None:
    check(unchanged)
