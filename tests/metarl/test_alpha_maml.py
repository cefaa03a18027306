"""Alpha MAML: both hypergradients by finite differences, whole iterations against plain autograd, and mutants."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl import MetaLearner, NonFiniteError, make_method
from metarl.errors import StateError
from metarl.learned_rules import META, STEP_SIZES, visible
from metarl.step import HypergradientStep, MeanGrad, OuterStep, Stepped, Update, average
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
from metarl.supervised.sinusoid import Sinusoids
from metarl.tree import add_scaled, dot
from metarl.types import MetaGrad, Params, TaskBatch
from tests.keep import Keep
from tests.metarl.checkpoint.test_learner_state import equal, replace, variants
from tests.metarl.test_learned_rules import LEARNING, alpha_of
from tests.reference.checks import one
from tests.reference.problems import PROBLEMS, ReferenceProblem

pytestmark = pytest.mark.usefixtures("unrecorded")

ALPHA, BETA, ETA_ALPHA, ETA_BETA = 0.1, 0.05, 0.02, 0.01
SUPERVISED = ("quadratics", "logistic", "regression")
PLAIN = {"maml_plus_plus": {"multi_step_iterations": 0, "second_order_from": 0}}  # MAML++ after its annealing
Make = Callable[..., OuterStep]


def train(
    problem: ReferenceProblem,
    iterations: int,
    make: Make = HypergradientStep,
    outer: str = "maml",
    kind: Any = "scalar",
    steps: int = 1,
    **options: Any,
) -> tuple[MetaLearner, Keep]:
    """A learner on all tasks of the problem, and the metrics and parameters of every iteration."""
    assert isinstance(problem.tasks, FiniteSumTaskBatch)
    source = FiniteSumSource(problem.tasks, problem.params)
    learned = {} if kind is None else {"learn_inner_lr": kind}
    method = make_method(outer, ALPHA, steps, **learned, **PLAIN.get(outer, {}))
    given = {"outer_lr": BETA, "hyper_lr_alpha": ETA_ALPHA, "hyper_lr_beta": ETA_BETA, **options}
    step = make(method.initial_params(source), **given)
    keep = Keep()
    learner = MetaLearner.from_parts(source, method, step, meta_batch_size=problem.tasks.num_tasks)
    return learner.learn(iterations, [keep]), keep


def loss(
    problem: ReferenceProblem, params: Params, kind: str = "scalar", steps: int = 1, first: bool = False
) -> Tensor:
    """The mean loss after adaptation, with plain autograd; `first` without the inner gradients' derivatives."""
    tasks = problem.tasks
    assert isinstance(tasks, FiniteSumTaskBatch)
    total = torch.zeros((), dtype=torch.float64)
    for task in range(tasks.num_tasks):
        w = {k: params[k] for k in problem.params}
        for step in range(steps):
            leaf = {k: v if v.requires_grad else v.clone().requires_grad_() for k, v in w.items()}
            grads = torch.autograd.grad(
                tasks.loss(leaf, one(tasks.support, task)), list(leaf.values()), create_graph=not first
            )
            w = {k: leaf[k] - alpha_of(params, kind, k, step) * g for k, g in zip(leaf, grads, strict=True)}
        total = total + tasks.loss(w, one(tasks.query, task))
    return total / tasks.num_tasks


def meta_gradient(problem: ReferenceProblem, params: Params, kind: str, steps: int, first: bool) -> Params:
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    grads = torch.autograd.grad(loss(problem, leaves, kind, steps, first), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))


# The derivatives themselves.


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", SUPERVISED)
def test_both_hypergradients_by_finite_differences(name: str, steps: int) -> None:
    problem = PROBLEMS[name]()
    _, keep = train(problem, 2, outer="maml" if steps == 1 else "multi_step_maml", steps=steps)
    start = {**problem.params, f"{META}inner_lr": torch.tensor(ALPHA, dtype=torch.float64)}
    first, second = keep.params
    size = 1e-4

    # dL/dalpha at the start
    up, down = ({**start, f"{META}inner_lr": torch.tensor(ALPHA + e, dtype=torch.float64)} for e in (size, -size))
    wanted = (loss(problem, up, steps=steps) - loss(problem, down, steps=steps)).item() / (2 * size)
    assert keep.metrics[0]["train/inner_lr_hypergradient"] == pytest.approx(wanted, rel=1e-6)
    assert first[f"{META}inner_lr"].item() == pytest.approx(ALPHA - ETA_ALPHA * wanted, rel=1e-6)

    # dL/dbeta after the first step: its direction is (start - first) / beta
    moved = {k: (first[k] - start[k]) / BETA for k in problem.params}
    up, down = ({**first, **add_scaled(visible(start), BETA + e, moved)} for e in (size, -size))
    wanted = (loss(problem, up, steps=steps) - loss(problem, down, steps=steps)).item() / (2 * size)
    assert keep.metrics[0]["train/outer_lr_hypergradient"] == 0
    assert keep.metrics[1]["train/outer_lr_hypergradient"] == pytest.approx(wanted, rel=1e-6)
    assert keep.metrics[1]["train/outer_lr"] == pytest.approx(BETA - ETA_BETA * wanted, rel=1e-8)
    assert second.keys() == start.keys()


def test_the_published_inner_product() -> None:
    """One step: dL/dalpha = -mean_i <grad f_i(w_i'), grad f_i(w)>."""
    problem = PROBLEMS["regression"]()
    tasks = problem.tasks
    assert isinstance(tasks, FiniteSumTaskBatch)
    _, keep = train(problem, 1)
    products = []
    for task in range(tasks.num_tasks):
        w = {k: v.clone().requires_grad_() for k, v in problem.params.items()}
        g = torch.autograd.grad(tasks.loss(w, one(tasks.support, task)), list(w.values()))
        adapted = {k: (v - ALPHA * d).detach().requires_grad_() for (k, v), d in zip(w.items(), g, strict=True)}
        v = torch.autograd.grad(tasks.loss(adapted, one(tasks.query, task)), list(adapted.values()))
        products.append(sum(float((a * b).sum()) for a, b in zip(g, v, strict=True)))
    assert keep.metrics[0]["train/inner_lr_hypergradient"] == pytest.approx(-sum(products) / len(products), rel=1e-12)


# Whole iterations.


def reference(
    problem: ReferenceProblem,
    iterations: int,
    kind: str = "scalar",
    steps: int = 1,
    first_order: bool = False,
    max_grad_norm: float = math.inf,
) -> tuple[Params, float]:
    """Parameters and beta after the iterations, written down from the formulas."""
    method = make_method("maml", ALPHA, steps, learn_inner_lr=kind)
    params = {**problem.params, **method.learned_rule.initial_meta(problem.params)}  # type: ignore[union-attr]
    beta, before = BETA, None
    for _ in range(iterations):
        grads = meta_gradient(problem, params, kind, steps, first_order)
        G = torch.cat([grads[k].flatten() for k in problem.params])
        beta += 0.0 if before is None else ETA_BETA * float(G @ before)
        before = G * min(1.0, max_grad_norm / float(G.norm()))
        scale = float(before.norm() / G.norm())
        params = {
            k: v - (ETA_ALPHA * grads[k] if k.startswith(META) else beta * scale * grads[k]) for k, v in params.items()
        }
    return params, beta


def check(make: Make, outer: str = "maml", kind: Any = "scalar", steps: int = 1, **options: Any) -> None:
    problem = PROBLEMS["regression"]()
    learner, _ = train(problem, 3, make, outer, kind, steps, floor=None, **options)
    wanted, beta = reference(problem, 3, kind, steps, outer == "fo_maml", options.get("max_grad_norm") or math.inf)
    tolerance = 1e-6 if outer == "hf_maml" else 1e-10
    assert learner.outer_step.state_dict()["outer_lr"] == pytest.approx(beta, rel=tolerance)
    assert learner.params.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(learner.params[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", STEP_SIZES)
@pytest.mark.parametrize("outer", LEARNING)
def test_three_iterations(outer: str, kind: Any) -> None:
    check(HypergradientStep, outer, kind, steps=2)


def test_three_clipped_iterations() -> None:
    check(HypergradientStep, max_grad_norm=0.3)


class Mutant(HypergradientStep):
    """The step again, with screws to turn; as it is, it is right."""

    alpha_sign, beta_sign = 1.0, 1.0
    with_itself = meta_inside = beta_late = meta_by_beta = unclipped = False

    def __call__(self, params: Params, tasks: TaskBatch, update: Update) -> Stepped:
        found = update(params, tasks)
        grads = found.grads if self.meta_inside else visible(found.grads)
        norm = float(dot(visible(found.grads), visible(found.grads)).sqrt())
        scale = min(1.0, (self.max_grad_norm or math.inf) / norm)
        own = {k: scale * v for k, v in grads.items()}
        before = getattr(self, "before", None)
        product = 0.0 if before is None else float(dot(grads, grads if self.with_itself else before))
        beta = self.outer_lr + self.beta_sign * self.hyper_lr_beta * product
        used = self.outer_lr if self.beta_late else beta
        self.outer_lr, self.before = beta, grads if self.unclipped else own
        rate = used if self.meta_by_beta else self.alpha_sign * self.hyper_lr_alpha
        moved = {
            k: v - (rate * found.grads[k] if k.startswith(META) else used * scale * found.grads[k])
            for k, v in params.items()
        }
        return Stepped(moved, found)


def mutant(**screws: Any) -> Make:
    return type("Turned", (Mutant,), screws)


def test_the_mutant_is_right_as_it_is() -> None:
    check(mutant(), max_grad_norm=0.3)
    check(mutant())


@pytest.mark.parametrize(
    "screws",
    [
        {"alpha_sign": -1.0},
        {"beta_sign": -1.0},
        {"with_itself": True},
        {"meta_inside": True},
        {"beta_late": True},
        {"meta_by_beta": True},
        {"unclipped": True},
    ],
    ids=lambda screws: min(screws),
)
def test_wrong_formulas_are_rejected(screws: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check(mutant(**screws), max_grad_norm=0.3)


def test_without_learned_step_sizes_beta_alone_moves() -> None:
    """And with both hyper rates zero the step is plain descent."""
    problem = PROBLEMS["regression"]()
    learner, keep = train(problem, 3, kind=None, hyper_lr_alpha=0.0)
    assert learner.params.keys() == problem.params.keys()
    assert keep.metrics[2]["train/outer_lr"] != BETA
    assert "train/inner_lr_hypergradient" not in keep.metrics[2]
    fixed, keep = train(problem, 3, kind=None, hyper_lr_alpha=0.0, hyper_lr_beta=0.0)
    assert keep.metrics[2]["train/outer_lr"] == BETA
    plain = MetaLearner(
        fixed.source, "maml", inner_lr=ALPHA, meta_batch_size=3, learning_rate=BETA, optimizer=torch.optim.SGD
    ).learn(3)
    for name, value in plain.params.items():
        torch.testing.assert_close(fixed.params[name], value, rtol=1e-12, atol=0)


def test_float32() -> None:
    problem = PROBLEMS["regression"]()
    assert isinstance(problem.tasks, FiniteSumTaskBatch)
    exact, _ = train(problem, 3, kind="layer")
    data = [{k: v.float() for k, v in part.items()} for part in (problem.tasks.support, problem.tasks.query)]
    single = FiniteSumTaskBatch(problem.tasks.loss, *data)
    found, _ = train(ReferenceProblem(single, {k: v.float() for k, v in problem.params.items()}), 3, kind="layer")
    for name, value in exact.params.items():
        assert found.params[name].dtype == torch.float32
        torch.testing.assert_close(found.params[name].double(), value, rtol=1e-4, atol=1e-5)


# Rates below zero.


def feed(step: HypergradientStep, *grads: tuple[float, float]) -> list[tuple[float, float]]:
    """Alpha and beta after each of the meta-gradients of one weight and one inner step size."""
    params = {"w": torch.tensor(0.0), f"{META}inner_lr": torch.tensor(0.1)}
    rates = []
    for of_w, of_alpha in grads:
        given = {"w": torch.tensor([of_w]), f"{META}inner_lr": torch.tensor([of_alpha])}

        def update(params: Params, tasks: TaskBatch, given: Params = given) -> MeanGrad:
            return average(MetaGrad(given, torch.zeros(1)))

        params = step(params, None, update).params  # type: ignore[arg-type]
        rates.append((params[f"{META}inner_lr"].item(), step.outer_lr))
    return rates


SCALARS = {"w": torch.tensor(0.0), f"{META}inner_lr": torch.tensor(0.1)}


@pytest.mark.parametrize(
    ("floor", "wanted"),
    [  # the gradients of w 1, -2, -3: products -2 and 6; those of alpha 3, -1, 0
        (None, [(-0.2, 0.1), (-0.1, -0.1), (-0.1, 0.5)]),
        (0.0, [(0.0, 0.1), (0.1, 0.0), (0.1, 0.6)]),
        (0.05, [(0.05, 0.1), (0.15, 0.05), (0.15, 0.65)]),
    ],
)
def test_the_floor_by_hand(floor: float | None, wanted: list[tuple[float, float]]) -> None:
    step = HypergradientStep(SCALARS, 0.1, hyper_lr_alpha=0.1, hyper_lr_beta=0.1, floor=floor)
    for found, rates in zip(feed(step, (1.0, 3.0), (-2.0, -1.0), (-3.0, 0.0)), wanted, strict=True):
        assert found == pytest.approx(rates, abs=1e-6)


def test_other_meta_parameters_are_moved_by_beta() -> None:
    params = {**SCALARS, "meta/other": torch.tensor(1.0)}
    step = HypergradientStep(params, 0.1, hyper_lr_alpha=0.5, hyper_lr_beta=0.1)
    grads = {"w": torch.tensor([1.0]), f"{META}inner_lr": torch.tensor([0.2]), "meta/other": torch.tensor([2.0])}
    for _ in range(2):
        params = step(params, None, lambda w, tasks: average(MetaGrad(grads, torch.zeros(1)))).params  # type: ignore[arg-type]
    assert step.outer_lr == pytest.approx(0.1 + 0.1 * (1 + 4))
    assert params["meta/other"].item() == pytest.approx(1 - 0.1 * 2 - 0.6 * 2)
    assert params["w"].item() == pytest.approx(-0.1 - 0.6)
    assert params[f"{META}inner_lr"].item() == pytest.approx(0.0)


def test_an_overflow_is_found() -> None:
    step = HypergradientStep(SCALARS, 0.0)
    with pytest.raises(NonFiniteError, match="outer_lr_hypergradient"):
        feed(step, (1e30, 0.0), (1e30, 0.0))


# Saved, copied, checked.


def sinusoids(kind: Any = "layer-step", **options: Any) -> MetaLearner:
    source, method = Sinusoids(), make_method("maml", 0.01, 2, learn_inner_lr=kind)
    given = {"outer_lr": 0.01, "hyper_lr_alpha": 1e-5, "hyper_lr_beta": 1e-4, **options}
    return MetaLearner.from_parts(
        source, method, HypergradientStep(method.initial_params(source), **given), meta_batch_size=4
    )


def test_saved_and_loaded_it_goes_on_exactly(tmp_path: Path) -> None:
    """The file alone makes the same step again; without the last direction the next step is another one."""
    whole, half = sinusoids(floor=None, max_grad_norm=2.0).learn(5), sinusoids(floor=None, max_grad_norm=2.0).learn(2)
    half.save(tmp_path / "checkpoint.pt")
    resumed = MetaLearner.load(tmp_path / "checkpoint.pt", Sinusoids())
    assert isinstance(resumed.outer_step, HypergradientStep)
    assert equal(resumed.state_dict(), half.state_dict())
    assert equal(resumed.learn(3).state_dict(), whole.state_dict())
    forgetful = MetaLearner.load(tmp_path / "checkpoint.pt", Sinusoids())
    state = forgetful.outer_step.state_dict()
    forgetful.outer_step.load_state_dict({**state, "direction": {k: 0 * v for k, v in state["direction"].items()}})
    assert not equal(forgetful.learn(3).state_dict(), whole.state_dict())


def test_a_file_with_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    learner = sinusoids().learn(1)
    learner.save(path)
    with pytest.raises(ValueError, match="optimizer does not apply to the checkpoint's outer step, HypergradientStep"):
        MetaLearner.load(path, Sinusoids(), optimizer=torch.optim.SGD)
    with pytest.raises(StateError, match=r"step_options is .*0\.5.* but the checkpoint was trained with .*0\.01"):
        sinusoids(outer_lr=0.5).load_state_dict(learner.state_dict())
    adam = MetaLearner.from_parts(Sinusoids(), learner.method, meta_batch_size=4)
    for own, other in ((adam, learner), (learner, adam)):
        with pytest.raises(StateError, match=r"outer_step is .*, but the checkpoint was trained with"):
            own.load_state_dict(other.state_dict())


@pytest.mark.parametrize("way", [copy.deepcopy, lambda learner: pickle.loads(pickle.dumps(learner))])
def test_a_copy_goes_on_as_the_original(way: Callable[[MetaLearner], MetaLearner]) -> None:
    learner = sinusoids().learn(2)
    before = copy.deepcopy(learner.state_dict())
    other = way(learner).learn(2)
    assert equal(learner.state_dict(), before)
    assert equal(other.state_dict(), learner.learn(2).state_dict())


def test_a_state_is_refused_or_loaded_as_it_is() -> None:
    step = sinusoids("scalar").learn(1).outer_step
    assert isinstance(step, HypergradientStep)
    whole, refused = step.state_dict(), 0
    for where, value in variants(whole):
        variant = replace(whole, where, value)
        try:
            step.load_state_dict(variant)
        except StateError:
            refused += 1
        else:
            assert equal(step.state_dict(), variant) or step.state_dict()["outer_lr"] == variant["outer_lr"]
        step.load_state_dict(whole)
    assert refused > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer_lr": -0.1}, "outer_lr must be a finite number at least 0, got -0.1"),
        ({"hyper_lr_alpha": math.nan}, "hyper_lr_alpha must"),
        ({"hyper_lr_beta": "x"}, "hyper_lr_beta must .* got 'x'"),
        ({"floor": -1.0}, "floor must .* got -1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must .* got 0"),
        ({"params": {"w": torch.zeros(2)}}, "hyper_lr_alpha needs .* learn_inner_lr='scalar' .*, got 0.0001"),
        ({"params": {"meta/inner_lr_of_another_kind": torch.zeros(2)}}, "hyper_lr_alpha needs"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HypergradientStep(**{"params": SCALARS, **options})
