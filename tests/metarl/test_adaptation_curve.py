"""Adaptation curves: statistics, files that give the same curve back, pictures."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from metarl import AdaptationCurve
from metarl.statistics import confidence_interval, crossed_bootstrap
from metarl.task_params import join_columns, split_columns

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(2, 3, 4))
GOALS = RNG.normal(size=(3, 2)).astype(np.float32)
FULL = AdaptationCurve(
    SCORES,
    "return",
    {"goal": GOALS, "length": np.array([3, 1, 2])},
    np.round(RNG.random((2, 3, 4)), 2),
    {"env_steps": np.arange(8).reshape(2, 4), "gradients": np.zeros((2, 4), np.int64)},
    (0.1, 0.05, None),
)
PLAIN = AdaptationCurve(SCORES[:1])


def assert_same(found: AdaptationCurve, wanted: AdaptationCurve) -> None:
    assert found.to_dict() == wanted.to_dict()
    for name in ("scores", "success"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_statistics() -> None:
    assert FULL.mean == pytest.approx([SCORES[:, :, k].mean() for k in range(4)])
    assert FULL.ci95 == [confidence_interval(SCORES[:, :, k]) for k in range(4)]
    assert FULL.iqm == [crossed_bootstrap(SCORES[:, :, k]) for k in range(4)]
    assert (FULL.num_tasks, FULL.steps) == (3, 3)
    assert FULL.env_steps is not None
    assert FULL.env_steps.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert PLAIN.env_steps is None


@pytest.mark.parametrize("curve", [FULL, PLAIN], ids=["full", "plain"])
def test_json_gives_the_same_curve(curve: AdaptationCurve, tmp_path: Path) -> None:
    curve.to_json(tmp_path / "curve.json")
    assert_same(AdaptationCurve.from_json(tmp_path / "curve.json"), curve)
    found = json.loads((tmp_path / "curve.json").read_text())
    assert found["mean"] == curve.mean
    assert ("success" in found) == (curve.success is not None)


def test_csv_has_a_row_for_each_seed_task_and_step(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    FULL.to_csv(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["seed", "task", "step", "return", "success", "goal[0]", "goal[1]", "length"]
    assert len(rows) == 2 * 3 * 4
    for row in rows:
        place = int(row["seed"]), int(row["task"]), int(row["step"])
        assert float(row["return"]) == SCORES[place]
        assert FULL.success is not None
        assert float(row["success"]) == FULL.success[place]
        assert [float(row["goal[0]"]), float(row["goal[1]"])] == GOALS[place[1]].tolist()
        assert row["length"] == str([3, 1, 2][place[1]])


@pytest.mark.parametrize("curve", [FULL, PLAIN], ids=["full", "plain"])
def test_csv_gives_the_same_scores_tasks_and_successes(curve: AdaptationCurve, tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    curve.to_csv(path)
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(rows)]) + "\n")  # rows may be in any order
    found = AdaptationCurve.from_csv(path)
    for name in ("scores", "success"):
        np.testing.assert_array_equal(getattr(found, name), getattr(curve, name))
    assert found.score_name == curve.score_name
    assert found.tasks.keys() == curve.tasks.keys()
    for name, values in curve.tasks.items():
        np.testing.assert_array_equal(found.tasks[name], values)
    assert (found.costs, found.step_sizes) == ({}, ())


HEAD = "seed,task,step,return,mass\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: the columns must be seed, task, step, the score, ..., got \[\]"),
        ("seed,task,return\n0,0,1\n", "line 1: the columns must be"),
        (HEAD, "must have a row for each seed, task and step, got none"),
        (f"{HEAD}0,0,0,1\n", "line 2: there must be 5 values, got 4"),
        (f"{HEAD}0,0,0,1,2\n1,0,0,1,3\n", "a task must have the same value for all seeds and steps"),
        (f"{HEAD}0,0,0,1,2\n0,0,1,1,3\n", "a task must have the same value for all seeds and steps"),
        (f"{HEAD}0,0,0,1,2\n0,0,1000000000000,1,2\n", "must have one row for each"),
        (f"{HEAD}0,0,0,1,2\n0,0,1,x,2\n", "line 3, column 'return': must be a number, got 'x'"),
        (f"{HEAD}0,0.5,0,1,2\n", "line 2, column 'task': must be a whole number, got '0.5'"),
        (f"{HEAD}0,0,1,1,2\n", r"must have one row for each of \(1, 1, 2\) seeds, tasks and steps, got 1"),
        (f"{HEAD}0,0,1,1,2\n0,0,1,3,2\n", "but has none for {'seed': 0, 'task': 0, 'step': 0}"),
        ("seed,task,step,return,goal[1]\n0,0,0,1,2\n", r"every number of 'goal', but 'goal\[0\]' is missing"),
    ],
)
def test_damaged_tables_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        AdaptationCurve.from_csv(tmp_path / "x.csv")


FLAT = '{"scores": [[1]], "score": "x", "tasks": {}, "costs": {}, "step_sizes": []}'


@pytest.mark.parametrize("text", ["{", "[]", "{}", FLAT])
def test_damaged_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json must be an adaptation curve as JSON"):
        AdaptationCurve.from_json(tmp_path / "x.json")


def test_names_that_clash_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tasks must have other names than .* for a table, got 'task'"):
        AdaptationCurve(SCORES, tasks={"task": np.zeros(3)}).to_csv(tmp_path / "x.csv")


def test_seeds_are_joined() -> None:
    parts = [
        AdaptationCurve(SCORES[s : s + 1], "return", FULL.tasks, None, {"env_steps": np.array([[s, 1, 2, 3]])})
        for s in (0, 1)
    ]
    joined = AdaptationCurve.join(parts)
    np.testing.assert_array_equal(joined.scores, SCORES)
    assert joined.costs["env_steps"].tolist() == [[0, 1, 2, 3], [1, 1, 2, 3]]
    assert joined.ci95 == FULL.ci95
    other = AdaptationCurve(SCORES[:1], "return", {**FULL.tasks, "goal": GOALS + 1})
    for wrong, message in (
        ([], "curves must be at least one curve"),
        ([parts[0], other], "curves must have the same tasks"),
        ([parts[0], PLAIN], "curves must have the same score_name, got return and score"),
        (
            [parts[0], AdaptationCurve(SCORES[:1], "return", FULL.tasks)],
            r"curves must have the same costs, got \['env_steps'\] and \[\]",
        ),
        ([PLAIN, AdaptationCurve(SCORES[:1, :2])], "curves must have the same num_tasks, got 3 and 2"),
    ):
        with pytest.raises(ValueError, match=message):
            AdaptationCurve.join(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": SCORES[0]}, r"scores must be \[seeds, tasks, steps \+ 1\], got shape \(3, 4\)"),
        ({"success": SCORES[0]}, "success must have the shape of scores"),
        ({"tasks": {"goal": GOALS[:2]}}, r"tasks\['goal'\] must have 3 rows, one for each task, got 2"),
        ({"costs": {"samples": np.zeros((1, 4))}}, r"costs\['samples'\] must have shape \(2, 4\), got \(1, 4\)"),
        ({"step_sizes": (0.1,)}, "step_sizes must be 3, one for each step, got 1"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptationCurve(**{"scores": SCORES, **arguments})


def test_plots(tmp_path: Path) -> None:
    FULL.plot(tmp_path / "curve.png", label="ours")
    with Image.open(tmp_path / "curve.png") as image:
        colours = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
    assert colours is not None
    assert len(colours) > 50
    FULL.plot(tmp_path / "curve.pdf")
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")
    ax = Figure().subplots()
    FULL.plot(ax)
    assert ax.lines[0].get_ydata() == pytest.approx(FULL.mean)
    band = ax.collections[0].get_paths()[0].vertices
    low, high = zip(*[interval for interval in FULL.ci95 if interval], strict=True)
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((min(low), max(high)))


def test_columns() -> None:
    tasks = {"a": np.arange(12.0).reshape(2, 2, 3), "b": np.array([1, 2])}
    columns = split_columns(tasks)
    assert list(columns) == [*(f"a[{i}][{j}]" for i in range(2) for j in range(3)), "b"]
    assert columns["a[1][0]"].tolist() == [3.0, 9.0]
    back = join_columns(columns)
    for name, values in tasks.items():
        np.testing.assert_array_equal(back[name], values)
    with pytest.raises(ValueError, match="columns of 'a' must have the same number of indices"):
        join_columns({"a[0]": np.zeros(2), "a": np.zeros(2)})
