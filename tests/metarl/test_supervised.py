"""The finite-sum oracle and its source."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from metarl.supervised import FiniteSumSource, FiniteSumTasks
from metarl.types import Batch, Params


def loss(params: Params, batch: Batch) -> torch.Tensor:
    return (params["w"] * batch["x"] - batch["y"]).square().mean()


def data(tasks: int, points: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(tasks, points, generator=generator) for k in ("x", "y")}


W: Params = {"w": torch.tensor(0.5)}


def test_draws_are_the_sets_whatever_the_parameters() -> None:
    support, query = data(3, 4), data(3, 6, seed=1)
    tasks = FiniteSumTasks(loss, support, query)
    assert tasks.num_tasks == 3
    for role, wanted in [("inner", support), ("hessian", support), ("outer", query)]:
        assert tasks.draw({"w": torch.randn(3)}, role) is wanted
    assert tasks.cost(support) == {"samples": 12}
    assert tasks.cost(query) == {"samples": 18}
    assert FiniteSumTasks(loss, support).draw(W, "outer") is support
    assert FiniteSumTasks(loss, {"c": torch.zeros(5)}).cost({"c": torch.zeros(5)}) == {"samples": 5}


def test_score_is_the_given_one_or_minus_the_loss() -> None:
    batch = {k: v[0] for k, v in data(3, 4).items()}
    assert FiniteSumTasks(loss, data(3, 4)).score(W, batch) == -loss(W, batch)
    assert FiniteSumTasks(loss, data(3, 4), score=lambda w, b: b["x"].sum()).score(W, batch) == batch["x"].sum()


@pytest.mark.parametrize(
    ("support", "query"),
    [
        ({"x": torch.zeros(3, 2), "y": torch.zeros(2, 2)}, None),
        (data(3, 4), data(2, 4)),
        ({"x": torch.zeros(0, 2)}, None),
        ({}, None),
    ],
)
def test_sets_of_different_sizes(support: Batch, query: Batch | None) -> None:
    with pytest.raises(ValueError, match="the same number of tasks in every leaf, got"):
        FiniteSumTasks(loss, support, query)


def source(tasks: int = 6) -> FiniteSumSource:
    return FiniteSumSource(
        FiniteSumTasks(loss, data(tasks, 4), data(tasks, 5, seed=1), lambda w, b: b["x"][0]), W, "first"
    )


def rows(sample: FiniteSumTasks, whole: FiniteSumTasks) -> list[int]:
    """Which of the tasks these are; support and query must say the same."""
    found = []
    for role in ("inner", "outer"):
        a, b = sample.draw(W, role), whole.draw(W, role)
        found.append([int((b["y"] == row).all(1).nonzero()) for row in a["y"]])
        assert torch.equal(a["x"], b["x"][found[-1]])
    assert found[0] == found[1]
    return found[0]


def test_sampling_is_without_replacement_and_uniform() -> None:
    fixed, rng = source(), np.random.default_rng(0)
    seen: Counter[int] = Counter()
    for _ in range(600):
        got = rows(fixed.sample(2, rng), fixed.tasks)
        assert len(set(got)) == 2
        seen.update(got)
    stderr = (600 * 1 / 3 * 2 / 3) ** 0.5
    assert all(abs(seen[i] - 200) < 4 * stderr for i in range(6))


def test_sampling_follows_the_generator_and_keeps_loss_and_score() -> None:
    fixed = source()
    a, b, c = (rows(fixed.sample(3, np.random.default_rng(seed)), fixed.tasks) for seed in (0, 0, 1))
    assert a == b != c
    some = fixed.sample(2, np.random.default_rng(0))
    batch = {k: v[0] for k, v in some.support.items()}
    assert (some.num_tasks, some.loss, some.score(W, batch)) == (2, loss, batch["x"][0])
    assert fixed.sample(6, np.random.default_rng(0)) is fixed.tasks  # all, in order
    assert fixed.score_name == "first"
    assert FiniteSumSource(fixed.tasks, W).score_name == "minus_loss"


def test_initial_parameters_are_a_copy() -> None:
    fixed = source()
    params = fixed.initial_params()
    params["w"] += 1
    assert fixed.initial_params()["w"] == W["w"] == 0.5


@pytest.mark.parametrize("bad", [0, -1, 7, 2.0, True, "2"])
def test_bad_number_of_tasks(bad: Any) -> None:
    with pytest.raises(ValueError, match="num_tasks must be"):
        source().sample(bad, np.random.default_rng(0))
