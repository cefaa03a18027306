"""`metarl tuning`: the maps, what counts as good, diverged runs, and that a stopped call continues."""

import dataclasses
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarl import MetaLearner
from metarl.engine import Engine
from metarl.experiments.reports import tuning
from metarl.experiments.reports.tuning import maps, problems
from metarl.experiments.reports.tuning.maps import Map, Maps, Place, best_of_network, shares_for_all, summarize
from metarl.experiments.reports.tuning.picture import as_table, brief, draw_maps
from metarl.schedules import Linear
from tests.experiments import runs

SMALL, LARGE = (4,), (8, 8)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems that are smaller than quick ones; records would take longer than these runs."""
    monkeypatch.setattr(tuning, "PROBLEMS", {name: make_tiny(problem) for name, problem in problems.PROBLEMS.items()})
    monkeypatch.setattr(tuning, "Engine", partial(Engine, record=False))


def make_tiny(problem: problems.Problem) -> problems.Problem:
    sizes = {"iterations": 2, "meta_batch_size": 2, "tasks": 3}
    return dataclasses.replace(
        problem, networks=(SMALL, LARGE), factors=(0.3, 1.0), learning_rates=(1e-3, 1e-2), **sizes
    )


def call(folder: Path, *arguments: object) -> tuple[runs.Outcome, dict[str, Any]]:
    outcome = runs.call("reports.tuning", "--out", folder, *arguments)
    path = folder / f"tuning_{arguments[1] if '--problem' in arguments else 'sinusoid'}.json"
    return outcome, json.loads(path.read_text())


@pytest.mark.usefixtures("tiny")
def test_the_maps_of_the_sinusoid(tmp_path: Path) -> None:
    outcome, found = call(tmp_path, "--problem", "sinusoid", "--outer", "maml", "sign_maml", "--seeds", 0, 1)
    assert outcome.code == 0, outcome.err
    assert len(found["runs"]) == 2 * 2 * 2 * 2 * 2  # networks, updates, step sizes, seeds

    # A run is what a learner with the same settings gets.
    run = next(run for run in found["runs"] if (run["outer"], run["seed"], run["network"]) == ("sign_maml", 1, [8, 8]))
    learner = MetaLearner(
        problems.sinusoids(LARGE, 1, False),
        "sign_maml",
        inner_lr=run["inner_lr"],
        inner_steps=problems.SINUSOID.inner_steps,
        meta_batch_size=2,
        learning_rate=run["learning_rate"],
        schedule=Linear(2),
        seed=1,
    ).learn(2)
    source = problems.sinusoids(LARGE, 1, True)
    score = learner.evaluate(source, num_tasks=3, steps=problems.SINUSOID.inner_steps, seed=1000, warn=False).mean[-1]
    assert run["score"] == score

    # Cells are means over seeds, and the table is made of them.
    for row in found["regions"]:
        cells: dict[tuple[float, float], list[float]] = {}
        for one in found["runs"]:
            if (maps.name(tuple(one["network"])), one["outer"]) == (row["network"], row["outer"]):
                cells.setdefault((one["inner_lr"], one["learning_rate"]), []).append(one["score"])
        means = {cell: np.mean(scores) for cell, scores in cells.items()}
        assert {len(scores) for scores in cells.values()} == {2}
        assert row["best"] == pytest.approx(max(means.values()))
        assert means[tuple(row["at"])] == max(means.values())
        assert f"| {row['network']} | `{row['outer']}` | {row['best']:.2f} | " in outcome.out
    with Image.open(tmp_path / "tuning_sinusoid.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or []) > 50


@pytest.mark.usefixtures("tiny")
def test_the_maps_of_navigation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    less = dataclasses.replace(tuning.PROBLEMS["navigation"], networks=(SMALL,), learning_rates=(1e-3,))
    monkeypatch.setitem(tuning.PROBLEMS, "navigation", less)
    outcome, found = call(tmp_path, "--problem", "navigation", "--outer", "fo_maml", "--iterations", 1, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == found
    assert {run["iterations"] for run in found["runs"]} == {1}
    assert all(-200 < run["score"] < 0 for run in found["runs"])


@pytest.mark.usefixtures("tiny")
def test_a_stopped_call_continues_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--problem", "sinusoid", "--outer", "fo_maml")
    _, whole = call(tmp_path / "whole", *arguments)

    number, train = 0, tuning.train

    def interrupted(*given: Any) -> Any:
        nonlocal number
        number += 1
        if number == 4:
            signal.raise_signal(signal.SIGTERM)
        return train(*given)

    monkeypatch.setattr(tuning, "train", interrupted)
    outcome, half = call(tmp_path / "cut", *arguments)
    assert outcome.code == 128 + signal.SIGTERM
    assert "the same command continues" in outcome.err
    assert len(half["runs"]) == 3
    outcome, resumed = call(tmp_path / "cut", *arguments)
    assert outcome.code == 0, outcome.err
    assert number == 4 + 5  # three of the eight runs were done
    assert resumed == whole
    # A finished one trains nothing, and only draws again.
    assert call(tmp_path / "cut", *arguments, "--distance", 0.5)[1]["runs"] == whole["runs"]
    assert number == 9

    outcome = runs.call("reports.tuning", "--out", tmp_path / "cut", "--outer", "maml")
    assert (outcome.code, outcome.out) == (2, "")
    assert "out must be another folder" in outcome.err
    (tmp_path / "cut" / "tuning_sinusoid.json").write_text('{"settings": 3')
    outcome = runs.call("reports.tuning", "--out", tmp_path / "cut", *arguments)
    assert outcome.code == 2
    assert "out must be without tuning_sinusoid.json, or have a whole one" in outcome.err


@pytest.mark.usefixtures("tiny")
def test_runs_that_diverge_are_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outer step size of 1e30 ends in infinities, in every cell of the row."""
    wild = {k: dataclasses.replace(p, learning_rates=(1e-3, 1e30)) for k, p in tuning.PROBLEMS.items()}
    monkeypatch.setattr(tuning, "PROBLEMS", wild)
    outcome, found = call(tmp_path, "--problem", "sinusoid", "--outer", "maml")
    assert outcome.code == 0, outcome.err
    for run in found["runs"]:
        assert (run["score"] is None) == (run["error"] is not None) == (run["learning_rate"] == 1e30)
    assert {row["diverged"] for row in found["regions"]} == {0.5}
    assert "50%" in outcome.out

    # Nothing but diverged runs is a result as well.
    monkeypatch.setattr(
        tuning, "PROBLEMS", {k: dataclasses.replace(p, learning_rates=(1e30,)) for k, p in wild.items()}
    )
    outcome, found = call(tmp_path / "all", "--problem", "sinusoid", "--outer", "maml")
    assert outcome.code == 0, outcome.err
    assert [(row["best"], row["good"], row["diverged"]) for row in found["regions"]] == [(None, 0.0, 1.0)] * 2
    assert (tmp_path / "all" / "tuning_sinusoid.png").exists()


def test_quick_is_a_part_of_the_whole() -> None:
    for problem in problems.PROBLEMS.values():
        quick = problem.quick()
        for part in ("networks", "factors", "learning_rates"):
            assert len(getattr(quick, part)) == 2
            assert set(getattr(quick, part)) < set(getattr(problem, part))
        assert quick.iterations < problem.iterations


# --- good regions, by hand

GRID = [(a, b) for a in (0.1, 0.3, 1.0) for b in (1.0, 2.0, 3.0)]


def a_map(scores: list[float | None], untrained: float = -10.0) -> Map:
    return Map(dict(zip(GRID, scores, strict=True)), untrained)


def two_updates() -> Maps:
    """With the small network `steady` has five good cells and `sharp` the best one."""
    return {
        (SMALL, "steady"): a_map([-10, -9, -10, -1.8, -1.0, -1.9, -1.9, -1.5, None]),
        (SMALL, "sharp"): a_map([-12, -5, None, -4, 0.0, None, None, None, None]),
        (LARGE, "steady"): a_map([-10, -9, -10, -9, -0.9, 0.0, -0.5, -8, -8]),
        (LARGE, "sharp"): a_map([0.0, -0.5, -9, -9, -0.5, -9, -9, -9, -9]),
    }


def test_good_regions() -> None:
    rows = {(row["network"], row["outer"]): row for row in summarize(two_updates(), 0.1)}
    steady, sharp = rows["4", "steady"], rows["4", "sharp"]
    # steady's own best is -1: good from -1.9; the network's best is 0: good from -1
    assert steady["good_of_own"] == 5 / 9
    assert steady["good"] == 1 / 9
    assert (steady["best"], steady["at"], steady["at_edge"], steady["diverged"]) == (-1.0, [0.3, 2.0], False, 1 / 9)
    assert (sharp["good_of_own"], sharp["good"], sharp["diverged"]) == (1 / 9, 1 / 9, 5 / 9)
    assert rows["8x8", "sharp"]["at_edge"]
    assert rows["8x8", "steady"]["at_edge"]  # the largest outer step size
    assert best_of_network(two_updates(), SMALL) == 0.0


def test_step_sizes_that_are_good_with_every_network() -> None:
    # steady: (0.3, 2) with both; sharp: (0.3, 2) with both
    assert shares_for_all(two_updates(), 0.1) == {"steady": 1 / 9, "sharp": 1 / 9}
    assert shares_for_all(two_updates(), 0.05) == {"steady": 0.0, "sharp": 1 / 9}


def test_a_cell_diverged_when_one_seed_did() -> None:
    outcomes = {0: -1.0, 1: None, 2: -3.0}
    found = {
        Place(SMALL, "maml", size, 1.0, seed): {"score": score if size == 0.1 else -2.0}
        for size in (0.1, 0.3)
        for seed, score in outcomes.items()
    }
    untrained = {(SMALL, seed): -10.0 - seed for seed in outcomes}
    assert maps.collect(found, untrained) == {(SMALL, "maml"): Map({(0.1, 1.0): None, (0.3, 1.0): -2.0}, -11.0)}


def test_the_picture_has_inner_step_sizes_upwards_and_outer_ones_to_the_right() -> None:
    scores: list[float | None] = [-1.0, -2.0, -3.0, -4.0, None, -6.0, -7.0, -8.0, -9.0]
    wanted = np.array([[-1, -2, -3], [-4, np.nan, -6], [-7, -8, -9]], dtype=float)  # the first row is the lowest
    assert np.array_equal(as_table(a_map(scores), [0.1, 0.3, 1.0], [1.0, 2.0, 3.0]), wanted, equal_nan=True)
    figure = draw_maps({(SMALL, "maml"): a_map(scores)}, "title", "score", 0.1)
    ax = figure.axes[0]
    texts = {(text.get_position(), text.get_text()) for text in ax.texts}
    assert len(texts) == 8
    assert ((2, 0), "-3") in texts
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines] == [(1, 1)]  # the cross
    assert [(patch.get_x(), patch.get_y()) for patch in ax.patches] == [(-0.46, -0.46)]  # the frame


def test_numbers_fit_into_cells() -> None:
    assert [brief(x) for x in (-1.234, -0.0123, -45.6, -999.4, -1e7)] == ["-1.2", "-0.012", "-46", "-999", "-1e+07"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--outer", "mamel"], ("outer must", "'mamel'")),
        (["--outer", "maml", "maml"], ("outer must", "twice")),
        (["--seeds", -1], ("seeds must", "-1")),
        (["--distance", 0], ("distance must", "0")),
        (["--iterations", 0], ("iterations must", "0")),
        (["--problem", "digits"], ("digits",)),
    ],
)
def test_bad_input(options: list[Any], wanted: tuple[str, ...], tmp_path: Path) -> None:
    outcome = runs.call("reports.tuning", "--quick", *options, "--out", tmp_path / "none")
    assert (outcome.code, outcome.out) == (2, "")
    assert all(text in outcome.err for text in wanted), outcome.err
    assert not (tmp_path / "none").exists()
