"""Supervised problems by name, with settings that suit them: what `metarl train-supervised` trains on.

A problem is a source of training tasks, a source of evaluation tasks, and what is known in closed form.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from metarl.errors import check_int
from metarl.experiments.common.images import ImageSettings, NetworkSettings, add_context, build_few_shot, build_network
from metarl.random import Stream, stream_generator
from metarl.supervised import BatchSizes, FiniteSumSource, FiniteSumTaskBatch
from metarl.supervised.networks import mlp
from metarl.supervised.particles import Particles, PredictiveSource
from metarl.supervised.sinusoid import HIDDEN, Sinusoids
from metarl.theory.logistic import (
    FreshLogistic,
    Logistic,
    hessian_smoothness,
    logistic_source,
    logistic_tasks,
    random_logistic,
    real_logistic,
    six_logistic_tasks,
    smoothness,
)
from metarl.theory.quadratics import (
    FreshQuadratics,
    Quadratics,
    fixed_point,
    fo_maml_matrix,
    maml_matrix,
    moreau_matrix,
    quadratic_source,
    quadratic_tasks,
    quadratics_1d,
    random_quadratics,
)
from metarl.types import Params, TaskSource


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Minibatches of fixed tasks."""

    inner_batch: int | None = None
    """Points of a task in each inner batch D_in. Default: all."""
    outer_batch: int | None = None
    """Points of a task in each outer batch D_o. Default: all."""
    hessian_batch: int | None = None
    """Points of a task in each Hessian batch D_h. Default: all."""


@dataclass(frozen=True, kw_only=True)
class RandomSettings(BatchSettings):
    """Random tasks: a fixed set, or new ones in each iteration."""

    setting: Literal["finite_sum", "resampling"] = "finite_sum"
    """Fixed data (finite sum), or new tasks and fresh data at every draw, ten points by default (resampling)."""


@dataclass(frozen=True, kw_only=True)
class ParticleSettings:
    """Several networks instead of one."""

    particles: int | None = None
    """Networks that train together: bmaml's particles, or independent ones. The score is that of their averaged
    prediction. Default: 5 for bmaml, else one network."""


@dataclass(frozen=True, kw_only=True)
class SinusoidSettings(ParticleSettings):
    """Points of a sinusoid."""

    setting: Literal["finite_sum", "resampling"] = "finite_sum"
    """Fixed support and query points of each task (finite sum), or fresh ones at every draw (resampling)."""
    shots: int = 10
    """Support points of a task (K)."""
    queries: int = 10
    """Query points of a task."""
    eval_shots: int | None = None
    """Support points of a task in evaluations. Default: as in training."""
    context_size: int = 0
    """Context inputs of the network; inner steps then adapt them alone, from zero, unless --adapt names others."""


@dataclass(frozen=True, kw_only=True)
class ClassSettings(ParticleSettings):
    """Images of a class."""

    setting: Literal["finite_sum", "resampling"] = "finite_sum"
    """Fixed support and query images of each task (finite sum), or fresh ones at every draw (resampling)."""
    shots: int = 1
    """Support images of a class (K)."""
    queries: int = 15
    """Query images of a class."""
    eval_shots: int | None = None
    """Support images of a class in evaluations. Default: as in training."""


@dataclass(frozen=True, kw_only=True)
class ShippedSettings(ClassSettings, NetworkSettings):
    """Few-shot classification of a data set that comes with the package."""


@dataclass(frozen=True, kw_only=True)
class FolderSettings(ClassSettings, ImageSettings):
    """Few-shot classification of a folder of images."""

    data: str = ""
    """Folder of class folders of images; its folders train, val and test are used as they are."""


class Known(NamedTuple):
    """What is known of a problem: L, rho, and stationary points for an inner step size alpha and N steps."""

    L: float
    rho: float
    points: Callable[[float, int], Mapping[str, Params]] = lambda alpha, steps: MappingProxyType({})


class SupervisedProblem(NamedTuple):
    """Training tasks, evaluation tasks, and what is known of them."""

    train: TaskSource
    test: TaskSource
    all_tasks: int | None = None  # of the fixed set, if there is one: then the gradient is exact
    known: Known | None = None


class Defaults(NamedTuple):
    """Settings that suit a problem."""

    meta_batch_size: int
    inner_lr: float
    sign_inner_lr: float
    learning_rate: float
    optimizer: Literal["adam", "sgd"]
    anywhere: bool = False  # whether it runs on other devices than the CPU


class Entry(NamedTuple):
    """A problem by its name."""

    about: str  # one line of help
    settings: type  # the settings that `build` takes
    build: Callable[[Any, torch.device, int], SupervisedProblem]  # from settings, a device and a seed
    defaults: Defaults


def fixed_set(source: FiniteSumSource, known: Known) -> SupervisedProblem:
    """A problem with a fixed set of tasks: it is evaluated on the same tasks, with all their data."""
    whole = source.tasks
    tasks = FiniteSumTaskBatch(whole.loss, whole.support, whole.query, whole.score)
    everything = FiniteSumSource(tasks, source.initial_params(), source.score_name)
    return SupervisedProblem(source, everything, whole.num_tasks, known)


def batch_sizes(given: BatchSettings, points: float = math.inf) -> BatchSizes:
    """The batch sizes, each at most `points`, the points of a task.

    Raises:
        ValueError: naming a size that is larger.
    """
    for name in ("inner_batch", "outer_batch", "hessian_batch"):
        size = getattr(given, name)
        if size is not None and check_int(name, size) > points:
            raise ValueError(f"{name} must be at most {points}, the points of a task, got {size}")
    return BatchSizes(given.inner_batch, given.outer_batch, given.hessian_batch)


def quadratic_points(problem: Quadratics) -> Callable[[float, int], Mapping[str, Params]]:
    """The stationary points of each objective."""

    def points(alpha: float, steps: int) -> Mapping[str, Params]:
        a = problem.curvatures
        matrices = {"maml": maml_matrix(a, alpha, steps), "fo_maml": fo_maml_matrix(a, alpha, steps)}
        matrices["moreau"] = moreau_matrix(a, alpha)
        return {name: {"w": fixed_point(problem, matrix)} for name, matrix in matrices.items()}

    return points


def fixed_quadratics(
    problem: Quadratics, given: BatchSettings, points: int, noise: float, seed: int
) -> SupervisedProblem:
    """Fixed quadratic tasks."""
    rng = stream_generator(seed, Stream.PROBLEM_NOISE)
    tasks = quadratic_tasks(
        problem,
        points=points,
        noise=noise,
        rng=rng if noise else None,
        batch_sizes=batch_sizes(given, points),
        generator=torch.Generator().manual_seed(seed),
    )
    largest = float(torch.linalg.eigvalsh(problem.curvatures).max())
    return fixed_set(quadratic_source(problem, tasks=tasks), Known(largest, 0.0, quadratic_points(problem)))


def two_quadratics(given: object, device: torch.device, seed: int) -> SupervisedProblem:
    """P1: curvatures 1 and 2, centres 1 and -1."""
    return fixed_quadratics(quadratics_1d(), BatchSettings(), points=1, noise=0.0, seed=seed)


def quadratics(given: RandomSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """Twenty random quadratics in five dimensions, a hundred noisy points each; or new ones in each iteration."""
    if given.setting == "resampling":
        fresh = FreshQuadratics(sizes=fresh_sizes(given))
        return SupervisedProblem(fresh, fresh)
    problem = random_quadratics(stream_generator(seed, Stream.PROBLEM), 20, 5)
    return fixed_quadratics(problem, given, points=100, noise=1.0, seed=seed)


def fixed_logistic(
    make: Callable[[], Logistic], given: BatchSettings, device: torch.device, seed: int
) -> SupervisedProblem:
    """Fixed logistic tasks."""
    problem = make()
    sizes, generator = batch_sizes(given, problem.x.shape[1]), torch.Generator().manual_seed(seed)
    tasks = logistic_tasks(problem, batch_sizes=sizes, generator=generator)
    return fixed_set(logistic_source(problem, tasks), Known(smoothness(problem), hessian_smoothness(problem)))


def logistic(given: RandomSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """Twenty random logistic regressions; or new ones in each iteration."""
    if given.setting == "resampling":
        fresh = FreshLogistic(sizes=fresh_sizes(given))
        return SupervisedProblem(fresh, fresh)
    rng = stream_generator(seed, Stream.PROBLEM)
    return fixed_logistic(lambda: random_logistic(rng, 20), given, device, seed)


def fresh_sizes(given: BatchSettings) -> BatchSizes:
    """The batch sizes of fresh data; ten points by default."""
    return BatchSizes(*(10 if size is None else size for size in batch_sizes(given)))


def sinusoid(given: SinusoidSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """Sinusoid regression; evaluated with many query points."""
    size = check_int("context_size", given.context_size, minimum=0)

    def network(seed: int) -> nn.Module:
        return add_context(partial(mlp, ways=1, hidden=HIDDEN, seed=seed), 1, size)

    names = ("shots", "queries", "setting")
    options: dict[str, Any] = {**{name: getattr(given, name) for name in names}, "seed": seed}
    train = Sinusoids(network(seed), **options, device=device)
    shots = given.shots if given.eval_shots is None else check_int("eval_shots", given.eval_shots)
    test = dataclasses.replace(train, shots=shots, queries=100, setting="finite_sum")
    return with_particles(given, train, test, lambda m: Sinusoids(network(m), device=device).initial_params(), seed)


def with_particles(
    given: ParticleSettings,
    train: PredictiveSource,
    test: PredictiveSource,
    initial_params: Callable[[int], Params],
    seed: int,
) -> SupervisedProblem:
    """The problem of one network, or of several, each drawn from its own seed."""
    if given.particles is None:
        return SupervisedProblem(train, test)
    number = check_int("particles", given.particles)
    starts = [initial_params(seed * number + m) for m in range(number)]  # no two runs share a network
    return SupervisedProblem(Particles(train, starts), Particles(test, starts))


def shipped_data(data: str, given: ShippedSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """Few-shot classification of a data set that comes with the package."""
    own = {field.name: getattr(given, field.name) for field in dataclasses.fields(ShippedSettings)}
    return few_shot(FolderSettings(data=data, **own), device, seed)


def images(given: FolderSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """Few-shot classification of a folder of images."""
    if given.data in ("", *PROBLEMS):
        raise ValueError(f"data must be a folder of class folders of images, got {given.data!r}")
    return few_shot(given, device, seed)


def few_shot(given: FolderSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """Few-shot classification, evaluated on the test classes."""
    sources = build_few_shot(given, given.shots, given.queries, device, seed)
    shots = given.shots if given.eval_shots is None else check_int("eval_shots", given.eval_shots)
    train = dataclasses.replace(sources.train, setting=given.setting)
    try:
        test = dataclasses.replace(sources.test, shots=shots)
    except ValueError as error:
        raise ValueError(f"eval_shots must suit the data, got {shots}: {error}") from None

    def initial_params(m: int) -> Params:
        return dict(build_network(given, train.classes.image_shape, given.ways, m).to(device).named_parameters())

    return with_particles(given, train, test, initial_params, seed)


RANDOM, SINUSOID = Defaults(20, 0.25, 0.02, 0.1, "sgd"), Defaults(25, 0.01, 0.001, 1e-3, "adam", anywhere=True)
LINE = Defaults(2, 0.25, 0.02, 0.2, "sgd")
SIX, LOGISTIC = Defaults(6, 0.95, 0.02, 0.5, "sgd"), Defaults(20, 0.9, 0.02, 0.5, "sgd")
SHIPPED = Defaults(16, 0.4, 0.03, 3e-3, "adam", anywhere=True)
REAL = {
    "breast_cancer": Defaults(4, 0.1, 0.02, 0.1, "sgd"),
    "digits": Defaults(10, 0.1, 0.02, 0.1, "sgd"),
    "iris": Defaults(3, 0.4, 0.02, 0.3, "sgd"),
    "wine": Defaults(3, 0.4, 0.02, 0.3, "sgd"),
}

PROBLEMS: dict[str, Entry] = {
    "two_quadratics": Entry("Two quadratics on a line", object, two_quadratics, LINE),
    "quadratics": Entry("Random quadratics", RandomSettings, quadratics, RANDOM),
    "six_logistic": Entry("Six logistic regressions", BatchSettings, partial(fixed_logistic, six_logistic_tasks), SIX),
    "logistic": Entry("Random logistic regressions", RandomSettings, logistic, LOGISTIC),
    **{
        f"logistic_{name}": Entry(
            f"Logistic regressions on {name}",
            BatchSettings,
            partial(fixed_logistic, partial(real_logistic, name)),
            defaults,
        )
        for name, defaults in REAL.items()
    },
    "sinusoid": Entry("Sinusoid regression", SinusoidSettings, sinusoid, SINUSOID),
    "digits": Entry("Few-shot two-digit numbers", ShippedSettings, partial(shipped_data, "digits"), SHIPPED),
    "mnist1d": Entry("Few-shot MNIST-1D", ShippedSettings, partial(shipped_data, "mnist1d"), SHIPPED),
    "strokes": Entry("Few-shot drawn characters", ShippedSettings, partial(shipped_data, "strokes"), SHIPPED),
    "images": Entry("Few-shot classification of a folder of images", FolderSettings, images, SHIPPED),
}
"""Problems by name, each with settings that suit it."""
