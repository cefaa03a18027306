"""Tasks from CSV files, and grids of tasks for heat maps."""

from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from metarl import AdaptationCurve
from metarl.experiments.common.heat_map import heat_map_figure, make_grid
from metarl.experiments.common.task_files import read_task_file

SPACE = Dict({"goal": Box(-1.0, 1.0, (2,), np.float32), "length": Discrete(5)})


def write(folder: Path, text: str) -> Path:
    (folder / "goals.csv").write_text(text)
    return folder / "goals.csv"


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "as Excel writes it"])
def test_tasks_are_read_in_any_order_of_columns(tmp_path: Path, start: str) -> None:
    tasks = read_task_file(write(tmp_path, f"{start}length, goal[1],goal[0]\n3,0.5,-0.25\n\n1,2e0,7\n"), SPACE)
    assert tasks["goal"].tolist() == [[-0.25, 0.5], [7.0, 2.0]]  # also outside the space
    assert tasks["length"].tolist() == [3, 1]
    assert (tasks["goal"].dtype, tasks["length"].dtype) == (np.float32, np.int64)


HEAD = "goal[0],goal[1],length\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"goals\.csv, line 1: the columns must be goal\[0\],goal\[1\],length, got $"),
        ("goal[0],goal[1]\n1,2\n", r"line 1: the columns must be goal\[0\],goal\[1\],length, got goal\[0\],goal\[1\]"),
        ("x,y,length\n", r"line 1: the columns must be .*, got x,y,length"),
        ("goal[0],goal[0],length\n", "line 1: the columns must be"),
        (HEAD, "must have a line for each task after the names of the columns, got none"),
        (f"{HEAD}1,2,3\n1,2\n", "line 3: there must be 3 values, got 2"),
        (f"{HEAD}1,2,3\n1,abc,2\n", r"line 3, column 'goal\[1\]': must be a finite number, got 'abc'"),
        (f"{HEAD}nan,2,3\n", r"line 2, column 'goal\[0\]': must be a finite number, got 'nan'"),
        (f"{HEAD}1,2,2.5\n", "line 2, column 'length': must be a whole number, got '2.5'"),
        (f"{HEAD}1e60,2,3\n", r"task\['goal'\] must be finite"),
    ],
)
def test_wrong_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_task_file(write(tmp_path, text), SPACE)


def test_grids_cover_the_space() -> None:
    grid = make_grid(Dict({"goal": Box(np.array([0.0, -2.0], np.float32), np.array([1.0, 2.0], np.float32))}), 4)
    assert grid.names == ("goal[0]", "goal[1]")
    assert [axis.tolist() for axis in grid.centres] == [[0.125, 0.375, 0.625, 0.875], [-1.5, -0.5, 0.5, 1.5]]
    assert grid.tasks["goal"].shape == (16, 2)
    assert grid.tasks["goal"][:5].tolist() == [[0.125, -1.5], [0.125, -0.5], [0.125, 0.5], [0.125, 1.5], [0.375, -1.5]]
    cells = make_grid(Dict({"goal": MultiDiscrete([2, 3])}))
    assert cells.tasks["goal"].tolist() == [[i, j] for i in range(2) for j in range(3)]
    mixed = make_grid(Dict({"mass": Box(0.0, 1.0, (), np.float32), "n": Discrete(2, start=5)}), 2)
    assert mixed.tasks["n"].tolist() == [5, 6, 5, 6]
    assert mixed.tasks["mass"].tolist() == [0.25, 0.25, 0.75, 0.75]


@pytest.mark.parametrize(
    "space",
    [
        Dict({"goal": Box(0.0, 1.0, (3,), np.float32)}),
        Dict({"goal": Box(0.0, 1.0, (), np.float32)}),
        Dict({"goal": Box(-np.inf, 1.0, (2,), np.float32)}),
        SPACE,
    ],
)
def test_other_spaces_have_no_grid(space: Dict) -> None:
    with pytest.raises(ValueError, match="heat_map needs a task space of two numbers with bounds, got Dict"):
        make_grid(space)


def test_heat_maps_put_scores_where_the_tasks_are() -> None:
    """A score that is the horizontal place before adaptation, and the vertical one after it."""
    grid = make_grid(Dict({"goal": Box(np.array([0.0, -2.0], np.float32), np.array([1.0, 2.0], np.float32))}), 4)
    scores = grid.tasks["goal"].astype(np.float64)[None]  # [1, 16, 2]
    figure = heat_map_figure(AdaptationCurve(scores, "return"), grid, "title")
    before, after = (ax.images[0] for ax in figure.axes[:2])
    x, y = grid.centres
    np.testing.assert_allclose(before.get_array(), np.tile(x, (4, 1)))  # rows are vertical
    np.testing.assert_allclose(after.get_array(), np.tile(y[:, None], (1, 4)))
    assert before.origin == after.origin == "lower"
    assert tuple(before.get_extent()) == pytest.approx((0.0, 1.0, -2.0, 2.0))
    assert before.get_clim() == after.get_clim() == (-1.5, 1.5)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == grid.names
