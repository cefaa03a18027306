"""Read classes from folders of images: Omniglot, mini-ImageNet, CIFAR-FS and your own.

A class is a folder that holds images, at any depth; its name is its path from the root:

    omniglot/images_background/Greek/character01/*.png    ->  "images_background/Greek/character01"
    cifar-fs/data/apple/*.png                             ->  "apple"                    (root: cifar-fs/data)
    mini-imagenet/{train,val,test}/n01532829/*.jpg        ->  "n01532829" of each part   (`split_folders`)

Images are decoded once, into bytes in memory: classes x images x channels x height x width, for example 25 MB for
Omniglot at 28 x 28, 184 MB for CIFAR-FS and 1.3 GB for mini-ImageNet at 84 x 84.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from metarl.errors import check_choice, check_int
from metarl.supervised.class_sets import ClassSet, Splits

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""File names of images, in lower or upper case. Other files, and hidden ones, are ignored."""

PARTS: dict[str, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
"""Names of the folders with the parts of a split."""

Color: TypeAlias = Literal["grey", "rgb"]
Decoder: TypeAlias = Callable[[Path], Tensor]


def image_folders(
    root: Path | str,
    *,
    image_size: int | None = None,
    color: Color = "rgb",
    inverted: bool = False,
    at_least: int = 1,
    progress: bool = True,
) -> ClassSet:
    """The classes in `root`, sorted by name.

    Args:
        root: a folder of class folders, at any depth.
        image_size: images are resized to a square with this many pixels a side (Lanczos), also if they are not square.
            `None` does not resize; all images must then have one size.
        color: `grey` or `rgb`, 1 or 3 channels; an alpha channel is dropped.
        inverted: take the negative, as usual for Omniglot: strokes become 1, paper 0.
        at_least: images that every class must have; checked before any is decoded.
        progress: show a progress bar in a terminal.

    Returns:
        Classes whose images are `uint8` `[n_c, C, height, width]`.

    Raises:
        ValueError: when `root` is not a folder or holds no images, a class has too few images, a folder holds both
            images and classes, a file cannot be decoded, or sizes differ; naming the class or the file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("Greek/alpha", "Greek/beta"):
        ...         (Path(root) / name).mkdir(parents=True)
        ...         Image.new("1", (105, 105)).save(Path(root) / name / "0.png")
        ...     classes = image_folders(root, image_size=28, color="grey", inverted=True, progress=False)
        >>> classes.names, classes.image_shape
        (('Greek/alpha', 'Greek/beta'), (1, 28, 28))
    """
    decoder = _make_decoder(image_size, color, inverted)
    return _read(_find(Path(root), check_int("at_least", at_least)), decoder, progress)


def split_folders(
    root: Path | str,
    *,
    image_size: int | None = None,
    color: Color = "rgb",
    inverted: bool = False,
    at_least: int = 1,
    progress: bool = True,
) -> Splits:
    """The classes of `root/train`, `root/val` (or `validation`) and `root/test`; arguments as of `image_folders`.

    Raises:
        ValueError: when one of them is missing, two share a class, or as `image_folders`.
    """
    decoder = _make_decoder(image_size, color, inverted)
    folders = [_find_part(Path(root), names) for names in PARTS.values()]
    # find all of them before any file is decoded
    found = [_find(folder, check_int("at_least", at_least)) for folder in folders]
    return Splits(*(_read(classes, decoder, progress) for classes in found))


def has_split_folders(root: Path | str) -> bool:
    """Whether `root` holds folders for `split_folders`: one of training and one of test classes."""
    return (Path(root) / "train").is_dir() and (Path(root) / "test").is_dir()


def _make_decoder(image_size: int | None, color: Color, inverted: bool) -> Decoder:
    if image_size is not None:
        check_int("image_size", image_size)
    check_choice("color", color, ("grey", "rgb"))
    return partial(decode, image_size=image_size, color=color, inverted=inverted)


def _find_part(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ValueError(f"{root} must hold the folders train, val and test, but there is no {' or '.join(names)}")


def _find(root: Path, at_least: int) -> dict[str, list[Path]]:
    """The files of every class, both sorted by name."""
    if not root.is_dir():
        raise ValueError(f"{root} must be a folder of class folders, but there is no such folder")
    classes = dict(_walk(root, root))
    if "." in classes or not classes:
        found = "it holds images itself" if classes else "there are no images in it"
        raise ValueError(f"{root} must be a folder of class folders, but {found}")
    for name, files in classes.items():
        if len(files) < at_least:
            raise ValueError(f"class {name!r} of {root} must have at least {at_least} images, found {len(files)}")
    return classes


def _walk(root: Path, folder: Path) -> Iterator[tuple[str, list[Path]]]:
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in inside if path.suffix.lower() in EXTENSIONS and path.is_file()]
    deeper = [found for path in inside if path.is_dir() for found in _walk(root, path)]
    if files and deeper:
        raise ValueError(f"{folder} must hold images or class folders, not both")
    if files:
        yield folder.relative_to(root).as_posix(), files
    yield from deeper


def _read(classes: dict[str, list[Path]], decoder: Decoder, progress: bool) -> ClassSet:
    first, images = next(iter(classes.values()))[0], []
    total, disable = sum(map(len, classes.values())), None if progress else True
    with tqdm(total=total, unit="image", disable=disable, dynamic_ncols=True) as bar:
        shape = decoder(first).shape
        for files in classes.values():
            of_class = torch.empty(len(files), *shape, dtype=torch.uint8)
            for row, file in enumerate(files):
                image = decoder(file)
                if image.shape != shape:
                    sizes = [f"{s[2]} x {s[1]}" for s in (image.shape, shape)]
                    raise ValueError(f"{file} is {sizes[0]}, but {first} is {sizes[1]}: image_size must be given")
                of_class[row] = image
                bar.update()
            images.append(of_class)
    return ClassSet(tuple(classes), tuple(images))


def decode(file: Path, image_size: int | None = None, color: Color = "rgb", inverted: bool = False) -> Tensor:
    """One image as `uint8` `[C, height, width]`; arguments as of `image_folders`.

    Raises:
        ValueError: when it is missing, not an image, truncated, or has more than 8 bits a channel; naming the file.
    """
    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":  # conversion would clip such values at 255
                raise ValueError(f"it has the mode {image.mode}, not 8 bits a channel")
            pixels = image.convert("L" if color == "grey" else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # the decoders raise all of these
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    if image_size is not None and pixels.size != (image_size, image_size):
        pixels = pixels.resize((image_size, image_size), Image.Resampling.LANCZOS)
    array = np.array(pixels).reshape(pixels.height, pixels.width, -1).transpose(2, 0, 1)
    return torch.from_numpy(255 - array if inverted else array.copy())
