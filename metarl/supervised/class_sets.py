"""Classes with their images, and their split into training, validation and test classes.

Few-shot learning generalises to unseen *classes*, so the classes are split, never the images of one class. New classes
are made from old ones (for example by rotation) only after the split, so they stay on the same side as the original.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from metarl.errors import check_int, did_you_mean

Transform: TypeAlias = Callable[[Tensor], Tensor]
"""From a class's images `[n, ...]` to `[n, ...]` images of a new class."""

ROTATIONS: dict[str, Transform] = {
    f"rotated by {90 * quarters}": partial(torch.rot90, k=quarters, dims=(-2, -1)) for quarters in (1, 2, 3)
}
"""Quarter turns, counter-clockwise, of square images `[n, C, side, side]`."""


@dataclass(frozen=True)
class ClassSet:
    """Named classes and the images of each.

    Args:
        names: one for each class.
        images: `[n_c, ...]` for each class; n_c may differ, but all images have one shape and dtype. Bytes (`uint8`)
            are scaled to [0, 1] when a task is made, which keeps a data set four times smaller.

    Raises:
        ValueError: when there are no classes, a name appears twice, or a class has no images or images that differ in
            shape or dtype from those of the first class.

    Example:
        >>> import torch
        >>> classes = ClassSet(("cat", "dog"), (torch.zeros(3, 1, 8, 8), torch.ones(5, 1, 8, 8)))
        >>> len(classes), classes.image_shape
        (2, (1, 8, 8))
    """

    names: tuple[str, ...]
    images: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.images):
            raise ValueError(
                f"names and images must have the same length, at least 1, got {len(self.names)} and {len(self.images)}"
            )
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(f"names must all be different, but {twice[0]!r} appears twice")
        first = self.images[0]
        for name, images in zip(self.names, self.images, strict=True):
            if images.ndim < 2 or len(images) == 0:
                raise ValueError(f"class {name!r} must have images [n, ...], got shape {tuple(images.shape)}")
            if images.shape[1:] != first.shape[1:] or images.dtype != first.dtype:
                wanted, found = (f"{tuple(x.shape[1:])} {x.dtype}" for x in (first, images))
                raise ValueError(f"class {name!r} must have images like those of {self.names[0]!r}, {wanted}: {found}")

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return tuple(self.images[0].shape[1:])

    def select(self, names: Iterable[str]) -> "ClassSet":
        """The named classes, in that order.

        Raises:
            ValueError: for an unknown name.
        """
        chosen, images = tuple(names), dict(zip(self.names, self.images, strict=True))
        for name in chosen:
            if name not in images:
                raise ValueError(f"name must be one of {len(self)} names, got {name!r}{did_you_mean(name, self.names)}")
        return ClassSet(chosen, tuple(images[name] for name in chosen))

    def check_enough(self, images: int) -> None:
        """Raise a `ValueError` that names the first class with fewer than `images` images."""
        for name, found in zip(self.names, self.images, strict=True):
            if len(found) < images:
                raise ValueError(f"class {name!r} must have at least {images} images, found {len(found)}")


@dataclass(frozen=True)
class Splits:
    """Classes to train on (`train`), to choose settings on (`validation`), and to report on (`test`).

    Raises:
        ValueError: when two parts share a class, or their images differ in shape or dtype.
    """

    train: ClassSet
    validation: ClassSet
    test: ClassSet

    def __post_init__(self) -> None:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        seen: dict[str, str] = {}
        for part, classes in parts.items():
            for name in classes.names:
                if name in seen:
                    both = f"{name!r} is in {seen[name]} and {part}"
                    raise ValueError(f"the parts must have no class in common, but {both}")
                seen[name] = part
        kinds = {part: (classes.image_shape, classes.images[0].dtype) for part, classes in parts.items()}
        if len(set(kinds.values())) > 1:
            raise ValueError(f"the parts must have images of one shape and dtype, got {kinds}")

    def with_transforms(self, transforms: Mapping[str, Transform] = ROTATIONS) -> Self:
        """Add a new class for every class and transform; default: rotations by quarter turns.

        The new images are copies, so memory grows with the number of classes.

        Raises:
            ValueError: when a transform changes the shape of an image.
        """
        return type(self)(*(_transform(part, transforms) for part in (self.train, self.validation, self.test)))


def _transform(classes: ClassSet, transforms: Mapping[str, Transform]) -> ClassSet:
    names, images = list(classes.names), list(classes.images)
    for label, transform in transforms.items():
        names += [f"{name} {label}" for name in classes.names]
        images += [transform(of_class) for of_class in classes.images]
    return ClassSet(tuple(names), tuple(images))


def split(classes: ClassSet, train: int, validation: int, test: int, seed: int = 0) -> Splits:
    """Split at random into `train` training, `validation` validation and `test` test classes; the rest is not used.

    Raises:
        ValueError: when there are too few classes.

    Example:
        >>> import torch
        >>> ten = ClassSet(tuple("0123456789"), (torch.zeros(3, 64),) * 10)
        >>> len(split(ten, 5, 2, 3).train)
        5
    """
    counts = [check_int(*count) for count in (("train", train), ("validation", validation), ("test", test))]
    if sum(counts) > len(classes):
        raise ValueError(f"train, validation and test must add up to at most {len(classes)} classes, got {counts}")
    order = np.random.default_rng(check_int("seed", seed, minimum=0)).permutation(len(classes))
    names = [classes.names[i] for i in order]
    ends = np.cumsum(counts)
    return split_by_names(classes, names[: ends[0]], names[ends[0] : ends[1]], names[ends[1] : ends[2]])


def split_by_names(classes: ClassSet, train: Iterable[str], validation: Iterable[str], test: Iterable[str]) -> Splits:
    """Split by lists of names, such as a published split; a class in none of them is not used.

    Raises:
        ValueError: for an unknown name, or a name in two lists.
    """
    return Splits(classes.select(train), classes.select(validation), classes.select(test))


def as_floats(images: Tensor, like: Tensor) -> Tensor:
    """Images in the dtype and on the device of `like`; bytes are scaled to [0, 1]."""
    floats = images.to(like)
    return floats / 255 if images.dtype == torch.uint8 else floats
