"""Folders of class folders of images, made small here and read from the disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.supervised.class_sets import split_by_names
from metarl.supervised.image_folders import has_split_folders, image_folders, split_folders

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)  # four images, 5 wide and 6 high


def write(path: Path, array: Any = PIXELS[0], **arguments: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **arguments)
    return path


def fill(root: Path, *classes: str, images: int = 3) -> Path:
    for name in classes:
        for i in range(images):
            write(root / name / f"{i}.png", PIXELS[i])
    return root


def test_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    classes = image_folders(fill(tmp_path, "b", "a"))
    assert classes.names == ("a", "b")  # sorted
    for images in classes.images:
        assert images.dtype == torch.uint8
        assert np.array_equal(images.numpy(), PIXELS[:3].transpose(0, 3, 1, 2))


def test_grey_and_inverted(tmp_path: Path) -> None:
    grey = PIXELS[0, :, :, 0]
    write(tmp_path / "a" / "0.png", grey)
    assert np.array_equal(image_folders(tmp_path, color="grey").images[0][0, 0].numpy(), grey)
    assert np.array_equal(image_folders(tmp_path, color="grey", inverted=True).images[0][0, 0].numpy(), 255 - grey)
    assert np.array_equal(image_folders(tmp_path, color="rgb").images[0][0].numpy(), np.stack([grey] * 3))


def test_omniglot_layout(tmp_path: Path) -> None:
    """Alphabets of characters, black strokes on white in one bit."""
    strokes = RNG.integers(0, 2, (105, 105)).astype(bool)
    for alphabet in ("Greek", "Latin"):
        for character in ("character01", "character02"):
            write(tmp_path / "images_background" / alphabet / character / "0001_01.png", ~strokes)
    classes = image_folders(tmp_path, color="grey", inverted=True)
    assert classes.names == tuple(f"images_background/{a}/character0{c}" for a in ("Greek", "Latin") for c in (1, 2))
    assert np.array_equal(classes.images[0][0, 0].numpy(), 255 * strokes.astype(np.uint8))
    assert image_folders(tmp_path, image_size=28).image_shape == (3, 28, 28)


def test_resizing_keeps_the_picture(tmp_path: Path) -> None:
    halves = np.zeros((30, 60), dtype=np.uint8)
    halves[:, 30:] = 200
    write(tmp_path / "a" / "wide.png", halves)
    write(tmp_path / "a" / "small.png", halves[:8, 26:34])
    images = image_folders(tmp_path, image_size=12, color="grey").images[0]
    assert images.shape == (2, 1, 12, 12)
    assert (images[..., :3] <= 20).all()
    assert (images[..., 9:] >= 180).all()


def test_division_by_folders(tmp_path: Path) -> None:
    fill(tmp_path, "train/a", "train/b", "val/c", "test/d", "test/e", "test/f")
    assert has_split_folders(tmp_path)
    splits = split_folders(tmp_path, image_size=4)
    assert [part.names for part in (splits.train, splits.validation, splits.test)] == [
        ("a", "b"),
        ("c",),
        ("d", "e", "f"),
    ]
    assert splits.test.image_shape == (3, 4, 4)
    (tmp_path / "val").rename(tmp_path / "validation")
    assert split_folders(tmp_path).validation.names == ("c",)
    assert not has_split_folders(tmp_path / "train")


def test_division_by_lists_of_names(tmp_path: Path) -> None:
    classes = image_folders(fill(tmp_path / "data", "apple", "bee", "cat", "dog"))
    splits = split_by_names(classes, ["dog", "apple"], ["cat"], ["bee"])
    assert splits.train.names == ("dog", "apple")
    assert torch.equal(splits.train.images[1], classes.images[0])


def test_what_is_no_image_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    for name in (".DS_Store", "notes.txt", ".hidden.png", ".cache/0.png"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text("no image")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a" / "3.JPG", PIXELS[3])
    classes = image_folders(tmp_path)
    assert classes.names == ("a",)
    assert len(classes.images[0]) == 4


def test_alpha_and_palettes(tmp_path: Path) -> None:
    alpha = np.concatenate([PIXELS[0], PIXELS[1, :, :, :1]], -1)
    write(tmp_path / "a" / "0.png", alpha)
    flat = np.zeros((6, 5), dtype=np.uint8)
    palette = Image.fromarray(flat).convert("P")
    palette.putpalette([10, 20, 30] * 256)
    palette.save(tmp_path / "a" / "1.png")
    images = image_folders(tmp_path).images[0].numpy()
    assert np.array_equal(images[0], PIXELS[0].transpose(2, 0, 1))
    assert (images[1] == np.array([10, 20, 30])[:, None, None]).all()


def truncated(root: Path) -> None:
    file = fill(root, "a", "b") / "b" / "1.png"
    file.write_bytes(file.read_bytes()[:90])


def text(root: Path) -> None:
    (fill(root, "a") / "a" / "7.jpg").write_text("not an image")


def empty_file(root: Path) -> None:
    (fill(root, "a") / "a" / "7.jpg").touch()


def too_few_beside_a_broken_one(root: Path) -> None:
    text(root)
    fill(root, "b", images=2)


def deep(root: Path) -> None:
    write(fill(root, "a") / "a" / "7.png", np.zeros((6, 5), dtype=np.uint16))


def other_size(root: Path) -> None:
    write(fill(root, "a") / "a" / "7.png", PIXELS[0, :, :4])


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda root: root.rmdir(), {}, r"data must be a folder of class folders, but there is no such folder"),
        (lambda root: None, {}, r"data must be a folder of class folders, but there are no images in it"),
        (lambda root: write(root / "0.png"), {}, r"data must be a folder of class folders, but it holds images itself"),
        (lambda root: write(fill(root, "a/b") / "a" / "0.png"), {}, r"a must hold images or class folders, not both"),
        (lambda root: write(fill(root, "a") / "0.png"), {}, r"data must hold images or class folders, not both"),
        (truncated, {}, r"b/1.png cannot be read as an image"),
        (text, {}, r"a/7.jpg cannot be read as an image"),
        (empty_file, {}, r"a/7.jpg cannot be read as an image"),
        (too_few_beside_a_broken_one, {"at_least": 3}, r"class 'b' of .*data must have at least 3 images, found 2"),
        (deep, {}, r"a/7.png cannot be read as an image: it has the mode I;16, not 8 bits"),
        (other_size, {}, r"a/7.png is 4 x 6, but .*a/0.png is 5 x 6: image_size must be given"),
        (lambda root: fill(root, "a"), {"image_size": 0}, "image_size must be"),
        (lambda root: fill(root, "a"), {"color": "gray"}, "color must be .* did you mean 'grey'"),
        (lambda root: fill(root, "a"), {"at_least": 0}, "at_least must be"),
    ],
)
def test_errors_name_the_class_or_the_file(
    tmp_path: Path, make: Callable[[Path], object], arguments: Any, message: str
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    with pytest.raises(ValueError, match=message):
        image_folders(root, **arguments)


@pytest.mark.parametrize(
    ("classes", "arguments", "message"),
    [
        (("train/a", "test/b"), {}, "there is no val or validation"),
        (("val/a", "test/b"), {}, "there is no train"),
        (("train/a", "val/b", "test/b"), {}, "'b' is in validation and test"),
        (("train/a", "val/b", "test/c"), {"at_least": 4}, "class 'a' of .*train must have at least 4 images, found 3"),
    ],
)
def test_errors_of_divided_folders(tmp_path: Path, classes: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_folders(fill(tmp_path, *classes), **arguments)


def test_parts_of_different_sizes(tmp_path: Path) -> None:
    fill(tmp_path, "train/a", "val/b")
    write(tmp_path / "test" / "c" / "0.png", PIXELS[0, :4])
    with pytest.raises(ValueError, match="the parts must have images of one shape"):
        split_folders(tmp_path)
