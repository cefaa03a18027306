"""Drawn characters: the same for the same seed, drawn where the curves are, and classes that can be told apart."""

import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from metarl.supervised.class_sets import Splits
from metarl.supervised.strokes import WIDTH, deform, draw, strokes


@cache
def made(seed: int = 0) -> Splits:
    return strokes(seed, images=12)


def parts(splits: Splits) -> list[Any]:
    return [splits.train, splits.validation, splits.test]


def test_shapes_names_and_range() -> None:
    found = parts(made())
    assert [len(part) for part in found] == [64, 16, 20]
    assert sorted(name for part in found for name in part.names) == [f"{n:02d}" for n in range(100)]
    for part in found:
        for images in part.images:
            assert (images.shape, images.dtype) == ((12, 1, 16, 16), torch.float32)
            assert 0 <= images.min() < 0.1  # paper
            assert 0.8 < images.amax((1, 2, 3)).median() <= 1  # ink; a few characters lie partly outside


def test_the_seed_decides_and_global_generators_do_not_change() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    again = strokes(0, images=12)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert again.test.names == made().test.names != made(1).test.names
    for one, same in zip(parts(made()), parts(again), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.images, same.images, strict=True))
    name = made().test.names[0]
    other = next(part for part in parts(made(1)) if name in part.names)
    assert not torch.equal(made().test.images[0], other.select([name]).images[0])


def test_a_pixel_is_the_pen_at_the_distance_of_the_curve() -> None:
    """One image pixel by pixel, against a curve of many points."""
    points = np.random.default_rng(3).uniform(-0.6, 0.6, (1, 2, 3, 2))
    image = draw(points, side=9)[0]
    t = np.linspace(0, 1, 2000)[:, None]
    curves = np.concatenate([(1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c for a, b, c in points[0]])
    for row in range(9):
        for column in range(9):
            centre = np.array([(column + 0.5) / 4.5 - 1, (row + 0.5) / 4.5 - 1])
            distance = np.sqrt(((curves - centre) ** 2).sum(1)).min()
            # twelve points a stroke are up to 0.07 apart, so half of that is added to the distance
            low, high = np.exp(-((distance + 0.06) ** 2) / (2 * WIDTH**2)), np.exp(-(distance**2) / (2 * WIDTH**2))
            assert low - 1e-12 <= image[row, column] <= high + 1e-4


def test_deformations_keep_the_character() -> None:
    """The mean of many versions is the character, up to the mean scale and the shrinkage of a mean turn."""
    character = np.random.default_rng(0).uniform(-0.7, 0.7, (3, 3, 2))
    many = deform(character, 40_000, np.random.default_rng(1))
    shrinkage = np.sin(0.35) / 0.35  # the mean cosine of an angle in [-0.35, 0.35]
    stderr = many.std(0) / 200
    assert (np.abs(many.mean(0) - shrinkage * character) < 5 * stderr).all()
    assert many.std(0).min() > 0.1


def test_nearest_neighbours_see_the_classes() -> None:
    """Far better than chance (a fifth), and far from perfect."""
    rng, right = np.random.default_rng(0), []
    for _ in range(60):
        chosen = rng.permutation(20)[:5]
        images = torch.stack([made().test.images[c] for c in chosen]).flatten(2)  # [5, 12, pixels]
        nearest = torch.cdist(images[:, 1:].flatten(0, 1), images[:, 0]).argmin(1)
        right.append((nearest == torch.arange(5).repeat_interleave(11)).float().mean().item())
    assert 0.45 < np.mean(right) < 0.85


@pytest.mark.parametrize(("arguments", "wanted"), [((-1,), "seed"), ((0, 0), "images"), ((0, 1, 0), "side")])
def test_bad_arguments(arguments: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(ValueError, match=f"{wanted} must be"):
        strokes(*arguments)
