"""Few-shot classification tasks from shipped data sets or a folder of images: what the scripts share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from metarl.errors import check_int
from metarl.supervised.class_sets import Splits, split
from metarl.supervised.digits import digits, mnist1d
from metarl.supervised.few_shot import FewShot
from metarl.supervised.image_folders import has_split_folders, image_folders, split_folders
from metarl.supervised.networks import conv4, mlp

SHIPPED: dict[str, Callable[[], Splits]] = {"digits": digits, "mnist1d": mnist1d}


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Which images, and the network that tells them apart."""

    data: str = "digits"
    """digits, mnist1d, or a folder of class folders of images; train, val and test in it are taken as they are."""
    ways: int = 5
    """N: classes of a task."""
    network: Literal["mlp", "conv4"] | None = None
    """Default: mlp for digits and mnist1d, conv4 for images."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the mlp's hidden layers."""
    filters: int = 32
    """Channels of conv4."""
    image_size: int = 28
    """Side to resize images of a folder to."""
    color: Literal["grey", "rgb"] = "grey"
    """Channels of images of a folder."""
    inverted: bool = False
    """Take the negative of images of a folder, as for Omniglot."""
    rotations: bool = False
    """Quarter turns of images of a folder are further classes."""
    split: tuple[int, int, int] | None = None
    """Training, validation and test classes of a folder that is not divided; default: 64, 16 and 20 %."""


class Sources(NamedTuple):
    """Tasks of the three kinds of classes."""

    train: FewShot
    validation: FewShot
    test: FewShot


def build_few_shot(
    given: ImageSettings, data: str | None, shots: int, queries: int, device: torch.device, seed: int
) -> Sources:
    """The tasks of `data`, or else of `given.data`; `seed` draws the network's weights.

    Raises:
        ValueError: naming the setting, the file or the class that cannot be used.
    """
    given = given if data is None else replace(given, data=data)
    for name, value in (("ways", given.ways), ("shots", shots), ("queries", queries)):
        check_int(name, value)  # before minutes are spent on decoding images
    for name in ("filters", "image_size"):
        check_int(name, getattr(given, name))
    check_meaning(given)
    splits = load(given, at_least=shots + queries)
    network = build_network(given, splits.train.image_shape, given.ways, seed)
    train = FewShot(
        splits.train,
        network,
        ways=given.ways,
        shots=shots,
        queries=queries,
        device=device,
    )
    return Sources(train, replace(train, classes=splits.validation), replace(train, classes=splits.test))


def check_meaning(given: ImageSettings) -> None:
    """A setting that means nothing to the data or to the network is an error, not ignored.

    Raises:
        ValueError: naming it.
    """
    network = network_name(given)
    nothing = {"filters" if network == "mlp" else "hidden": f"the network {network!r}"}
    if given.data in SHIPPED:
        only_folders = ("image_size", "color", "inverted", "rotations", "split")
        nothing |= dict.fromkeys(only_folders, f"{given.data!r}, which is not a folder of images")
    elif has_split_folders(given.data):
        nothing["split"] = f"{given.data!r}, whose folders divide the classes"
    for field in fields(ImageSettings):
        value = getattr(given, field.name)
        if field.name in nothing and value != field.default:
            raise ValueError(f"{field.name} means nothing to {nothing[field.name]}, got {value!r}")


def load(given: ImageSettings, at_least: int) -> Splits:
    """The classes of `data`, with at least so many images each.

    Raises:
        ValueError: when it is not there or cannot be used.
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
        splits = split(classes, *(given.split or proportions(len(classes))))
    return splits.with_transforms() if given.rotations else splits


def proportions(classes: int) -> tuple[int, int, int]:
    """So many classes as 64, 16 and 20 %."""
    validation, test = classes * 16 // 100, classes * 20 // 100
    return classes - validation - test, validation, test


def network_name(given: ImageSettings) -> str:
    """The network asked for, or the data's own."""
    return given.network or ("mlp" if given.data in SHIPPED else "conv4")


def build_network(given: ImageSettings, image_shape: Sequence[int], ways: int, seed: int) -> nn.Sequential:
    """A network with freshly drawn weights."""
    if network_name(given) == "mlp":
        return mlp(int(np.prod(image_shape)), ways, hidden=given.hidden, seed=seed)
    if len(image_shape) != 3 or image_shape[1] != image_shape[2]:
        raise ValueError(f"network conv4 needs square images [channels, side, side], got {tuple(image_shape)}")
    return conv4(image_shape[0], image_shape[-1], ways, filters=given.filters, seed=seed)
