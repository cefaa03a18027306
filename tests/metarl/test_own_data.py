"""Your own data as tasks: where the points go, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from metarl import MetaLearner
from metarl.inner_search import try_inner_step_sizes
from metarl.supervised import OwnTasks, from_arrays, from_datasets, read_csv, split_tasks
from metarl.supervised.networks import mlp

pytestmark = pytest.mark.usefixtures("unrecorded")
SIZES = (30, 20, 25, 40)


def tagged(number: int = 4) -> list[Any]:
    """Tasks whose points say where they are from: x = (task, point), y = 100 task + point."""
    x = [np.stack([np.full(n, t), np.arange(n)], 1).astype(np.float64) for t, n in enumerate(SIZES[:number])]
    return from_arrays(x, [100 * table[:, 0] + table[:, 1] for table in x])


def make(**settings: Any) -> OwnTasks:
    return OwnTasks(tagged(), mlp(2, 1, hidden=(4,)), **{"shots": 5, "queries": 10, **settings})


def points(batch: Any) -> list[set[tuple[float, ...]]]:
    return [{tuple(point) for point in task.tolist()} for task in batch["x"]]


def test_support_and_query_are_different_points_of_the_task() -> None:
    tasks: Any = make().sample(3, np.random.default_rng(0))
    for support, query in zip(points(tasks.support), points(tasks.query), strict=True):
        assert (len(support), len(query)) == (5, 10)
        assert not support & query
        assert len({task for task, _ in support | query}) == 1
    assert len({next(iter(task))[0] for task in points(tasks.support)}) == 3  # different tasks
    x, y = tasks.support["x"], tasks.support["y"]
    assert torch.equal(y, 100 * x[..., 0] + x[..., 1])
    again: Any = make().sample(3, np.random.default_rng(0))
    assert torch.equal(again.support["x"], x)


def test_resampling_draws_fresh_points() -> None:
    tasks = make(setting="resampling", shots=15, queries=15).sample(2, np.random.default_rng(0))
    one, other = (points(tasks.draw({}, "inner")) for _ in range(2))
    assert one != other
    assert [next(iter(task))[0] for task in one] == [next(iter(task))[0] for task in other]  # of the same tasks


def test_losses_and_scores_against_torch() -> None:
    source = make()
    tasks, params = source.sample(1, np.random.default_rng(0)), source.initial_params()
    batch = {k: v[0] for k, v in tasks.draw(params, "inner").items()}
    wanted = nn.functional.mse_loss(source.network(batch["x"])[:, 0], batch["y"])
    assert torch.isclose(tasks.loss(params, batch), wanted)
    assert torch.isclose(tasks.score(params, batch), -wanted)

    labels = from_arrays([np.random.default_rng(0).normal(size=(20, 2))], [np.arange(20) % 3])
    source = OwnTasks(labels, mlp(2, 3, hidden=(4,)), loss="cross_entropy")
    assert source.score_name == "accuracy"
    tasks, params = source.sample(1, np.random.default_rng(0)), source.initial_params()
    batch = {k: v[0] for k, v in tasks.draw(params, "outer").items()}
    logits = source.network(batch["x"])
    assert torch.isclose(tasks.loss(params, batch), nn.functional.cross_entropy(logits, batch["y"]))
    assert float(tasks.score(params, batch)) == pytest.approx(float((logits.argmax(1) == batch["y"]).double().mean()))


def test_a_loss_and_a_score_of_your_own() -> None:
    def absolute(predictions: Tensor, y: Tensor) -> Tensor:
        return (predictions - y).abs().mean()

    source = make(loss=absolute, score=lambda predictions, y: -(predictions - y).abs().amax())
    learner = MetaLearner(source, "fo_maml", inner_lr=1e-3, meta_batch_size=2).learn(1)
    assert learner.evaluate(num_tasks=2, steps=1, warn=False).mean[0] < 0
    assert source.score_name == "score"


def test_whole_numbers_are_targets_of_your_own_loss() -> None:
    """Predictions [n, 1] and y [n]: the same loss for integers as for floats, by hand."""

    def squared(predictions: Tensor, y: Tensor) -> Tensor:
        return (predictions - y).square().mean()

    losses = []
    for kind in (np.float64, np.int64):
        tasks = from_arrays([np.stack([np.arange(20.0)] * 2, 1)], [np.arange(20).astype(kind)])
        source = OwnTasks(tasks, mlp(2, 1, hidden=(4,)), loss=squared, shots=5, queries=10)
        batch = {k: v[0] for k, v in source.sample(1, np.random.default_rng(0)).draw({}, "inner").items()}
        losses.append(float(source.sample(1, np.random.default_rng(0)).loss(source.initial_params(), batch)))
        by_hand = (source.network(batch["x"])[:, 0] - batch["y"]).square().mean()
        assert losses[-1] == pytest.approx(float(by_hand.detach()))
    assert losses[0] == losses[1]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("city,area,rooms,price\nb,1,2,3.5\na,4,5,6\nb,7,8,9\n")
    first, second = read_csv(path, "city", ["area", "rooms"], "price")
    assert (first.name, first.x.tolist(), first.y.tolist()) == ("b", [[1.0, 2.0], [7.0, 8.0]], [3.5, 9.0])
    assert (second.name, second.x.tolist(), second.y.tolist()) == ("a", [[4.0, 5.0]], [6.0])
    path.write_text("city,area,label\nb,1,2\na,4,0\n")
    assert read_csv(path, "city", ["area"], "label")[0].y.dtype == torch.int64
    path.write_text("city,area,price\nb,1,2e300\n")  # no int64
    assert read_csv(path, "city", ["area"], "price")[0].y.tolist() == [2e300]
    path.write_bytes(b"\xef\xbb\xbfcity,area,label\nb,1,2\n")  # spreadsheets begin UTF-8 files with these bytes
    assert read_csv(path, "city", ["area"], "label")[0].name == "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("town,area,price\nb,1,2\n", "must have a column 'city'"),
        ("city,areas,price\nb,1,2\n", "column 'area', got .*; did you mean 'areas'"),
        ("city,area,price\nb,1,2\nb,one,2\n", "line 3: area must be a finite number, got 'one'"),
        ("city,area,price\nb,1\n", "line 2: price must be a finite number, got None"),
        ("city,area,price\n", "must have rows below its header"),
        ("city,area,price\nb,nan,1\n", "line 2: area must be a finite number, got 'nan'"),
        ("city,area,price\nb,1,2\nb,1,inf\n", "line 3: price must be a finite number, got 'inf'"),
        ("city,area,price\nb,1,5,2\n", "line 2: there must be 3 values, got more"),  # a decimal comma
        ("area,price,city\n1,2,b\n1,2\n", "line 3: city must name a task, got None"),
        ("city,area,price\n,1,2\n", "line 2: city must name a task, got ''"),
        ("city,area,area,price\nb,1,2,3\n", "must have one column 'area'"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_csv(path, "city", ["area"], "price")


def test_datasets() -> None:
    x, y = torch.rand(2, 6, 3), torch.rand(2, 6)
    tasks = from_datasets({name: TensorDataset(x[k], y[k]) for k, name in enumerate("ab")})
    assert [task.name for task in tasks] == ["a", "b"]
    assert torch.equal(tasks[1].x, x[1])
    assert torch.equal(tasks[1].y, y[1])
    with pytest.raises(ValueError, match="dataset '0' must give pairs"):
        from_datasets([TensorDataset(x[0])])
    with pytest.raises(ValueError, match="dataset '0' must have a length of at least 1"):
        from_datasets([TensorDataset(x[0][:0], y[0][:0])])


def test_split_is_of_tasks() -> None:
    tasks = tagged()
    train, test = split_tasks(tasks, 1, seed=3)
    assert sorted(task.name for task in train + test) == [task.name for task in tasks]
    assert len(test) == 1
    for number in (0, 4):
        with pytest.raises(ValueError, match="test must"):
            split_tasks(tasks, number)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 15, "queries": 10}, r"task '1' must have at least shots \+ queries = 15 \+ 10 points, got 20"),
        ({"loss": "mae"}, "loss must be one of"),
        ({"loss": "cross_entropy"}, "network must return logits .*y of torch.float64"),
        (
            {"loss": "cross_entropy", "tasks": from_arrays([np.zeros((30, 2))], [np.full(30, -100)])},
            "y must be the numbers of classes, from 0, for cross_entropy, got -100",  # torch would leave them out
        ),
        ({"network": mlp(2, 2)}, r"network must return the shape of y, \[2\] for two points, got \[2, 2\]"),
        ({"network": mlp(3, 1)}, "network must take x"),
        ({"network": nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))}, "Dropout.*network.eval"),
        ({"network": nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))}, "BatchNorm.*nn.LayerNorm"),
        ({"tasks": []}, "tasks must be from"),
        (
            {"tasks": [*tagged(3), *from_arrays([np.zeros((30, 3))], [np.zeros(30)], ["odd"])]},
            "'odd' must have x of the shape and type",
        ),
    ],
)
def test_bad_settings(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make(), **settings)


def test_trying_inner_step_sizes() -> None:
    """Against the learner's own evaluation, and a step that is far too large."""
    tasks = from_arrays(np.random.default_rng(0).normal(size=(6, 30, 2)), np.random.default_rng(1).normal(size=(6, 30)))
    learner = MetaLearner(OwnTasks(tasks, mlp(2, 1, hidden=(8,))), meta_batch_size=2)
    before = {k: v.clone() for k, v in learner.params.items()}
    small, large, absurd = try_inner_step_sizes(learner, [0.05, 0.2, 1e30], num_tasks=5)
    curve = learner.evaluate(num_tasks=5, steps=1, step_sizes=[0.2], warn=False).mean
    assert large.after == pytest.approx(curve[1], rel=1e-5)
    assert small.before == large.before
    assert small.kl is None
    assert np.isnan(absurd.after)
    assert all(torch.equal(before[k], learner.params[k]) for k in before)
