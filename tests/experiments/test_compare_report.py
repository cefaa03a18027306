"""The report of a comparison: what it shows, that it needs no network, and that nothing in it is taken for HTML."""

import csv
import dataclasses
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarl.experiments.compare.charts import HEIGHT, LEFT, RIGHT, WIDTH, Series, line_chart, ticks
from metarl.experiments.compare.pairs import MOST_ROWS, compare_rows, describe_rows
from metarl.experiments.compare.pictures import heat_map, mean_curve
from metarl.experiments.compare.plan import Arguments
from metarl.experiments.compare.report import report
from metarl.experiments.compare.results import RowResult, summarize
from metarl.experiments.compare.tables import head_and_rows, latex, markdown, scores_csv, table_csv
from metarl.experiments.train import TrainConfig
from metarl.statistics import paired_difference
from tests.experiments.test_compare import SMALL, here, run_compare  # noqa: F401

NASTY = "<b>&_%\"'</script>"
SETUP = {"versions": {"python": "3", "torch": "2"}, "commit": NASTY, "device_name": "a machine"}


def make_row(label: str, shift: float = 0.0, seed: int = 0, **changes: Any) -> RowResult:
    """A row with two seeds, five tasks and two points; the second point is `shift`."""
    rng = np.random.default_rng(seed)
    scores = np.stack([np.full((2, 5), -9.0), shift + 0.1 * rng.standard_normal((2, 5))], 2)
    lines = tuple(
        {"iteration": k, "oracle/env_steps": 100 * k, "time/cpu_seconds": 0.5 * k, "eval/return_step_1": shift + k}
        for k in range(1, 5)
    )
    row = RowResult(
        label=label,
        group=label,
        cell={},
        seeds=(0, 3),
        scores=scores,
        trained=1,
        axis="step",
        points=(0, 1),
        spent=np.array([[0.0, 38.0], [0.0, 42.0]]),
        lines=(lines, lines),
        diverged={},
        config=TrainConfig(),
        configs=({"versions": SETUP["versions"]},) * 2,
        folders=(Path("nowhere"),) * 2,
    )
    return dataclasses.replace(row, **changes)


def make_page(*rows: RowResult, **given: Any) -> str:
    return report(Arguments(seeds=(0, 3), **given), rows, {row.label: summarize(row) for row in rows}, SETUP)


class Page(HTMLParser):
    """The tags, texts and attributes of a page; an error for tags that are not closed in order."""

    void = ("meta", "img", "rect", "line", "polyline", "polygon", "circle", "link", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))


def test_nothing_given_becomes_html() -> None:
    harmless = Page(make_page(make_row("plain"), make_row("other", 1.0)))
    text = make_page(make_row(NASTY, diverged={3: NASTY}), make_row("other", 1.0), env=NASTY)
    page = Page(text)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert NASTY not in text
    assert NASTY in [content for tag, content in page.texts if tag == "td"]
    assert NASTY in [content for tag, content in page.texts if tag == "li"]
    charts = [attributes["data-series"] for tag, attributes in page.tags if attributes.get("class") == "chart"]
    assert all(json.loads(chart or "")[0]["label"] == NASTY for chart in charts)


def test_nothing_given_becomes_latex_or_a_cell() -> None:
    summaries = {"a|b & c_%": summarize(make_row("x")), 'quote " and, comma': summarize(make_row("y"))}
    assert r"a\textbar{}b \& c\_\% & " in latex(summaries)
    assert {len(re.split(r"(?<!\\)\|", line)) for line in markdown(summaries).splitlines()} == {2 + 1 + 2 + 3}
    assert '"quote "" and, comma"' in table_csv(summaries)


def test_the_page_needs_no_network() -> None:
    text = make_page(make_row("plain"), make_row("other", 1.0))
    page = Page(text)
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert addresses
    assert all(str(address).startswith(("#", "data:")) for address in addresses)
    assert "http" not in text
    assert not re.search(r"@import|url\(|fetch\(|innerHTML", text)


def test_sections_follow_the_rows() -> None:
    page = make_page(make_row("plain"), make_row("other", 1.0))
    assert re.findall(r'<h2 id="(\w+)">', page) == [
        *("table", "adaptation", "training", "statistics", "tasks", "configuration"),
    ]
    short = make_page(make_row("plain", lines=((), ())))
    assert "No evaluation during training" in short


def test_a_diverged_row_is_shown() -> None:
    page = make_page(make_row("plain"), make_row("wild", scores=None, diverged={3: "NaN in the meta-gradient"}))
    assert "diverged (1 of 2 seeds)" in page
    assert "wild, seed 3: NaN in the meta-gradient" in page
    assert ">plain - wild<" not in page


def test_other_versions_are_named() -> None:
    old = make_row("old", configs=({"versions": {"torch": "1"}}, {}))
    assert "other versions" in make_page(old)
    assert "other versions" not in make_page(make_row("new"))


def test_lines_are_where_the_numbers_are() -> None:
    """Ticks and lines use the same scale: the label beside a pixel says the number of the point."""
    points = [(0.0, -10.0), (1000.0, 30.0), (2000.0, 10.0)]
    chart = line_chart([Series("a", "#000", "", points)], "x", "y")
    found = [tuple(map(float, pair.split(","))) for pair in re.findall(r'<polyline points="([^"]*)"', chart)[0].split()]
    x_ticks = [(float(a), b) for a, b in re.findall(r'<text x="([\d.]+)" y="270"[^>]*>([^<]*)<', chart)]
    y_ticks = [
        (float(a) - 4, float(b)) for a, b in re.findall(rf'<text x="{LEFT - 6}" y="([\d.]+)"[^>]*>([^<]*)<', chart)
    ]
    (x0, _), (x1, _) = found[0], found[2]
    assert (x0, x1) == (LEFT, WIDTH - RIGHT)
    assert found[1][1] < found[2][1] < found[0][1]  # pixels grow downwards
    assert [label for _, label in x_ticks] == ["0", "500", "1000", "1500", "2000"]
    assert found[1][0] == pytest.approx(x_ticks[2][0], abs=0.1)
    slope, offset = np.polyfit([y for y, _ in y_ticks], [value for _, value in y_ticks], 1)
    assert [slope * y + offset for _, y in found] == pytest.approx([-10, 30, 10], abs=0.1)
    data = json.loads(html.unescape(re.findall(r'data-series="([^"]*)"', chart)[0]))
    assert [point[2:] for point in data[0]["points"]] == [["0", "-10"], ["1000", "30"], ["2000", "10"]]
    assert np.array([point[:2] for point in data[0]["points"]]) == pytest.approx(np.array(found), abs=0.06)


def test_bands_and_thin_lines_stay_inside() -> None:
    one = Series("a", "#000", "", [(0, 0), (1, 1)], [(0, -50, 50), (1, -3, 4)], [[(0, 70), (1.5, -80)]])
    chart = line_chart([one], "x", "y")
    for text in re.findall(r'points="([^"]*)"', chart):
        xs, ys = zip(*[map(float, pair.split(",")) for pair in text.split()], strict=True)
        assert LEFT <= min(xs) <= max(xs) <= WIDTH - RIGHT
        assert 0 < min(ys) < max(ys) < HEIGHT - 40


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-41, -2), (0, 1e7), (0.003, 0.0042), (-1e-9, 1e-9), (5, 6.5)])
def test_ticks_are_round_inside_and_even(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert low <= found[0]
    assert found[-1] <= high
    assert np.diff(found) == pytest.approx(np.full(len(found) - 1, found[1] - found[0]))


def test_a_single_point_has_a_chart() -> None:
    assert "NaN" not in line_chart([Series("a", "#000", "", [(0.0, 0.0)])], "x", "y")
    assert line_chart([Series("a", "#000", "", [])], "x", "y") == ""


def test_pairs() -> None:
    rows = [make_row("low", -5.0, 1), make_row("high", 2.0, 2), make_row("middle", 0.0, 3)]
    pairs = compare_rows(rows)
    assert [(pair.first, pair.second) for pair in pairs] == [("high", "middle"), ("high", "low"), ("middle", "low")]
    assert pairs[1].difference == paired_difference(rows[1].final, rows[0].final)
    assert pairs[1].difference.value == pytest.approx(7.0, abs=0.2)
    assert pairs[1].improvement.value == 1.0


def test_other_tasks_are_not_paired() -> None:
    far = make_row("far", config=TrainConfig(env_options=("goal_high=3",)))
    assert compare_rows([make_row("near"), far]) == []
    assert compare_rows([make_row("near"), make_row("wild", scores=None)]) == []


def test_many_rows_are_compared_with_the_best() -> None:
    rows = [make_row(f"{k}", float(k)) for k in range(MOST_ROWS + 1)]
    pairs = compare_rows(rows)
    assert len(pairs) == MOST_ROWS
    assert {pair.first for pair in pairs} == {f"{MOST_ROWS}"}


def test_the_gap_to_the_oracle() -> None:
    rows = describe_rows([make_row("maml", -5.0), make_row("oracle", -1.0), make_row("better", 3.0)])
    gaps = {row.label: row.gap for row in rows}
    assert gaps["oracle"] is None
    assert gaps["maml"] is not None
    assert gaps["maml"].value == pytest.approx(4.0, abs=0.2)
    assert gaps["better"] is not None
    assert gaps["better"].value == 0.0
    assert describe_rows([make_row("maml")])[0].gap is None


def test_heat_map_has_every_cell_at_its_place() -> None:
    cells = [("0.1", "1"), ("0.1", "2"), ("0.2", "1"), ("0.2", "2")]
    rows = [
        make_row(f"{k}", float(10 * k), group="maml", cell={"inner_lr": lr, "inner_steps": steps})
        for k, (lr, steps) in enumerate(cells)
    ]
    rows[2] = dataclasses.replace(rows[2], scores=None)
    ax = heat_map(rows, "title").axes[0]
    texts = {text.get_position(): float(text.get_text()) for text in ax.texts}
    assert texts == pytest.approx({(0, 0): 0.0, (1, 0): 10.0, (1, 1): 30.0}, abs=0.2)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.1", "0.2"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines] == [(0, 1)]  # type: ignore[index]


def test_baselines_and_the_files(tmp_path: Path, here: list[str]) -> None:  # noqa: F811
    arguments = ("--outer", "maml", "--baselines", "random", "oracle", "--seeds", 0, 1)
    outcome = run_compare(tmp_path / "out", *arguments, "--sweep", "inner_lr", "0.1", "0.2")
    assert outcome.code == 0, outcome.err
    assert here[-4:] == ["random-0", "random-1", "oracle-0", "oracle-1"]
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    assert list(rows) == ["maml inner_lr=0.1", "maml inner_lr=0.2", "random", "oracle"]
    assert [len(row["mean"]) for row in rows.values()] == [4, 4, 4, 1]
    assert rows["random"]["env_steps"] == 0
    assert rows["oracle"]["env_steps"] == 120
    untrained = [
        json.loads(path.read_text())["random_init"]["mean"]
        for path in (tmp_path / "out/runs").glob("*0.1-*/evaluation.json")
    ]
    assert rows["random"]["mean"] == pytest.approx(np.mean(untrained, 0).tolist())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "heat map of the sweep" in page
    assert Page(page).tags
    trained = len(here)
    assert run_compare(tmp_path / "out", *arguments, "--sweep", "inner_lr", "0.1", "0.2").code == 0
    assert len(here) == trained
    assert SMALL


def test_rows_with_fewer_tasks_are_not_compared_with_the_oracle() -> None:
    few = make_row("ppo")
    assert few.scores is not None
    few = dataclasses.replace(few, scores=few.scores[:, :3])
    rows = [make_row("maml", -1.0), few, make_row("oracle", 1.0, seed=1)]
    gaps = {one.label: one.gap for one in describe_rows(rows)}
    assert gaps["maml"] is not None
    assert gaps["ppo"] is gaps["oracle"] is None
    assert {frozenset(pair[:2]) for pair in compare_rows(rows)} == {frozenset(("maml", "oracle"))}
    assert "ppo" in make_page(*rows)
    assert "the same for all rows" not in make_page(*rows)


def test_each_seed_has_its_own_environment_steps() -> None:
    row = make_row("a")
    assert row.env_steps == [0.0, 40.0]
    lines = list(csv.DictReader(io.StringIO(scores_csv([row]))))
    found = {(line["seed"], line["step"]): float(line["adaptation_env_steps"]) for line in lines}
    assert found == {("0", "0"): 0.0, ("0", "1"): 38.0, ("3", "0"): 0.0, ("3", "1"): 42.0}


def test_mean_curves_are_of_the_same_iterations() -> None:
    row = make_row("a")
    without = tuple(line for line in row.lines[0] if line["iteration"] != 2)
    scored = tuple({**line, "eval/return_step_1": 10.0 * (line["iteration"] or 0)} for line in row.lines[1])
    row = dataclasses.replace(row, lines=(without, scored))
    assert mean_curve(row, "oracle/env_steps") == [(100.0, 5.5), (300.0, 16.5), (400.0, 22.0)]
    episodes = tuple({"iteration": k, "eval/return_episode_2": float(-k)} for k in (1, 2))
    recurrent = dataclasses.replace(row, axis="episode", points=(1, 2), lines=(episodes, episodes))
    assert mean_curve(recurrent, "iteration") == [(1.0, -1.0), (2.0, -2.0)]


def test_seconds_of_an_iteration_when_a_seed_stopped_early() -> None:
    row = make_row("a")
    row = dataclasses.replace(row, scores=None, diverged={0: "nan"}, lines=(row.lines[0][:1], row.lines[1]))
    head, (cells,) = head_and_rows({"a": summarize(row)})
    assert cells[head.index("CPU s / iteration")] == "0.50"


def test_tasks_have_their_parameters(tmp_path: Path) -> None:
    goals = [[0.125, -0.5], [1, 2], [3, 4], [5, 6], [7, 8]]
    (tmp_path / "evaluation.json").write_text(json.dumps({"tasks": {"goal": goals}}))
    same, other = make_row("a", folders=(tmp_path, tmp_path)), make_row("b", config=TrainConfig(horizon=50))
    cells = [text for tag, text in Page(make_page(same, make_row("c"))).texts if tag in ("td", "th")]
    first = cells.index("goal[0]")
    assert cells[first - 1 : first + 4] == ["task", "goal[0]", "goal[1]", "a", "c"]
    assert cells[first + 4 : first + 7] == ["0", "0.125", "-0.5"]
    assert "the same for all rows" in make_page(same, make_row("c"))
    assert "the same for all rows" not in make_page(same, other)
    assert "goal[0]" not in make_page(same, other)  # its tasks may be others
