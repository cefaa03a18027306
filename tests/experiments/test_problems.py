"""The supervised problems by name: their tasks, what is known of them, and which settings they have."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import make_method, tree
from metarl.experiments.common.problems import PROBLEMS, SupervisedProblem
from metarl.experiments.train_supervised import SupervisedConfig, config_type
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch, ResamplingTaskBatch
from metarl.supervised.few_shot import FewShot
from metarl.supervised.sinusoid import Sinusoids
from metarl.types import Batch, Role, TaskBatch

CPU = torch.device("cpu")
ROLES: tuple[Role, ...] = ("inner", "outer", "hessian")
FIXED = {  # tasks of the fixed sets, and points of each
    "two_quadratics": (2, 1),
    "quadratics": (20, 100),
    "six_logistic": (6, 40),
    "logistic": (20, 40),
    "logistic_breast_cancer": (4, 142),
    "logistic_digits": (10, 1797),
    "logistic_iris": (3, 150),
    "logistic_wine": (3, 178),
}
BATCHES = {"inner_batch", "outer_batch", "hessian_batch"}
SHOTS = {"setting", "shots", "queries", "eval_shots", "particles", "context_size"}
NETWORK = {"ways", "network", "hidden"}
FOLDER = {"data", "filters", "image_size", "color", "inverted", "rotations", "split"}
TAKES: dict[str, set[str]] = {
    **dict.fromkeys(FIXED, BATCHES),
    "two_quadratics": set(),
    "quadratics": BATCHES | {"setting"},
    "logistic": BATCHES | {"setting"},
    "sinusoid": SHOTS,
    "digits": SHOTS | NETWORK,
    "mnist1d": SHOTS | NETWORK,
    "strokes": SHOTS | NETWORK,
    "images": SHOTS | NETWORK | FOLDER,
}


def build(name: str, seed: int = 0, **settings: Any) -> SupervisedProblem:
    return PROBLEMS[name].build(PROBLEMS[name].settings(**settings), CPU, seed)


@cache
def built(name: str) -> SupervisedProblem:
    return build(name)


def fixed_tasks(problem: SupervisedProblem, part: str = "train") -> FiniteSumTaskBatch:
    source = getattr(problem, part)
    assert isinstance(source, FiniteSumSource)
    return source.tasks


def drawn(tasks: TaskBatch, role: Role) -> Batch:
    return tasks.draw({}, role)


def points(tasks: TaskBatch) -> list[int]:
    """Data points of a task in a draw of each role."""
    return [next(iter(drawn(tasks, role).values())).shape[1] for role in ROLES]


# Settings.


def test_the_table_is_complete() -> None:
    assert set(TAKES) == set(PROBLEMS)


@pytest.mark.parametrize("name", PROBLEMS)
def test_options_are_those_that_apply(name: str) -> None:
    """Besides the options of every run."""
    own, shared = ({field.name for field in dataclasses.fields(kind)} for kind in (config_type(name), SupervisedConfig))
    assert own - shared == TAKES[name]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        *((name, {"inner_batch": 41}, "^inner_batch must be at most 40, ") for name in ("six_logistic", "logistic")),
        ("quadratics", {"outer_batch": 101}, "^outer_batch must be at most 100, the points of a task, got 101"),
        ("logistic_iris", {"hessian_batch": 151}, "^hessian_batch must be at most 150, "),
        *(("six_logistic", {name: 0}, f"^{name} must be an integer of at least 1, got 0") for name in sorted(BATCHES)),
        *(
            (name, {"setting": "resampling", "outer_batch": -1}, "^outer_batch .* -1")
            for name in ("quadratics", "logistic")
        ),
        *(("sinusoid", {name: 0}, f"^{name} must be") for name in ("shots", "queries", "eval_shots")),
        *(("digits", {name: 0}, f"^{name} must be") for name in ("ways", "shots", "queries", "eval_shots")),
        ("digits", {"hidden": (0,)}, "^hidden must be"),
        (
            "digits",
            {"eval_shots": 100},
            "^eval_shots must suit the data, got 100: .* at least 115 images, found 58",
        ),
        ("digits", {"ways": 21}, "^ways must be at most"),
        ("digits", {"network": "conv4"}, "^network conv4 needs square images"),
        ("images", {}, "^data must be a folder of class folders of images, got ''"),
        ("images", {"data": "mnist1d"}, "^data must be a folder .* got 'mnist1d'"),
        ("images", {"data": "no/such/folder"}, "^data must be .* got 'no/such/folder'"),
    ],
)
def test_bad_settings(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **settings)


# Fixed sets.


@pytest.mark.parametrize("name", FIXED)
def test_fixed_sets(name: str) -> None:
    problem, (number, size) = built(name), FIXED[name]
    assert problem.all_tasks == number
    for part in ("train", "test"):
        tasks = fixed_tasks(problem, part)
        assert tasks.num_tasks == number
        assert points(tasks) == [size] * 3
    assert all(not leaf.any() for leaf in problem.train.initial_params().values())


@pytest.mark.parametrize("name", [name for name in FIXED if "inner_batch" in TAKES[name]])
def test_minibatches_are_for_training_only(name: str) -> None:
    problem, size = build(name, inner_batch=2, outer_batch=3), FIXED[name][1]
    rng = np.random.default_rng(0)
    assert points(problem.train.sample(2, rng)) == [2, 3, size]
    whole = problem.test.sample(FIXED[name][0], rng)
    assert points(whole) == [size] * 3
    for key, leaf in fixed_tasks(problem).support.items():
        assert all(torch.equal(drawn(whole, role)[key], leaf) for role in ROLES)


@pytest.mark.parametrize("name", ["quadratics", "logistic"])
def test_random_sets_follow_from_the_seed(name: str) -> None:
    a, b, c = (fixed_tasks(build(name, seed)).support for seed in (0, 0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a)


def hessians(tasks: FiniteSumTaskBatch, w: Tensor) -> Tensor:
    """`[T, d, d]` by autograd twice."""

    def of_one(batch: Batch) -> Tensor:
        v = w.clone().requires_grad_()
        (grad,) = torch.autograd.grad(tasks.loss({"w": v}, batch), v, create_graph=True)
        return torch.stack([torch.autograd.grad(entry, v, retain_graph=True)[0] for entry in grad])

    return torch.stack([of_one({k: v[i] for k, v in tasks.support.items()}) for i in range(tasks.num_tasks)])


@pytest.mark.parametrize("name", FIXED)
def test_known_constants_bound_the_curvature_and_its_change(name: str) -> None:
    """L is attained: by quadratics everywhere, by logistic losses where all margins are zero."""
    problem, generator = built(name), torch.Generator().manual_seed(0)
    assert problem.known is not None
    L, rho = problem.known.L, problem.known.rho
    start = problem.train.initial_params()["w"]
    tasks = fixed_tasks(problem, "test")
    first = hessians(tasks, start)
    assert float(torch.linalg.eigvalsh(first).max()) == pytest.approx(L, rel=1e-9)
    for scale in (0.01, 1.0):
        w = scale * torch.randn(start.shape, generator=generator, dtype=start.dtype)
        second = hessians(tasks, w)
        assert float(torch.linalg.eigvalsh(second).abs().max()) <= L * (1 + 1e-12)
        change = float(torch.linalg.eigvalsh(second - first).abs().max())
        assert change <= rho * float((w - start).norm()) + 1e-12


@pytest.mark.parametrize("name", ["two_quadratics", "quadratics"])
@pytest.mark.parametrize("steps", [1, 3])
def test_known_points_are_stationary(name: str, steps: int) -> None:
    """The mean meta-gradient of each update vanishes at its point, and at none of the others."""
    problem = built(name)
    assert problem.known is not None
    known = problem.known.points(0.25, steps)
    methods = {name: make_method(name, 0.25, 60 if name == "moreau" else steps) for name in known}
    assert set(known) == {"maml", "fo_maml", "moreau"}
    for method_name, method in methods.items():
        for point_name, point in known.items():
            found = method.update(point, fixed_tasks(problem, "test"), method.inner).grads
            size = float(tree.norm(tree.mean(found)))
            assert (size < 1e-12) == (method_name == point_name), (method_name, point_name, size)
            assert size < 1e-12 or size > 1e-4


@pytest.mark.parametrize("name", [name for name in FIXED if "quadratics" not in name])
def test_logistic_problems_have_no_known_points(name: str) -> None:
    known = built(name).known
    assert known is not None
    assert dict(known.points(0.1, 1)) == {}


# Fresh data.


@pytest.mark.parametrize("name", ["quadratics", "logistic"])
def test_resampling(name: str) -> None:
    problem = build(name, setting="resampling", inner_batch=4)
    assert (problem.all_tasks, problem.known) == (None, None)
    assert problem.test is problem.train
    tasks = problem.train.sample(3, np.random.default_rng(0))
    assert isinstance(tasks, ResamplingTaskBatch)
    assert points(tasks) == [4, 10, 10]
    first, second = (drawn(tasks, "inner") for _ in range(2))
    assert not any(torch.equal(first[key], second[key]) for key in ("c", "X") if key in first)


def test_sinusoids_in_training_and_in_evaluations() -> None:
    problem = build("sinusoid", seed=3, shots=5, queries=7, eval_shots=3, setting="resampling")
    assert (problem.all_tasks, problem.known) == (None, None)
    assert isinstance(problem.train, Sinusoids)
    assert (problem.train.seed, problem.train.setting) == (3, "resampling")
    rng = np.random.default_rng(0)
    train, test = (source.sample(2, rng) for source in (problem.train, problem.test))
    assert (points(train), points(test)) == ([5, 7, 5], [3, 100, 3])
    assert isinstance(train, ResamplingTaskBatch)
    assert isinstance(test, FiniteSumTaskBatch)


def test_sinusoids_are_judged_with_as_many_shots_as_in_training() -> None:
    for settings, shots in (({}, 10), ({"shots": 4}, 4)):
        tasks = build("sinusoid", **settings).test.sample(1, np.random.default_rng(0))
        assert points(tasks) == [shots, 100, shots]


@pytest.mark.parametrize("setting", ["finite_sum", "resampling"])
def test_images_in_training_and_in_evaluations(setting: str) -> None:
    problem = build("digits", ways=3, shots=2, queries=4, eval_shots=5, setting=setting, hidden=(6,))
    assert isinstance(problem.train, FewShot)
    assert isinstance(problem.test, FewShot)
    rng = np.random.default_rng(0)
    train, test = (source.sample(2, rng) for source in (problem.train, problem.test))
    assert (points(train), points(test)) == ([6, 12, 6], [15, 12, 15])
    assert isinstance(train, FiniteSumTaskBatch if setting == "finite_sum" else ResamplingTaskBatch)
    assert isinstance(test, FiniteSumTaskBatch)
    assert (len(problem.train.classes), len(problem.test.classes)) == (64, 20)
    assert not set(problem.train.classes.names) & set(problem.test.classes.names)
    assert [tuple(leaf.shape) for leaf in problem.train.initial_params().values()] == [(6, 128), (6,), (3, 6), (3,)]


def test_images_default_to_one_shot_and_fifteen_queries() -> None:
    tasks = build("digits").test.sample(1, np.random.default_rng(0))
    assert points(tasks) == [5, 75, 5]


# Defaults.


@pytest.mark.parametrize("name", FIXED)
def test_default_batches_are_all_tasks_of_a_fixed_set(name: str) -> None:
    assert PROBLEMS[name].defaults.meta_batch_size == FIXED[name][0]
