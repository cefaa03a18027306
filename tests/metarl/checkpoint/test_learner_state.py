"""Every entry of a checkpoint is compared with what is wanted: one of another type, shape or name is refused."""

import copy
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarl import MetaLearner, checkpoint
from metarl.callbacks import Callback
from metarl.errors import StateError
from metarl.state_dict import check_like
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
from metarl.theory import AdaptiveStep, fallah_rule
from metarl.theory.monitors import SmoothnessMonitor

pytestmark = pytest.mark.usefixtures("unrecorded")

FOREIGN = [None, True, 7, -1, 2.5, 10**400, "x", b"x", [], [1], {}, {"x": 1}, torch.zeros(3), torch.zeros(2).double()]
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {},
    "nadam": {"optimizer": torch.optim.NAdam, "max_grad_norm": 1.0},
    "adagrad": {"optimizer": torch.optim.Adagrad},
    "momentum": {"optimizer": functools.partial(torch.optim.SGD, momentum=0.9)},
}


def source() -> FiniteSumSource:
    tasks = FiniteSumTaskBatch(
        lambda p, b: ((p["w"] - b["c"]) ** 2).sum() + p["b"], {"c": torch.tensor([[1.0], [2.0]])}
    )
    return FiniteSumSource(tasks, {"w": torch.zeros(2), "b": torch.zeros(())})


class Scores(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"scores": [1.0]}


def train(**arguments: Any) -> MetaLearner:
    return MetaLearner(source(), "maml", meta_batch_size=2, **arguments).learn(2, [Scores()])


def variants(state: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """A path into `state`, and what stands there instead: an entry of another kind, one missing, one more."""
    if where:
        for value in FOREIGN:
            yield where, value
    if isinstance(state, torch.Tensor):
        for other in (state[None], state.double(), state.int(), torch.cat([state.flatten()] * 2), state.to_sparse()):
            yield where, other
    if isinstance(state, Mapping):
        for key, entry in state.items():
            yield where, {k: v for k, v in state.items() if k != key}
            yield from variants(entry, (*where, key))
        yield where, {**state, "more": 1}
    elif isinstance(state, list | tuple):
        yield where, state[:-1]
        yield where, type(state)([*state, 1])
        for i, entry in enumerate(state):
            yield from variants(entry, (*where, i))


def replace(state: Any, where: tuple[Any, ...], value: Any) -> Any:
    if not where:
        return value
    if isinstance(state, Mapping):
        return {**state, where[0]: replace(state[where[0]], where[1:], value)}
    entries = list(state)
    entries[where[0]] = replace(entries[where[0]], where[1:], value)
    return type(state)(entries)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.layout == other.layout and one.equal(other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_refused_or_loaded_as_it_is(tmp_path: Path, name: str) -> None:
    """Through a file for a sample of the variants, and from the state itself for all of them."""
    arguments = OPTIMIZERS[name]
    learner = train(**arguments)
    whole, path = copy.deepcopy(learner.state_dict()), tmp_path / "checkpoint.pt"
    fresh = MetaLearner(source(), "maml", meta_batch_size=2, **arguments)
    given = arguments if name == "momentum" else {}  # the others' settings are in the file
    tried, refused = 0, 0
    for where, value in variants(whole):
        variant = replace(whole, where, value)
        tried += 1
        try:
            if tried % 8 == 0:
                checkpoint.save(path, variant)
                loaded = MetaLearner.load(path, source(), **given)
            else:
                fresh.load_state_dict(variant)
                loaded = fresh
        except ValueError:
            refused += 1
        else:
            found = {key: value for key, value in loaded.state_dict().items() if key != "source" or key in variant}
            assert equal(found, variant) or equal(loaded.state_dict(), whole), where
            fresh = MetaLearner(source(), "maml", meta_batch_size=2, **arguments)
    assert tried > 400
    assert refused > 0.8 * tried


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("params", "w"), torch.zeros(2).double(), r"params\.w must be a tensor of shape \(2,\), float32, found .*64"),
        (("params", "w"), [0.0, 0.0], r"params\.w must be a tensor .*, found list of 2"),
        (
            ("outer_step", "optimizer", "state", 0, "exp_avg"),
            torch.zeros(9),
            r"outer_step\.optimizer\.state\[0\]\.exp_avg must be a tensor of shape \(2,\), .* found .* \(9,\)",
        ),
        (("outer_step", "optimizer", "state", 1), {}, r"state\[1\] must have the keys .*exp_avg.* are missing"),
        (("outer_step", "optimizer", "state"), {}, r"state must have the keys \[0, 1\], but \[0, 1\] are missing"),
        (
            ("outer_step", "optimizer", "param_groups", 0, "betas"),
            (0.9, "x"),
            r"betas\[1\] must be float, found str 'x'",
        ),
        (("outer_step", "optimizer", "param_groups", 0, "params"), [1, 0], r"params must be \[0, 1\], found \[1, 0\]"),
        (("outer_step", "steps"), 2.0, r"outer_step\.steps must be an integer of at least 0, found float 2\.0"),
        (("iterations",), "2", r"iterations must be an integer of at least 0, found str '2'"),
        (("counts", "samples"), None, r"counts\.samples must be an integer"),
        (("callbacks",), [("Scores",)], r"callbacks\[0\] must be the name of a class and its state"),
        (("rng",), '{"bit_generator": "PCG64"}', r"random state must be a numpy generator's"),
        (("source",), {"mean": torch.zeros(2)}, r"source must learn \['mean'\]"),
    ],
)
def test_the_message_names_the_entry(where: tuple[Any, ...], value: Any, message: str) -> None:
    learner = train()
    with pytest.raises(ValueError, match=message):
        learner.load_state_dict(replace(learner.state_dict(), where, value))


def test_what_was_refused_has_changed_nothing() -> None:
    learner = train()
    before = copy.deepcopy(learner.state_dict())
    other = replace(train(seed=0).learn(1).state_dict(), ("outer_step", "steps"), "x")
    with pytest.raises(StateError):
        learner.load_state_dict(other)
    assert equal(learner.state_dict(), before)


def test_another_number_of_steps_of_an_eager_optimiser() -> None:
    """Adagrad has state before its first step: an untrained learner's fits as well."""
    learner = MetaLearner(source(), "maml", meta_batch_size=2, optimizer=torch.optim.Adagrad)
    again = MetaLearner(source(), "maml", meta_batch_size=2, optimizer=torch.optim.Adagrad)
    again.load_state_dict(learner.state_dict())
    assert equal(again.learn(2).state_dict(), learner.learn(2).state_dict())


def test_the_steps_from_theory() -> None:
    step = AdaptiveStep(fallah_rule("maml", L=2.0, rho=0.0, inner_lr=0.1), source(), num_tasks=1)
    state = step.state_dict()
    step.load_state_dict(state)
    for where, value in variants(state):
        changed = replace(state, where, value)
        try:
            step.load_state_dict(changed)
        except ValueError:
            continue
        assert {key: changed[key] for key in ("num_tasks", "rng")} == {key: state[key] for key in ("num_tasks", "rng")}


def test_a_callback_that_cannot_read_its_state() -> None:
    learner = MetaLearner(source(), "maml", inner_lr=0.01, meta_batch_size=2).learn(1, [SmoothnessMonitor(num_tasks=2)])
    learner.load_state_dict(replace(learner.state_dict(), ("callbacks",), [("SmoothnessMonitor", {"warned": "x"})]))
    with pytest.raises(StateError, match=r"warned must be bool, found str 'x'"):
        learner.learn(1, [SmoothnessMonitor(num_tasks=2)])


def test_structures() -> None:
    check_like({"a": (1, 2.0), "b": None}, {"a": (5, 1.0), "b": None})
    check_like(3, 1.0)  # an integer is a number
    for found, wanted in [(True, 1), (1.0, 1), ((1,), [1]), (None, 0), (np.float64(1), 1.0), ("1", 1)]:
        with pytest.raises(StateError):
            check_like(found, wanted)
