"""`metarl robustness`: what its rows and its picture show, and that a run that diverges counts as untrained."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from metarl import MetaLearner
from metarl.engine import Engine
from metarl.experiments.reports import robustness
from metarl.experiments.reports.robustness import PROBLEMS, Rates, starts, summary, train
from tests.experiments import runs

SINUSOID = PROBLEMS["sinusoid"]


@pytest.fixture(autouse=True)
def no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the seconds that records take."""
    monkeypatch.setattr(robustness, "Engine", partial(Engine, record=False))


def test_the_rows_and_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant from every start; fixed rates end where they start, the others do not."""
    monkeypatch.setattr(robustness, "QUICK_ITERATIONS", 2)
    outcome = runs.call("reports.robustness", "--quick", "--json", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found == json.loads((tmp_path / "out" / "robustness.json").read_text())
    for name, problem in PROBLEMS.items():
        rows = [row for row in found["rows"] if row["problem"] == name]
        wanted = [start._asdict() for start in starts(problem.reference, (0.1, 1.0, 10.0))]
        assert [row["start"] for row in rows] == wanted * 2
        for row in rows:
            (end,) = row["ends"]
            fixed = not any(row["hyper"].values())
            assert row["hyper"] == ({"alpha": 0, "beta": 0} if fixed else problem.hyper[0]._asdict())
            same = [end[rate] == pytest.approx(row["start"][rate], rel=1e-6) for rate in ("alpha", "beta")]
            assert all(same) if fixed else not any(same)
    with Image.open(tmp_path / "out" / "robustness.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or []) > 50


def test_starts() -> None:
    found = starts(Rates(2.0, 3.0), (0.5, 1.0, 2.0))
    assert found == [Rates(1, 3), Rates(2, 3), Rates(4, 3), Rates(2, 1.5), Rates(2, 6)]
    for problem in PROBLEMS.values():
        for rate in Rates._fields:
            along = [getattr(start, rate) for start in starts(problem.reference, robustness.FACTORS)]
            assert max(along) == pytest.approx(1e4 * min(along))


@pytest.mark.usefixtures("unrecorded")
def test_fixed_rates_are_plain_descent() -> None:
    found = train(SINUSOID, Rates(0.02, 0.03), Rates(0.0, 0.0), 3, 5, seed=1)
    source, held_out = SINUSOID.make(1)
    plain = MetaLearner(
        source, inner_lr=0.02, meta_batch_size=25, learning_rate=0.03, optimizer=torch.optim.SGD, seed=1
    )
    wanted = plain.learn(3).evaluate(held_out, num_tasks=5, steps=1).mean[-1]
    assert found.score == pytest.approx(wanted, rel=1e-5)
    adapted = train(SINUSOID, Rates(0.02, 0.03), Rates(1e-3, 1e-3), 3, 5, seed=1)
    assert adapted.score != pytest.approx(wanted, rel=1e-5)
    assert train(SINUSOID, Rates(0.02, 0.03), Rates(1e-3, 1e-3), 3, 5, seed=1) == adapted


@pytest.mark.usefixtures("unrecorded")
def test_a_run_that_diverges_counts_as_untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROBLEMS, "sinusoid", SINUSOID._replace(reference=Rates(0.01, 1e30)))
    monkeypatch.setattr(robustness, "FACTORS", (1.0,))
    rows = robustness.measure("sinusoid", robustness.Arguments(iterations=3, tasks=4, seeds=(0, 1)))
    assert [row["diverged"] for row in rows[:1]] == [2]
    untrained = [train(SINUSOID, Rates(0.01, 1.0), Rates(0, 0), 0, 4, seed).score for seed in (0, 1)]
    assert rows[0]["scores"] == untrained
    assert rows[0]["ends"] == [None, None]


def row(scores: list[float], hyper: float, alpha: float) -> dict[str, Any]:
    start = {"alpha": alpha, "beta": 0.01}
    same = {"problem": "sinusoid", "hyper": {"alpha": hyper, "beta": hyper}, "start": start}
    return {**same, "scores": scores, "ends": [None] * len(scores), "diverged": 1, "untrained": -4.0}


def test_the_summary_by_hand() -> None:
    """The best gain is 3, so starts that end at -2.5 or better are good."""
    rows = [row([-1.5, -0.5], 0.0, 0.1), row([-4, -3], 0.0, 1.0), row([-2, -3], 0.1, 0.1), row([-2, -2], 0.1, 1.0)]
    fixed, adapted = [line.split(" | ") for line in summary(rows).splitlines()[2:]]
    assert fixed[1:] == ["fixed rates", "-2.250 [-2.750, -1.750]", "-1.000", "-3.500", "1 of 2", "2 |"]
    assert adapted[2:] == ["-2.250 [-2.500, -2.000]", "-2.000", "-2.500", "2 of 2", "2 |"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--problems", "sinus"], ("problems must", "'sinus'", "did you mean 'sinusoid'")),
        (["--problems", "digits", "digits"], ("problems must", "twice")),
        (["--seeds", -1], ("seeds must", "-1")),
        (["--iterations", 0], ("iterations must", "got 0")),
        (["--tasks", 0], ("tasks must", "got 0")),
        (["--out", "/dev/null/x"], ("out must",)),
    ],
)
def test_bad_input(options: list[Any], wanted: tuple[str, ...]) -> None:
    outcome = runs.call("reports.robustness", *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert all(text in outcome.err for text in wanted), outcome.err
    assert len(outcome.err.splitlines()) == 1
