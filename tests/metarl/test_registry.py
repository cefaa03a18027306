"""Names, options and numbers; a method of a user's own."""

import functools
from typing import Any

import pytest
import torch

from metarl import OUTER, Inner, MetaGrad, Method, make_method, register
from metarl.inner import adaptation_path, sgd
from metarl.outer import options, outer_gradient
from metarl.outer.registry import inner_defaults
from metarl.tree import add_scaled, subtract
from metarl.types import Params, TaskBatch
from tests.reference import checks, problems, updates


@pytest.fixture
def mixture(monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's method: the first-order gradient, plus `pull` times Reptile's direction."""
    monkeypatch.setattr("metarl.outer.registry.OUTER", OUTER | {})  # gone again after the test

    @register("mixture")
    def builder(inner_lr: float = 0.1, inner_steps: int = 2, *, pull: float = 0.5) -> Method:
        def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
            path = adaptation_path(params, tasks, inner)
            end = outer_gradient(tasks, path.params[-1])
            away = subtract(path.params[0], path.params[-1])
            return end._replace(grads=add_scaled(end.grads, pull, away))

        return Method(update, Inner(sgd(inner_lr), inner_steps))

    return "mixture"


def mixture_reference(w: torch.Tensor, data: updates.Data, alpha: float, pull: float = 0.5) -> updates.Answer:
    a, b = updates.first_order(w, data, alpha), updates.reptile(w, data, alpha)
    return a._replace(gradient=a.gradient + pull * b.gradient)


def test_a_users_own_method_has_every_shared_property(mixture: str) -> None:
    method = make_method(mixture, 0.1)
    reference = functools.partial(mixture_reference, alpha=0.1)
    assert method.inner.steps == 2
    assert options(mixture) == {"pull": 0.5}
    checks.equals_reference(method, reference, problems.regression)
    checks.equals_reference_on_its_draws(method, reference, problems.PROBLEMS["discrete"])
    checks.replays_bit_for_bit(method, problems.PROBLEMS["discrete"])
    checks.stacked_equals_loop(method, problems.PROBLEMS["discrete"])
    checks.leaves_parameters_alone(method, problems.regression)
    checks.close_in_float32(method, problems.regression, 1e-5)
    stronger = make_method(mixture, 0.1, pull=2.0)
    checks.equals_reference(stronger, functools.partial(mixture_reference, alpha=0.1, pull=2.0), problems.regression)
    checks.differ(method, stronger, problems.regression)


def test_a_taken_name(mixture: str) -> None:
    with pytest.raises(ValueError, match=r"name 'maml' is taken by metarl\.outer\.maml"):
        register("maml")(lambda inner_lr, inner_steps=1: make_method("fo_maml", inner_lr, inner_steps))
    with pytest.raises(ValueError, match="name 'mixture' is taken by"):
        register(mixture)(lambda inner_lr, inner_steps=1: make_method("fo_maml", inner_lr, inner_steps))


@pytest.mark.parametrize(
    "builder",
    [lambda inner_lr, inner_steps=1: None, lambda inner_lr=0.1: None, lambda steps=1, inner_lr=0.1: None,
     lambda inner_lr=0.1, inner_steps=1, *, option: None],
)  # fmt: skip
def test_a_builder_without_the_defaults(builder: Any) -> None:
    with pytest.raises(ValueError, match=r"the builder of 'mine' must have the parameters .*, got \("):
        register("mine")(builder)
    assert "mine" not in OUTER


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("mamel", "maml"), ("signmaml", "sign_maml"), ("fomaml", "fo_maml"), ("MAML", None), (None, None)],
)
def test_unknown_names(name: Any, suggestion: str | None) -> None:
    with pytest.raises(ValueError, match=r"outer must be one of \['binom_maml', .*\], got") as error:
        make_method(name, 0.1)
    assert repr(name) in str(error.value)
    assert suggestion is None or f"did you mean {suggestion!r}?" in str(error.value)


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("maml", {"hesian_data": "reuse"}, "got 'hesian_data'; did you mean 'hessian_data'"),
        ("fo_maml", {"hessian_data": "reuse"}, r"'fo_maml' has the options \['learn_inner_lr'\], got 'hessian_data'"),
        ("maml", {"hessian_data": "outer"}, r"hessian_data must be one of \['fresh', 'reuse'\], got 'outer'"),
        ("hf_maml", {"hessian_data": "reus"}, "got 'reus'; did you mean 'reuse'"),
        ("hf_maml", {"delta": "publish"}, "delta must be one of .* did you mean 'published'"),
        ("hf_maml", {"delta": "published", "rho": -1.0}, "rho must be a finite number at least 0, got -1.0"),
        ("hf_maml", {"delta": "published", "rho": float("nan")}, "rho must be .* got nan"),
        ("hf_maml", {"delta": "published"}, "rho must be given if delta='published', and only then, got rho=None"),
        ("hf_maml", {"rho": 0.5}, "only then, got rho=0.5 and delta='relative'"),
        ("imaml", {"lam": 0.0}, "lam must be a finite number above 0, got 0.0"),
        ("imaml", {"lam": "2"}, "lam must be .* got '2'"),
        ("binom_maml", {"order": -1}, "order must be an integer of at least 0, got -1"),
        ("binom_maml", {"order": 1.0}, "order must be .* got 1.0"),
        ("es_maml", {"adaptation": "cma"}, "adaptation must be one of .* got 'cma'"),
        ("es_maml", {"directions": 0}, "directions must be an integer of at least 1, got 0"),
        ("es_maml", {"queries": 0}, "queries must be an integer of at least 1, got 0"),
        ("es_maml", {"smoothing": 0}, "smoothing must be a finite number above 0"),
        ("ggs_maml", {"directions": 0}, "directions must be an integer of at least 1, got 0"),
        ("ggs_maml", {"smoothing": 0.0}, "smoothing must be a finite number above 0"),
        ("ggs_maml", {"hessian_data": "old"}, "hessian_data must be one of"),
        ("imaml", {"cg_steps": 0}, "cg_steps must be an integer of at least 1, got 0"),
        ("imaml", {"cg_steps": 2.0}, "cg_steps must be .* got 2.0"),
    ],
)  # fmt: skip
def test_bad_options(name: str, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(name, 0.1, **chosen)


@pytest.mark.parametrize("name", sorted(OUTER))
@pytest.mark.parametrize("bad", [0, 0.0, -0.1, float("nan"), float("inf"), True, "0.1"])
def test_bad_inner_lr(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match="inner_lr must be a finite number above 0"):
        make_method(name, bad)


@pytest.mark.parametrize("name", sorted(OUTER))
@pytest.mark.parametrize("bad", [0, -1, 1.0, float("nan"), True, "1"])
def test_bad_inner_steps(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match="inner_steps must be an integer of at least 1"):
        make_method(name, 0.1, bad)


@pytest.mark.parametrize("name", sorted(OUTER))
def test_defaults_and_chosen_steps(name: str) -> None:
    learning_rate, steps = inner_defaults(name)
    three = dict.fromkeys(("moreau", "multi_step_maml", "binom_maml", "reptile"), 3)
    assert steps == {**three, "maml_plus_plus": 5, "imaml": 5}.get(name, 1)
    assert make_method(name).inner.steps == steps
    assert make_method(name, inner_steps=4).inner.steps == 4
    new = problems.with_particles(problems.regression, 3 * make_method(name).needs_particles)
    checks.coincide(make_method(name), make_method(name, learning_rate, steps), new, 0)
    checks.coincide(make_method(name), make_method(name, **options(name)), new, 0)
