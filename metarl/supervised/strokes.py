"""Drawn characters: a hundred classes of small grey images that are generated, so that nothing is downloaded.

A class is two to four strokes, each a quadratic Bezier curve

    p(t) = (1 - t)^2 a + 2 t (1 - t) b + t^2 c,    a, b, c ~ U[-0.7, 0.7]^2.

Every image of it moves the points a, b and c a little, then turns, scales and shifts the whole character, and draws it
with a soft pen on the square [-1, 1]^2: a pixel at distance d from the nearest stroke is exp(-d^2 / (2 width^2)).
"""

import numpy as np
import numpy.typing as npt
import torch

from metarl.errors import check_int
from metarl.supervised.class_sets import ClassSet, Splits, split

Array = npt.NDArray[np.float64]

PARTS = (64, 16, 20)  # of the hundred classes, for training, validation and test
STROKES, POINTS_OF_STROKE = (2, 4), 12
JITTER, TURN, SCALE, SHIFT, WIDTH = 0.12, 0.35, 0.15, 0.15, 0.09


def strokes(seed: int = 0, images: int = 40, side: int = 16) -> Splits:
    """A hundred drawn characters, `[images, 1, side, side]` each, in [0, 1]; generated in about a second.

    Args:
        seed: of the characters, their images and the split.
        images: of each class.
        side: pixels.

    Raises:
        ValueError: for numbers that are not positive integers.

    Example:
        >>> sets = strokes(images=3)
        >>> len(sets.train), len(sets.validation), len(sets.test), sets.train.image_shape
        (64, 16, 20, (1, 16, 16))
    """
    check_int("images", images)
    check_int("side", side)
    rng = np.random.default_rng(check_int("seed", seed, minimum=0))
    characters = [rng.uniform(-0.7, 0.7, (rng.integers(*STROKES, endpoint=True), 3, 2)) for _ in range(sum(PARTS))]
    drawn = [draw(deform(character, images, rng), side) for character in characters]
    names = tuple(f"{number:02d}" for number in range(len(drawn)))
    classes = ClassSet(names, tuple(torch.from_numpy(x).float()[:, None] for x in drawn))
    return split(classes, *PARTS, seed=seed)


def deform(character: Array, images: int, rng: np.random.Generator) -> Array:
    """`images` versions of a character's points `[strokes, 3, 2]`: each moved, then all turned, scaled and shifted."""
    moved = character + rng.normal(0.0, JITTER, (images, *character.shape))
    angle = rng.uniform(-TURN, TURN, images)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # [2, 2, n]
    turned = np.einsum("ijn,nskj->nski", turn, moved)
    scale, shift = rng.uniform(1 - SCALE, 1 + SCALE, (images, 1, 1, 1)), rng.uniform(-SHIFT, SHIFT, (images, 1, 1, 2))
    deformed: Array = scale * turned + shift  # [n, strokes, 3, 2]
    return deformed


def draw(points: Array, side: int) -> Array:
    """The images `[n, side, side]` of the curves with control points `[n, strokes, 3, 2]`."""
    t = np.linspace(0.0, 1.0, POINTS_OF_STROKE)
    weights = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])  # [3, t]
    curve = np.einsum("kt,nskd->nstd", weights, points).reshape(len(points), -1, 2)
    # the distance along each axis from every pixel's centre to every point
    centres = (np.arange(side) + 0.5) * 2 / side - 1
    x, y = ((centres[None, :, None] - curve[:, None, :, axis]) ** 2 for axis in (0, 1))  # [n, side, points]
    squared = (y[:, :, None, :] + x[:, None, :, :]).min(-1)
    image: Array = np.exp(-squared / (2 * WIDTH**2))
    return image
