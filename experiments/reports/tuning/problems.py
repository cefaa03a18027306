"""The problems of the maps: tasks, networks, and the ranges of both step sizes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from metarl.experiments.train import TrainConfig, build_source
from metarl.outer import inner_defaults
from metarl.supervised.networks import mlp
from metarl.supervised.sinusoid import Sinusoids
from metarl.types import TaskSource

Hidden = tuple[int, ...]
"""Units of a network's hidden layers."""

HALF_DECADES = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Problem:
    """A problem, and what suits it.

    Args:
        build: the source of tasks for a network, with initial weights of a seed, for training or (`True`) evaluation.
        networks: narrow, as published or a little smaller, and deep.
        inner_lr: the middle inner step size of each update; default: the update's own.
        factors: multiples of it.
        learning_rates: outer step sizes of Adam.
        iterations: of each run; the outer step size falls linearly to a tenth.
        meta_batch_size: tasks of an iteration.
        inner_steps: in training and evaluation.
        tasks: held-out tasks, the same for every run.
        score: what is measured.
    """

    build: Callable[[Hidden, int, bool], TaskSource]
    networks: tuple[Hidden, ...]
    inner_lr: dict[str, float]
    factors: tuple[float, ...]
    learning_rates: tuple[float, ...]
    iterations: int
    meta_batch_size: int
    inner_steps: int
    tasks: int
    score: str

    def inner_step_sizes(self, outer: str) -> list[float]:
        """The inner step sizes of an update."""
        middle = self.inner_lr.get(outer, inner_defaults(outer)[0])
        return [float(f"{middle * factor:.6g}") for factor in self.factors]

    def quick(self) -> "Problem":
        """Two step sizes of each kind, two networks and few iterations, to see that everything works."""
        return replace(
            self,
            networks=self.networks[:2],
            factors=self.factors[1:3],
            learning_rates=self.learning_rates[1:3],
            iterations=5,
            meta_batch_size=4,
            inner_steps=1,
            tasks=10,
        )


def sinusoids(hidden: Hidden, seed: int, held_out: bool) -> Sinusoids:
    """Sinusoids with ten points to adapt on."""
    return Sinusoids(mlp(1, 1, hidden=hidden, seed=seed), queries=100 if held_out else 10)


def navigation(hidden: Hidden, seed: int, held_out: bool) -> TaskSource:
    """2-D navigation with ten episodes a draw, twenty in evaluations."""
    return build_source(TrainConfig(hidden=hidden, seed=seed, episodes=20 if held_out else 10, device="cpu"))


SINUSOID = Problem(
    sinusoids,
    networks=((10, 10), (40, 40), (40, 40, 40, 40)),
    inner_lr={**dict.fromkeys(("maml", "fo_maml", "hf_maml", "reptile"), 0.01), "sign_maml": 0.003},
    factors=HALF_DECADES,
    learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    iterations=200,
    meta_batch_size=25,
    inner_steps=3,
    tasks=200,
    score="minus the mean squared error",
)
NAVIGATION = Problem(
    navigation,
    networks=((8, 8), (32, 32), (32, 32, 32, 32)),
    inner_lr={},
    factors=HALF_DECADES[1:],
    learning_rates=(3e-3, 1e-2, 3e-2, 1e-1),
    iterations=40,
    meta_batch_size=10,
    inner_steps=1,
    tasks=40,
    score="return",
)

PROBLEMS = {"sinusoid": SINUSOID, "navigation": NAVIGATION}
