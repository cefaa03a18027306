"""Replayed draws: Fisher matrix, loss and divergence of adapted policies, against autograd and `torch.distributions`.

Each check is also given wrong formulas, which it must reject.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import AdaptationPath, make_method
from metarl.outer.pull_back import pull_back, push_forward
from metarl.step.replay import Measured, Point, Replay
from metarl.tree import dot, tree_map
from metarl.types import Batch, Params, TaskBatch
from metarl.wrappers import ReplayDraws
from tests.reference.replays import ALPHA, UPDATES, Recorded, close, flat

# The matrix.


def check_matrix(recorded: Recorded, first_order: bool = False, kind: type[Point] = Point) -> Tensor:
    product = recorded.old(kind).fisher(first_order)
    size = len(flat(recorded.params))
    found = torch.stack([flat(product(recorded.leaves(row))) for row in torch.eye(size, dtype=torch.float64)])
    wanted = recorded.matrix(first_order)
    assert wanted.norm() > 0.1
    close(found, wanted)
    return wanted


@pytest.mark.parametrize("kind", ["navigation", "discrete"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("data", ["fresh", "reuse"])
def test_the_matrix_is_the_dense_one(kind: str, steps: int, data: str) -> None:
    recorded = Recorded(make_method("maml", ALPHA, steps, hessian_data=data), kind)
    exact, first_order = check_matrix(recorded), check_matrix(recorded, first_order=True)
    assert (exact - first_order).norm() > 0.03 * exact.norm()


@pytest.mark.parametrize("learned", ["scalar", "layer", "layer-step"])
@pytest.mark.parametrize("first_order", [False, True])
def test_with_learned_step_sizes(learned: Any, first_order: bool) -> None:
    recorded = Recorded(make_method("maml", ALPHA, 2, hessian_data="reuse", learn_inner_lr=learned))
    if first_order:  # the gradients depend on w, but their derivatives count as zero
        recorded = Recorded(make_method("maml", ALPHA, 2, learn_inner_lr=learned))
    matrix = check_matrix(recorded, first_order)
    is_meta = flat({k: torch.full_like(v, k.startswith("meta/")) for k, v in recorded.params.items()}) > 0
    assert (matrix[is_meta] != 0).any(1).all()


class InReverse(Point):
    """The factors of the two steps in the wrong order."""

    @cached_property
    def path(self) -> AdaptationPath:
        path = super().path
        return path._replace(params=[*path.params[-2::-1], path.params[-1]], batches=path.batches[::-1])


class AtTheStart(Point):
    """The Fisher matrix of the policy before adaptation."""

    @property
    def adapted(self) -> Params:
        return self.path.params[0]


class WithoutJacobian(Point):
    def fisher(self, first_order: bool, episodes: slice = slice(None)) -> Callable[[Params], Params]:
        return super().fisher(True, episodes)


class OtherData(Point):
    """The Hessians of D_in where D_h was drawn."""

    @cached_property
    def path(self) -> AdaptationPath:
        return super().path._replace(batches=[draw.batch for draw in self._replay.steps])


@pytest.mark.parametrize("kind", [InReverse, AtTheStart, WithoutJacobian, OtherData])
def test_wrong_matrices_are_rejected(kind: type[Point]) -> None:
    with pytest.raises(AssertionError):
        check_matrix(Recorded(make_method("maml", ALPHA, 2)), kind=kind)


def test_push_forward_is_the_transpose_of_pull_back() -> None:
    """<J t, v> = <t, J^T v> for every rule: also those with anchors, signs and rows for each step."""
    generator = torch.Generator().manual_seed(0)
    for name in ("sign_maml", "moreau", "imaml", "maml"):
        options = {"learn_inner_lr": "layer-step"} if name == "maml" else {}
        method = make_method(name, ALPHA, 2, **options)
        recorded = Recorded(make_method("maml", ALPHA, 2, **options))
        path = Replay(recorded.tasks, recorded.draws, method.inner).at(recorded.params).path
        t, v = (
            tree_map(lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype), path.params[0])
            for _ in range(2)
        )
        path = path._replace(batches=[{}] * 2)

        def multiply(tasks: TaskBatch, w: Params, batch: Batch, u: Params) -> Params:
            return {k: 0.0 * x if k.startswith("meta/") else 0.3 * w[k] * x for k, x in u.items()}  # any symmetric one

        pushed = push_forward(recorded.tasks, path, method.inner, t, multiply)
        pulled = pull_back(recorded.tasks, path, method.inner, v, multiply, "reuse")
        assert dot(pushed, v).item() == pytest.approx(dot(t, pulled).item(), rel=1e-10)


def test_some_episodes_in_turn_give_the_matrix_on_average() -> None:
    """Without Hessians exactly, since all episodes have the same length; with them A is not linear in the data."""
    recorded = Recorded(make_method("maml", ALPHA), "point_velocity")
    vector = tree_map(torch.cos, recorded.params)
    whole = flat(recorded.old().fisher(True)(vector))
    parts = [flat(recorded.old().fisher(True, slice(first, None, 3))(vector)) for first in range(3)]
    close(torch.stack(parts).mean(0), whole, 1e-12)
    assert all((part - whole).norm() > 1e-3 * whole.norm() for part in parts)
    exact = flat(recorded.old().fisher(False)(vector))
    parts = [flat(recorded.old().fisher(False, slice(first, None, 3))(vector)) for first in range(3)]
    assert 1e-3 < (torch.stack(parts).mean(0) - exact).norm() / exact.norm() < 0.5


# Loss and divergence on replayed draws.


def check_measures(recorded: Recorded, kind: type[Point] = Point) -> None:
    here, there = recorded.params, tree_map(lambda x: x + 0.2 * torch.cos(7 * x), recorded.params)
    losses, kls = [], []
    for task in range(recorded.tasks.num_tasks):
        old, new = (recorded.adapt({k: v.clone().requires_grad_() for k, v in w.items()}, task) for w in (here, there))
        batch = recorded.batches("outer", task)[-1]
        losses.append(recorded.loss(new, batch).item())
        kls.append(recorded.kl(old, new, batch).item())
    found = kind(recorded.replay, there).measure(recorded.old())
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-9)
    assert found.kl == pytest.approx(np.mean(kls), rel=1e-9)
    assert np.mean(kls) > 1e-3


class TheWrongWayRound(Point):
    def measure(self, old: Point) -> Measured:
        return super().measure(old)._replace(kl=Point.measure(old, self).kl)


class NotAdapted(Point):
    @property
    def adapted(self) -> Params:
        return self.start.params[0]


@pytest.mark.parametrize("kind", ["navigation", "discrete"])
def test_loss_and_divergence(kind: str) -> None:
    recorded = Recorded(make_method("maml", ALPHA, 2), kind)
    check_measures(recorded)
    for wrong in (TheWrongWayRound, NotAdapted):
        with pytest.raises(AssertionError):
            check_measures(recorded, wrong)


@pytest.mark.parametrize("outer", UPDATES)
def test_a_replay_gives_the_meta_gradient_bit_for_bit(outer: str) -> None:
    recorded = Recorded(make_method(outer, inner_steps=2))
    again = recorded.method.update(recorded.params, ReplayDraws(recorded.tasks, recorded.draws), recorded.method.inner)
    assert all(torch.equal(again.grads[name], leaf) for name, leaf in recorded.meta_grad.grads.items())
    assert recorded.measure(recorded.params).kl == 0
