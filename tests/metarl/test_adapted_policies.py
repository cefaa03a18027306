"""Policies after adaptation: their Fisher matrix, loss and divergence, against autograd and `torch.distributions`.

Each check is also given wrong formulas, which it must reject.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import Inner, make_method
from metarl.outer.pull_back import pull_back, push_forward
from metarl.step.adapted_policies import AdaptedPolicies
from metarl.tree import dot, tree_map
from metarl.types import Batch, Params, TaskBatch
from metarl.wrappers import ReplayDraws
from tests.reference.replays import ALPHA, UPDATES, Recorded, close, flat

# The matrix.


def check_matrix(
    recorded: Recorded, first_order: bool = False, kind: type[AdaptedPolicies] = AdaptedPolicies
) -> Tensor:
    product = recorded.policies(kind).fisher(first_order)
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


class InReverse(AdaptedPolicies):
    """The factors of the two steps in the wrong order."""

    def fisher(self, first_order: bool, episodes: slice = slice(None)) -> Callable[[Params], Params]:
        old = self._old
        self._old = old._replace(params=[*old.params[-2::-1], old.params[-1]])
        self._hessian = self._hessian[::-1]
        return super().fisher(first_order, episodes)


class AtTheStart(AdaptedPolicies):
    """The Fisher matrix of the policy before adaptation."""

    def fisher(self, first_order: bool, episodes: slice = slice(None)) -> Callable[[Params], Params]:
        self._old = self._old._replace(params=[*self._old.params[:-1], self._old.params[0]])
        return super().fisher(first_order, episodes)


class WithoutJacobian(AdaptedPolicies):
    def fisher(self, first_order: bool, episodes: slice = slice(None)) -> Callable[[Params], Params]:
        return super().fisher(True, episodes)


class OtherData(AdaptedPolicies):
    """The Hessians of D_in where D_h was drawn."""

    def __init__(self, params: Params, tasks: TaskBatch, draws: Any, inner: Inner) -> None:
        super().__init__(params, tasks, [draw for draw in draws if draw.role != "hessian"], inner)


@pytest.mark.parametrize("kind", [InReverse, AtTheStart, WithoutJacobian, OtherData])
def test_wrong_matrices_are_rejected(kind: type[AdaptedPolicies]) -> None:
    with pytest.raises(AssertionError):
        check_matrix(Recorded(make_method("maml", ALPHA, 2)), kind=kind)


def test_push_forward_is_the_transpose_of_pull_back() -> None:
    """<J t, v> = <t, J^T v> for every rule: also those with anchors, signs and rows for each step."""
    generator = torch.Generator().manual_seed(0)
    for name in ("sign_maml", "moreau", "imaml", "maml"):
        options = {"learn_inner_lr": "layer-step"} if name == "maml" else {}
        method = make_method(name, ALPHA, 2, **options)
        recorded = Recorded(make_method("maml", ALPHA, 2, **options))
        path = AdaptedPolicies(recorded.params, recorded.tasks, recorded.draws, method.inner)._old
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
    whole = flat(recorded.policies().fisher(True)(vector))
    parts = [flat(recorded.policies().fisher(True, slice(first, None, 3))(vector)) for first in range(3)]
    close(torch.stack(parts).mean(0), whole, 1e-12)
    assert all((part - whole).norm() > 1e-3 * whole.norm() for part in parts)
    exact = flat(recorded.policies().fisher(False)(vector))
    parts = [flat(recorded.policies().fisher(False, slice(first, None, 3))(vector)) for first in range(3)]
    assert 1e-3 < (torch.stack(parts).mean(0) - exact).norm() / exact.norm() < 0.5


# Loss and divergence on replayed draws.


def check_measures(recorded: Recorded, kind: type[AdaptedPolicies] = AdaptedPolicies) -> None:
    here, there = recorded.params, tree_map(lambda x: x + 0.2 * torch.cos(7 * x), recorded.params)
    losses, kls = [], []
    for task in range(recorded.tasks.num_tasks):
        old, new = (recorded.adapt({k: v.clone().requires_grad_() for k, v in w.items()}, task) for w in (here, there))
        batch = recorded.batches("outer", task)[-1]
        losses.append(recorded.loss(new, batch).item())
        kls.append(recorded.kl(old, new, batch).item())
    found = recorded.policies(kind).measure(there)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-9)
    assert found.kl == pytest.approx(np.mean(kls), rel=1e-9)
    assert np.mean(kls) > 1e-3


class TheWrongWayRound(AdaptedPolicies):
    def _divergences(self, new: Params) -> Tensor:
        old, self._old = self._old, self._old._replace(params=[new])
        found = super()._divergences(old.params[-1])
        self._old = old
        return found


class NotAdapted(AdaptedPolicies):
    def path(self, params: Params) -> Any:
        return self._old if hasattr(self, "_old") else super().path(params)


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
    assert recorded.policies().measure(recorded.params).kl == 0
