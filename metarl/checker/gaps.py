"""How far two episodes of the same actions are apart."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from metarl.checker.episodes import Array, Episode, StepRecord

TOLERANCE = 1e-5  # absolute and relative: environments may compute in float32


class Gap(NamedTuple):
    """How far two episodes are apart in one quantity."""

    quantity: str
    size: float
    step: int  # the first at which they are

    def __str__(self) -> str:
        return f"{self.quantity} differs by up to {self.size:.3g}, first at step {self.step}"


def gaps(a: Episode, b: Episode, tolerance: float = 0.0) -> list[Gap]:
    """In what two episodes of the same actions differ; beyond the end of the shorter one nothing is compared."""
    found = []
    for quantity, of in COMPARED.items():
        sizes = _distances([of(record) for record in a], [of(record) for record in b], tolerance)
        if sizes.any():
            found.append(Gap(quantity, sizes.max(), first(sizes > 0)))
    return found


COMPARED: dict[str, Callable[[StepRecord], Array]] = {
    "observation": lambda record: record.observation,
    "reward": lambda record: record.reward,
    # whether both truncate at the horizon is asked elsewhere
    "terminated": lambda record: record.terminated.astype(bool) & ~record.truncated.astype(bool),
}


def differ(a: Array, b: Array, tolerance: float = 0.0) -> bool:
    """Whether two arrays do."""
    return bool(_distances([a], [b], tolerance).any())


def _distances(a: Sequence[Array], b: Sequence[Array], tolerance: float) -> Array:
    """At each step the largest difference: 0 within `tolerance` or of what is not finite, infinite for other sizes."""
    pairs = list(zip(a, b, strict=False))
    if len({array.size for pair in pairs for array in pair}) > 1:
        return np.array([0.0 if x.size == y.size else np.inf for x, y in pairs])
    x, y = (np.stack([array.ravel() for array in column]).astype(np.float64) for column in zip(*pairs, strict=True))
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        size = np.abs(x - y)
        far: Array = np.where(np.isfinite(size) & (size > tolerance * (1 + np.abs(y))), size, 0.0)
    return np.array(far.max(1, initial=0.0))


def first(mask: Array) -> int:
    """The first row with a true value."""
    return int(np.argwhere(mask)[0][0])
