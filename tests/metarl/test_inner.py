"""Inner rules by numbers worked out by hand, and what adaptation asks of the oracle."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl import Inner
from metarl.inner import adaptation_path, inner_step, prox_sgd, restart_sgd, sgd, sign_sgd
from metarl.types import Batch, Params, Role, Rule

W, G, ANCHOR = [1.0, -2.0, 0.5], [4.0, -0.5, 0.0], [0.0, 1.0, 0.5]


def tree(values: list[float]) -> Params:
    """One scalar leaf and one vector."""
    x = torch.tensor(values, dtype=torch.float64)
    return {"a": x[0], "b": x[1:]}


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (sgd(0.5), [-1.0, -1.75, 0.5]),
        (sign_sgd(0.5), [0.5, -1.5, 0.5]),  # sign(0) = 0
        (prox_sgd(0.5, 2.0), [-2.0, 1.25, 0.5]),  # g + 2 (w - anchor) = 6, -6.5, 0
        (prox_sgd(0.5, 0.0), [-1.0, -1.75, 0.5]),
        (restart_sgd(0.5), [-2.0, 1.25, 0.5]),
        (sgd(0.0), W),
    ],
)
def test_one_step(rule: Rule, wanted: list[float]) -> None:
    w, g, anchor = tree(W), tree(G), tree(ANCHOR)
    got = rule(w, g, anchor)
    for k, v in tree(wanted).items():
        assert torch.equal(got[k], v)
        assert torch.equal(w[k], tree(W)[k])  # parameters are values
    rows = [{k: torch.stack([v, v]) for k, v in x.items()} for x in (w, g, anchor)]
    for k, v in inner_step(rule, *rows).items():
        assert torch.equal(v, torch.stack([got[k], got[k]]))


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), True, "0.1", None, torch.tensor(0.1)])
@pytest.mark.parametrize("make", [sgd, sign_sgd, restart_sgd, lambda x: prox_sgd(x, 1.0)])
def test_bad_learning_rates(make: Callable[[Any], Rule], bad: Any) -> None:
    with pytest.raises(ValueError, match="learning_rate must be a finite number at least 0"):
        make(bad)


def test_bad_proximal_strength() -> None:
    with pytest.raises(ValueError, match="lam must be a finite number at least 0, got -1"):
        prox_sgd(0.1, -1.0)


class Spy:
    """Two tasks `(w - centre)^2 / 2` whose n-th batch is moved by n; remembers where it was asked."""

    num_tasks = 2

    def __init__(self) -> None:
        self.asked: list[tuple[Role, list[float]]] = []

    def draw(self, params: Params, role: Role) -> Batch:
        self.asked.append((role, params["w"].tolist()))
        return {"c": torch.tensor([0.0, 10.0], dtype=torch.float64) + len(self.asked)}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return 0.5 * (params["w"] - batch["c"]) ** 2


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_every_step_draws_at_the_current_parameters(steps: int) -> None:
    spy, w = Spy(), {"w": torch.tensor(2.0, dtype=torch.float64)}
    path = adaptation_path(w, spy, Inner(sgd(0.5), steps))
    points = [[2.0, 2.0], [1.5, 6.5], [1.75, 9.25], [2.375, 11.125]]  # half-way to (n, 10 + n) every time
    assert spy.asked == [("inner", p) for p in points[:steps]]
    assert [p["w"].tolist() for p in path.params] == points[: steps + 1]
    assert [b["c"].tolist() for b in path.batches] == [[1.0, 11.0], [2.0, 12.0], [3.0, 13.0]][:steps]
    assert [g["w"].tolist() for g in path.grads] == [[1.0, -9.0], [-0.5, -5.5], [-1.25, -3.75]][:steps]
    assert w["w"].item() == 2.0


def test_the_anchor_is_where_adaptation_began() -> None:
    path = adaptation_path({"w": torch.tensor(2.0, dtype=torch.float64)}, Spy(), Inner(restart_sgd(0.5), 3))
    assert [p["w"].tolist() for p in path.params] == [[2.0, 2.0], [1.5, 6.5], [2.25, 4.75], [2.375, 6.125]]
