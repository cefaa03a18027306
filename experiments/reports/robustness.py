"""Do hypergradients make training robust to its first step sizes? The claim of Alpha MAML (Behl et al., 2019), tried.

    metarl robustness [--quick] [--json] [--out docs/pictures]

Trains MAML with plain descent from start values of alpha and beta that span four decades each, the other one at its
reference: with the rates fixed, and with both adapted by hypergradients at several hyper step sizes. A run that
diverges counts as untrained. Prints the scores on held-out tasks; the folder gets `robustness.png` and
`robustness.json`.
"""

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from metarl import MetaLearner, NonFiniteError, make_method
from metarl.engine import Engine
from metarl.errors import check_choice, check_int
from metarl.experiments.common import cli
from metarl.experiments.common.config import versions
from metarl.experiments.common.figures import new_figure
from metarl.experiments.common.images import ImageSettings, build_few_shot
from metarl.experiments.common.options import check_each, check_seeds
from metarl.experiments.common.tables import markdown_table
from metarl.files import write_atomically, write_json
from metarl.step import HypergradientStep
from metarl.supervised.sinusoid import Sinusoids
from metarl.types import TaskSource

FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Start values as multiples of the reference: four decades."""

QUICK_ITERATIONS = 20


class Rates(NamedTuple):
    """An inner and an outer step size."""

    alpha: float
    beta: float


class Problem(NamedTuple):
    """Tasks, and step sizes that suit them with plain descent."""

    title: str
    make: Callable[[int], tuple[TaskSource, TaskSource]]  # from a seed: training and held-out tasks
    reference: Rates
    hyper: tuple[Rates, ...]  # hyper step sizes to try
    meta_batch_size: int


@cache  # one network for each seed: the engine records its functions once
def sinusoids(seed: int) -> tuple[TaskSource, TaskSource]:
    """5-shot sinusoids; 100 query points of held-out tasks."""
    train = Sinusoids(shots=5, queries=10, seed=seed)
    return train, dataclasses.replace(train, queries=100)


@cache
def digits(seed: int) -> tuple[TaskSource, TaskSource]:
    """5-way 1-shot classification of two-digit numbers, with test classes held out."""
    sources = build_few_shot(ImageSettings(data="digits"), 1, 15, torch.device("cpu"), seed)
    return sources.train, sources.test


PROBLEMS = {
    "sinusoid": Problem(
        "sinusoids, 5-shot", sinusoids, Rates(0.01, 0.01), (Rates(1e-5, 1e-5), Rates(1e-4, 1e-4)), meta_batch_size=25
    ),
    "digits": Problem(
        "digits, 5-way 1-shot", digits, Rates(0.4, 0.1), (Rates(1e-2, 1e-3), Rates(1e-1, 1e-2)), meta_batch_size=8
    ),
}


@dataclass(frozen=True)
class Arguments:
    """Which problems, and how long."""

    quick: bool = False
    """Three start values, one seed and 20 iterations: the numbers mean nothing."""
    json: bool = False
    """Print one JSON object instead of the tables."""
    problems: tuple[str, ...] = tuple(PROBLEMS)
    """Problems; default: all."""
    iterations: int = 200
    """Meta-iterations of each run."""
    tasks: int = 100
    """Held-out tasks."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds: a run of each for every start value."""
    out: Path = Path("runs/robustness")
    """Folder of the picture and the numbers."""


class Outcome(NamedTuple):
    """Where a run ended."""

    score: float
    rates: Rates | None  # of the last iteration; none if it diverged


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl robustness", __doc__)
    cli.prepare(lambda: check_arguments(given))
    if given.quick:
        given = dataclasses.replace(given, iterations=QUICK_ITERATIONS, tasks=10, seeds=given.seeds[:1])
    with Engine().current():
        rows = [row for name in given.problems for row in measure(name, given)]
    results = {"versions": versions(), "iterations": given.iterations, "seeds": list(given.seeds), "rows": rows}
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "robustness.json", results)
    write_atomically(given.out / "robustness.png", draw(rows).savefig)
    print(json.dumps(results) if given.json else "\n\n".join([table(rows), summary(rows)]))


def check_arguments(given: Arguments) -> None:
    """Raise a `ValueError` that names the argument which cannot work."""
    check_each("problems", given.problems, partial(check_choice, choices=PROBLEMS))
    check_seeds(given.seeds)
    for name in ("iterations", "tasks"):
        check_int(name, getattr(given, name))
    cli.check_output_folder("out", given.out)


# The runs.


def measure(name: str, given: Arguments) -> list[dict[str, Any]]:
    """A row for each variant and start of a problem, with the outcomes of all seeds."""
    problem = PROBLEMS[name]
    factors = FACTORS[1:4] if given.quick else FACTORS
    variants = [Rates(0.0, 0.0), *(problem.hyper[:1] if given.quick else problem.hyper)]
    untrained = {seed: train(problem, problem.reference, Rates(0, 0), 0, given.tasks, seed) for seed in given.seeds}
    rows = []
    work = list(itertools.product(variants, starts(problem.reference, factors)))
    for hyper, start in tqdm(work, desc=name, disable=None):
        outcomes = [train(problem, start, hyper, given.iterations, given.tasks, seed) for seed in given.seeds]
        before = [untrained[seed].score for seed in given.seeds]
        scores = [b if o.rates is None else o.score for o, b in zip(outcomes, before, strict=True)]
        ends = [outcome.rates._asdict() if outcome.rates else None for outcome in outcomes]
        where = {"alpha": start.alpha, "beta": start.beta}
        own = {"scores": scores, "ends": ends, "diverged": ends.count(None), "untrained": statistics.mean(before)}
        rows.append({"problem": name, "hyper": hyper._asdict(), "start": where, **own})
    return rows


def starts(reference: Rates, factors: Iterable[float]) -> list[Rates]:
    """Each rate over its decades, the other one at its reference; the reference itself once."""
    found = [reference._replace(**{rate: getattr(reference, rate) * f}) for rate in Rates._fields for f in factors]
    return list(dict.fromkeys(found))


def train(problem: Problem, start: Rates, hyper: Rates, iterations: int, tasks: int, seed: int) -> Outcome:
    """The score after one inner step on held-out tasks, at the end of a run."""
    source, held_out = problem.make(seed)
    method = make_method("maml", start.alpha, 1, learn_inner_lr="scalar")
    step = HypergradientStep(
        method.initial_params(source), start.beta, hyper_lr_alpha=hyper.alpha, hyper_lr_beta=hyper.beta
    )
    learner = MetaLearner.from_parts(source, method, step, meta_batch_size=problem.meta_batch_size, seed=seed)
    try:
        if iterations:
            cli.learn(learner, iterations)
        score = float(learner.evaluate(held_out, num_tasks=tasks, steps=1, warn=False).mean[-1])
    except NonFiniteError:
        return Outcome(float("nan"), None)
    return Outcome(score, Rates(float(learner.params["meta/inner_lr"]), step.outer_lr))


# What is shown.


def describe(hyper: dict[str, float]) -> str:
    """The variant in words."""
    if not any(hyper.values()):
        return "fixed rates"
    return f"eta_alpha {hyper['alpha']:.0e}, eta_beta {hyper['beta']:.0e}"


def grouped(rows: list[dict[str, Any]], *keys: Callable[[dict[str, Any]], str]) -> dict[tuple[str, ...], list[Any]]:
    """The rows by the values of `keys`, in order."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(key(row) for key in keys), []).append(row)
    return groups


def problem_of(row: dict[str, Any]) -> str:
    """The name of the row's problem."""
    return str(row["problem"])


def variant_of(row: dict[str, Any]) -> str:
    """The row's variant in words."""
    return describe(row["hyper"])


def table(rows: list[dict[str, Any]]) -> str:
    """The mean score over seeds from every start, and where alpha and beta ended."""
    cells = []
    for row in rows:
        ends = [end for end in row["ends"] if end is not None]
        last = [f"{statistics.mean(end[rate] for end in ends):.2g}" if ends else "" for rate in Rates._fields]
        score = f"{statistics.mean(row['scores']):.3f} [{min(row['scores']):.3f}, {max(row['scores']):.3f}]"
        first = [f"{row['start'][rate]:g}" for rate in Rates._fields]
        cells.append([row["problem"], variant_of(row), *first, score, *last, f"{row['diverged']}"])
    head = ["problem", "variant", "first alpha", "first beta", "score [lowest, highest seed]"]
    return markdown_table([*head, "last alpha", "last beta", "diverged"], cells)


def is_good(row: dict[str, Any], best: float) -> bool:
    """Whether training gained at least half of what the best run of the problem gained."""
    return bool(statistics.mean(row["scores"]) - row["untrained"] >= 0.5 * (best - row["untrained"]))


def summary(rows: list[dict[str, Any]]) -> str:
    """Of each variant: the mean over all starts, the worst start, and the starts with half of the best gain."""
    best = {
        name: max(statistics.mean(row["scores"]) for row in own) for (name,), own in grouped(rows, problem_of).items()
    }
    cells = []
    for (name, variant), own in grouped(rows, problem_of, variant_of).items():
        means = [statistics.mean(row["scores"]) for row in own]
        by_seed = [statistics.mean(scores) for scores in zip(*(row["scores"] for row in own), strict=True)]
        good = sum(is_good(row, best[name]) for row in own)
        over_all = f"{statistics.mean(means):.3f} [{min(by_seed):.3f}, {max(by_seed):.3f}]"
        numbers = [f"{max(means):.3f}", f"{min(means):.3f}", f"{good} of {len(own)}"]
        cells.append([name, variant, over_all, *numbers, f"{sum(row['diverged'] for row in own)}"])
    head = ["problem", "variant", "mean over starts [lowest, highest seed]", "best start", "worst start"]
    return markdown_table([*head, "starts with half of the best gain", "runs that diverged"], cells)


def draw(rows: list[dict[str, Any]]) -> Figure:
    """The score over the start value: a row of panels for each problem, a line for each variant, bands over seeds."""
    problems = grouped(rows, problem_of)
    figure = new_figure(9.5, 3.5 * len(problems))
    axes = figure.subplots(len(problems), 2, squeeze=False, sharey="row")
    for line, ((name,), own) in zip(axes, problems.items(), strict=True):
        reference = PROBLEMS[name].reference._asdict()
        for ax, (rate, other) in zip(line, (("alpha", "beta"), ("beta", "alpha")), strict=True):
            along = [row for row in own if row["start"][other] == reference[other]]
            for (variant,), curve in grouped(along, variant_of).items():
                curve = sorted(curve, key=lambda row: row["start"][rate])
                x = [row["start"][rate] for row in curve]
                (drawn,) = ax.plot(x, [statistics.mean(row["scores"]) for row in curve], "o-", label=variant)
                low, high = ([end(row["scores"]) for row in curve] for end in (min, max))
                ax.fill_between(x, low, high, alpha=0.2, color=drawn.get_color())
            ax.axhline(own[0]["untrained"], color="gray", linestyle=":", label="untrained")
            ax.set(xscale="log", xlabel=f"first {rate} ({other} starts at {reference[other]:g})")
            ax.grid(alpha=0.3)
        line[0].set_ylabel("accuracy" if name == "digits" else "minus squared error")
        line[0].set_title(PROBLEMS[name].title, fontsize=10, loc="left")
        line[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


if __name__ == "__main__":
    main()
