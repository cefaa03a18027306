"""Few-shot tasks as the scripts build them: every setting of `ImageSettings` arrives, from a small folder of images."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metarl import MetaLearner
from metarl.experiments.common.images import ImageSettings, Sources, build_few_shot
from metarl.supervised.few_shot import FewShot

CPU = torch.device("cpu")
CLASSES, IMAGES, SIDE = "abcdefghijkl", 3, 20
PIXELS = np.random.default_rng(0).integers(0, 256, (len(CLASSES), IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
PARTS = {"train": "abcdefgh", "val": "ij", "test": "kl"}


def write(folder: Path, classes: str) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number, pixels in enumerate(PIXELS[CLASSES.index(name)]):
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve classes of three images, all in one folder."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder, CLASSES)
    return str(folder)


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same in the folders train, val and test."""
    folder = tmp_path_factory.mktemp("divided")
    for part, classes in PARTS.items():
        write(folder / part, classes)
    return str(folder)


def build(data: str, shots: int = 1, queries: int = 2, seed: int = 0, **settings: Any) -> Sources:
    small = {"hidden": (8,)} if settings.get("network") == "mlp" else {"filters": 4}
    given = ImageSettings(**{"data": data, "ways": 2, "image_size": SIDE, "split": (8, 2, 2), **small, **settings})
    return build_few_shot(given, shots, queries, CPU, seed)


def names(sources: Sources) -> list[tuple[str, ...]]:
    return [source.classes.names for source in sources]


def images(source: FewShot, name: str) -> Tensor:
    """The images of one class, in [0, 1]."""
    found = source.classes.images[source.classes.names.index(name)]
    return found.float() / 255 if found.dtype == torch.uint8 else found


def shapes(source: FewShot) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in source.initial_params().values()]


# Classes.


def test_folders_for_the_parts_are_taken_as_they_are(divided: str) -> None:
    assert names(build(divided, split=None)) == [tuple(part) for part in PARTS.values()]


@pytest.mark.parametrize("sizes", [(8, 2, 2), (5, 4, 3)])
def test_one_folder_is_divided_as_asked(whole: str, sizes: tuple[int, int, int]) -> None:
    found = names(build(whole, split=sizes))
    assert tuple(map(len, found)) == sizes
    assert sorted(name for part in found for name in part) == list(CLASSES)


def test_one_folder_is_divided_by_default(tmp_path: Path) -> None:
    """64, 16 and 20 % of 25 classes."""
    for number in range(25):
        (tmp_path / f"{number:02d}").mkdir()
        for image in range(3):
            Image.fromarray(PIXELS[0, image]).save(tmp_path / f"{number:02d}" / f"{image}.png")
    found = names(build(str(tmp_path), split=None))
    assert [len(part) for part in found] == [16, 4, 5]
    assert len({name for part in found for name in part}) == 25


def test_quarter_turns_are_further_classes_of_the_same_part(whole: str) -> None:
    plain, turned = build(whole), build(whole, rotations=True)
    for before, after in zip(plain, turned, strict=True):
        assert len(after.classes) == 4 * len(before.classes)
        assert set(before.classes.names) < set(after.classes.names)
        assert {name.split(" ")[0] for name in after.classes.names} == set(before.classes.names)


def test_shipped_data_by_name() -> None:
    sources = build_few_shot(ImageSettings(data="digits"), 1, 2, CPU, 0)
    assert [len(part) for part in names(sources)] == [64, 16, 20]
    assert sources.train.classes.image_shape == (1, 8, 16)


# Images.


def test_pixels(whole: str) -> None:
    rgb, grey = build(whole, color="rgb").train, build(whole).train
    name = rgb.classes.names[0]
    wanted = torch.as_tensor(PIXELS[CLASSES.index(name)].transpose(0, 3, 1, 2)) / 255
    torch.testing.assert_close(images(rgb, name), wanted)
    luma = (wanted * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(images(grey, name), luma, rtol=0, atol=1.01 / 255)


def test_negative(whole: str) -> None:
    plain, inverted = build(whole).train, build(whole, inverted=True).train
    name = plain.classes.names[0]
    torch.testing.assert_close(images(inverted, name), 1 - images(plain, name))


def test_size(whole: str) -> None:
    assert build(whole, image_size=16).train.classes.image_shape == (1, 16, 16)
    assert build(whole, image_size=16, color="rgb").test.classes.image_shape == (3, 16, 16)


# The network, and the tasks.


def test_convolutions_for_a_folder(whole: str) -> None:
    found = shapes(build(whole, color="rgb", filters=6, ways=2).train)
    assert found[:4] == [(6, 3, 3, 3), (6,), (6,), (6,)]
    assert len(found) == 4 * 4 + 2
    assert found[-2:] == [(2, 6), (2,)]  # 20 pixels halved four times are one


def test_layers_of_the_mlp(whole: str) -> None:
    found = shapes(build(whole, network="mlp", hidden=(7, 5)).train)
    assert found == [(7, SIDE * SIDE), (7,), (5, 7), (5,), (2, 5), (2,)]


def test_all_parts_share_the_network_and_the_seed_draws_it(whole: str) -> None:
    a, b, c = (build(whole, seed=seed) for seed in (0, 0, 1))
    for source in (a.validation, a.test, b.train):
        other = source.initial_params()
        assert all(torch.equal(leaf, other[key]) for key, leaf in a.train.initial_params().items())
    weights = "conv1.weight"
    assert not torch.equal(a.train.initial_params()[weights], c.train.initial_params()[weights])
    assert names(a) == names(c)  # it does not divide the classes


def test_tasks(whole: str) -> None:
    for source in build(whole, shots=2, queries=1):
        tasks = source.sample(3, np.random.default_rng(0))
        for role, number in (("inner", 4), ("outer", 2)):
            batch = tasks.draw({}, role)  # type: ignore[arg-type]  # one of the roles
            assert batch["x"].shape == (3, number, 1, SIDE, SIDE)
            assert 0 <= float(batch["x"].min()) < 0.1 < 0.9 < float(batch["x"].max()) <= 1


@pytest.mark.parametrize("network", ["conv4", "mlp"])
def test_training(whole: str, network: str) -> None:
    sources = build(whole, network=network, image_size=16)
    learner = MetaLearner(sources.train, "fo_maml", inner_lr=0.4, meta_batch_size=4, learning_rate=0.01).learn(1)
    assert all(leaf.isfinite().all() for leaf in learner.params.values())
    assert 0 <= learner.evaluate(sources.test, num_tasks=2, steps=1).mean[1] <= 1


# Bad settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 0}, "^ways must be"),
        ({"ways": 1}, "^ways must be"),
        (
            {"ways": 3, "split": (6, 2, 4)},
            "^ways must be at most 2, the number of classes in the validation part, got 3; set the parts by --split",
        ),
        ({"ways": 4, "split": (6, 4, 2)}, "^ways must be at most 2, .*in the test part"),
        ({"shots": 0}, "^shots must be"),
        ({"queries": -1}, "^queries must be"),
        ({"context_size": -1}, "^context_size must be"),
        ({"context_size": 2}, "^context_size does not apply to network .conv4.; remove it, got 2"),
        ({"filters": 0}, "^filters must be"),
        ({"image_size": 0}, "^image_size must be"),
        ({"image_size": 15}, "^image_size must be an integer of at least 16, got 15"),
        ({"network": "mlp", "hidden": (4, 0)}, "^hidden must be"),
        ({"hidden": (8,)}, r"^hidden does not apply to network 'conv4'; remove it, got \(8,\)"),
        ({"network": "mlp", "filters": 8}, "^filters does not apply to network 'mlp'; remove it, got 8"),
        (
            {"data": "digits", "filters": 32},
            "^image_size does not apply to 'digits', which is not a folder of images; remove it, got 20",
        ),
        ({"shots": 2}, "^class '[a-l]' of .* must have at least 4 images, found 3"),
        ({"split": (10, 2, 2)}, r"^train, validation and test must add up to at most 12 classes, got \[10, 2, 2\]"),
        ({"split": (12, 0, 0)}, "^validation must be an integer of at least 1, got 0"),
        ({"data": "no/such/folder"}, "^data must be one of .* or a folder of class folders, got 'no/such/folder'"),
    ],
)
def test_bad_settings(whole: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**{"data": whole, **settings})


def test_a_division_of_folders_that_are_divided(divided: str) -> None:
    with pytest.raises(
        ValueError, match=r"^split does not apply to .*, whose folders divide the classes; remove it, got \(8, 2, 2\)"
    ):
        build(divided)


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a folder of class folders, but there are no images in it"):
        build(str(tmp_path))


def test_every_setting_is_tested() -> None:
    """A new one wants a test above."""
    tested = {
        "data",
        "ways",
        "network",
        "hidden",
        "filters",
        "image_size",
        "color",
        "inverted",
        "rotations",
        "split",
        "context_size",
    }
    assert {field.name for field in dataclasses.fields(ImageSettings)} == tested
