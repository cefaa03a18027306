"""Random directions, and estimators whose properties need more than one update: binomial errors, smoothed Hessians."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import MetaLearner, make_method
from metarl.derivatives import linear_effects, scores
from metarl.inner import adapt as adapt_all
from metarl.outer.directions import normal_directions
from metarl.outer.es_maml import EvolutionStep, HillClimbing, standardize
from metarl.outer.ggs_maml import smoothed_products
from metarl.supervised import FiniteSumTaskBatch
from metarl.supervised.sinusoid import Sinusoids
from metarl.tree import broadcast, flatten, norm, subtract, take
from metarl.types import Batch, Params
from metarl.wrappers import TaskWrapper
from tests.reference import checks, problems

W = {"a": torch.tensor([[0.3, -1.0], [2.0, 0.1]], dtype=torch.float64), "b": torch.tensor(0.5, dtype=torch.float64)}


def directions(start: Params, *label: int, tasks: range = range(4)) -> Params:
    return normal_directions(start, label, tasks, broadcast(start, len(tasks)))


def test_directions_are_standard_normal_and_independent() -> None:
    rows = flatten(directions(W, 0, tasks=range(200_000)))
    assert rows.shape == (200_000, 5)
    stderr = 200_000**-0.5
    assert (rows.mean(0).abs() < 4.5 * stderr).all()
    assert ((torch.cov(rows.T) - torch.eye(5)).abs() < 4.5 * 2**0.5 * stderr).all()
    assert abs(float(rows.pow(4).mean()) - 3) < 4.5 * (96 / rows.numel()) ** 0.5
    assert abs(float((rows[1:] * rows[:-1]).mean())) < 4.5 * rows.numel() ** -0.5  # of neighbouring tasks


def test_directions_follow_from_the_parameters_the_label_and_the_task() -> None:
    first = directions(W, 1, 2)
    assert all(torch.equal(leaf, first[name]) for name, leaf in directions(W, 1, 2).items())
    others = [directions(W, 1, 3), directions(W, 1), directions(W, 12), directions({**W, "b": W["b"] + 1e-5}, 1, 2)]
    for other in others:
        assert not (flatten(other) == flatten(first)).any()
    # a share of the tasks has the same numbers, and so have float32 parameters, rounded
    share = flatten(directions(W, 1, 2, tasks=range(1, 3)))
    assert torch.equal(share, flatten(first)[1:3])
    rounded = directions({name: leaf.float() for name, leaf in W.items()}, 1, 2)
    assert rounded["a"].dtype == torch.float32
    assert torch.equal(flatten(rounded), flatten(first).float())


def test_directions_use_no_global_generator() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = directions(W, 0)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    state = torch.get_rng_state()
    assert torch.equal(flatten(directions(W, 0)), flatten(before))
    assert torch.equal(torch.get_rng_state(), state)


class Share(TaskWrapper):
    """The tasks from `first_task` on, as another process would have them."""

    first_task = 2


def test_a_share_of_the_tasks_has_the_directions_of_the_whole_batch() -> None:
    tasks, params = problems.regression()
    assert isinstance(tasks, FiniteSumTaskBatch)
    method = make_method("ggs_maml", 0.2, 2)
    whole = method.update(params, tasks, method.inner).grads
    last = tasks.subset(torch.tensor([2]))
    own = method.update(params, Share(last), method.inner).grads
    checks.assert_near(checks.ravel(take(own, 0)), checks.ravel(take(whole, 2)), 1e-12)
    moved = method.update(params, last, method.inner).grads  # said to be the first task
    assert (checks.ravel(take(moved, 0)) - checks.ravel(take(whole, 2))).norm() > 1e-3


# The smoothed Hessian.


def copies(number: int) -> tuple[FiniteSumTaskBatch, Params, Tensor]:
    """The same quadratic for every task, with the Hessian A, which is not diagonal."""
    a = torch.tensor([[2.0, -0.7, 0.3], [-0.7, 1.0, 0.5], [0.3, 0.5, 0.2]], dtype=torch.float64)

    def loss(w: Params, batch: Batch) -> Tensor:
        return 0.5 * (w["w"] - batch["c"][0]) @ a @ (w["w"] - batch["c"][0])

    centres = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).expand(number, 1, 3)
    return FiniteSumTaskBatch(loss, {"c": centres}), {"w": torch.tensor([0.2, 0.1, -0.4], dtype=torch.float64)}, a


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("smoothing", [None, 0.5])
def test_smoothed_hessian_is_unbiased_on_a_quadratic(number: int, smoothing: float | None) -> None:
    tasks, w, a = copies(40_000)
    v = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
    stacked, vectors = broadcast(w, tasks.num_tasks), {"w": v.expand(tasks.num_tasks, 3)}
    rows = smoothed_products(w, number, smoothing)(tasks, stacked, tasks.support, vectors)["w"]
    stderr = rows.std(0) / len(rows) ** 0.5
    assert ((rows.mean(0) - a @ v).abs() < 4.5 * stderr).all()
    assert (stderr < 0.05).all()
    # Var[H u u^T v] = |v|^2 H H^T + (H v)(H v)^T for normal u, over K
    variance = (v @ v * (a @ a).diag() + (a @ v) ** 2) / number
    torch.testing.assert_close(rows.var(0), variance, rtol=0.1, atol=0)


@pytest.mark.parametrize("wrong", ["half", "ones"])
def test_the_test_of_the_mean_sees_wrong_formulas(wrong: str) -> None:
    _, w, a = copies(40_000)
    v = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
    u = directions(w, 0, 0, tasks=range(40_000))["w"] if wrong == "half" else torch.ones(40_000, 3).double()
    rows = (0.5 if wrong == "half" else 1.0) * (u @ a) * (u @ v)[:, None]
    off = (rows.mean(0) - a @ v).abs()
    assert (off > 6 * rows.std(0) / len(rows) ** 0.5).any()


def test_smoothing_a_quartic() -> None:
    """x^4 / 12 smoothed by N(0, s^2) has the second derivative x^2 + s^2."""
    number, s, x = 400_000, 0.7, 0.4
    tasks = FiniteSumTaskBatch(lambda w, b: w["x"] ** 4 / 12 + 0 * b["c"][0], {"c": torch.zeros(number, 1).double()})
    w = {"x": torch.tensor(x, dtype=torch.float64)}
    ones = {"x": torch.ones(number, dtype=torch.float64)}
    rows = smoothed_products(w, 2, s)(tasks, broadcast(w, number), tasks.support, ones)["x"]
    stderr = float(rows.std()) / number**0.5
    assert abs(float(rows.mean()) - (x**2 + s**2)) < 4.5 * stderr < 0.05


# The binomial expansion.


def test_binomial_error_falls_with_the_order() -> None:
    """Five inner steps on sinusoids. Measured: 0.94, 0.65, 0.21, 0.032, 0.0019 at alpha = 0.01.

    With the last L factors only, as in truncated backpropagation: 0.94, 0.59, 0.38, 0.22, 0.11.
    """
    source = Sinusoids(shots=10)
    learner = MetaLearner(source, "maml", inner_lr=0.01, inner_steps=5, meta_batch_size=10).learn(100)

    def errors(alpha: float) -> list[float]:
        found = []
        for order in range(6):
            method, tasks = (
                make_method("binom_maml", alpha, 5, order=order),
                source.sample(20, np.random.default_rng(3)),
            )
            found.append(method.update(learner.params, tasks, method.inner).grads)
        return [float(norm(subtract(grads, found[-1])) / norm(found[-1])) for grads in found[:-1]]

    coarse = errors(0.01)
    assert all(error < limit for error, limit in zip(coarse, (1.0, 0.75, 0.3, 0.05, 0.004), strict=True))
    ratios = [better / worse for worse, better in itertools.pairwise(coarse)]
    assert ratios == sorted(ratios, reverse=True)  # faster than any geometric rate
    # a ten times smaller alpha: measured 0.095, 0.0047, 1.2e-4, 1.5e-6, 2.4e-9
    assert all(error < limit for error, limit in zip(errors(0.001), (0.15, 8e-3, 3e-4, 5e-6, 1e-7), strict=True))


# ES-MAML.


def test_evolution_is_unbiased_on_a_quadratic() -> None:
    """Without inner steps the smoothed quadratic has the same gradient."""
    tasks, w, a = copies(40_000)
    method = make_method("es_maml", directions=2, smoothing=0.5)
    rows = method.update(w, tasks, method.inner._replace(steps=0)).grads["w"]
    wanted = a @ (w["w"] - tasks.support["c"][0, 0])
    stderr = rows.std(0) / len(rows) ** 0.5
    assert ((rows.mean(0) - wanted).abs() < 4.5 * stderr).all()
    assert (stderr < 0.05).all()
    assert ((-rows.mean(0) - wanted).abs() > 6 * stderr).any()  # the wrong sign is seen
    assert ((2 * rows.mean(0) - wanted).abs() > 6 * stderr).any()  # and a missing 1/2


def test_a_step_of_evolution_goes_uphill_by_its_length() -> None:
    """Where the score is linear, c x, the expected step is about alpha c / |c|, in any units of the score."""
    number, alpha = 20_000, 0.3
    slope = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64)
    steps = []
    for unit in (1.0, 1000.0):

        def loss(w: Params, batch: Batch, unit: float = unit) -> Tensor:
            return -unit * (slope @ w["w"]) + 0 * batch["c"][0]

        tasks = FiniteSumTaskBatch(loss, {"c": torch.zeros(number, 1, dtype=torch.float64)})
        start = {"w": torch.zeros(3, dtype=torch.float64)}
        moved = EvolutionStep(alpha, 200, 0.1).move(tasks, broadcast(start, number), start, (0,))["w"].mean(0)
        assert (moved - alpha * slope / 5).norm() < 0.01 * alpha
        steps.append(moved)
    assert (steps[0] - steps[1]).norm() < 1e-9


def test_hill_climbing_keeps_what_is_better() -> None:
    tasks, params = problems.regression()
    assert isinstance(tasks, FiniteSumTaskBatch)
    w = broadcast(params, 3)
    found = [scores(tasks, HillClimbing(0.1, m).move(tasks, w, params, (0,)), tasks.support) for m in (1, 5, 25)]
    before = scores(tasks, w, tasks.support)
    assert all((later >= earlier).all() for earlier, later in itertools.pairwise([before, *found]))
    assert (found[-1] > before).all()


@pytest.mark.parametrize(("adaptation", "of_a_step"), [("es", 2 * 3), ("hill_climbing", 3 + 1)])
def test_every_point_of_es_maml_has_its_own_episodes(adaptation: str, of_a_step: int) -> None:
    problem = problems.reinforcement_learning("point_velocity")
    method = make_method("es_maml", 0.05, 2, adaptation=adaptation, directions=2, queries=3)
    draws = 2 * 2 * (2 * of_a_step + 1) + 1
    checks.counts(method, lambda: problem, {"samples": draws * 2 * 3, "env_steps": draws * 2 * 3 * 5})


@pytest.mark.parametrize("adaptation", ["es", "hill_climbing"])
def test_evaluation_adapts_by_scores(adaptation: str) -> None:
    source = problems.source("point_velocity")
    options = {"adaptation": adaptation, "queries": 2}
    learner = MetaLearner(source, "es_maml", inner_lr=0.1, outer_options=options, meta_batch_size=2).learn(2)
    curve = learner.evaluate(num_tasks=3, steps=2, warn=False)
    draws = 4 if adaptation == "es" else 3
    assert curve.costs["env_steps"].tolist() == [[0, draws * 3 * 3 * 5, 2 * draws * 3 * 3 * 5]]
    assert curve.costs["gradients"].tolist() == [[0, 0, 0]]
    assert np.array_equal(learner.evaluate(num_tasks=3, steps=2, warn=False).scores, curve.scores)
    shorter = learner.evaluate(num_tasks=3, steps=2, step_sizes=[0.01, 0.01], warn=False)
    assert not np.array_equal(shorter.scores[..., 1:], curve.scores[..., 1:])
    assert learner.counts["gradients"] == 0


def test_es_maml_and_other_updates_refuse_each_other_s_rules() -> None:
    tasks, params = problems.regression()
    es, maml = make_method("es_maml"), make_method("maml")
    with pytest.raises(ValueError, match="inner rule of es_maml must move by scores"):
        es.update(params, tasks, maml.inner)
    with pytest.raises(ValueError, match="the rule of es_maml moves by scores, got gradients"):
        maml.update(params, tasks, es.inner)


def is_frozen(params: Params, moved: Params) -> dict[str, bool]:
    return {k: bool((moved[k] == leaf).all()) for k, leaf in params.items()}


@pytest.mark.parametrize("adaptation", ["es", "hill_climbing"])
def test_es_maml_adapts_some_parameters(adaptation: str) -> None:
    problem = problems.reinforcement_learning("point_velocity")
    options = {"adaptation": adaptation, "queries": 20}
    part, whole = (make_method("es_maml", 0.3, adapt=adapt, **options) for adapt in ("head", None))
    head = {k: "action_net" in k for k in problem.params}
    for method, wanted in ((part, {k: not found for k, found in head.items()}), (whole, dict.fromkeys(head, False))):
        moved = adapt_all(problem.params, problem.tasks, method.inner)
        assert is_frozen(problem.params, moved) == wanted
    grads = part.update(problem.params, problem.tasks, part.inner).grads
    assert all(leaf.any() for leaf in grads.values())  # the outer step moves all


def test_multitask_with_a_head_trains_everything_and_adapts_the_head() -> None:
    problem = problems.regression()
    part, whole = (make_method("multitask", 0.1, adapt=adapt) for adapt in ("*_2", None))
    checks.coincide(part, whole, problems.regression, 0)
    moved = adapt_all(problem.params, problem.tasks, part.inner)
    assert is_frozen(problem.params, moved) == {k: not k.endswith("_2") for k in problem.params}


def test_equal_scores_move_nothing() -> None:
    assert torch.equal(standardize(torch.ones(4, 2)), torch.zeros(4, 2))


# The linear effects of single trajectories.


def test_linear_effects_add_up_to_the_gradient() -> None:
    problem = problems.PROBLEMS["navigation"]()
    tasks, w = problem.tasks, broadcast(problem.params, 2)
    batch = tasks.draw(w, "inner")
    v = normal_directions(problem.params, (7,), range(2), w)
    effects = linear_effects(tasks, w, batch, v)
    assert effects.shape == (2, 3)
    for i in range(2):
        one = checks.one(batch, i)
        gradient = checks.unravel(checks.ravel(take(w, i)), problem.params)
        leaves = {k: x.clone().requires_grad_() for k, x in gradient.items()}
        g = torch.autograd.grad(tasks.frozen_loss(leaves, one), list(leaves.values()))  # type: ignore[attr-defined]
        whole = sum((x * y[i]).sum() for x, y in zip(g, v.values(), strict=True))
        torch.testing.assert_close(effects[i].mean(), torch.as_tensor(whole))
        assert effects[i].std() > 1e-6


def test_lsf_names_what_the_tasks_lack() -> None:
    class Bare:
        num_tasks = 1
        frozen_loss = log_likelihood = objective = staticmethod(lambda *args: torch.zeros(1))

    method = make_method("lsf")
    with pytest.raises(ValueError, match=r"lsf needs tasks with .*; Bare lacks \['frozen_losses'\]"):
        method.update({}, Bare(), method.inner)  # type: ignore[arg-type]
