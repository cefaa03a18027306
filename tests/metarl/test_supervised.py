"""The finite-sum oracle and its source."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from metarl.derivatives import gradients
from metarl.supervised import BatchSizes, FiniteSumSource, FiniteSumTaskBatch, ResamplingTaskBatch
from metarl.types import Batch, Params


def loss(params: Params, batch: Batch) -> torch.Tensor:
    return (params["w"] * batch["x"] - batch["y"]).square().mean()


def data(tasks: int, points: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(tasks, points, generator=generator) for k in ("x", "y")}


W: Params = {"w": torch.tensor(0.5)}


def test_draws_are_the_sets_whatever_the_parameters() -> None:
    support, query = data(3, 4), data(3, 6, seed=1)
    tasks = FiniteSumTaskBatch(loss, support, query)
    assert tasks.num_tasks == 3
    for role, wanted in [("inner", support), ("hessian", support), ("outer", query)]:
        assert tasks.draw({"w": torch.randn(3)}, role) is wanted
    assert tasks.cost(support) == {"samples": 12}
    assert tasks.cost(query) == {"samples": 18}
    assert FiniteSumTaskBatch(loss, support).draw(W, "outer") is support
    assert FiniteSumTaskBatch(loss, {"c": torch.zeros(5)}).cost({"c": torch.zeros(5)}) == {"samples": 5}


def test_score_is_the_given_one_or_minus_the_loss() -> None:
    batch = {k: v[0] for k, v in data(3, 4).items()}
    assert FiniteSumTaskBatch(loss, data(3, 4)).score(W, batch) == -loss(W, batch)
    assert FiniteSumTaskBatch(loss, data(3, 4), score=lambda w, b: b["x"].sum()).score(W, batch) == batch["x"].sum()


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
        FiniteSumTaskBatch(loss, support, query)


def source(tasks: int = 6) -> FiniteSumSource:
    return FiniteSumSource(
        FiniteSumTaskBatch(loss, data(tasks, 4), data(tasks, 5, seed=1), lambda w, b: b["x"][0]), W, "first"
    )


def rows(sample: FiniteSumTaskBatch, whole: FiniteSumTaskBatch) -> list[int]:
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


def minibatches(seed: int = 0, **sizes: int) -> FiniteSumTaskBatch:
    support = {"x": torch.arange(15.0).view(3, 5), "y": torch.zeros(3, 5)}
    query = {"x": 100 + torch.arange(12.0).view(3, 4), "y": torch.zeros(3, 4)}
    generator = torch.Generator().manual_seed(seed)
    return FiniteSumTaskBatch(loss, support, query, batch_sizes=BatchSizes(**sizes), generator=generator)


def test_minibatches_are_subsets_without_replacement() -> None:
    tasks = minibatches(inner=3, outer=2)
    for _ in range(50):
        inner, outer = (tasks.draw(W, role) for role in ("inner", "outer"))
        for i in range(3):
            x = inner["x"][i].tolist()
            assert len(set(x)) == 3
            assert set(x) <= set(range(5 * i, 5 * i + 5))
            assert set(outer["x"][i].tolist()) <= {100.0 + 4 * i + j for j in range(4)}
        assert tasks.cost(inner) == {"samples": 9}
    assert tasks.draw(W, "hessian") is tasks.support


def test_minibatches_draw_every_point_equally_often_and_independently() -> None:
    tasks = minibatches(inner=2, hessian=2)
    number = 4000
    first, second = (torch.stack([tasks.draw(W, r)["x"] for _ in range(number)]) for r in ("inner", "hessian"))
    for drawn in (first, second):
        for point in range(15):
            share = float((drawn[:, point // 5] == point).any(1).double().mean())
            assert abs(share - 2 / 5) < 4 * (0.24 / number) ** 0.5
    both = float(((first[:, 0] == 0).any(1) & (second[:, 0] == 0).any(1)).double().mean())
    assert abs(both - 0.16) < 4 * (0.16 * 0.84 / number) ** 0.5


def test_minibatch_gradients_are_unbiased() -> None:
    tasks, full = minibatches(inner=2), minibatches()
    w = {"w": torch.full((3,), 0.3)}
    draws = torch.stack([gradients(tasks, w, tasks.draw(w, "inner"))["w"] for _ in range(3000)])
    wanted = gradients(full, w, full.draw(w, "inner"))["w"]
    assert bool(((draws.mean(0) - wanted).abs() < 4 * draws.std(0) / 3000**0.5).all())


def test_a_source_seeds_the_minibatches_of_its_tasks() -> None:
    source = FiniteSumSource(minibatches(inner=2), W)
    for number in (2, 3):
        a, b, c = (source.sample(number, np.random.default_rng(seed)).draw(W, "inner")["x"] for seed in (0, 0, 1))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("sizes", "generator", "message"),
    [
        ({"inner": 0}, True, "batch_sizes.inner must be an integer of at least 1"),
        ({"hessian": 6}, True, "batch_sizes.hessian must be at most 5, the size of the support set, got 6"),
        ({"outer": 5}, True, "batch_sizes.outer must be at most 4, the size of the query set, got 5"),
        ({"inner": 2}, False, "generator must be a torch.Generator for minibatches"),
    ],
)
def test_bad_minibatches(sizes: dict[str, int], generator: bool, message: str) -> None:
    tasks = minibatches()
    with pytest.raises(ValueError, match=message):
        FiniteSumTaskBatch(
            loss,
            tasks.support,
            tasks.query,
            batch_sizes=BatchSizes(**sizes),
            generator=torch.Generator() if generator else None,
        )


def test_minibatches_of_something_without_points() -> None:
    sets = {"x": torch.zeros(3, 4), "y": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"support must have leaves \[T, n, ...\] with one n"):
        FiniteSumTaskBatch(loss, sets, batch_sizes=BatchSizes(inner=1), generator=torch.Generator())


def test_resampling_draws_fresh_data_from_its_generator() -> None:
    def sampler(role: str, generator: torch.Generator) -> Batch:
        number = 7 if role == "outer" else 4
        return {k: torch.randn(3, number, generator=generator) for k in ("x", "y")}

    def tasks(seed: int) -> ResamplingTaskBatch:
        return ResamplingTaskBatch(loss, 3, sampler, torch.Generator().manual_seed(seed))

    a, b, c = tasks(0), tasks(0), tasks(1)
    first = a.draw(W, "inner")
    assert torch.equal(first["x"], b.draw(W, "inner")["x"])
    assert not torch.equal(first["x"], a.draw(W, "inner")["x"])
    assert not torch.equal(first["x"], c.draw(W, "inner")["x"])
    assert a.draw(W, "outer")["x"].shape == (3, 7)
    with pytest.raises(ValueError, match="num_tasks must be"):
        ResamplingTaskBatch(loss, 0, sampler, torch.Generator())
