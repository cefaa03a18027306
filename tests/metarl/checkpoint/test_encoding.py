"""What may stand in a checkpoint comes back as it was; what may not is refused by name when it is saved."""

import dataclasses
import enum
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarl import MetaLearner, checkpoint
from metarl.callbacks import Callback, Checkpointing
from metarl.checkpoint.encoding import KINDS
from metarl.random import generator_state
from metarl.supervised.sinusoid import Sinusoids

pytestmark = pytest.mark.usefixtures("unrecorded")

VALUES: list[Any] = [
    *(np.float64(0.1), np.float32(0.1), np.int64(3), np.bool_(True), np.str_("x"), np.complex64(1 + 2j)),
    *(np.geomspace(0.01, 0.1, 3), np.zeros((2, 0)), np.array([["a", "bc"]]), np.asfortranarray(np.eye(3)[:2])),
    *(np.datetime64("2020-01-02"), np.array(5), np.arange(6)[::2]),
    *(Path("runs/nav"), deque([1, (2, 3)], maxlen=4), range(2, 9, 3), slice(1, None), {1, 2}, frozenset({"a"})),
    *(1 + 2j, bytearray(b"ab"), b"ab", Fraction(1, 3), Decimal("0.1"), Counter("aab"), 10**100, float("inf")),
    *(OrderedDict(a=1), defaultdict(list, {"a": [1]}), {(1, 2): "tuple as key"}, {"__metarl__": "a key of one's own"}),
    *(torch.float16, torch.device("cpu"), torch.Size([2, 3]), torch.arange(6)[::2], torch.ones(2, requires_grad=True)),
    *(torch.nn.Parameter(torch.ones(2)), torch.zeros(3).bool(), torch.tensor(1 + 2j), torch.zeros(2).bfloat16()),
    *(torch.ones(1).expand(4), torch.tensor([1, 2], dtype=torch.uint16), [(), [], {}], {1: {2.5: None, True: "x"}}),
]


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype and one.requires_grad == other.requires_grad
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, deque):
        return one == other and one.maxlen == other.maxlen
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_it_comes_back(tmp_path: Path, value: Any) -> None:
    checkpoint.save(tmp_path / "file", {"deep": [{"value": (value,)}]})
    assert same(checkpoint.load(tmp_path / "file")["deep"][0]["value"][0], value)


def test_every_kind_has_a_value() -> None:
    kinds = {type(value) for value in VALUES} | {np.generic, dict, torch.Tensor}
    assert {kind.type for kind in KINDS.values()} <= kinds


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Point:
    x: int = 0


class Text(str):
    __slots__ = ()


Pair = namedtuple("Pair", "a b")
ITSELF: list[Any] = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (lambda: 0, "function"),
        (Colour.RED, "Colour; save its name or value"),
        (Number.ONE, "Number; save its name or value"),
        (Point(), r"Point; save dataclasses\.asdict"),
        (Pair(1, 2), r"Pair; save tuple\(\.\.\.\)"),
        (Text("x"), "Text"),
        (np.array([None]), "ndarray of dtype object"),
        (np.zeros(2, dtype=[("a", int)]), "ndarray of dtype"),
        (np.ma.masked_array([1]), "MaskedArray"),
        (np.random.default_rng(0), r"Generator; save metarl\.random\.generator_state"),
        (torch.Generator(), r"Generator; save its get_state"),
        (torch.eye(2).to_sparse(), "must be a dense tensor"),
        (int, "type"),
        (iter([1]), "list_iterator"),
        (defaultdict(lambda: 1), "defaultdict"),
    ],
)
def test_refused_by_name(tmp_path: Path, value: Any, found: str) -> None:
    with pytest.raises(ValueError, match=rf"best.*{found}"):
        checkpoint.save(tmp_path / "file", {"callbacks": [("Best", {"best": [value]})]})
    assert list(tmp_path.iterdir()) == []


def test_what_holds_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"callbacks\[0\] must be nested at most 100 deep to be saved"):
        checkpoint.save(tmp_path / "file", {"callbacks": [ITSELF]})


def test_memory_of_a_view_is_not_saved(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "file", {"row": torch.zeros(1000, 1000)[3]})
    assert (tmp_path / "file").stat().st_size < 20_000


class Best(Callback):
    def __init__(self, value: Any = None) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]


@pytest.mark.parametrize(
    "arguments",
    [
        lambda: {"inner_lr": np.geomspace(0.01, 0.1, 3)[0]},
        lambda: {"inner_lr": np.float32(0.01), "inner_steps": np.int64(2), "seed": np.int64(3)},
        lambda: {"learning_rate": np.float64(0.01), "max_grad_norm": np.float32(1), "meta_batch_size": np.int32(4)},
        lambda: {"outer": "hf_maml", "outer_options": {"delta": "published", "rho": np.float64(0.5)}},
        lambda: {"outer": "imaml", "outer_options": {"lam": np.float32(2.0), "cg_steps": np.int64(2)}},
    ],
)
def test_settings_from_numpy(tmp_path: Path, arguments: Callable[[], dict[str, Any]]) -> None:
    given: dict[str, Any] = {"meta_batch_size": 4, **arguments()}
    learner = MetaLearner(Sinusoids(), **given).learn(1)
    learner.save(tmp_path / "file")
    again = MetaLearner.load(tmp_path / "file", Sinusoids())
    assert again._config() == learner._config()
    whole, parts = learner.learn(1).params, again.learn(1).params
    assert all(torch.equal(leaf, parts[key]) for key, leaf in whole.items())


@pytest.mark.parametrize("value", [np.float64(1), Path("x"), deque([1.0], 5), range(3), {1, 2}, np.arange(3.0)])
def test_states_of_callbacks(tmp_path: Path, value: Any) -> None:
    MetaLearner(Sinusoids(), meta_batch_size=4).learn(1, [Best(value)]).save(tmp_path / "file")
    best = Best()
    MetaLearner.load(tmp_path / "file", Sinusoids()).learn(1, [best])
    assert same(best.value, value)


def test_what_cannot_be_saved_is_refused_before_training(tmp_path: Path) -> None:
    learner = MetaLearner(Sinusoids(), meta_batch_size=4)
    before = generator_state(learner._rng)
    with pytest.raises(ValueError, match=r"callbacks\[0\]\[1\]\.value must be plain data .* got Colour"):
        learner.learn(3, [Best(Colour.RED), Checkpointing(tmp_path / "file")])
    assert (learner.iterations, generator_state(learner._rng), list(tmp_path.iterdir())) == (0, before, [])
