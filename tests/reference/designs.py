"""Synthetic scores of a crossed design, seeds and tasks, and how often an interval holds the truth."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Simulate = Callable[[np.random.Generator], np.ndarray]


def crossed(seeds: int, tasks: int, of_seed: float, of_task: float, rest: float) -> Simulate:
    """Scores with normal effects of the seed, of the task, and of both together; standard deviations."""

    def simulate(rng: np.random.Generator) -> np.ndarray:
        effects = of_seed * rng.normal(size=(seeds, 1)) + of_task * rng.normal(size=(1, tasks))
        return effects + rest * rng.normal(size=(seeds, tasks))

    return simulate


def coverage(simulate: Simulate, interval: Callable[[np.ndarray], Any], times: int = 1000, truth: float = 0.0) -> float:
    """How often the interval of simulated scores contains the truth."""
    rng = np.random.default_rng(0)
    intervals = [interval(simulate(rng)) for _ in range(times)]
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def outside(low: float, coverages: Iterable[float], high: float, times: int) -> list[float]:
    """The coverages that miss a range by more than four standard errors."""
    stderr = (0.05 * 0.95 / times) ** 0.5
    return [x for x in coverages if not low - 4 * stderr < x < high + 4 * stderr]
