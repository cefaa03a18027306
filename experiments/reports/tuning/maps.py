"""The maps: a training run for every network, update, inner and outer step size, and seed; and what they show."""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from metarl import MetaLearner, NonFiniteError
from metarl.experiments.common import cli
from metarl.experiments.common.tables import markdown_table
from metarl.experiments.reports.tuning.problems import Hidden, Problem
from metarl.schedules import Linear
from metarl.types import TaskSource

SEED = 1000  # of the held-out tasks, the same for every run


class Place(NamedTuple):
    """Where a run stands in the maps."""

    network: Hidden
    outer: str
    inner_lr: float
    learning_rate: float
    seed: int


class Map(NamedTuple):
    """The mean final scores of one update with one network, by inner and outer step size; `None`: a run diverged."""

    scores: Mapping[tuple[float, float], float | None]
    untrained: float

    @property
    def best(self) -> tuple[float, float]:
        """The step sizes with the highest score.

        Raises:
            ValueError: when every run diverged.
        """
        finite = {place: score for place, score in self.scores.items() if score is not None}
        if not finite:
            raise ValueError("scores must have a run that did not diverge")
        return max(finite, key=lambda place: finite[place])

    @property
    def best_score(self) -> float | None:
        """The highest score; `None` when every run diverged."""
        return max((score for score in self.scores.values() if score is not None), default=None)

    def good(self, best: float, distance: float) -> set[tuple[float, float]]:
        """The step sizes whose score is at least `best - distance (best - untrained)`."""
        least = best - distance * (best - self.untrained)
        return {place for place, score in self.scores.items() if score is not None and score >= least}


Maps = dict[tuple[Hidden, str], Map]
"""By network and update."""


def places(problem: Problem, outers: Sequence[str], seeds: Sequence[int]) -> Iterator[Place]:
    """All runs, those of a network and a seed together."""
    for network, seed, outer in itertools.product(problem.networks, seeds, outers):
        for inner_lr, learning_rate in itertools.product(problem.inner_step_sizes(outer), problem.learning_rates):
            yield Place(network, outer, inner_lr, learning_rate, seed)


def train(problem: Problem, place: Place, source: TaskSource, held_out: TaskSource) -> dict[str, Any]:
    """One run: its score after the inner steps on held-out tasks, or the iteration after which it diverged."""
    learner = MetaLearner(
        source,
        place.outer,
        inner_lr=place.inner_lr,
        inner_steps=problem.inner_steps,
        meta_batch_size=problem.meta_batch_size,
        learning_rate=place.learning_rate,
        schedule=Linear(problem.iterations),
        seed=place.seed,
    )
    try:
        cli.learn(learner, problem.iterations)
        score = learner.evaluate(
            held_out, num_tasks=problem.tasks, steps=problem.inner_steps, seed=SEED, warn=False
        ).mean[-1]
    except NonFiniteError as error:
        return {"score": None, "iterations": learner.iterations, "error": str(error)}
    return {"score": score, "iterations": learner.iterations, "error": None}


def score_untrained(problem: Problem, held_out: TaskSource) -> float:
    """The score of the initial parameters without adaptation."""
    return MetaLearner(held_out, "maml").evaluate(num_tasks=problem.tasks, steps=0, seed=SEED).mean[0]


def collect(runs: Mapping[Place, Mapping[str, Any]], untrained: Mapping[tuple[Hidden, int], float]) -> Maps:
    """The maps of all runs, means over seeds; a cell in which a seed diverged has diverged."""
    maps: Maps = {}
    for network, outer in dict.fromkeys((place.network, place.outer) for place in runs):
        cells: dict[tuple[float, float], list[float | None]] = {}
        for place, run in runs.items():
            if (place.network, place.outer) == (network, outer):
                cells.setdefault((place.inner_lr, place.learning_rate), []).append(run["score"])
        start = statistics.mean(value for (found, _), value in untrained.items() if found == network)
        maps[network, outer] = Map({cell: mean_or_none(scores) for cell, scores in cells.items()}, start)
    return maps


def mean_or_none(scores: Sequence[float | None]) -> float | None:
    """The mean, or `None` if one of them is."""
    finite = [score for score in scores if score is not None]
    return statistics.mean(finite) if len(finite) == len(scores) else None


def summarize(maps: Maps, distance: float) -> list[dict[str, Any]]:
    """For each network and update: its best run, and the shares of the grid that are good or diverged."""
    rows = []
    for (network, outer), found in maps.items():
        best, best_of_all = found.best_score, best_of_network(maps, network)
        cells = len(found.scores)
        rows.append(
            {
                "network": name(network),
                "outer": outer,
                "best": best,
                "at": None if best is None else list(found.best),
                "at_edge": best is not None and is_at_edge(found),
                "good_of_own": 0.0 if best is None else len(found.good(best, distance)) / cells,
                "good": 0.0 if best_of_all is None else len(found.good(best_of_all, distance)) / cells,
                "diverged": sum(score is None for score in found.scores.values()) / cells,
            }
        )
    return rows


def best_of_network(maps: Maps, network: Hidden) -> float | None:
    """The highest score of all updates with a network."""
    scores = [found.best_score for (of, _), found in maps.items() if of == network]
    return max((score for score in scores if score is not None), default=None)


def is_at_edge(found: Map) -> bool:
    """Whether the best step sizes are the smallest or largest of the grid: better ones may lie outside."""
    axes = list(zip(*found.scores, strict=True))
    return any(value in (min(axis), max(axis)) for value, axis in zip(found.best, axes, strict=True))


def shares_for_all(maps: Maps, distance: float) -> dict[str, float]:
    """The share of each update's grid that is good, by the best of all updates, with every network."""
    shares = {}
    for outer in dict.fromkeys(outer for _, outer in maps):
        good, cells = [], 0
        for (network, update), found in maps.items():
            best = best_of_network(maps, network)
            if update == outer:
                good.append(set() if best is None else found.good(best, distance))
                cells = len(found.scores)
        shares[outer] = len(set.intersection(*good)) / cells
    return shares


def name(network: Hidden) -> str:
    """A network's name, such as 40x40."""
    return "x".join(map(str, network))


def table(rows: Sequence[Mapping[str, Any]], shares: Mapping[str, float], distance: float) -> str:
    """The good regions as Markdown tables: of every network and update, and of all networks together."""
    per_cent = f"{distance:.0%}".replace("%", " %")
    head = ["network", "update", "best score", "inner, outer step size", f"within {per_cent} of the update's best"]
    lines = []
    for row in rows:
        at = "none" if row["at"] is None else ", ".join(f"{size:g}" for size in row["at"]) + " *" * row["at_edge"]
        best = "diverged" if row["best"] is None else f"{row['best']:.2f}"
        shares_of_row = [f"{row[key]:.0%}" for key in ("good_of_own", "good", "diverged")]
        lines.append([row["network"], f"`{row['outer']}`", best, at, *shares_of_row])
    whole = markdown_table([*head, f"within {per_cent} of the network's best", "diverged"], lines)
    for_all = [[f"`{outer}`", f"{share:.0%}"] for outer, share in shares.items()]
    return f"{whole}\n\n{markdown_table(['update', 'good with every network'], for_all)}"
