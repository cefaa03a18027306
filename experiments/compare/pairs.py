"""Statistics of rows and of pairs of rows, on the same seeds and tasks, after the steps that each was trained for."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from metarl.experiments.compare.results import RowResult
from metarl.statistics import (
    Estimate,
    crossed_bootstrap,
    optimality_gap,
    paired_difference,
    probability_of_improvement,
)

RESAMPLES = 500
"""Of each pair's bootstrap; enough for the width within 4 %."""

MOST_ROWS = 20
"""More rows are compared with the best one alone."""


class Pair(NamedTuple):
    """Two rows compared."""

    first: str
    second: str
    difference: Estimate  # first - second
    improvement: Estimate  # the probability that first scores higher


def compare_rows(rows: Sequence[RowResult]) -> list[Pair]:
    """All pairs of rows with the same tasks and seeds; of more than `MOST_ROWS` rows, the pairs with the best one."""
    ranked = sorted((row for row in rows if row.scores is not None), key=lambda row: -float(row.final.mean()))
    best = ranked[:1] if len(ranked) > MOST_ROWS else ranked
    pairs = [(a, b) for a, b in itertools.combinations(ranked, 2) if a in best]
    return [
        Pair(
            a.label,
            b.label,
            paired_difference(a.final, b.final),
            probability_of_improvement(a.final, b.final, resamples=RESAMPLES),
        )
        for a, b in pairs
        if can_pair(a, b)
    ]


def can_pair(first: RowResult, second: RowResult) -> bool:
    """Whether both rows have scores of the same tasks and seeds; the baseline `ppo` has fewer tasks than others."""
    return first.tasks == second.tasks and first.final.shape == second.final.shape


class RowStatistics(NamedTuple):
    """A row alone."""

    label: str
    middle: Estimate  # the interquartile mean
    gap: Estimate | None  # to the oracle on the same tasks


def describe_rows(rows: Sequence[RowResult]) -> list[RowStatistics]:
    """The interquartile mean of every row, and its gap to the baseline `oracle` on the same tasks, if there is one."""
    oracle = next((row for row in rows if row.label == "oracle" and row.scores is not None), None)
    found = []
    for row in rows:
        if row.scores is not None:
            paired = oracle is not None and oracle is not row and can_pair(row, oracle)
            gap = optimality_gap(row.final, oracle.final) if paired and oracle is not None else None
            found.append(RowStatistics(row.label, crossed_bootstrap(row.final), gap))
    return found
