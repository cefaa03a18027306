"""What a function reads besides its arguments: everything that could change what it computes gives another state."""

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from metarl.engine.cache import States

FACTOR = 1.0
TABLE = {"offset": 1.0}


def helper(x: Tensor) -> Tensor:
    return x * FACTOR + TABLE["offset"]


class Equal:
    """Compares equal to every other one, and cannot be hashed."""

    def __init__(self, power: float) -> None:
        self.power = power

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Tensor) -> Tensor:
        return x**self.power


class Oracle:
    exponent = 2.0

    def __init__(self) -> None:
        self.draws, self.weight, self.nested = 0, 1.0, {"scales": [1.0, 2.0]}
        self.array, self.tensor = np.ones(3), torch.ones(3)

    def draw(self) -> None:
        self.draws += 1

    def loss(self, x: Tensor) -> Tensor:
        scaled = helper(x) * self.weight * self.nested["scales"][0] * torch.from_numpy(self.array) * self.tensor
        return (scaled**self.exponent).sum()


def set_global(monkeypatch: pytest.MonkeyPatch, oracle: Oracle) -> None:
    monkeypatch.setitem(globals(), "FACTOR", 2.0)


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, Oracle], Any]] = {
    "global": set_global,
    "entry_of_a_global": lambda patch, oracle: patch.setitem(TABLE, "offset", 3.0),
    "attribute": lambda patch, oracle: setattr(oracle, "weight", 2.0),
    "type_of_a_number": lambda patch, oracle: setattr(oracle, "weight", 1),
    "nested_attribute": lambda patch, oracle: oracle.nested["scales"].__setitem__(0, -1.0),
    "attribute_of_the_class": lambda patch, oracle: patch.setattr(Oracle, "exponent", 3.0),
    "attribute_that_hides_the_class's": lambda patch, oracle: setattr(oracle, "exponent", 3.0),
    "values_of_an_array": lambda patch, oracle: oracle.array.__setitem__(0, 5.0),
    "another_tensor": lambda patch, oracle: setattr(oracle, "tensor", torch.ones(3)),
    "requires_grad": lambda patch, oracle: oracle.tensor.requires_grad_(),
    "another_method": lambda patch, oracle: patch.setattr(Oracle, "loss", lambda self, x: x.sum()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_loss_reads(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    states, oracle = States(), Oracle()
    before = states.describe((grad_and_value(oracle.loss),))
    assert states.describe((grad_and_value(oracle.loss),)) is before
    CHANGES[name](monkeypatch, oracle)
    assert states.describe((grad_and_value(oracle.loss),)) is not before


def test_what_a_loss_does_not_read_makes_no_other_state() -> None:
    states, oracle = States(), Oracle()
    before = states.describe((oracle.loss,))
    oracle.draw()
    assert states.describe((oracle.loss,)) is before


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
        self.gain = 1.0

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x) * self.gain
        return result


MODULE_CHANGES: dict[str, Callable[[Any], Any]] = {
    "mode": lambda net: net.eval(),
    "mode_of_an_inner_one": lambda net: net.inner[2].eval(),
    "attribute": lambda net: setattr(net, "gain", 2.0),
    "attribute_of_an_inner_one": lambda net: setattr(net.inner[1], "p", 0.1),
    "buffer": lambda net: setattr(net.inner[2], "running_mean", torch.ones(2)),
    "parameter": lambda net: setattr(net.inner[0], "weight", nn.Parameter(torch.ones(2, 2))),
    "requires_grad": lambda net: net.inner[0].weight.requires_grad_(False),
    "memory_of_a_parameter": lambda net: setattr(net.inner[0].weight, "data", torch.ones(2, 2)),
    "type": lambda net: net.double(),
    "layer": lambda net: net.inner.__setitem__(1, nn.Tanh()),
    "hook": lambda net: net.inner[0].register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", MODULE_CHANGES)
def test_what_a_module_reads(name: str) -> None:
    states, net = States(), Network()
    before = states.describe((net,))
    assert states.describe((net,)) is before
    MODULE_CHANGES[name](net)
    assert states.describe((net,)) is not before


def test_what_is_changed_back_is_the_first_state_again() -> None:
    states, net = States(), Network()
    before = states.describe((net,))
    states.describe((net.eval(),))
    assert states.describe((net.train(),)) is before


def test_functions_that_compare_equal_are_told_apart() -> None:
    states = States()
    assert states.describe((Equal(2.0),)) is not states.describe((Equal(3.0),))


def made_of(x: object) -> Callable[[Tensor], Any]:
    return lambda y: y * x  # type: ignore[operator]


@pytest.mark.parametrize("pair", [(1, 2), (1, 1.0), (1, True), (0.0, -0.0), ((1, 2), (1, 3))], ids=str)
def test_closures_and_partials(pair: tuple[Any, Any]) -> None:
    states = States()
    for make in (made_of, lambda x: functools.partial(helper, x), lambda x: functools.partial(made_of, x=x)):
        one, other = (states.describe((make(x),)) for x in pair)
        assert one is not other
        assert states.describe((make(pair[0]),)) is one  # made anew of the same parts


def test_the_state_says_where_it_changed() -> None:
    states, net = States(), Network()
    before = states.describe((net,))
    net.gain = 2.0
    assert states.describe((net,)).differences(before) == ["Network.0.gain"]


def test_nothing_keeps_an_oracle_alive_and_memory_stays_bounded() -> None:
    states, gone = States(), []
    for _ in range(300):
        oracle = Oracle()
        gone.append(weakref.ref(oracle))
        states.describe((oracle.loss,))
    del oracle
    gc.collect()
    assert sum(ref() is not None for ref in gone) == 0
    assert len(states._by_anchor) <= 128
    assert len(states._known) <= 128


def test_functions_whose_parts_follow_each_other_in_the_same_order_are_told_apart() -> None:
    """How many parts each thing has belongs to what tells functions apart, else neighbours could change hands."""

    def over(*parts: Any) -> Callable[[], Any]:
        u, v, w = parts
        return lambda: (u, v, w)

    f, g = (lambda **kwargs: kwargs), (lambda **kwargs: kwargs)
    states = States()
    first = states.describe((over(functools.partial(f, b=3), ("a", 2), functools.partial(g)),))
    assert states.describe((over(("b", 3), functools.partial(f), functools.partial(g, a=2)),)) is not first
    assert states.describe((over(functools.partial(f, b=3), ("a", 2), functools.partial(g)),)) is first
