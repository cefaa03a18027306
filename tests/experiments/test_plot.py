"""`metarl plot`: which points it shows, the picture, and one line for what cannot be shown."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarl.experiments import plot
from tests.experiments import runs

LINES = [
    {"iteration": 1, "oracle/samples": 10, "time/iteration_seconds": 0.5, "theory/grad_norm": 1.0, "odd": -1.0},
    {"iteration": 2, "oracle/samples": 20, "time/iteration_seconds": 0.25, "odd": -2.0},
    {"iteration": 3, "oracle/samples": 40, "time/iteration_seconds": 0.25, "theory/grad_norm": None},
    {"iteration": 4, "oracle/samples": 80, "time/iteration_seconds": 1.0, "theory/grad_norm": 0.01, "even": 0.0},
]


def write(folder: Path, lines: Sequence[Mapping[str, float | None]] = LINES) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def shown(*line: object) -> dict[str, plot.Points]:
    return plot.prepare(plot.cli.parse(plot.Arguments, [str(word) for word in line], "metarl plot", None))


@pytest.mark.parametrize(
    ("x", "wanted"),
    [("iteration", [1, 3, 4]), ("oracle/samples", [10, 40, 80]), ("time/seconds", [0.5, 1.0, 2.0])],
)
def test_points_have_both_metrics(tmp_path: Path, x: str, wanted: list[float]) -> None:
    (curve,) = shown(write(tmp_path / "a"), "--y", "theory/grad_norm", "--x", x).values()
    xs, ys = zip(*curve, strict=True)
    assert list(xs) == wanted
    assert np.allclose(ys, [1.0, math.nan, 0.01], equal_nan=True)


def test_metrics_of_a_real_run(trained: Callable[[str], Path]) -> None:
    folder = trained("navigation")
    (curve,) = shown(folder, "--y", "rollout/return_after", "--x", "oracle/hessian_vector_products").values()
    assert [y for _, y in curve] == [line["rollout/return_after"] for line in runs.lines(folder)]
    assert [x for x, _ in curve] == [2, 4, 6]  # one step of two tasks per iteration


def test_labels(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in ("a", "b", "other/a"))
    assert plot.labels([a, b]) == {"a": a, "b": b}
    assert plot.labels([a, c]) == {str(a): a, str(c): c}


@pytest.mark.parametrize("scales", [[], ["--log-x", "--log-y"]])
def test_the_picture(tmp_path: Path, scales: list[str]) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second", LINES[:1])
    out = tmp_path / "new" / "picture.png"
    axes = ["--y", "theory/grad_norm", "--x", "oracle/samples"]
    outcome = runs.call("plot", first, second, *axes, *scales, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"{out}: first (3 points), second (1 points)\n"
    with Image.open(out) as image:
        assert len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or []) > 50


def test_axes_and_lines() -> None:
    figure = plot.plot({"a": [(1, 1.0), (2, 0.0), (3, 0.01)], "b": [(1, 2.0)]}, "x name", "y name", log_y=True)
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x name", "y name")
    assert [list(line.get_ydata()) for line in ax.lines] == [[1.0, 0.0, 0.01], [2.0]]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


@pytest.mark.parametrize("ending", ["pdf", "svg"])
def test_other_formats(tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"picture.{ending}"
    assert runs.call("plot", write(tmp_path / "run"), "--y", "odd", "--out", out).code == 0
    assert {"pdf": b"%PDF", "svg": b"<svg"}[ending] in out.read_bytes()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--y odd", ("runs must name at least one", "got []")),
        ("good", ("--y",)),
        ("good good --y odd", ("runs must", "none twice", "'good', 'good'")),
        ("god --y odd", ("run must", "god/metrics.jsonl", "did you mean 'good'")),
        ("nothing_like_it --y odd", ("run must", "no nothing_like_it/metrics.jsonl")),
        ("good --y theory/gradnorm", ("y must", "good", "'theory/gradnorm'", "did you mean 'theory/grad_norm'")),
        ("good --y odd --x oracle/sample", ("x must", "'oracle/sample'", "did you mean 'oracle/samples'")),
        ("good --y zzz", ("y must", "'zzz'", "it has iteration, oracle/samples")),
        ("good --y odd --x even", ("x and y must", "'even' and 'odd' never", "good")),
        ("good --y odd --log-y", ("log_y needs positive values", "'odd'")),
        ("good --y odd --x even --log-x", ("x and y must",)),
        ("empty --y odd", ("empty/metrics.jsonl is empty",)),
        ("text --y odd", ("line 2 of text/metrics.jsonl", "'not JSON'")),
        ("words --y odd", ("line 1 of words/metrics.jsonl", "high")),
        ("good --y odd --out plot.pngg", ("out must end", "plot.pngg", "did you mean 'png'")),
        ("good --y odd --out good/metrics.jsonl/plot.png", ("out must be a file", "plot.png")),
        ("good --y odd --out folder.png", ("out must be a file", "folder.png")),
        ("good --y odd --logy", ("--logy",)),
    ],
)
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, wanted: tuple[str, ...]) -> None:
    write(tmp_path / "good")
    write(tmp_path / "empty", [])
    write(tmp_path / "words")
    (tmp_path / "words" / "metrics.jsonl").write_text('{"iteration": "high"}\n')
    write(tmp_path / "text")
    (tmp_path / "text" / "metrics.jsonl").write_text('{"odd": 1}\nnot JSON\n')
    (tmp_path / "folder.png").mkdir()
    before = runs.files(tmp_path)
    monkeypatch.chdir(tmp_path)
    outcome = runs.call("plot", *line.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"error: .{,600}\n", outcome.err)
    for part in wanted:
        assert part in outcome.err
    assert runs.files(tmp_path) == before
