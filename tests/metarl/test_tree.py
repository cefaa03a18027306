"""Arithmetic on trees, against the same on flat vectors."""

import pytest
import torch

from metarl import tree
from metarl.types import Params

SHAPES = {"matrix": (2, 3), "scalar": (), "vector": (4,)}


def random(seed: int, *lead: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn((*lead, *shape), generator=generator, dtype=torch.float64) for k, shape in SHAPES.items()}


def flat(params: Params) -> torch.Tensor:
    return torch.cat([v.reshape(-1) for v in params.values()])


def test_arithmetic_is_that_of_flat_vectors() -> None:
    a, b = random(0), random(1)
    assert torch.equal(flat(tree.add(a, b)), flat(a) + flat(b))
    assert torch.equal(flat(tree.subtract(a, b)), flat(a) - flat(b))
    for scale in (-0.3, torch.tensor(2.5, dtype=torch.float64)):
        assert torch.equal(flat(tree.add_scaled(a, scale, b)), flat(a) + scale * flat(b))
    torch.testing.assert_close(tree.dot(a, b), flat(a) @ flat(b))
    torch.testing.assert_close(tree.norm(a), flat(a).norm())
    assert tree.norm(tree.tree_map(torch.zeros_like, a)) == 0


def test_leaves_are_matched_by_name() -> None:
    a, b = random(0), random(1)
    reordered = {k: b[k] for k in reversed(b)}
    assert torch.equal(flat(tree.add(a, reordered)), flat(a) + flat(b))
    with pytest.raises(KeyError, match="vector"):
        tree.add(a, {k: v for k, v in b.items() if k != "vector"})


def test_stack_take_and_mean() -> None:
    a = random(0)
    stacked = tree.broadcast(a, 3)
    for k, v in stacked.items():
        assert v.shape == (3, *SHAPES[k])
        assert v.data_ptr() == a[k].data_ptr()  # a view
    assert all(torch.equal(v, a[k]) for k, v in tree.take(stacked, 2).items())
    rows = random(1, 3)
    for k, v in tree.mean(rows).items():
        torch.testing.assert_close(v, (rows[k][0] + rows[k][1] + rows[k][2]) / 3)


def test_flatten_and_unflatten_are_inverse() -> None:
    rows = random(0, 3)
    matrix = tree.flatten(rows)
    assert matrix.shape == (3, 11)
    assert torch.equal(matrix[1], flat(tree.take(rows, 1)))
    for k, v in tree.unflatten(matrix, rows).items():
        assert torch.equal(v, rows[k])
    with pytest.raises(RuntimeError):
        tree.unflatten(matrix[:, :-1], rows)


def test_detached_is_new_memory_without_a_graph() -> None:
    a = {k: (2 * v.requires_grad_()) for k, v in random(0).items()}
    b = tree.detach(a)
    for k, v in b.items():
        assert torch.equal(v, a[k])
        assert not v.requires_grad
        assert v.data_ptr() != a[k].data_ptr()
