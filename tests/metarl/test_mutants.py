"""Every check is shown to fail: deliberately wrong updates, each of which the check named beside it must reject."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from metarl import Inner, MetaGrad, Method, adapt, make_method
from metarl.derivatives import (
    as_sampled,
    gradients,
    hessian_vector_products,
)
from metarl.inner import adaptation_path, sgd
from metarl.outer import outer_gradient
from metarl.outer.hf_maml import central_difference, relative_length
from metarl.outer.imaml import conjugate_gradients
from metarl.tree import add_scaled, broadcast, flatten, mean, subtract, tree_map, unflatten
from metarl.types import Batch, OuterUpdate, Params, Role, TaskBatch
from metarl.wrappers import TaskWrapper
from tests.reference import checks, problems, updates
from tests.reference.problems import PROBLEMS

ALPHA, N = 0.2, 3
Check = Callable[[Method], None]


def method(update: OuterUpdate, rule: Any = None, steps: int = N) -> Method:
    return Method(update, Inner(rule or sgd(ALPHA), steps))


def reference(update: Callable[..., Any], problem: str = "regression", **options: Any) -> Check:
    return lambda m: checks.equals_reference(m, functools.partial(update, alpha=ALPHA, **options), PROBLEMS[problem])


def on_its_draws(update: Callable[..., Any], problem: str = "navigation", **options: Any) -> Check:
    answer = functools.partial(update, alpha=ALPHA, **options)
    return lambda m: checks.equals_reference_on_its_draws(m, answer, PROBLEMS[problem])


def shared(check: Callable[..., None], problem: str = "regression", *args: Any) -> Check:
    return lambda m: check(m, PROBLEMS[problem], *args)


def finite_differences(m: Method) -> None:
    def objective(w, data):
        return data.outer(updates.path(updates.sgd_step(ALPHA), w, data)[-1])

    checks.is_gradient_of(m, objective, problems.regression, 1e-7)


# MAML and its relatives. `pulled` is right with its defaults; each mutant turns one screw.


def pulled(
    sign: float = -1.0, alpha: float = ALPHA, backwards: bool = True, at: Callable[[int, int], int] = lambda j, n: j
) -> OuterUpdate:
    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        path = adaptation_path(params, tasks, inner)
        end = outer_gradient(tasks, path.params[-1])
        v = end.grads
        for j in reversed(range(inner.steps)) if backwards else range(inner.steps):
            w = path.params[at(j, inner.steps)]
            v = add_scaled(v, sign * alpha, hessian_vector_products(tasks, w, tasks.draw(w, "hessian"), v))
        return end._replace(grads=v)

    return update


def dropped_hessian(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    return outer_gradient(tasks, adapt(params, tasks, inner))


def hessian_of_the_query_set(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    path = adaptation_path(params, tasks, inner)
    end = outer_gradient(tasks, path.params[-1])
    v = end.grads
    for w in path.params[-2::-1]:
        v = add_scaled(v, -ALPHA, hessian_vector_products(tasks, w, tasks.draw(w, "outer"), v))
    return end._replace(grads=v)


def outer_on_the_support_set(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    w = adapt(params, tasks, inner)
    return MetaGrad(gradients(tasks, w, tasks.draw(w, "inner")), torch.zeros(tasks.num_tasks))


def mean_instead_of_per_task(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    result = make_method("maml", ALPHA).update(params, tasks, inner)
    return result._replace(grads=tree_map(lambda g: g.mean(0, keepdim=True).expand_as(g), result.grads))


def mixed_up_tasks(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    result = make_method("maml", ALPHA).update(params, tasks, inner)
    return result._replace(grads=tree_map(lambda g: g.flip(0), result.grads))


# HF-MAML.


def hessian_free(factor: float = 1.0, at_end: bool = False, one_sided: bool = False) -> OuterUpdate:
    multiply = central_difference(relative_length)

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        path = adaptation_path(params, tasks, inner)
        end = outer_gradient(tasks, path.params[-1])
        v = end.grads
        for w in path.params[-2::-1]:
            w = path.params[-1] if at_end else w
            batch = tasks.draw(w, "hessian")
            if one_sided:
                shifted = vmap(add_scaled, (0, None, 0))(w, 1e-4, v)
                product = subtract(gradients(tasks, shifted, batch), gradients(tasks, w, batch))
                product = tree_map(lambda x: x / 1e-4, product)
            else:
                product = multiply(tasks, w, batch, v)
            v = add_scaled(v, -ALPHA * factor, product)
        return end._replace(grads=v)

    return update


def probe_on_different_data(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    w = adaptation_path(params, tasks, inner).params
    end = outer_gradient(tasks, w[-1])
    above, below = (vmap(add_scaled, (0, None, 0))(w[0], d, end.grads) for d in (1e-4, -1e-4))
    up, down = (gradients(tasks, w[0], tasks.draw(p, "hessian")) for p in (above, below))  # each from its own rollout
    return end._replace(grads=add_scaled(end.grads, -ALPHA / 2e-4, subtract(up, down)))


# iMAML.


def implicit(factor: float, on: str = "hessian") -> OuterUpdate:
    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        phi = adapt(params, tasks, inner)
        end, batch = outer_gradient(tasks, phi), tasks.draw(phi, on)

        def multiply(rows):
            return rows + factor * flatten(hessian_vector_products(tasks, phi, batch, unflatten(rows, phi)))

        return end._replace(grads=unflatten(conjugate_gradients(multiply, flatten(end.grads), 20)[0], phi))

    return update


# Drawing and state.


def one_rollout_for_all_steps(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    w = broadcast(params, tasks.num_tasks)
    batch = tasks.draw(w, "inner")
    for _ in range(inner.steps):
        w = vmap(inner.rule)(w, gradients(tasks, w, batch), w)
    return outer_gradient(tasks, w)


def rollouts_of_the_unadapted(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    anchor = w = broadcast(params, tasks.num_tasks)
    for _ in range(inner.steps):
        w = vmap(inner.rule)(w, gradients(tasks, w, tasks.draw(anchor, "inner")), anchor)
    return outer_gradient(tasks, w)


def changes_its_arguments(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    result = dropped_hessian(params, tasks, inner)
    for k, g in mean(result.grads).items():
        params[k] -= 1e-3 * g
    return result


def global_generator(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    result = dropped_hessian(params, tasks, inner)
    return result._replace(grads=tree_map(lambda g: g + 1e-12 * torch.rand_like(g), result.grads))


def leaves_a_graph(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    return dropped_hessian({k: v.clone().requires_grad_() for k, v in params.items()}, tasks, inner)


def always_double(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    result = dropped_hessian(params, tasks, inner)
    return result._replace(grads=tree_map(torch.Tensor.double, result.grads))


def in_single_precision(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    result = dropped_hessian(params, tasks, inner)
    return result._replace(grads=tree_map(lambda g: g.float().double(), result.grads))


def nan(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    result = dropped_hessian(params, tasks, inner)
    return result._replace(grads=tree_map(lambda g: g * torch.nan, result.grads))


def uncounted(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    w = adapt(params, tasks, inner)
    batch = tasks.draw(w, "outer")
    return MetaGrad(vmap(grad(tasks.loss))(w, batch), torch.zeros(tasks.num_tasks))


class OneRolloutOnly(TaskWrapper):
    """Gives the first batch again, whatever it is asked."""

    first: Batch | None = None

    def draw(self, params: Params, role: Role) -> Batch:
        self.first = self.first or super().draw(params, role)
        return self.first


def one_rollout_only() -> problems.ReferenceProblem:
    problem = PROBLEMS["navigation"]()
    return problem._replace(tasks=OneRolloutOnly(problem.tasks))


FO, MAML = reference(updates.first_order), reference(updates.product)
# E-MAML: `sampled` is right with its defaults.


def sampled(
    weight: Callable[[Tensor], Tensor] = lambda values: values.mean(),
    reduce: Callable[[Tensor], Tensor] = torch.sum,
    surrogate: bool = False,
    only_first: bool = False,
    pull: bool = True,
) -> OuterUpdate:
    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        source = as_sampled(tasks)
        path = adaptation_path(params, tasks, inner)
        batch = tasks.draw(path.params[-1], "outer")
        v = gradients(tasks, path.params[-1], batch)
        weights = vmap(lambda data: weight(source.objective(data)))(batch)
        for j in reversed(range(inner.steps)):
            w, data = path.params[j], path.batches[j]
            loss = None if surrogate else source.frozen_loss
            if pull:
                v = add_scaled(v, -ALPHA, hessian_vector_products(tasks, w, data, v, loss))
            score = vmap(grad(lambda p, d: reduce(source.log_likelihood(p, d))))(w, data)
            if j == 0 or not only_first:
                v = {k: v[k] + score[k] * weights.view(-1, *[1] * (v[k].ndim - 1)) for k in v}
        return MetaGrad(v, weights)

    return update


SAMPLED = on_its_draws(updates.sampled_objective)

MUTANTS: dict[str, tuple[Method, Check]] = {
    "reversed product order": (method(pulled(backwards=False)), MAML),
    "reversed product order, by finite differences": (method(pulled(backwards=False)), finite_differences),
    "dropped Hessian": (method(dropped_hessian), MAML),
    "dropped Hessian, by finite differences": (method(dropped_hessian), finite_differences),
    "dropped Hessian, on rollouts": (method(dropped_hessian), on_its_draws(updates.product)),
    "wrong sign of the Hessian": (method(pulled(sign=1.0)), MAML),
    "wrong sign of the Hessian, on rollouts": (method(pulled(sign=1.0)), on_its_draws(updates.product)),
    "Hessian at w_N": (method(pulled(at=lambda j, n: n)), MAML),
    "Hessian at w_N, on rollouts": (method(pulled(at=lambda j, n: n)), on_its_draws(updates.product)),
    "Hessian at w_{j+1}": (method(pulled(at=lambda j, n: j + 1)), MAML),
    "Hessian always at w_0": (method(pulled(at=lambda j, n: 0)), MAML),
    "alpha dropped": (method(pulled(alpha=1.0)), MAML),
    "alpha squared": (method(pulled(alpha=ALPHA**2)), MAML),
    "Hessian of the query set": (method(hessian_of_the_query_set), MAML),
    "Hessian of the inner data, said to be fresh": (
        make_method("maml", ALPHA, N, hessian_data="reuse"),
        on_its_draws(updates.product),
    ),
    "outer gradient on the support set": (method(outer_on_the_support_set), FO),
    "mean instead of per task": (method(mean_instead_of_per_task), MAML),
    "mean instead of per task, against a loop": (
        method(mean_instead_of_per_task),
        shared(checks.stacked_equals_loop),
    ),
    "tasks mixed up": (method(mixed_up_tasks), shared(checks.stacked_equals_loop)),
    "mean over tasks, one gradient": (
        method(lambda *args: dropped_hessian(*args)._replace(grads={"w": torch.zeros(1, 1)})),
        shared(checks.stacked_equals_loop),
    ),
    "HF probe at w'": (method(hessian_free(at_end=True)), reference(updates.hessian_free)),
    "HF without the 1/2": (method(hessian_free(factor=2.0)), reference(updates.hessian_free)),
    "HF one-sided": (method(hessian_free(one_sided=True)), reference(updates.hessian_free)),
    "HF wrong sign": (method(hessian_free(factor=-1.0)), reference(updates.hessian_free)),
    "HF probe on two rollouts": (method(probe_on_different_data, steps=1), on_its_draws(updates.hessian_free)),
    "Moreau goes on from z_s": (make_method("fo_maml", ALPHA, N), reference(updates.moreau)),
    "Sign-MAML without sign": (make_method("fo_maml", ALPHA, N), reference(updates.sign)),
    "Reptile with the wrong sign": (
        method(
            lambda *args: (r := make_method("reptile", ALPHA).update(*args))._replace(
                grads=tree_map(torch.neg, r.grads)
            )
        ),
        reference(updates.reptile),
    ),
    "iMAML with H lam": (
        method(implicit(5.0), make_method("imaml", ALPHA, lam=5.0).inner.rule),
        reference(updates.implicit, "quadratics", lam=5.0),
    ),
    "iMAML with H": (
        method(implicit(1.0), make_method("imaml", ALPHA, lam=5.0).inner.rule),
        reference(updates.implicit, "quadratics", lam=5.0),
    ),
    "iMAML without the prox term": (method(implicit(0.2)), reference(updates.implicit, "quadratics", lam=5.0)),
    "iMAML's Hessian of the query set": (
        method(implicit(0.05, on="outer"), make_method("imaml", ALPHA, lam=20.0).inner.rule),
        reference(updates.implicit, lam=20.0),
    ),
    "E-MAML without the score term": (method(sampled(weight=lambda values: 0 * values.sum())), SAMPLED),
    "E-MAML weighted by normalised advantages": (
        method(sampled(weight=lambda values: ((values - values.mean()) / values.std()).mean())),
        SAMPLED,
    ),
    "E-MAML with a mean over trajectories": (method(sampled(reduce=torch.mean)), SAMPLED),
    "E-MAML with the wrong sign": (method(sampled(weight=lambda values: -values.mean())), SAMPLED),
    "E-MAML with the surrogate's Hessian": (method(sampled(surrogate=True)), SAMPLED),
    "E-MAML with the score term of the first step only": (method(sampled(only_first=True)), SAMPLED),
    "E-MAML without MAML's term": (method(sampled(pull=False)), SAMPLED),
    "MAML passed off as E-MAML": (make_method("maml", ALPHA, N, hessian_data="reuse"), SAMPLED),
    "one rollout for all inner steps": (method(one_rollout_for_all_steps), on_its_draws(updates.first_order)),
    "inner rollouts of the unadapted policy": (
        method(rollouts_of_the_unadapted),
        on_its_draws(updates.first_order),
    ),
    "one step too few": (
        method(lambda p, t, i: dropped_hessian(p, t, i._replace(steps=i.steps - 1))),
        FO,
    ),
    "changes its arguments": (method(changes_its_arguments), shared(checks.leaves_parameters_alone)),
    "leaves a graph": (method(leaves_a_graph), shared(checks.leaves_parameters_alone)),
    "global generator": (method(global_generator), shared(checks.is_deterministic)),
    "global generator, when replayed": (method(global_generator), shared(checks.replays_bit_for_bit)),
    "single precision": (method(in_single_precision), FO),
    "always double": (method(always_double), shared(checks.close_in_float32, "regression", 1e-5)),
    "NaN": (method(nan), FO),
    "NaN, in float32": (method(nan), shared(checks.close_in_float32, "regression", 1e-5)),
    "data that is not fresh": (
        make_method("maml", ALPHA),
        lambda m: checks.draws_are_independent(m, one_rollout_only),
    ),
    "an option that is ignored": (
        make_method("maml", ALPHA, N, hessian_data="reuse"),
        lambda m: checks.differ(make_method("maml", ALPHA, N, hessian_data="reuse"), m, PROBLEMS["navigation"]),
    ),
    "an alias that is not": (
        make_method("moreau", ALPHA, 2),
        lambda m: checks.coincide(m, make_method("fo_maml", ALPHA, 2), PROBLEMS["regression"], 1e-9),
    ),
    "an uncounted derivative": (
        method(uncounted),
        lambda m: checks.counts(m, PROBLEMS["regression"], {"gradients": 12, "samples": 3 * (3 * 5 + 7)}),
    ),
}


@pytest.mark.parametrize(("mutant", "check"), MUTANTS.values(), ids=MUTANTS)
def test_check_rejects(mutant: Method, check: Check) -> None:
    with pytest.raises(AssertionError):
        check(mutant)


SOUND: dict[str, tuple[Method, Check]] = {
    "pull back": (method(pulled()), MAML),
    "pull back, by finite differences": (method(pulled()), finite_differences),
    "pull back, on rollouts": (method(pulled()), on_its_draws(updates.product)),
    "reversed order of one step": (method(pulled(backwards=False), steps=1), MAML),
    "Hessian free": (method(hessian_free()), reference(updates.hessian_free)),
    "implicit": (
        method(implicit(0.2), make_method("imaml", ALPHA, lam=5.0).inner.rule),
        reference(updates.implicit, "quadratics", lam=5.0),
    ),
    "E-MAML": (method(sampled()), SAMPLED),
    "first order": (method(dropped_hessian), FO),
    "first order, in float32": (method(dropped_hessian), shared(checks.close_in_float32, "regression", 1e-5)),
    "first order, against a loop": (method(dropped_hessian), shared(checks.stacked_equals_loop)),
    "first order, counted": (
        method(dropped_hessian),
        lambda m: checks.counts(m, PROBLEMS["regression"], {"gradients": 12, "samples": 3 * (3 * 5 + 7)}),
    ),
}


@pytest.mark.parametrize(("unchanged", "check"), SOUND.values(), ids=SOUND)
def test_the_mutants_are_right_but_for_the_mutation(unchanged: Method, check: Check) -> None:
    check(unchanged)
