"""Classes, their division, and the tasks made of them."""

import dataclasses
import random
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl import MetaLearner
from metarl.engine import Engine
from metarl.outer import OUTER
from metarl.supervised.class_sets import ClassSet, Splits, split, split_by_names
from metarl.supervised.digits import digits, mnist1d
from metarl.supervised.few_shot import FewShot
from metarl.supervised.networks import conv4, mlp
from metarl.types import Batch
from tests.reference.problems import suit

pytestmark = pytest.mark.usefixtures("unrecorded")

NAMES = tuple("abcdefgh")


def numbered(classes: int = 8, images: int = 10) -> ClassSet:
    """One-pixel images that say which they are: 100 times the class plus the image."""
    return ClassSet(NAMES[:classes], tuple(100.0 * c + torch.arange(images)[:, None].float() for c in range(classes)))


def colours(names: str, side: int = 3) -> ClassSet:
    generator = torch.Generator().manual_seed(len(names))
    return ClassSet(tuple(names), tuple(torch.rand(4, 2, side, side, generator=generator) for _ in names))


# --- classes and their division


def test_classes_are_selected_by_name_in_order() -> None:
    some = numbered().select(["c", "a"])
    assert (some.names, len(some), some.image_shape) == (("c", "a"), 2, (1,))
    assert [float(images[0]) for images in some.images] == [200, 0]
    with pytest.raises(ValueError, match="name must be one of 1 names, got 'catt'; did you mean 'cat'"):
        ClassSet(("cat",), (torch.zeros(2, 3),)).select(["catt"])


@pytest.mark.parametrize(
    ("names", "images", "message"),
    [
        ((), (), "names and images must have the same length, at least 1, got 0 and 0"),
        (("a",), (torch.zeros(2, 3), torch.zeros(2, 3)), "the same length, at least 1, got 1 and 2"),
        (("a", "b", "a"), (torch.zeros(2, 3),) * 3, "'a' appears twice"),
        (("a", "b"), (torch.zeros(2, 3), torch.zeros(0, 3)), "class 'b' must have images"),
        (("a",), (torch.tensor(0.0),), "class 'a' must have images"),
        (("a", "b"), (torch.zeros(2, 3), torch.zeros(2, 4)), r"class 'b' .* like those of 'a', \(3,\) .*: \(4,\)"),
        (("a", "b"), (torch.zeros(2, 3), torch.zeros(2, 3).byte()), "class 'b' .* torch.uint8"),
    ],
)
def test_bad_classes(names: Any, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassSet(names, images)


def test_random_division_is_disjoint_and_follows_the_seed() -> None:
    a, b, c = (split(numbered(), 4, 1, 2, seed=seed) for seed in (0, 0, 1))
    parts = [part.names for part in (a.train, a.validation, a.test)]
    assert list(map(len, parts)) == [4, 1, 2]
    assert len(set(sum(parts, ()))) == 7
    assert (a.train.names, a.test.names) == (b.train.names, b.test.names)
    assert a.train.names != c.train.names
    for part in (a.train, a.validation, a.test):  # every class kept its own images
        assert [NAMES[int(images[0]) // 100] for images in part.images] == list(part.names)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((5, 2, 2), r"must add up to at most 8 classes, got \[5, 2, 2\]"),
        ((0, 2, 2), "train must be"),
        ((2, 0, 2), "validation must be"),
        ((2, 2, 1.5), "test must be"),
        ((2, 2, 2, -1), "seed must be"),
    ],
)
def test_bad_division(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(numbered(), *sizes)


def test_parts_share_no_class_and_have_images_of_one_kind() -> None:
    with pytest.raises(ValueError, match="no class in common, but 'b' is in train and test"):
        split_by_names(numbered(), ["a", "b"], ["c"], ["d", "b"])
    with pytest.raises(ValueError, match="the parts must have images of one shape and dtype"):
        Splits(colours("ab"), colours("cd"), colours("ef", side=4))


def test_rotations_are_new_classes_on_the_side_of_their_class() -> None:
    plain = Splits(colours("ab"), colours("c"), colours("def"))
    turned = plain.with_transforms()
    for before, after in zip(
        (plain.train, plain.validation, plain.test), (turned.train, turned.validation, turned.test), strict=True
    ):
        assert len(after) == 4 * len(before)
        assert {name[0] for name in after.names} == set(before.names)
        for name, images in zip(before.names, before.images, strict=True):
            for quarters in range(4):
                label = f"{name} rotated by {90 * quarters}" if quarters else name
                wanted = np.rot90(images.numpy(), quarters, (2, 3))
                assert np.array_equal(after.select([label]).images[0].numpy(), wanted)


def test_other_transforms() -> None:
    flat = Splits(*(ClassSet((name,), (torch.rand(3, 2, 4, 5),)) for name in "abc"))
    flipped = flat.with_transforms({"mirrored": lambda images: images.flip(-1)})
    assert flipped.test.names == ("c", "c mirrored")
    assert torch.equal(flipped.test.images[1], flat.test.images[0].flip(3))
    with pytest.raises(ValueError, match="class 'a rotated by 90' must have images like"):
        flat.with_transforms()  # not square


# --- the sets that come along


mnist1d = cache(mnist1d)
SHIPPED = {"digits": (digits, (58, 1, 8, 16)), "mnist1d": (lambda seed=0: mnist1d(seed, 20), (20, 1, 80))}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_classes(name: str) -> None:
    make, shape = SHIPPED[name]
    splits = make()
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts] == [64, 16, 20]
    assert sorted(number for part in parts for number in part.names) == [f"{n:02d}" for n in range(100)]
    assert {tuple(images.shape) for part in parts for images in part.images} == {shape}
    assert {images.dtype for part in parts for images in part.images} == {torch.float32}


@pytest.mark.parametrize("name", SHIPPED)
def test_no_image_of_one_digit_is_in_two_parts(name: str) -> None:
    make, shape = SHIPPED[name]
    splits = make()
    parts = [splits.train, splits.validation, splits.test]
    single = [
        {half.numpy().tobytes() for images in part.images for image in images for half in image.chunk(2, -1)}
        for part in parts
    ]
    present = [len(set("".join(part.names))) for part in parts]
    assert [len(halves) for halves in single] == [shape[0] * digits for digits in present]  # every image is used
    assert not single[0] & single[1] | single[0] & single[2] | single[1] & single[2]


def test_numbers_are_made_of_their_digits() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    label = {
        image.tobytes(): digit for image, digit in zip((data.images / 16).astype("float32"), data.target, strict=True)
    }
    for part in dataclasses.astuple(digits()):
        for number, images in zip(*part, strict=True):
            for image in images[:5, 0]:
                left, right = (half.numpy().tobytes() for half in image.chunk(2, -1))
                assert f"{label[left]}{label[right]}" == number


def test_mnist1d_is_the_packages_own_and_leaves_the_global_generators_alone() -> None:
    from mnist1d.data import get_dataset_args, make_dataset

    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    splits = mnist1d.__wrapped__(seed=0, images=20)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    settings = get_dataset_args()
    settings.num_samples = 600
    data = make_dataset(settings)
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    x, y = (np.concatenate([data[k], data[f"{k}_test"]]) for k in ("x", "y"))
    label = {signal.tobytes(): digit for signal, digit in zip(x.astype("float32"), y, strict=True)}
    for number, images in zip(splits.test.names, splits.test.images, strict=True):
        for image in images[:, 0]:
            assert "".join(str(label[half.numpy().tobytes()]) for half in image.chunk(2, -1)) == number


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_classes_follow_the_seed(name: str) -> None:
    make, _ = SHIPPED[name]
    a, b, c = make(), make.__wrapped__() if hasattr(make, "__wrapped__") else make(), make(1)
    assert a.train.names == b.train.names != c.train.names
    assert torch.equal(a.test.images[0], b.test.images[0])


@pytest.mark.parametrize(
    ("make", "module", "package"),
    [(digits, "sklearn.datasets", "scikit-learn"), (mnist1d.__wrapped__, "mnist1d.data", "mnist1d")],
)
def test_missing_package(make: Any, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf'{package}: pip install "metarl-torch\[data\]"'):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: digits(-1), "seed"), (lambda: mnist1d(0, 0), "images"), (lambda: mnist1d(0.5, 1), "seed")],
)
def test_bad_arguments_of_shipped_sets(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} must be"):
        make()


# --- tasks


def source(**changes: Any) -> FewShot:
    arguments = {"ways": 3, "shots": 2, "queries": 4, **changes}
    classes = arguments.pop("classes", numbered())
    return FewShot(classes, arguments.pop("network", mlp(1, arguments["ways"], hidden=())), **arguments)


def describe(batch: Batch, task: int) -> dict[int, tuple[int, list[int]]]:
    """From each label of a task of numbered images to its class and its images."""
    x, y = batch["x"][task, :, 0].long(), batch["y"][task]
    found = {}
    for label in y.unique().tolist():
        classes = set((x[y == label] // 100).tolist())
        assert len(classes) == 1
        found[label] = classes.pop(), (x[y == label] % 100).tolist()
    return found


def test_tasks_are_ways_shots_and_queries() -> None:
    tasks = source().sample(5, np.random.default_rng(0))
    support, query = (tasks.draw({}, role) for role in ("inner", "outer"))
    assert (support["x"].shape, support["y"].shape) == ((5, 6, 1), (5, 6))
    assert (query["x"].shape, query["y"].shape) == ((5, 12, 1), (5, 12))
    for task in range(5):
        inner, outer = describe(support, task), describe(query, task)
        assert set(inner) == set(outer) == {0, 1, 2}
        assert len({c for c, _ in inner.values()}) == 3  # different classes
        for label in range(3):
            assert inner[label][0] == outer[label][0]
            together = inner[label][1] + outer[label][1]
            assert len(set(together)) == len(together) == 6  # no image twice, none in both sets


def test_finite_sum_is_drawn_once() -> None:
    tasks = source().sample(2, np.random.default_rng(0))
    first, again, hessian = (tasks.draw({}, role) for role in ("inner", "inner", "hessian"))
    assert first is again is hessian
    assert tasks.cost(first) == {"samples": 2 * 6}


def test_resampling_draws_fresh_images_of_the_same_classes() -> None:
    tasks = source(setting="resampling", shots=5).sample(4, np.random.default_rng(0))
    batches = [tasks.draw({}, role) for role in ("inner", "inner", "hessian", "outer", "outer")]
    for task in range(4):
        found = [describe(batch, task) for batch in batches]
        classes = [{label: c for label, (c, _) in d.items()} for d in found]
        assert all(c == classes[0] for c in classes)
        assert [len(d[0][1]) for d in found] == [5, 5, 5, 4, 4]
        assert all(len(set(images)) == len(images) for d in found for _, images in d.values())
    kept = [
        torch.equal(a["x"], b["x"])
        for a, b in ((batches[0], batches[1]), (batches[1], batches[2]), (batches[3], batches[4]))
    ]
    assert not any(kept)


def test_classes_labels_and_images_are_uniform() -> None:
    counts: Counter[tuple[str, int]] = Counter()
    together: Counter[tuple[int, int]] = Counter()
    tasks = source(ways=2, shots=1, queries=1).sample(4000, np.random.default_rng(0))
    x = tasks.draw({}, "inner")["x"][..., 0].long()  # [T, ways]; label 0 first
    for row in x.tolist():
        classes = [value // 100 for value in row]
        together[classes[0], classes[1]] += 1
        counts.update(("image", value % 100) for value in row)
    expected = 4000 / 56  # ordered pairs of different classes
    assert len(together) == 56
    assert all(abs(n - expected) < 4.5 * expected**0.5 for n in together.values())
    assert all(abs(counts["image", i] - 800) < 4.5 * 800**0.5 for i in range(10))


@pytest.mark.parametrize("setting", ["finite_sum", "resampling"])
def test_same_generator_same_tasks(setting: str) -> None:
    def drawn(seed: int) -> list[Tensor]:
        tasks = source(setting=setting).sample(3, np.random.default_rng(seed))
        return [tasks.draw({}, role)["x"] for role in ("inner", "outer", "inner")]

    a, b, c = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])


def test_bytes_are_scaled_and_take_the_networks_dtype() -> None:
    bytes_ = ClassSet(
        tuple("ab"), (torch.full((4, 3), 51, dtype=torch.uint8), torch.full((4, 3), 255, dtype=torch.uint8))
    )
    network = mlp(3, 2, hidden=()).double()
    batch = (
        source(classes=bytes_, network=network, ways=2, queries=2).sample(1, np.random.default_rng(0)).draw({}, "outer")
    )
    assert batch["x"].dtype == torch.float64
    assert sorted(set(batch["x"].flatten().tolist())) == [0.2, 1.0]


def test_loss_and_score() -> None:
    few = source(network=mlp(1, 3, hidden=(4,)).double())
    batch = {k: v[0] for k, v in few.sample(1, np.random.default_rng(0)).draw({}, "outer").items()}
    params = few.initial_params()
    logits = few.network(batch["x"])
    torch.testing.assert_close(few.loss(params, batch), F.cross_entropy(logits, batch["y"]).detach(), check_dtype=True)
    right = [
        row.tolist().index(max(row.tolist())) == label for row, label in zip(logits, batch["y"].tolist(), strict=True)
    ]
    assert float(few.score(params, batch)) == pytest.approx(np.mean(right))
    exact = {**params, "head.weight": torch.zeros(3, 4).double(), "head.bias": torch.tensor([0.0, 1.0, 0.0]).double()}
    assert float(few.score(exact, batch)) == pytest.approx(1 / 3)  # always the same answer
    assert few.score_name == "accuracy"


def test_initial_parameters_are_a_copy_and_the_network_is_not_trained() -> None:
    few = source()
    before = few.initial_params()
    MetaLearner(few, "fo_maml", meta_batch_size=2).learn(2)
    few.initial_params()["head.bias"] += 1
    assert all(torch.equal(before[k], leaf) for k, leaf in few.network.named_parameters())


@pytest.mark.parametrize("setting", ["finite_sum", "resampling"])
@pytest.mark.parametrize("outer", OUTER)
def test_every_outer_update_learns_on_every_setting(outer: str, setting: str) -> None:
    """Two classes that one pixel tells apart: an iteration moves the parameters, and nothing overflows."""
    few = source(classes=ClassSet(NAMES, tuple(images / 1000 for images in numbered().images)), setting=setting)
    learner = MetaLearner(suit(outer, few), outer, meta_batch_size=2).learn(2)
    moved = any(not torch.equal(learner.params[k], leaf) for k, leaf in suit(outer, few).initial_params().items())
    assert moved or outer == "es_maml"  # it sees accuracies only, and perturbations that change none move nothing
    test = suit(outer, dataclasses.replace(few, classes=numbered(4)))
    curve = learner.evaluate(test, num_tasks=5, steps=2)
    assert curve.scores.shape == (1, 5, 3)
    assert ((curve.scores >= 0) & (curve.scores <= 1)).all()


@pytest.mark.parametrize("engine", [Engine(record=False, chunk_size=1), Engine(), Engine(chunk_size=2)], ids=str)
def test_the_engine_changes_nothing_but_rounding(engine: Engine) -> None:
    images = tuple(torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(c)) for c in range(4))
    few = source(classes=ClassSet(NAMES[:4], images), network=conv4(1, 16, 3, filters=4).double(), shots=1, queries=2)
    plain = Engine(record=False)
    wanted, found = (
        MetaLearner(few, "maml", meta_batch_size=3, inner_steps=2, engine=e).learn(2) for e in (plain, engine)
    )
    for key, leaf in wanted.params.items():
        torch.testing.assert_close(found.params[key], leaf)
    assert found.counts == wanted.counts


class Wrong(nn.Module):
    def __init__(self, rows: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 1}, "ways must be an integer of at least 2, got 1"),
        ({"ways": 9}, "ways must be at most 8, the number of classes, got 9"),
        ({"shots": 0}, "shots must be"),
        ({"queries": 1.5}, "queries must be"),
        ({"shots": 7}, "class 'a' must have at least 11 images, found 10"),
        ({"setting": "resampling", "shots": 11}, "class 'a' must have at least 11 images, found 10"),
        (
            {"classes": ClassSet(("x", "y", "z"), (*(torch.zeros(6, 1),) * 2, torch.zeros(5, 1)))},
            "class 'z' .* at least 6 .* 5",
        ),
        ({"setting": "finite"}, "setting must be .* did you mean 'finite_sum'"),
        ({"network": mlp(2, 3)}, r"network must take images \(1,\)"),
        ({"network": mlp(1, 5)}, r"network must return \[3, 3\] for 3 images .*, got \[3, 5\]"),
        ({"network": Wrong(1)}, r"got \[1, 3\]"),
    ],
)
def test_bad_sources(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(**changes)


def test_bad_number_of_tasks() -> None:
    with pytest.raises(ValueError, match="num_tasks must be"):
        source().sample(0, np.random.default_rng(0))
