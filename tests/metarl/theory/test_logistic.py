"""Logistic tasks: the losses, the constants, random and real data, resampling."""

import itertools
import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import datasets
from torch import Tensor

from metarl import MetaLearner
from metarl.supervised import BatchSizes
from metarl.theory.logistic import (
    MARGINS,
    REAL_DATA,
    REGULARISERS,
    FreshLogistic,
    Logistic,
    Term,
    accuracy,
    hessian_smoothness,
    logistic_loss,
    logistic_source,
    logistic_tasks,
    random_logistic,
    real_logistic,
    six_logistic_tasks,
    smoothness,
)

DOUBLE = torch.float64
KINDS = list(itertools.product(MARGINS, REGULARISERS))


def test_the_six_tasks() -> None:
    """As they are described: one generator, for each task w, then X, then the labels' noise."""
    rng, problem = np.random.default_rng(0), six_logistic_tasks()
    for task in range(6):
        teacher = 3 * rng.normal(size=5)
        x = rng.normal(size=(40, 5))
        y = np.sign(x @ teacher + 0.3 * rng.normal(size=40))
        assert np.array_equal(problem.x[task].numpy(), x)
        assert np.array_equal(problem.y[task].numpy(), y)
    assert smoothness(problem) == pytest.approx(0.52758, abs=1e-5)


@pytest.mark.parametrize(("margin", "regulariser"), KINDS)
def test_loss_is_its_formula(margin: str, regulariser: str) -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(7, 3)), np.sign(rng.normal(size=7)), rng.normal(size=3)
    m = y * (x @ w)
    data = {"logistic": np.log(1 + np.exp(-m)), "sigmoid": 1 / (1 + np.exp(m))}[margin].mean()
    penalty = {"ridge": w**2, "bounded": w**2 / (1 + w**2)}[regulariser].sum()
    batch = {"X": torch.as_tensor(x), "y": torch.as_tensor(y)}
    got = logistic_loss(0.3, margin, regulariser)({"w": torch.as_tensor(w)}, batch)
    assert got.item() == pytest.approx(data + 0.15 * penalty, rel=1e-12)


@pytest.mark.parametrize("term", [*MARGINS.values(), *REGULARISERS.values()], ids=[*MARGINS, *REGULARISERS])
def test_largest_derivatives(term: Term) -> None:
    def derivative(f: Any) -> Any:
        return lambda z: torch.func.grad(lambda v: f(v).sum())(z)

    second = derivative(derivative(term.function))
    grid = torch.linspace(-10, 10, 200_001, dtype=DOUBLE)
    assert second(grid).abs().max().item() == pytest.approx(term.second, rel=1e-8)
    assert derivative(second)(grid).abs().max().item() == pytest.approx(term.third, rel=1e-7, abs=1e-12)


def hessians(problem: Logistic, w: Tensor) -> Tensor:
    """Of every task, [T, d, d]."""
    loss = logistic_loss(problem.strength, problem.margin, problem.regulariser)
    rows = [{"X": x, "y": y} for x, y in zip(problem.x, problem.y, strict=True)]
    return torch.stack([torch.autograd.functional.hessian(lambda v, b=b: loss({"w": v}, b), w) for b in rows])


@pytest.mark.parametrize(("margin", "regulariser"), KINDS)
def test_constants_bound_the_curvature_and_its_change(margin: str, regulariser: str) -> None:
    problem = six_logistic_tasks()._replace(margin=margin, regulariser=regulariser, strength=0.1)
    rng, largest, steepest = np.random.default_rng(1), 0.0, 0.0
    for scale in (0.01, 0.1, 1.0, 3.0) * 5:
        u = torch.as_tensor(scale * rng.normal(size=5))
        v = u + 0.05 * torch.as_tensor(rng.normal(size=5))
        a, b = hessians(problem, u), hessians(problem, v)
        largest = max(largest, float(torch.linalg.matrix_norm(a, 2).max()))
        steepest = max(steepest, float(torch.linalg.matrix_norm(a - b, 2).max() / (u - v).norm()))
    assert 0.2 * smoothness(problem) < largest <= smoothness(problem)
    assert 0.2 * hessian_smoothness(problem) < steepest <= hessian_smoothness(problem)


def test_smoothness_is_attained() -> None:
    problem = six_logistic_tasks()
    at_zero = torch.linalg.eigvalsh(hessians(problem, torch.zeros(5, dtype=DOUBLE))).max()
    assert smoothness(problem) == pytest.approx(float(at_zero), rel=1e-12)


def test_accuracy() -> None:
    batch = {"X": torch.tensor([[1.0], [2.0], [-1.0], [3.0]]), "y": torch.tensor([1.0, 1.0, 1.0, -1.0])}
    assert accuracy({"w": torch.tensor([1.0])}, batch) == 0.5
    assert accuracy({"w": torch.tensor([0.0])}, batch) == 0.5  # all are on the border
    assert accuracy({"w": torch.tensor([-1.0])}, {k: v[:1] for k, v in batch.items()}) == 0.0


# Data.


def test_support_and_query_divide_the_points() -> None:
    problem = random_logistic(np.random.default_rng(0), 3, points=10, dimension=2)
    tasks = logistic_tasks(problem, support=4, rng=np.random.default_rng(1))
    support, query = tasks.draw({}, "inner"), tasks.draw({}, "outer")
    assert (support["X"].shape, query["y"].shape) == ((3, 4, 2), (3, 6))
    for task in range(3):
        both = {
            (tuple(row), label)
            for part in (support, query)
            for row, label in zip(part["X"][task].tolist(), part["y"][task].tolist(), strict=True)
        }
        assert both == {(tuple(r), s) for r, s in zip(problem.x[task].tolist(), problem.y[task].tolist(), strict=True)}
    assert logistic_tasks(problem).draw({}, "outer")["X"] is problem.x


@pytest.mark.parametrize("name", ["iris", "wine", "digits"])
def test_each_class_against_the_rest(name: str) -> None:
    problem = real_logistic(name)
    features, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    assert problem.x.shape == (len(np.unique(labels)), len(labels), features.shape[1] + 1)
    for task, label in enumerate(np.unique(labels)):
        assert np.array_equal(problem.y[task].numpy() == 1, labels == label)
        assert set(problem.y[task].tolist()) == {-1.0, 1.0}
        assert torch.equal(problem.x[task], problem.x[0])
    varies = features.std(0) > 0
    x = problem.x[0].numpy()
    np.testing.assert_allclose(x[:, :-1].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(x[:, :-1].std(0)[varies], 1, atol=1e-12)
    assert (x[:, :-1][:, ~varies] == 0).all()
    assert (x[:, -1] == 1).all()


def test_groups_of_patients() -> None:
    problem = real_logistic("breast_cancer")
    assert problem.x.shape == (4, 142, 31)
    texture = problem.x[..., 1]
    assert all(texture[i].max() <= texture[i + 1].min() for i in range(3))
    share = (problem.y == 1).double().mean(1)
    assert (share.diff() < 0).all()  # benign tumours are rarer where texture is rough
    labels = datasets.load_breast_cancer().target
    assert abs(share.mean() - labels.mean()) < 0.01  # one patient of 569 is left out


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r'pip install "metarl-torch\[data\]"'):
        real_logistic("iris")


@pytest.mark.parametrize("name", REAL_DATA)
def test_training_on_real_data(name: str) -> None:
    source = logistic_source(real_logistic(name))
    learner = MetaLearner(source, "maml", inner_lr=0.5, meta_batch_size=3, learning_rate=0.1)
    assert source.score_name == "accuracy"
    assert learner.evaluate(num_tasks=3, steps=0).mean == [0.5]  # all margins are zero
    assert learner.learn(5).evaluate(num_tasks=3, steps=1).mean[1] > 0.8


def test_resampled_tasks() -> None:
    source = FreshLogistic(dimension=3, label_noise=0.0, sizes=BatchSizes(4, 400, 6))
    tasks = source.sample(5, np.random.default_rng(0))
    first, second = tasks.draw({}, "outer"), tasks.draw({}, "outer")
    assert first["X"].shape == (5, 400, 3)
    assert tasks.draw({}, "inner")["y"].shape == (5, 4)
    assert not torch.equal(first["X"], second["X"])
    for task in range(5):  # the same teacher in both draws: least squares on one predicts the labels of the other
        w = torch.linalg.lstsq(first["X"][task], first["y"][task, :, None]).solution[:, 0]
        assert accuracy({"w": w}, {k: v[task] for k, v in second.items()}) > 0.95
    again = source.sample(5, np.random.default_rng(0)).draw({}, "outer")
    assert torch.equal(first["X"], again["X"])
    assert torch.equal(first["y"], again["y"])
    learner = MetaLearner(source, "fo_maml", meta_batch_size=2)
    assert learner.learn(2).params["w"].norm() > 0


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: random_logistic(np.random.default_rng(0), 0), "num_tasks"),
        (lambda: random_logistic(np.random.default_rng(0), 2, label_noise=-1.0), "label_noise"),
        (lambda: real_logistic("iriss"), "did you mean 'iris'"),
        (lambda: real_logistic("iris", strength=-1.0), "strength"),
        (lambda: logistic_loss(margin="hinge"), "margin must be one of"),
        (lambda: logistic_loss(regulariser="l1"), "regulariser must be one of"),
        (lambda: logistic_tasks(six_logistic_tasks(), support=40, rng=np.random.default_rng(0)), "support must leave"),
        (lambda: logistic_tasks(six_logistic_tasks(), support=3), "support and rng must be given"),
        (lambda: logistic_tasks(six_logistic_tasks(), rng=np.random.default_rng(0)), "support and rng must be given"),
        (lambda: FreshLogistic(sizes=BatchSizes(inner=3)), r"sizes\.outer"),
        (lambda: FreshLogistic(dimension=0), "dimension"),
        (lambda: FreshLogistic().sample(0, np.random.default_rng(0)), "num_tasks"),
    ],
)
def test_bad_arguments(make: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()
