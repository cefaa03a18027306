"""Supervised problems by name, with settings that suit them: what `metarl train-supervised` trains on.

A problem here is a source of training tasks, one of tasks to be judged on, and what is known of it in closed form.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

import torch

from metarl.errors import check_int
from metarl.experiments.common.images import ImageSettings, build_few_shot
from metarl.random import Stream, stream_generator
from metarl.supervised import BatchSizes, FiniteSumSource, FiniteSumTaskBatch
from metarl.supervised.sinusoid import Sinusoids
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
class ProblemSettings(ImageSettings):
    """What a problem may be told; each looks at what concerns it, and refuses the rest."""

    setting: Literal["finite_sum", "resampling"] = "finite_sum"
    """Fixed support and query sets, or fresh data at every draw (quadratics, logistic, sinusoid, images)."""
    shots: int | None = None
    """Support points of a sinusoid (default 10), support images of a class (default 1)."""
    queries: int | None = None
    """Query points of a sinusoid (default 10), query images of a class (default 15)."""
    eval_shots: int | None = None
    """Support points, or images of a class, in evaluations; default: as many as in training."""
    inner_batch: int | None = None
    """D_in: points for each task and draw (quadratics, logistic, real data); default: all of them."""
    outer_batch: int | None = None
    """D_o: likewise."""
    hessian_batch: int | None = None
    """D_h: likewise."""


class Known(NamedTuple):
    """What is known of a problem for an inner step size alpha and N steps."""

    L: float
    rho: float
    points: Callable[[float, int], Mapping[str, Params]] = lambda alpha, steps: MappingProxyType({})


class SupervisedProblem(NamedTuple):
    """Tasks to train on, tasks to be judged on, and what is known of them."""

    train: TaskSource
    test: TaskSource
    all_tasks: int | None = None  # of the fixed set, if there is one: their gradient is exact
    known: Known | None = None


class Defaults(NamedTuple):
    """Settings that suit a problem."""

    meta_batch_size: int
    inner_lr: float
    sign_inner_lr: float
    learning_rate: float
    optimizer: Literal["adam", "sgd"]
    takes: tuple[str, ...] = ()  # of the settings of `ProblemSettings`
    anywhere: bool = False  # or else on the CPU only


class Build(Protocol):
    """From settings, a device and a seed to a problem."""

    def __call__(self, given: ProblemSettings, device: torch.device, seed: int) -> SupervisedProblem: ...


BATCHES = ("inner_batch", "outer_batch", "hessian_batch")
IMAGES = tuple(field.name for field in dataclasses.fields(ImageSettings))
OF_SHIPPED = ("ways", "network", "hidden")  # which are not square, so no convolutions


def fixed_set(source: FiniteSumSource, known: Known) -> SupervisedProblem:
    """A problem whose tasks are all there are: it is judged on those it was trained on, with all their data."""
    whole = source.tasks
    tasks = FiniteSumTaskBatch(whole.loss, whole.support, whole.query, whole.score)
    everything = FiniteSumSource(tasks, source.initial_params(), source.score_name)
    return SupervisedProblem(source, everything, whole.num_tasks, known)


def minibatches(given: ProblemSettings, points: float = math.inf) -> BatchSizes:
    """The sizes asked for, of so many points.

    Raises:
        ValueError: for more than there are.
    """
    for name in BATCHES:
        size = getattr(given, name)
        if size is not None and check_int(name, size) > points:
            raise ValueError(f"{name} must be at most {points}, the points of a task, got {size}")
    return BatchSizes(given.inner_batch, given.outer_batch, given.hessian_batch)


def quadratic_points(problem: Quadratics) -> Callable[[float, int], Mapping[str, Params]]:
    """Where each objective is stationary."""

    def points(alpha: float, steps: int) -> Mapping[str, Params]:
        a = problem.curvatures
        matrices = {
            "maml": maml_matrix(a, alpha, steps),
            "fo_maml": fo_maml_matrix(a, alpha, steps),
            "moreau": moreau_matrix(a, alpha),
        }
        return {name: {"w": fixed_point(problem, matrix)} for name, matrix in matrices.items()}

    return points


def of_quadratics(
    problem: Quadratics, given: ProblemSettings, points: int, noise: float, seed: int
) -> SupervisedProblem:
    """Fixed quadratic tasks."""
    rng = stream_generator(seed, Stream.PROBLEM_NOISE)
    tasks = quadratic_tasks(
        problem,
        points=points,
        noise=noise,
        rng=rng if noise else None,
        batch_sizes=minibatches(given, points),
        generator=torch.Generator().manual_seed(seed),
    )
    largest = float(torch.linalg.eigvalsh(problem.curvatures).max())
    return fixed_set(quadratic_source(problem, tasks=tasks), Known(largest, 0.0, quadratic_points(problem)))


def two_quadratics(given: ProblemSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """P1: curvatures 1 and 2, centres 1 and -1."""
    return of_quadratics(quadratics_1d(), given, points=1, noise=0.0, seed=seed)


def quadratics(given: ProblemSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """Twenty random quadratics in five dimensions, a hundred noisy points each; or new ones all the time."""
    if given.setting == "resampling":
        return resampled(FreshQuadratics(sizes=fresh_sizes(given)))
    problem = random_quadratics(stream_generator(seed, Stream.PROBLEM), 20, 5)
    return of_quadratics(problem, given, points=100, noise=1.0, seed=seed)


def of_logistic(problem: Logistic, given: ProblemSettings, seed: int) -> SupervisedProblem:
    """Fixed logistic tasks."""
    sizes, generator = minibatches(given, problem.x.shape[1]), torch.Generator().manual_seed(seed)
    tasks = logistic_tasks(problem, batch_sizes=sizes, generator=generator)
    return fixed_set(logistic_source(problem, tasks), Known(smoothness(problem), hessian_smoothness(problem)))


def six_logistic(given: ProblemSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """P2: six tasks of forty points in five dimensions."""
    return of_logistic(six_logistic_tasks(), given, seed)


def logistic(given: ProblemSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """Twenty random logistic tasks; or new ones all the time."""
    if given.setting == "resampling":
        return resampled(FreshLogistic(sizes=fresh_sizes(given)))
    return of_logistic(random_logistic(stream_generator(seed, Stream.PROBLEM), 20), given, seed)


def real(name: str) -> Build:
    """Logistic regressions on a data set that comes with scikit-learn."""

    def build(given: ProblemSettings, device: torch.device, seed: int) -> SupervisedProblem:
        return of_logistic(real_logistic(name), given, seed)

    return build


def sinusoid(given: ProblemSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """Sinusoid regression; judged with many query points."""
    shots, queries = (10 if number is None else number for number in (given.shots, given.queries))
    train = Sinusoids(shots=shots, queries=queries, setting=given.setting, seed=seed, device=device)
    judged = shots if given.eval_shots is None else check_int("eval_shots", given.eval_shots)
    return SupervisedProblem(train, dataclasses.replace(train, shots=judged, queries=100, setting="finite_sum"))


def few_shot(data: str | None) -> Build:
    """Few-shot classification of a shipped data set, or of the folder in `given.data`; judged on the test classes."""

    def build(given: ProblemSettings, device: torch.device, seed: int) -> SupervisedProblem:
        if data is None and given.data in PROBLEMS:
            raise ValueError(f"data must be a folder of class folders of images, got {given.data!r}, another problem")
        shots = 1 if given.shots is None else given.shots
        queries = 15 if given.queries is None else given.queries
        sources = build_few_shot(given, data, shots, queries, device, seed)
        judged = shots if given.eval_shots is None else check_int("eval_shots", given.eval_shots)
        train = dataclasses.replace(sources.train, setting=given.setting)
        try:
            return SupervisedProblem(train, dataclasses.replace(sources.test, shots=judged))
        except ValueError as error:
            raise ValueError(f"eval_shots = {judged} cannot be: {error}") from None

    return build


def resampled(source: TaskSource) -> SupervisedProblem:
    """New tasks all the time, so those it is judged on are new as well."""
    return SupervisedProblem(source, source)


def fresh_sizes(given: ProblemSettings) -> BatchSizes:
    """Points of the draws; ten where nothing is said."""
    return BatchSizes(*(10 if size is None else size for size in minibatches(given)))


EXACT = Defaults(20, 0.25, 0.02, 0.1, "sgd", ("setting", *BATCHES))
POINTS = ("setting", "shots", "queries", "eval_shots")
SHIPPED = Defaults(16, 0.4, 0.03, 3e-3, "adam", (*POINTS, *OF_SHIPPED), anywhere=True)

PROBLEMS: dict[str, tuple[Build, Defaults]] = {
    "two_quadratics": (two_quadratics, Defaults(2, 0.25, 0.02, 0.2, "sgd")),
    "quadratics": (quadratics, EXACT),
    "six_logistic": (six_logistic, Defaults(6, 0.95, 0.02, 0.5, "sgd", BATCHES)),
    "logistic": (logistic, EXACT._replace(inner_lr=0.9, learning_rate=0.5)),
    **{
        f"logistic_{name}": (real(name), Defaults(tasks, inner_lr, 0.02, learning_rate, "sgd", BATCHES))
        for name, tasks, inner_lr, learning_rate in (
            ("breast_cancer", 4, 0.1, 0.1),
            ("digits", 10, 0.1, 0.1),
            ("iris", 3, 0.4, 0.3),
            ("wine", 3, 0.4, 0.3),
        )
    },
    "sinusoid": (sinusoid, Defaults(25, 0.01, 0.001, 1e-3, "adam", POINTS, anywhere=True)),
    "digits": (few_shot("digits"), SHIPPED),
    "mnist1d": (few_shot("mnist1d"), SHIPPED),
    "images": (few_shot(None), SHIPPED._replace(takes=(*POINTS, *IMAGES))),
}
"""Problems by name, each with settings that suit it."""


def check_settings(name: str, given: ProblemSettings) -> None:
    """A setting that means nothing to the problem is an error, not ignored.

    Raises:
        ValueError: naming it.
    """
    takes = PROBLEMS[name][1].takes
    for field in dataclasses.fields(ProblemSettings):
        value = getattr(given, field.name)
        if value != field.default and field.name not in takes:
            raise ValueError(f"{field.name} means nothing to the problem {name!r}, got {value!r}")
