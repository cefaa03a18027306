"""The optimiser step against numbers worked out by hand and against `torch.optim` on its own."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from metarl.step import MeanGrad, OptimizerStep, average
from metarl.types import MetaGrad, Params

START = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64), "b": torch.tensor(3.0, dtype=torch.float64)}
GRADS = {  # two tasks; the mean is w: (2, 0), b: 1.5, of norm 2.5
    "w": torch.tensor([[1.0, 4.0], [3.0, -4.0]], dtype=torch.float64),
    "b": torch.tensor([1.0, 2.0], dtype=torch.float64),
}


def take(step: OptimizerStep, params: Params, number: int = 1, grads: Params = GRADS) -> Params:
    for _ in range(number):
        params = step(params, None, lambda w, tasks: average(MetaGrad(grads, torch.zeros(2)))).params  # type: ignore[arg-type]
    return params


def flat(params: Params) -> list[float]:
    return [*params["w"].tolist(), params["b"].item()]


@pytest.mark.parametrize(
    ("arguments", "number", "wanted"),
    [
        ({}, 1, [0.8, 2.0, 2.85]),
        ({}, 2, [0.6, 2.0, 2.7]),
        ({"max_grad_norm": 5.0}, 1, [0.8, 2.0, 2.85]),  # longer than 2.5: nothing to do
        ({"max_grad_norm": 0.5}, 1, [0.96, 2.0, 2.97]),  # a fifth
        ({"schedule": lambda n: 2.0**-n}, 2, [0.7, 2.0, 2.775]),  # factors 1, 1/2
        ({"schedule": lambda n: n}, 1, [1.0, 2.0, 3.0]),  # counts finished steps from zero
        ({"optimizer": functools.partial(torch.optim.SGD, momentum=0.5)}, 2, [0.5, 2.0, 2.625]),  # 1 + 1.5 gradients
    ],
)
def test_by_hand(arguments: dict[str, Any], number: int, wanted: list[float]) -> None:
    step = OptimizerStep(START, learning_rate=0.1, **{"optimizer": torch.optim.SGD, **arguments})
    assert flat(take(step, START, number)) == pytest.approx(wanted, abs=1e-5)
    assert step.steps == number


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.AdamW, torch.optim.Adagrad])
def test_is_the_optimizer_of_torch(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    leaves = [leaf.clone().requires_grad_() for leaf in START.values()]
    torchs = optimizer(leaves, lr=0.01)
    for _ in range(5):
        for leaf, key in zip(leaves, GRADS, strict=True):
            leaf.grad = GRADS[key].mean(0)
        torchs.step()
    got = take(OptimizerStep(START, optimizer, 0.01), START, 5)
    for leaf, key in zip(leaves, GRADS, strict=True):
        assert torch.equal(got[key], leaf)


def test_parameters_are_values() -> None:
    before = {k: v.clone() for k, v in START.items()}
    step = OptimizerStep(START, torch.optim.SGD, 0.1)
    first = take(step, START)
    kept = {k: v.clone() for k, v in first.items()}
    take(step, first)
    for key in START:
        assert torch.equal(START[key], before[key])
        assert torch.equal(first[key], kept[key])


def test_steps_from_the_parameters_it_is_given() -> None:
    step = OptimizerStep(START, torch.optim.SGD, 0.1)
    take(step, START)
    assert flat(take(step, START)) == pytest.approx([0.8, 2.0, 2.85])


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, functools.partial(torch.optim.SGD, momentum=0.9)])
def test_state_goes_on(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    arguments: Any = {"optimizer": optimizer, "learning_rate": 0.1, "schedule": lambda n: 1 / (1 + n)}
    straight = take(OptimizerStep(START, **arguments), START, 5)
    first = OptimizerStep(START, **arguments)
    middle = take(first, START, 2)
    second = OptimizerStep(START, **arguments)
    second.load_state_dict(first.state_dict())
    for key, leaf in take(second, middle, 3).items():
        assert torch.equal(leaf, straight[key])


def test_averages_by_hand() -> None:
    found = average(MetaGrad(GRADS, torch.tensor([1.0, 4.0]), {"residual": torch.tensor([3.0, 4.0])}))
    assert flat(found.grads) == [2.0, 0.0, 1.5]
    # the rows are (-1, 4, -0.5) and (1, -4, 0.5) from their mean, both of squared length 17.25
    assert found.spread == pytest.approx(math.sqrt(17.25))
    assert (found.score, found.info) == (2.5, {"residual": 3.5})


def test_clipping_leaves_the_gradient_alone() -> None:
    found = average(MetaGrad(GRADS, torch.zeros(2)))
    OptimizerStep(START, max_grad_norm=0.5)(START, None, lambda w, tasks: found)  # type: ignore[arg-type]
    assert flat(found.grads) == [2.0, 0.0, 1.5]  # it is logged as it was


@pytest.mark.parametrize(
    ("argument", "value"),
    [("learning_rate", 0.0), ("learning_rate", math.inf), ("max_grad_norm", 0.0), ("max_grad_norm", -1)],
)
def test_bad_arguments(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=argument):
        OptimizerStep(START, **{argument: value})


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (torch.optim.SGD, "SGD"),
        (functools.partial(torch.optim.SGD), None),
        (lambda p, lr: torch.optim.SGD(p, lr), None),
    ],
)
def test_only_classes_of_torch_have_a_name(optimizer: Callable[..., torch.optim.Optimizer], name: str | None) -> None:
    assert OptimizerStep(START, optimizer).optimizer_name == name


LEARNED = {"w": torch.tensor([1.0, 2.0]), "meta/inner_lr/a": torch.tensor([0.01, 0.03])}
SLOPES = {"w": torch.tensor([3.0, 4.0]), "meta/inner_lr/a": torch.tensor([30.0, -40.0])}


def found_slopes(params: Params, tasks: Any) -> MeanGrad:
    return MeanGrad(SLOPES, 0.0, 1.0)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_learned_step_sizes_move_with_their_first_value_times_the_learning_rate(optimizer: Any) -> None:
    step = OptimizerStep(LEARNED, optimizer, 0.1)
    moved = {k: v - LEARNED[k] for k, v in step(LEARNED, None, found_slopes).params.items()}  # type: ignore[arg-type]
    slopes = {k: v / v.abs() if optimizer is torch.optim.Adam else v for k, v in SLOPES.items()}
    assert torch.allclose(moved["w"], -0.1 * slopes["w"])
    assert torch.allclose(moved["meta/inner_lr/a"], -0.1 * 0.02 * slopes["meta/inner_lr/a"])


def test_learned_step_sizes_with_a_learning_rate_of_their_own() -> None:
    step = OptimizerStep(LEARNED, torch.optim.SGD, 0.1, schedule=lambda n: 0.5, inner_lr_rate=0.01)
    moved = {k: v - LEARNED[k] for k, v in step(LEARNED, None, found_slopes).params.items()}  # type: ignore[arg-type]
    assert torch.allclose(moved["w"], -0.05 * SLOPES["w"])
    assert torch.allclose(moved["meta/inner_lr/a"], -0.005 * SLOPES["meta/inner_lr/a"])
    with pytest.raises(ValueError, match=r"inner_lr_rate needs learned inner step sizes: .*, got 0\.01"):
        OptimizerStep(START, inner_lr_rate=0.01)


def test_a_first_step_size_of_zero_moves_too() -> None:
    zero = {**LEARNED, "meta/inner_lr/a": torch.zeros(2)}
    moved = OptimizerStep(zero, torch.optim.SGD, 0.1)(zero, None, found_slopes).params  # type: ignore[arg-type]
    assert torch.allclose(moved["meta/inner_lr/a"], torch.tensor([-3.0, 4.0]))


def test_learned_step_sizes_are_clipped_by_themselves() -> None:
    step = OptimizerStep(LEARNED, torch.optim.SGD, 0.1, max_grad_norm=2.5)
    moved = {k: v - LEARNED[k] for k, v in step(LEARNED, None, found_slopes).params.items()}  # type: ignore[arg-type]
    assert torch.allclose(moved["w"], -0.1 * SLOPES["w"] / 2, rtol=1e-4)
    assert torch.allclose(moved["meta/inner_lr/a"], -0.1 * 0.02 * SLOPES["meta/inner_lr/a"] / 20, rtol=1e-4)


def test_resumes_with_learned_step_sizes() -> None:
    straight = OptimizerStep(LEARNED, learning_rate=0.1)
    one = straight(LEARNED, None, found_slopes).params  # type: ignore[arg-type]
    # made from moved step sizes: the first ones come from the saved state
    resumed = OptimizerStep({**one, "meta/inner_lr/a": torch.tensor([0.5, 0.9])}, learning_rate=0.1)
    resumed.load_state_dict(straight.state_dict())
    two = straight(one, None, found_slopes).params  # type: ignore[arg-type]
    again = resumed(one, None, found_slopes).params  # type: ignore[arg-type]
    assert all(torch.equal(two[k], again[k]) for k in two)
