"""Quadratic tasks: the closed forms against known answers and against the real updates, and their data."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import MetaLearner, make_method
from metarl.supervised import BatchSizes
from metarl.theory.quadratics import (
    FreshQuadratics,
    Quadratics,
    fixed_point,
    fo_maml_matrix,
    maml_matrix,
    mean_gradient,
    moreau_matrix,
    quadratic_source,
    quadratic_tasks,
    quadratics_1d,
    random_quadratics,
    resampled_quadratics,
)

DOUBLE = torch.float64


def random_problem(tasks: int = 3, dimension: int = 4) -> Quadratics:
    return random_quadratics(np.random.default_rng(0), tasks, dimension, (0.2, 1.0))


# Closed forms.


@pytest.mark.parametrize(
    ("a", "c", "alpha", "w_maml", "w_fo", "gap"),
    [  # worked out by hand: where MAML and FO-MAML rest, and grad F where FO-MAML does
        ([1, 2], [1, -1], 0.25, 1 / 17, -1 / 7, -3 / 28),
        ([1, 0.1], [1, -1], 0.5, 0.469508, 0.680672, 0.035924),
        ([1, 0.5], [1, -1], 0.5, -1 / 17, 1 / 7, 3 / 56),
        ([1, 0.2], [1, -1], 0.9, -0.861573, -0.242424, 0.044727),
        ([1, 0.1], [1, -1], 0.1, 0.784121, 0.801802, 0.008027),
    ],
)
def test_fixed_points_on_the_line(
    a: list[float], c: list[float], alpha: float, w_maml: float, w_fo: float, gap: float
) -> None:
    problem = quadratics_1d(a, c)
    maml = maml_matrix(problem.curvatures, alpha)
    fo = fixed_point(problem, fo_maml_matrix(problem.curvatures, alpha))
    assert fixed_point(problem, maml).item() == pytest.approx(w_maml, abs=1e-6)
    assert fo.item() == pytest.approx(w_fo, abs=1e-6)
    assert mean_gradient(problem, maml, fo).item() == pytest.approx(gap, abs=1e-6)


def test_fixed_point_of_the_envelope() -> None:
    problem = quadratics_1d([1, 0.1], [1, -1])  # sum a c / (1 + alpha a) over sum a / (1 + alpha a)
    assert fixed_point(problem, moreau_matrix(problem.curvatures, 0.5)).item() == pytest.approx(0.75, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ["maml", "multi_step_maml", "hf_maml", "fo_maml", "moreau"])
def test_meta_gradients_are_the_matrices(name: str, steps: int) -> None:
    problem, w = random_problem(), torch.as_tensor(np.random.default_rng(1).normal(size=4))
    matrix = {"fo_maml": fo_maml_matrix, "moreau": moreau_matrix}.get(name, maml_matrix)
    method = make_method(name, 0.3, steps)
    got = method.update({"w": w}, quadratic_tasks(problem), method.inner).grads["w"]
    wanted = torch.einsum("tij,tj->ti", matrix(problem.curvatures, 0.3, steps), w - problem.centres)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10 if name == "hf_maml" else 1e-14)


def test_many_steps_of_moreau_are_the_envelope() -> None:
    problem, w = random_problem(), torch.ones(4, dtype=DOUBLE)
    torch.testing.assert_close(
        moreau_matrix(problem.curvatures, 0.5, 60), moreau_matrix(problem.curvatures, 0.5), rtol=0, atol=1e-14
    )

    def envelope(x: Tensor) -> Tensor:  # min over z of f(z) + |z - x|^2 / (2 alpha), solved
        a, c = problem
        eye = torch.eye(4, dtype=DOUBLE)
        z = torch.linalg.solve(0.5 * a + eye, (0.5 * a @ c[..., None])[..., 0] + x)
        values = 0.5 * torch.einsum("ti,tij,tj->t", z - c, a, z - c) + (z - x).square().sum(1)
        return values.mean()

    gradient = torch.func.grad(envelope)(w)
    torch.testing.assert_close(mean_gradient(problem, moreau_matrix(problem.curvatures, 0.5), w), gradient)


@pytest.mark.parametrize(("name", "matrix"), [("maml", maml_matrix), ("fo_maml", fo_maml_matrix)])
def test_training_ends_at_the_fixed_point(name: str, matrix: Any) -> None:
    problem = random_problem()
    learner = MetaLearner(
        quadratic_source(problem),
        name,
        inner_lr=0.3,
        inner_steps=2,
        meta_batch_size=3,
        learning_rate=3.5,
        optimizer=torch.optim.SGD,
    )
    w = learner.learn(40).params["w"]
    torch.testing.assert_close(w, fixed_point(problem, matrix(problem.curvatures, 0.3, 2)), rtol=0, atol=1e-8)


# Data.


def test_random_family() -> None:
    problem = random_quadratics(np.random.default_rng(0), 50, 3, (-1.0, 0.5), spread=2.0)
    values = torch.linalg.eigvalsh(problem.curvatures)
    assert (values >= -1).all()
    assert (values <= 0.5).all()
    assert values.min() < -0.9
    assert values.max() > 0.4
    torch.testing.assert_close(problem.curvatures, problem.curvatures.mT, rtol=0, atol=1e-15)
    assert abs(problem.centres.std() - 2) < 4 * 2 / (2 * 150) ** 0.5
    again = random_quadratics(np.random.default_rng(0), 50, 3, (-1.0, 0.5), spread=2.0)
    assert all(torch.equal(a, b) for a, b in zip(problem, again, strict=True))


def test_noisy_points_average_to_their_centre() -> None:
    problem, w = random_problem(), {"w": torch.ones(3, 4, dtype=DOUBLE)}
    noisy = quadratic_tasks(problem, points=20, noise=0.7, rng=np.random.default_rng(2))
    torch.testing.assert_close(noisy.support["c"].mean(1), problem.centres, rtol=0, atol=1e-15)
    assert abs(noisy.support["c"].std(1).mean() - 0.7) < 0.1
    assert noisy.cost(noisy.draw(w, "outer")) == {"samples": 60}
    method = make_method("maml", 0.3)
    here = {"w": torch.ones(4, dtype=DOUBLE)}
    a, b = (method.update(here, tasks, method.inner).grads["w"] for tasks in (noisy, quadratic_tasks(problem)))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_minibatches() -> None:
    tasks = quadratic_tasks(
        random_problem(),
        points=8,
        noise=1.0,
        rng=np.random.default_rng(2),
        batch_sizes=BatchSizes(inner=2, outer=3),
        generator=torch.Generator().manual_seed(0),
    )
    shapes = {role: tasks.draw({}, role)["c"].shape for role in ("inner", "outer", "hessian")}
    assert shapes == {"inner": (3, 2, 4), "outer": (3, 3, 4), "hessian": (3, 8, 4)}


def test_resampling_is_fresh_and_centred() -> None:
    problem = random_problem()
    tasks = resampled_quadratics(problem, torch.Generator().manual_seed(0), BatchSizes(2, 5000, 3), noise=0.5)
    outer = tasks.draw({}, "outer")
    assert ((outer["c"].mean(1) - problem.centres).abs() < 4.5 * 0.5 / 5000**0.5).all()
    assert abs(outer["c"].std(1).mean() - 0.5) < 0.01
    inner, again = tasks.draw({}, "inner"), tasks.draw({}, "inner")
    assert inner["c"].shape == (3, 2, 4)
    assert not torch.equal(inner["c"], again["c"])
    torch.testing.assert_close(tasks.draw({}, "hessian")["A"], problem.curvatures[:, None].expand(3, 3, 4, 4))


def test_sources() -> None:
    source = quadratic_source(random_problem(), torch.full((4,), 2.0, dtype=DOUBLE))
    assert source.initial_params()["w"].tolist() == [2.0] * 4
    assert source.sample(2, np.random.default_rng(0)).num_tasks == 2
    fresh = FreshQuadratics(dimension=3, noise=0.1, sizes=BatchSizes(4, 5, 6))
    a, b, c = (fresh.sample(2, np.random.default_rng(seed)).draw({}, "outer") for seed in (0, 0, 1))
    assert a["c"].shape == (2, 5, 3)
    assert torch.equal(a["c"], b["c"])
    assert not torch.equal(a["A"], c["A"])
    learner = MetaLearner(fresh, "maml", meta_batch_size=3)
    assert learner.learn(2).params["w"].norm() > 0


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: quadratics_1d([1.0], [1.0, 2.0]), "centres and curvatures must have one length"),
        (lambda: quadratics_1d([], []), "centres and curvatures must have one length"),
        (lambda: random_quadratics(np.random.default_rng(0), 0, 2), "num_tasks"),
        (lambda: random_quadratics(np.random.default_rng(0), 2, 2.0), "dimension"),  # type: ignore[arg-type]
        (lambda: random_quadratics(np.random.default_rng(0), 2, 2, (1.0, 0.1)), "eigenvalues must be"),
        (lambda: random_quadratics(np.random.default_rng(0), 2, 2, spread=-1.0), "spread"),
        (lambda: quadratic_tasks(random_problem(), points=0), "points"),
        (lambda: quadratic_tasks(random_problem(), noise=-1.0), "noise"),
        (lambda: quadratic_tasks(random_problem(), points=3, noise=1.0), "noise needs rng"),
        (lambda: quadratic_tasks(random_problem(), noise=1.0, rng=np.random.default_rng(0)), "noise needs rng"),
        (lambda: resampled_quadratics(random_problem(), torch.Generator(), BatchSizes(1, 0, 1)), r"sizes\.outer"),
        (lambda: FreshQuadratics(sizes=BatchSizes(inner=3)), r"sizes\.outer"),
        (lambda: FreshQuadratics(dimension=-1), "dimension"),
    ],
)
def test_bad_arguments(make: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()
