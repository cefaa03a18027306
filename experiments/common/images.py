"""Few-shot classification tasks from shipped data sets or a folder of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from metarl.context import WithContext
from metarl.errors import check_int
from metarl.supervised.class_sets import Splits, split
from metarl.supervised.digits import digits, mnist1d
from metarl.supervised.few_shot import FewShot
from metarl.supervised.image_folders import has_split_folders, image_folders, split_folders
from metarl.supervised.networks import conv4, mlp
from metarl.supervised.strokes import strokes

SHIPPED: dict[str, Callable[[], Splits]] = {"digits": digits, "mnist1d": mnist1d, "strokes": strokes}


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Classes of a task, and the network that classifies them."""

    ways: int = 5
    """Classes of a task (N)."""
    network: Literal["mlp", "conv4"] | None = None
    """Network. Default: mlp for digits, mnist1d and strokes, conv4 for images."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the mlp's hidden layers."""
    context_size: int = 0
    """Context inputs of the mlp; inner steps then adapt them alone, from zero, unless --adapt names others."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings(NetworkSettings):
    """Images, and the network that classifies them."""

    data: str = "digits"
    """digits, mnist1d, strokes, or a folder of class folders; its folders train, val and test are used as they are."""
    filters: int = 32
    """Channels of conv4."""
    image_size: int = 28
    """Side to which images of a folder are resized."""
    color: Literal["grey", "rgb"] = "grey"
    """Channels of images of a folder."""
    inverted: bool = False
    """Invert images of a folder, as usual for Omniglot."""
    rotations: bool = False
    """Add quarter turns of the images of a folder as new classes."""
    split: tuple[int, int, int] | None = None
    """Numbers of training, validation and test classes of an undivided folder. Default: 64, 16 and 20 %."""


class Sources(NamedTuple):
    """Tasks of the training, the validation and the test classes."""

    train: FewShot
    validation: FewShot
    test: FewShot


def build_few_shot(given: ImageSettings, shots: int, queries: int, device: torch.device, seed: int) -> Sources:
    """The few-shot tasks of `given.data`; `seed` draws the network's weights.

    Raises:
        ValueError: naming the setting, the file or the class that cannot be used.
    """
    # All numbers are checked before minutes are spent on decoding images.
    numbers = {"ways": given.ways, "shots": shots, "queries": queries}
    for name, value in {**numbers, "filters": given.filters, "image_size": given.image_size}.items():
        check_int(name, value)
    check_int("context_size", given.context_size, minimum=0)
    check_applies(given)
    splits = load(given, at_least=shots + queries)
    network = build_network(given, splits.train.image_shape, given.ways, seed)
    check_parts(splits, given)
    train = FewShot(splits.train, network, ways=given.ways, shots=shots, queries=queries, device=device)
    return Sources(train, replace(train, classes=splits.validation), replace(train, classes=splits.test))


def check_parts(splits: Splits, given: ImageSettings) -> None:
    """Check that every part of the split has a class for each of the ways.

    Raises:
        ValueError: naming the part that is too small, and the options that change it.
    """
    for name in ("train", "validation", "test"):
        classes = len(getattr(splits, name))
        if classes < given.ways:
            fixed = given.data in SHIPPED or has_split_folders(given.data)
            fix = "" if fixed else "; set the parts by --split TRAIN VALIDATION TEST, or use fewer ways"
            found = f"the number of classes in the {name} part, got {given.ways}"
            raise ValueError(f"ways must be at most {classes}, {found}{fix}")


def check_applies(given: ImageSettings) -> None:
    """Check that every setting applies to the data and the network.

    Raises:
        ValueError: naming it.
    """
    network = network_name(given)
    foreign = dict.fromkeys(["filters"] if network == "mlp" else ["hidden", "context_size"], f"network {network!r}")
    if given.data in SHIPPED:
        only_folders = ("image_size", "color", "inverted", "rotations", "split")
        foreign |= dict.fromkeys(only_folders, f"{given.data!r}, which is not a folder of images")
    elif has_split_folders(given.data):
        foreign["split"] = f"{given.data!r}, whose folders divide the classes"
    for field in fields(ImageSettings):
        value = getattr(given, field.name)
        if field.name in foreign and value != field.default:
            raise ValueError(f"{field.name} does not apply to {foreign[field.name]}; remove it, got {value!r}")


def load(given: ImageSettings, at_least: int) -> Splits:
    """The classes of `data`, each with `at_least` images.

    Raises:
        ValueError: when the data are missing or cannot be used.
    """
    if given.data in SHIPPED:
        return SHIPPED[given.data]()
    if not Path(given.data).is_dir():
        raise ValueError(f"data must be one of {sorted(SHIPPED)} or a folder of class folders, got {given.data!r}")
    arguments: dict[str, Any] = {
        **{name: getattr(given, name) for name in ("image_size", "color", "inverted")},
        "at_least": at_least,
    }
    if has_split_folders(given.data):
        splits = split_folders(given.data, **arguments)
    else:
        classes = image_folders(given.data, **arguments)
        splits = split(classes, *(given.split or default_split(len(classes))))
    return splits.with_transforms() if given.rotations else splits


def default_split(classes: int) -> tuple[int, int, int]:
    """64, 16 and 20 % of the number of classes."""
    validation, test = classes * 16 // 100, classes * 20 // 100
    return classes - validation - test, validation, test


def add_context(network: Callable[[int], nn.Module], inputs: int, size: int) -> nn.Module:
    """`network(inputs)`, or with context inputs: `network(inputs + size)` `WithContext`."""
    return WithContext(network(inputs + size), size) if size else network(inputs)


def network_name(given: ImageSettings) -> str:
    """The network that was chosen, or the default of the data."""
    return given.network or ("mlp" if given.data in SHIPPED else "conv4")


def build_network(given: ImageSettings, image_shape: Sequence[int], ways: int, seed: int) -> nn.Module:
    """A network with freshly drawn weights."""
    if network_name(given) == "mlp":
        network = partial(mlp, ways=ways, hidden=given.hidden, seed=seed)
        return add_context(network, int(np.prod(image_shape)), given.context_size)
    if len(image_shape) != 3 or image_shape[1] != image_shape[2]:
        raise ValueError(f"network conv4 needs square images [channels, side, side], got {tuple(image_shape)}")
    return conv4(image_shape[0], image_shape[-1], ways, filters=given.filters, seed=seed)
