"""Few-shot classification of new classes: every outer update against two baselines without meta-learning.

    metarl few-shot --data digits --ways 5 --shots 1 --seeds 0 1 --log-dir runs --name digits
    metarl few-shot --data omniglot/ --inverted --rotations --split 1100 100 423 --ways 20
    metarl few-shot --data strokes --outer fo_maml sign_maml maml --reference fo_maml --equal-cost

`from scratch` adapts the untrained network. `joint pretraining` trains it to classify all training classes, replaces
the last layer by zeros for the new classes, and adapts everything; it takes the same number of steps and images as the
updates. `bmaml` and `ensemble` average the predictions of several networks. Each row uses the inner step size with the
highest accuracy on the validation classes, the mean over 1, 3, 5 and 10 steps; an update tries each candidate in a
shorter training. With `--reference`, a second table has the paired differences of every row to that update, on the same
seeds and test tasks. The folder gets `comparison.json` and `comparison.png`.
"""

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tqdm import tqdm

from metarl import MetaLearner, NonFiniteError
from metarl.devices import pick_device
from metarl.engine import Engine
from metarl.errors import check_choice, check_int, check_real
from metarl.evaluation import evaluate
from metarl.experiments.common import cli
from metarl.experiments.common.budget import count_iterations
from metarl.experiments.common.config import describe_setup, read_adapt
from metarl.experiments.common.ensembles import ENSEMBLE, has_particles, update_of
from metarl.experiments.common.evaluation import compare_pairs, summarize_seeds
from metarl.experiments.common.figures import Curve, adaptation_figure
from metarl.experiments.common.images import ImageSettings, Sources, add_context, build_few_shot, build_network
from metarl.experiments.common.lock import FolderLock
from metarl.experiments.common.options import check_each, check_seeds
from metarl.experiments.common.run import new_folder
from metarl.experiments.common.tables import markdown_table, with_interval
from metarl.files import write_atomically, write_json
from metarl.inner import sgd
from metarl.outer import OUTER, inner_defaults, make_method
from metarl.random import torch_generator
from metarl.schedules import SCHEDULES
from metarl.supervised.class_sets import ClassSet, as_floats
from metarl.supervised.few_shot import FewShot
from metarl.supervised.networks import mlp
from metarl.supervised.particles import Particles
from metarl.tree import take
from metarl.types import Params, Rule, TaskSource

STEPS = (0, 1, 3, 5, 10)
BASELINE_STEP_SIZES = (0.01, 0.03, 0.1, 0.3, 1.0)
TEST_SEED, VALIDATION_SEED = 1000, 2000


@dataclass(frozen=True, kw_only=True)
class Arguments(ImageSettings):
    """Settings of a comparison."""

    shots: int = 1
    """Support images of a class (K)."""
    queries: int = 15
    """Query images of a class."""
    outer: tuple[str, ...] = (*OUTER, ENSEMBLE)
    """Outer updates to compare, and ensemble: independent maml networks that predict together. Default: all."""
    particles: int = 5
    """Networks of bmaml and of the ensemble."""
    reference: str | None = None
    """An update of --outer: also print the paired differences of every row to it."""
    iterations: int = 500
    """Meta-iterations of each run."""
    equal_cost: bool = False
    """Let --iterations and --pilot-iterations count those of fo_maml: an update whose iteration costs more gradients
    gets fewer, so that all cost the same. A Hessian-vector product counts as two gradients."""
    meta_batch_size: int = 16
    """Tasks per iteration."""
    inner_steps: int = 3
    """Inner steps in training."""
    adapt: tuple[str, ...] = ()
    """Parameters that inner steps of the updates move: head, context, or patterns of names. Default: all; the context
    with --context-size."""
    factors: tuple[float, ...] = (1.0, 4.0, 10.0)
    """Candidates for the inner step size, as multiples of the update's default."""
    pilot_iterations: int = 100
    """Meta-iterations of the training that compares the candidates."""
    learning_rate: float = 3e-3
    """Outer step size of Adam, annealed to a tenth."""
    anneal: Literal["linear", "cosine"] = "linear"
    """Shape of the annealing: linear, or half a period of a cosine."""
    tasks: int = 400
    """Test tasks; also validation tasks."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds: one run for each. The first one chooses the step sizes."""
    device: str = "cpu"
    """Device to train on."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, for example one that registers your own outer update."""
    json: bool = False
    """Print one JSON object instead of a table."""
    log_dir: Path = Path("runs")
    """Parent folder of the comparison's folder."""
    name: str = "few_shot"
    """Name of the comparison's folder."""


class Setup(NamedTuple):
    """What all runs share: the settings, the tasks, the comparison's folder, and the iterations of the updates."""

    given: Arguments
    sources: Sources
    training: Mapping[int, FewShot]  # of each seed, with its network
    folder: Path
    iterations: Mapping[tuple[str, int], int]  # of an update, from `iterations` or `pilot_iterations`


class Fitted(NamedTuple):
    """One run: the initial parameters, the rule of each step, what was spent, and the seconds of an iteration."""

    params: Params
    rules: list[Rule]
    seconds: float
    spent: Mapping[str, int]  # iterations, gradients, hessian_vector_products
    particles: bool = False  # whether the parameters are those of several networks


class Row(NamedTuple):
    """A row of the table, and the scores of its runs."""

    summary: dict[str, Any]
    scores: npt.NDArray[np.float64]  # [seeds, tasks, steps + 1]


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl few-shot", __doc__)
    setup = cli.prepare(lambda: prepare(given))
    with (
        Engine().current(),
        FolderLock(setup.folder),
        cli.one_line_errors(f"; {setup.folder} is incomplete: choose another --name"),
    ):
        run_all(setup)


def run_all(setup: Setup) -> None:
    """Every row, and the table and the picture of them all."""
    given = setup.given
    found: dict[str, Row] = {}
    for name in tqdm(["from scratch", "joint pretraining", *given.outer], disable=None, unit="method"):
        found[name] = compare(setup, name)
    rows = {name: row.summary for name, row in found.items()}
    results = {**describe_setup(given), "results": rows}
    if given.reference is not None:
        others, same = [name for name in found if name != given.reference], found[given.reference].scores
        results["differences"] = {name: compare_pairs(found[name].scores, same) for name in others}
    write_json(setup.folder / "comparison.json", results)
    curves = {name: Curve(row["mean"], row["ci95"]) for name, row in rows.items()}
    title = f"{Path(given.data).name}: {given.ways}-way {given.shots}-shot, new classes"
    figure = adaptation_figure(curves, title, "accuracy")
    write_atomically(setup.folder / "comparison.png", figure.savefig)
    if given.json:
        print(json.dumps(results))
    else:
        print(table(rows))
        if given.reference is not None:
            print(f"\nAccuracy minus that of {given.reference}:\n\n{table_of_differences(results['differences'])}")


def prepare(given: Arguments) -> Setup:
    """The setup: the data loaded, every setting checked, the folder made.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    for name in ("iterations", "pilot_iterations", "meta_batch_size", "inner_steps", "tasks", "particles"):
        check_int(name, getattr(given, name))
    check_real("learning_rate", given.learning_rate)
    cli.import_plugins(given.plugins)
    check_seeds(given.seeds)
    check_each("factors", given.factors, check_real)
    check_each("outer", given.outer, partial(check_choice, choices=(*OUTER, ENSEMBLE)))
    if given.reference is not None:
        check_choice("reference", given.reference, given.outer)
    for outer in given.outer:
        make_method(update_of(outer), adapt=read_adapt(given))
    device = pick_device(given.device)
    sources = build_few_shot(given, given.shots, given.queries, device, given.seeds[0])
    counts = {(outer, number): number for outer in given.outer for number in (given.iterations, given.pilot_iterations)}
    if given.equal_cost:
        counts = divide_by_cost(given, sources.train)
    training = {seed: training_tasks(given, sources.train, seed) for seed in given.seeds}
    return Setup(given, sources, training, new_folder(given.log_dir, given.name), counts)


def divide_by_cost(given: Arguments, source: FewShot) -> dict[tuple[str, int], int]:
    """The iterations of each update that cost as much as the given numbers of iterations of fo_maml.

    Raises:
        ValueError: for a number that does not pay for one iteration.
    """
    unit = cost(small_learner(given, source, "fo_maml").learn(1).counts)
    counts = {}
    for name, outer in itertools.product(("iterations", "pilot_iterations"), given.outer):
        number = getattr(given, name)
        counts[outer, number] = count_iterations(small_learner(given, source, outer), number * unit, cost)
        if counts[outer, number] == 0:
            first = cost(small_learner(given, source, outer).learn(1).counts)
            wanted = f"at least {-(-first // unit)} to pay for an iteration of {outer!r}"
            raise ValueError(f"{name} must be {wanted}, got {number}")
    return counts


def cost(counts: Mapping[str, int]) -> int:
    """Gradients, where a Hessian-vector product counts as two."""
    return counts["gradients"] + 2 * counts["hessian_vector_products"]


def small_learner(given: Arguments, source: FewShot, name: str) -> MetaLearner:
    """A row's update with tiny networks and two tasks: its counts are those of any network."""
    network = partial(mlp, ways=source.ways, hidden=(2,))
    inputs = int(np.prod(source.classes.image_shape))
    small = dataclasses.replace(source, network=add_context(network, inputs, given.context_size))
    tasks = Particles(small, [small.initial_params()] * given.particles) if has_particles(name) else small
    options: dict[str, Any] = {"inner_steps": given.inner_steps, "outer_options": outer_options(name, given)}
    return MetaLearner(tasks, update_of(name), meta_batch_size=2, adapt=read_adapt(given), **options)


def compare(setup: Setup, name: str) -> Row:
    """One row: the runs of all seeds with the best step size, on the test classes."""
    given = setup.given
    fit, candidates = choose_fit(setup, name)
    pilots = {size: validation_score(setup, lambda size=size: fit(given.seeds[0], size, True)) for size in candidates}  # type: ignore[misc]
    best = max(pilots, key=lambda size: pilots[size])
    runs = [fit(seed, best, False) for seed in given.seeds]
    # [seeds, tasks, steps + 1]
    scores = np.stack([curve(run, setup.sources.test, given.tasks, TEST_SEED) for run in runs])
    summary = {
        "inner_lr": best,
        "validation": {str(size): value if np.isfinite(value) else None for size, value in pilots.items()},
        **summarize_seeds(scores),
        **runs[0].spent,
        "seconds_per_iteration": statistics.median(run.seconds for run in runs),
    }
    return Row(summary, scores)


def choose_fit(setup: Setup, name: str) -> tuple[Callable[[int, float, bool], Fitted], Sequence[float]]:
    """The function that makes a row's run from a seed, a step size and whether it is a pilot; and the candidates."""
    if name == "from scratch":
        return lambda seed, size, _: Fitted(
            setup.training[seed].initial_params(), [sgd(size)] * max(STEPS), 0.0, {}
        ), BASELINE_STEP_SIZES
    if name == "joint pretraining":
        pretrained: dict[int, tuple[Params, float]] = {}  # it does not depend on the step size

        def fit(seed: int, size: float, pilot: bool) -> Fitted:
            if seed not in pretrained:
                pretrained[seed] = pretrain(setup, seed)
            params, seconds = pretrained[seed]
            return Fitted(params, [sgd(size)] * max(STEPS), seconds, {"iterations": setup.given.iterations})

        return fit, BASELINE_STEP_SIZES
    sizes = [inner_defaults(update_of(name))[0] * factor for factor in setup.given.factors]
    return lambda seed, size, pilot: meta_train(setup, name, seed, size, pilot), sizes


def validation_score(setup: Setup, fit: Callable[[], Fitted]) -> float:
    """The accuracy on the validation classes, the mean over the adapted `STEPS`; minus infinity at overflow."""
    try:
        scores = curve(fit(), setup.sources.validation, setup.given.tasks, VALIDATION_SEED)
    except NonFiniteError:
        return -np.inf
    return float(scores[:, STEPS[1:]].mean())


def curve(run: Fitted, source: FewShot, num_tasks: int, seed: int) -> npt.NDArray[np.float64]:
    """Accuracies `[tasks, steps + 1]`; all runs get the same tasks from the same seed."""
    tasks = given_particles(source, run).sample(num_tasks, np.random.default_rng(seed))
    scores: npt.NDArray[np.float64] = evaluate(run.params, tasks, run.rules).scores[0]
    return scores


def given_particles(source: FewShot, run: Fitted) -> TaskSource:
    """The source for a run's parameters, which may be those of several networks."""
    if not run.particles:
        return source
    number = len(next(iter(run.params.values())))
    return Particles(source, [take(run.params, m) for m in range(number)])


def training_tasks(given: Arguments, train: FewShot, seed: int) -> FewShot:
    """The training tasks with the network of a seed."""
    return dataclasses.replace(train, network=build_network(given, train.classes.image_shape, given.ways, seed))


def outer_options(name: str, given: Arguments) -> dict[str, Any]:
    """Options of a row's update where the defaults do not suit."""
    # with lam = 2 these networks hardly adapt; the temperature of the posterior given all support images
    own = {"imaml": {"lam": 0.1}, "bmaml": {"temperature": 1 / (given.ways * given.shots)}}
    return own.get(name, {})


def meta_train(setup: Setup, name: str, seed: int, inner_lr: float, pilot: bool) -> Fitted:
    """A run of an outer update, or of the ensemble."""
    given, several = setup.given, has_particles(name)
    iterations = setup.iterations[name, given.pilot_iterations if pilot else given.iterations]
    learner = MetaLearner(
        particles(given, setup.sources.train, seed) if several else setup.training[seed],
        update_of(name),
        inner_lr=inner_lr,
        inner_steps=given.inner_steps,
        adapt=read_adapt(given),
        outer_options=outer_options(name, given),
        meta_batch_size=given.meta_batch_size,
        learning_rate=given.learning_rate,
        schedule=SCHEDULES[given.anneal](iterations),
        seed=seed,
    )
    start = time.perf_counter()
    cli.learn(learner, iterations)
    seconds = (time.perf_counter() - start) / iterations
    spent = {name: learner.counts[name] for name in ("gradients", "hessian_vector_products")}
    rules = learner.rules([None] * max(STEPS))
    return Fitted(learner.params, rules, seconds, {"iterations": iterations, **spent}, several)


def particles(given: Arguments, train: FewShot, seed: int) -> Particles:
    """The training tasks with several networks, each from its own seed."""
    seeds = [seed * given.particles + m for m in range(given.particles)]  # no two runs share a network
    return Particles(train, [training_tasks(given, train, own).initial_params() for own in seeds])


def pretrain(setup: Setup, seed: int) -> tuple[Params, float]:
    """A classifier of all training classes, its head replaced by zeros; and the seconds a step took."""
    given, train = setup.given, setup.sources.train
    classes = train.classes
    network = build_network(given, classes.image_shape, len(classes), seed).to(train.device)
    generator = torch_generator(np.random.default_rng(seed))
    optimizer = torch.optim.Adam(network.parameters(), given.learning_rate)
    annealing = torch.optim.lr_scheduler.LambdaLR(optimizer, SCHEDULES[given.anneal](given.iterations))
    number = given.meta_batch_size * given.ways * (given.shots + given.queries)
    start = time.perf_counter()
    for _ in range(given.iterations):
        x, y = random_images(classes, number, next(network.parameters()), generator)
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        annealing.step()
    params = {key: leaf.detach() for key, leaf in network.named_parameters()}
    weight, bias = (next(key for key in params if key.endswith(f"head.{kind}")) for kind in ("weight", "bias"))
    head = {weight: torch.zeros(given.ways, params[weight].shape[1]), bias: torch.zeros(given.ways)}
    seconds = (time.perf_counter() - start) / given.iterations
    return {**params, **{key: leaf.to(params[key]) for key, leaf in head.items()}}, seconds


def random_images(
    classes: ClassSet, number: int, like: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of random classes, in the dtype and on the device of `like`, and the numbers of their classes."""
    labels = torch.randint(len(classes), (number,), generator=generator)
    where = torch.rand(number, generator=generator, dtype=torch.float64).tolist()
    of_classes = [classes.images[label] for label in labels.tolist()]
    images = [images[int(u * len(images))] for images, u in zip(of_classes, where, strict=True)]
    return as_floats(torch.stack(images), like), labels.to(like.device)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracies in percent after each number of steps, as a Markdown table."""
    head = ["method", *(f"{k} steps" for k in STEPS), "inner step size", "iterations", "s / iteration"]
    lines = []
    for name, row in rows.items():
        cells = [with_interval(row["mean"][k], row["ci95"][k], unit=0.01) for k in STEPS]
        spent = [str(row.get("iterations", 0)), f"{row['seconds_per_iteration']:.3f}"]
        lines.append([name, *cells, f"{row['inner_lr']:.3g}", *spent])
    return markdown_table(head, lines)


INTERVALS = {"ci95": "seeds and tasks", "over_seeds": "seeds", "over_tasks": "tasks"}
"""The intervals of a paired difference, and what each holds over."""


def table_of_differences(differences: Mapping[str, Mapping[str, Any]]) -> str:
    """Paired differences in percentage points after each number of steps, with each kind of interval."""
    lines = []
    for name, row in differences.items():
        for kind, over in INTERVALS.items():
            lines.append([name, over, *(with_interval(row["mean"][k], row[kind][k], unit=0.01) for k in STEPS)])
    return markdown_table(["method", "95 % interval over", *(f"{k} steps" for k in STEPS)], lines)


if __name__ == "__main__":
    main()
