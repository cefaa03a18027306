"""Two small sets of classes that need no download: scikit-learn's digits and MNIST-1D, two digits at a time.

Ten digits are too few classes for few-shot learning, so two are put side by side, as in two-digit MNIST: the numbers 00
to 99 are split into 64 training, 16 validation and 20 test classes. The parts share digits, but no image of a digit.

Rotated or mirrored copies make poor classes here: upside down, 0, 1, 2, 5 and 8 look much the same and 6 becomes 9. In
MNIST-1D's templates 6 is the negative of 0, 7 of 1 and 8 of 3, and 0, 3, 6 and 8 read the same backwards.
"""

import random
from importlib import import_module
from types import ModuleType

import numpy as np
import torch

from metarl.errors import check_int
from metarl.supervised.class_sets import ClassSet, Splits

PARTS = (64, 16, 20)  # of the hundred numbers, for training, validation and test


def digits(seed: int = 0) -> Splits:
    """Scikit-learn's handwritten digits, `[58, 1, 8, 16]` for each two-digit number, in [0, 1].

    Each of the three parts has its own 58 of the at least 174 images of a digit.

    Args:
        seed: decides the split and which images are put side by side.

    Raises:
        ValueError: without scikit-learn.

    Example:
        >>> sets = digits()
        >>> len(sets.train), len(sets.validation), len(sets.test), sets.train.image_shape
        (64, 16, 20, (1, 8, 16))
    """
    data = import_optional("sklearn.datasets", "scikit-learn").load_digits()
    images = [data.images[data.target == digit][: 3 * 58] for digit in range(10)]
    return _two_digits(torch.from_numpy(np.stack(images) / 16).float(), seed)


def mnist1d(seed: int = 0, images: int = 100) -> Splits:
    """MNIST-1D (Greydanus, Kobak, 2020), `[images, 1, 80]` for each two-digit number: one signal after the other.

    The signals are generated, in a second or two, with the package's own settings; nothing is downloaded or written.
    The package seeds the global random generators; their states are restored.

    Args:
        seed: decides the split and which signals are paired; the signals are always the same.
        images: of each class.

    Raises:
        ValueError: without the package mnist1d.
    """
    return _two_digits(_make_signals(3 * check_int("images", images)), seed)


def _two_digits(single: torch.Tensor, seed: int) -> Splits:
    """Two-digit numbers from images `[10, 3 n, ..., width]` of digits; a class pairs its part's n images at random."""
    rng = np.random.default_rng(check_int("seed", seed, minimum=0))
    numbers = np.split(rng.permutation(100), np.cumsum(PARTS)[:-1])

    def classes(pool: torch.Tensor, part: list[int]) -> ClassSet:
        pairs = [[pool[digit][rng.permutation(pool.shape[1])] for digit in divmod(number, 10)] for number in part]
        return ClassSet(tuple(f"{number:02d}" for number in part), tuple(torch.cat(p, -1)[:, None] for p in pairs))

    pools = single.chunk(3, dim=1)
    return Splits(*(classes(pool, part.tolist()) for pool, part in zip(pools, numbers, strict=True)))


def _make_signals(number: int) -> torch.Tensor:
    """`number` signals of each digit, `[10, number, 40]`."""
    package = import_optional("mnist1d.data", "mnist1d")
    settings = package.get_dataset_args()
    settings.num_samples = 10 * number
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        data = package.make_dataset(settings)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    x, y = (np.concatenate([data[key], data[f"{key}_test"]]) for key in ("x", "y"))
    return torch.from_numpy(np.stack([x[y == digit] for digit in range(10)])).float()


def import_optional(module: str, package: str) -> ModuleType:
    """Import a module of a package from the extra `data`.

    Raises:
        ValueError: when it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f'this needs the package {package}: pip install "metarl-torch[data]" ({error})') from error
