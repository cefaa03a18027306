"""Classes with their images, and their division into training, validation and test classes.

Few-shot learning generalises to *classes* it has not seen, so it is the classes that are divided, never the images of
one. New classes are made from old ones, such as by rotation, only after the division: what comes of one class then
always stays on the same side.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from metarl.errors import check_int, did_you_mean

Transform: TypeAlias = Callable[[Tensor], Tensor]
"""From a class's images `[n, ...]` to as many images of a new class."""

ROTATIONS: dict[str, Transform] = {
    f"rotated by {90 * quarters}": partial(torch.rot90, k=quarters, dims=(-2, -1)) for quarters in (1, 2, 3)
}
"""Quarter turns, counter-clockwise, of square images `[n, C, side, side]`."""


@dataclass(frozen=True)
class ClassSet:
    """Named classes and the images of each.

    Args:
        names: one for each class.
        images: for each class `[n_c, ...]`; n_c may differ, shape and dtype of one image may not. Bytes (`uint8`) stand
            for [0, 1] and are scaled when a task is made, which keeps a data set four times smaller.

    Raises:
        ValueError: when there is no class, a name twice, a class without images or with other ones than the first's.

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
                f"names and images must be as many, and not none, got {len(self.names)} and {len(self.images)}"
            )
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(f"names must all be different, but {twice[0]!r} is there twice")
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
            ValueError: for a name that is not there.
        """
        where = {name: i for i, name in enumerate(self.names)}
        rows = []
        for name in names:
            if name not in where:
                raise ValueError(f"there is no class {name!r} among {len(self)}{did_you_mean(name, self.names)}")
            rows.append(where[name])
        return ClassSet(tuple(self.names[i] for i in rows), tuple(self.images[i] for i in rows))

    def check_enough(self, images: int) -> None:
        """Raise `ValueError` naming the first class that has fewer than so many images."""
        for name, found in zip(self.names, self.images, strict=True):
            if len(found) < images:
                raise ValueError(f"class {name!r} must have at least {images} images, found {len(found)}")


@dataclass(frozen=True)
class Splits:
    """Classes to train on, to choose settings on, and to report on.

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
                    raise ValueError(
                        f"the parts must have no class in common, but {name!r} is in {seen[name]} and {part}"
                    )
                seen[name] = part
        kinds = {part: (classes.image_shape, classes.images[0].dtype) for part, classes in parts.items()}
        if len(set(kinds.values())) > 1:
            raise ValueError(f"the parts must have images of one shape and dtype, got {kinds}")

    def with_transforms(self, transforms: Mapping[str, Transform] = ROTATIONS) -> Self:
        """Every class joined by new ones, its images under each of `transforms`; default: rotations by quarter turns.

        The new images are copies, so memory grows with the number of classes.

        Raises:
            ValueError: when a transform changes the shape of an image.
        """
        return type(self)(*(_transformed(part, transforms) for part in (self.train, self.validation, self.test)))


def _transformed(classes: ClassSet, transforms: Mapping[str, Transform]) -> ClassSet:
    names, images = list(classes.names), list(classes.images)
    for label, transform in transforms.items():
        names += [f"{name} {label}" for name in classes.names]
        images += [transform(of_class) for of_class in classes.images]
    return ClassSet(tuple(names), tuple(images))


def split(classes: ClassSet, train: int, validation: int, test: int, seed: int = 0) -> Splits:
    """Divide at random: so many training, validation and test classes; what is left over is not used.

    Raises:
        ValueError: when there are not as many classes.

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
    """Divide as the lists of names say; a class in none of them is not used.

    Raises:
        ValueError: for a name that is not there, or that is in two lists.
    """
    return Splits(classes.select(train), classes.select(validation), classes.select(test))


def as_floats(images: Tensor, like: Tensor) -> Tensor:
    """Images in the dtype and on the device of `like`; bytes are scaled to [0, 1]."""
    floats = images.to(like)
    return floats / 255 if images.dtype == torch.uint8 else floats


def read_names(path: Path | str) -> list[str]:
    """Class names from a text file, one on each line, as published divisions come; blank lines are left out.

    Raises:
        ValueError: when the file cannot be read as text or holds no name, naming it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a text file of class names, but cannot be read: {error}") from error
    if names := [line.strip() for line in lines if line.strip()]:
        return names
    raise ValueError(f"{path} must hold class names, one on each line, but is empty")
