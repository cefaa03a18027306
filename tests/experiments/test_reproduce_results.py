"""What `metarl reproduce` makes of results: verdicts, tables and the page, from the JSON files alone."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from metarl import AdaptationCurve
from metarl.experiments.compare.plan import Arguments
from metarl.experiments.compare.plan import read_rows as parse_rows
from metarl.experiments.reports.reproduce import drift, page, table
from metarl.experiments.reports.reproduce.pictures import draw_adaptation
from metarl.experiments.reports.reproduce.plan import build, choose
from metarl.experiments.reports.reproduce.result import Evaluation, Result, read_result, to_text, write_result
from metarl.experiments.reports.reproduce.rows import CommittedRow, compare_with_multitask, read_rows
from metarl.experiments.reports.reproduce.table import Published, Reference, ReferenceRow
from metarl.statistics import confidence_interval, paired_difference
from tests.experiments import runs

ROOT = Path(__file__).parents[2]
TASKS, POINTS = 20, 4


def make_scores(mean: float, seed: int, spread: float = 1.0) -> Any:
    """Scores of a run, `[tasks, points]`, with this mean at step 1, and no noise between tasks but `spread`."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(TASKS, POINTS))
    return mean + spread * (noise - noise.mean(0)) + 2.0 * (np.arange(POINTS) - 1)


def make(label: str = "maml", seed: int = 0, mean: float = -10.0, scores: Any = None, **changes: Any) -> Result:
    """A result with these scores on the same tasks as all others."""
    found = make_scores(mean, seed) if scores is None else scores
    tasks = {"goal": np.random.default_rng(7).normal(size=(len(found), 2)).astype(np.float32)}
    curve = AdaptationCurve(found[None], "return", tasks, costs={"env_steps": 100 * np.arange(POINTS)[None]})
    start = AdaptationCurve(found[None] - 5.0, "return", tasks)
    evaluations = tuple(
        Evaluation(k, 50 * k, (mean + k,) * POINTS, ((mean + k - 1, mean + k + 1),) * POINTS) for k in (0, 2, 4)
    )
    about = {
        "settings": {"inner_lr": 0.1, "outer": "maml", "inner_steps": None},
        "versions": {"torch": "2.13.0"},
        "commit": "abc",
        "hardware": {"cpu": "a CPU", "cores": 2, "device": "cpu"},
    }
    row = {"options": "", "baseline": "multitask" if label == "multitask" else None, "env_steps": 3_000_000}
    plain: dict[str, Any] = {
        **{"name": "tiny", "label": label, "seed": seed, "row": row, "axis": "step", "points": (0.0, 1.0, 2.0, 3.0)},
        **{"trained": 1, "iterations": 25, "env_steps": 2_900_000, "gradients": 10, "seconds": 1800.0},
        **{"cpu_seconds": 1700.0, "evaluations": evaluations, "final": curve, "random_init": start},
        **{"diverged": None, "about": about},
    }
    return Result(**{**plain, **changes})


# Verdicts.


def test_what_is_within_the_interval_of_one_seed() -> None:
    committed = make()
    low, high = confidence_interval(committed.scores[:, 1]) or (0.0, 0.0)
    assert high - low == pytest.approx(0.936, rel=0.5)  # 2 t / sqrt(20) of a standard deviation of about 1
    for mean, drifted in ((low - 0.01, True), (low + 0.01, False), (high - 0.01, False), (high + 0.01, True)):
        verdict = drift.compare(make(mean=mean, seed=1), committed, [committed])
        assert verdict.drifted == drifted
        assert f"new {mean:.2f}, committed -10.00 [{low:.2f}, {high:.2f}]" in verdict.text
        assert f"at every step: new {mean - 2:.2f} {mean:.2f}" in verdict.text


def test_several_seeds_have_the_interval_of_the_row() -> None:
    row = [make(seed=0, mean=-10.0), make(seed=1, mean=-14.0), make(seed=2, mean=-13.0)]
    crossed = confidence_interval(np.stack([result.scores[:, 1] for result in row]))
    assert crossed is not None
    new = make(seed=9, mean=-13.0)
    assert drift.compare(new, row[0], row[:1]).drifted
    assert not drift.compare(new, row[0], row).drifted
    assert drift.compare(make(seed=9, mean=crossed[0] - 0.1), row[0], row).drifted
    # an interval of other tasks is not used
    others = [row[0], *(make(seed=seed, scores=make_scores(-13.0, seed)[:10]) for seed in (1, 2))]
    assert drift.compare(new, row[0], others).drifted


def test_seeds_that_agree_show_a_small_drift() -> None:
    """Although tasks differ by much more: standard deviation 8, and 0.2 between the means of seeds."""
    row = [make(seed=seed, scores=make_scores(mean, 0, 8.0)) for seed, mean in enumerate((-10.0, -10.2, -10.4))]
    half = 9.924843 * 0.2 * (4 / 3) ** 0.5  # Student's t with two degrees of freedom
    ends = f"99 % of other seeds on these tasks [{-10.2 - half:.2f}, {-10.2 + half:.2f}]"
    for shift, drifted in ((half - 0.01, False), (half + 0.01, True), (-half + 0.01, False), (-half - 0.01, True)):
        new = make(scores=make_scores(-10.2 + shift, 0, 8.0))
        assert not drift.compare(new, row[0], row[:1]).drifted
        verdict = drift.compare(new, row[0], row)
        assert verdict.drifted == drifted
        assert ends in verdict.text


def test_the_same_result_is_within_its_interval(tmp_path: Path) -> None:
    """Also that of a seed far from the others, and also after the file has rounded it."""
    row = [make(seed=seed, mean=-10.0) for seed in range(8)]
    row.append(make(seed=8, mean=-30.0))
    assert not drift.is_inside(-30.0, 0.0, confidence_interval(np.stack([result.scores[:, 1] for result in row])))
    row += [make(seed=seed, mean=-10.0) for seed in range(9, 30)]
    another = drift.interval_of_another_seed([float(result.scores[:, 1].mean()) for result in row])
    assert not drift.is_inside(-30.0, 0.0, another)
    for result in row:
        write_result(tmp_path / "file.json", result)
        assert not drift.compare(result, read_result(tmp_path / "file.json"), row).drifted
    alone = make(scores=np.full((1, POINTS), -1.23456789123))
    write_result(tmp_path / "file.json", alone)
    assert not drift.compare(alone, read_result(tmp_path / "file.json"), [alone]).drifted
    assert drift.compare(make(scores=np.full((1, POINTS), -1.2346)), alone, [alone]).drifted


def test_other_tasks_have_drifted() -> None:
    other = make()
    assert other.final is not None
    moved = dataclasses.replace(other.final, tasks={"goal": other.final.tasks["goal"] + 0.1})
    verdict = drift.compare(dataclasses.replace(other, final=moved), other, [other])
    assert verdict.drifted
    assert "other held-out tasks" in verdict.text


def test_runs_that_diverge() -> None:
    bad, good = make(final=None, random_init=None, diverged="a NaN"), make()
    for new, committed, drifted in ((bad, good, True), (good, bad, True), (bad, bad, False)):
        assert drift.compare(new, committed, [committed]).drifted == drifted
    assert not drift.compare(good, good, [good, bad]).drifted


def test_evaluations_of_quick_runs() -> None:
    result = make()
    (committed,) = (found for found in result.evaluations if found.iteration == 2)  # mean -8, interval -9 to -7
    half = 9.924843 * 0.1 * (4 / 3) ** 0.5
    row = [make(seed=seed, mean=mean) for seed, mean in enumerate((-10.0, -10.1, -9.9))]
    for shift, drifted in ((0.99, False), (1.01, True), (-1.01, True)):
        new = committed._replace(mean=tuple(mean + shift for mean in committed.mean))
        assert drift.compare_beginning(new, committed, result, row[:1]).drifted == drifted
    wide = committed._replace(ci95=((-20.0, 0.0),) * POINTS)
    for shift, drifted in ((half - 0.01, False), (half + 0.01, True), (-half - 0.01, True)):
        new = committed._replace(mean=tuple(mean + shift for mean in committed.mean))
        assert drift.compare_beginning(new, wide, result, row).drifted == drifted
        assert not drift.compare_beginning(new, wide, result, row[:1]).drifted


# Files.


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    result = make()
    write_result(tmp_path / "file.json", result)
    found = read_result(tmp_path / "file.json")
    assert to_text(found).splitlines()[:20] == to_text(result).splitlines()[:20]
    for name in ("name", "label", "seed", "row", "about", "points", "trained", "env_steps", "seconds", "diverged"):
        assert getattr(found, name) == getattr(result, name)
    assert found.evaluations == result.evaluations
    np.testing.assert_allclose(found.scores, result.scores, rtol=1e-6)
    text = (tmp_path / "file.json").read_text()
    keys = list(json.loads(text))
    assert keys == sorted(keys)
    assert "[0.0, 1.0, 2.0, 3.0]" in text  # a list of numbers is one line


# The page.


PUBLISHED = (Published("MAML", "a paper", ("-40", "-12", "-3", "-3")), Published("ANIL", "another", ("-20 ± 2",)))
PAGE = """# Results

<!-- reproduce tiny -->
old
<!-- end -->

between

<!-- reproduce other -->
kept
<!-- end -->
"""


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results of two rows with two seeds each."""
    rows = (ReferenceRow("maml"), ReferenceRow("multitask", baseline="multitask"), ReferenceRow("not run"))
    references = {"tiny": Reference("navigation", rows, PUBLISHED, "A remark."), "other": Reference("navigation", ())}
    monkeypatch.setattr(table, "REFERENCES", references)
    for seed in (0, 1):
        for label, mean in (("maml", -10.0), ("multitask", -13.0)):
            write_result(tmp_path / "results" / "tiny" / f"{label}-{seed}.json", make(label, seed, mean - seed))
    return tmp_path


def report(folder: Path, *arguments: object) -> runs.Outcome:
    words = ("--report", "--results", folder / "results", "--page", folder / "page.md")
    return runs.call("reports.reproduce", *arguments, *words)


def test_the_report(committed: Path) -> None:
    path = committed / "page.md"
    path.write_text(PAGE)
    assert report(committed, "tiny").code == 0
    text = path.read_text()
    assert text.startswith("# Results\n\n<!-- reproduce tiny -->\n\n    metarl reproduce tiny\n")
    assert text.endswith("<!-- end -->\n\nbetween\n\n<!-- reproduce other -->\nkept\n<!-- end -->\n")
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    scores = np.stack([make("maml", seed, -10.0 - seed).scores for seed in (0, 1)])
    low, high = confidence_interval(scores[:, :, 1]) or (0.0, 0.0)
    assert f"| {scores[:, :, 1].mean():.1f} [{low:.1f}, {high:.1f}] |" in lines["`maml`"]
    assert lines["`maml`"].endswith("| 25 | 2.9 M | 0.5 | 2 |")
    low, high = confidence_interval(scores[:, :, 3] - 5.0) or (0.0, 0.0)
    untrained = f"| {scores[:, :, 3].mean() - 5.0:.1f} [{low:.1f}, {high:.1f}] |  |  |  | 2 |"
    assert lines["random initialisation"].endswith(untrained)
    assert lines["MAML"] == "| MAML | -40 | -12 | -3 | -3 |  | a paper |"
    assert lines["ANIL"] == "| ANIL |  |  |  |  | -20 ± 2 | another |"
    assert "not run" not in text
    assert "A remark." in text
    with Image.open(committed / "pictures" / "reproduce_tiny.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or []) > 50

    assert report(committed, "tiny").code == 0
    assert path.read_text() == text  # byte for byte
    assert report(committed).code == 0
    assert "kept" not in path.read_text()
    assert "No result is committed yet." in path.read_text()


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_picture_of_two_seeds_has_their_lines(seeds: int) -> None:
    """Their interval, with a t quantile of 12.7, would hide all other rows."""
    ax = Figure().subplots()
    results = tuple(make("maml", seed, -10.0 - seed) for seed in range(seeds))
    draw_adaptation(ax, CommittedRow("maml", None, results), "C0", "-")
    drawn = [line.get_ydata() for line in ax.lines]
    expected = [result.scores.mean(0) for result in results]
    np.testing.assert_allclose(drawn, [np.mean(expected, 0), *(expected if seeds == 2 else [])])
    assert len(ax.collections) == (0 if seeds == 2 else 1)


def test_budgets_are_in_the_table_alone() -> None:
    """They are no gradient steps; the 100 steps of all 20 tasks are a budget of 0.5."""
    first = dataclasses.replace(make("ppo"), axis="budget", points=(0.0, 0.5, 5.0, 10.0))
    row = CommittedRow("ppo", "ppo", (first,))
    ax = Figure().subplots()
    draw_adaptation(ax, row, "C0", "-")
    assert not ax.has_data()
    assert "`ppo` learns each of the first 20 tasks alone" in page.notes([row])
    assert page.notes([row]).endswith(": a budget of 1 is 10 environment steps of the task.")
    assert "budget" not in page.notes([CommittedRow("maml", None, (make(),))])


def test_tasks_of_two_kinds() -> None:
    """The means of each direction, over seeds; nothing for goals, for episodes and for runs that diverged."""
    direction = np.array([1.0, -1.0, -1.0, 1.0, -1.0], np.float32)
    scores = np.outer(direction, np.arange(POINTS)) + np.arange(5.0)[:, None]
    results = []
    for seed in (0, 1):
        first = make(seed=seed, scores=scores + 10 * seed)
        assert first.final is not None
        curve = dataclasses.replace(first.final, tasks={"direction": direction})
        results.append(dataclasses.replace(first, final=curve))
    row = CommittedRow("maml", None, tuple(results))
    assert page.lines_of_kinds([row]) == [
        ["`maml`", "3 with direction -1", "7.3", "6.3", "5.3", "4.3"],
        ["`maml`", "2 with direction 1", "6.5", "7.5", "8.5", "9.5"],
    ]
    episodes = tuple(dataclasses.replace(result, axis="episode") for result in results)
    diverged = (*results, make(seed=2, final=None, diverged="a NaN"))
    for others in (episodes, diverged, (make(),)):
        assert page.lines_of_kinds([CommittedRow("maml", None, others)]) == []


def test_pairs(committed: Path) -> None:
    rows = read_rows(committed / "results", "tiny")
    text = compare_with_multitask(rows)
    assert text is not None
    ours, theirs = rows[0].scores[:, :, 1], rows[1].scores[:, :, 1]
    value, (low, high) = paired_difference(ours, theirs)  # type: ignore[misc]
    assert f"after step 1 `{rows[0].label}`, {value:+.1f} [{low:+.1f}, {high:+.1f}], clearly better" in text
    worse = [
        CommittedRow("maml", None, (make(mean=-20.0),)),
        CommittedRow("multitask", "multitask", (make(mean=-13.0),)),
    ]
    assert (compare_with_multitask(worse) or "").count("clearly worse") == 2
    assert "seed 0 alone" in (compare_with_multitask(worse) or "")
    equal = [CommittedRow("maml", None, (make(seed=0),)), CommittedRow("multitask", "multitask", (make(seed=0),))]
    assert "not clearly different" in (compare_with_multitask(equal) or "")
    assert compare_with_multitask(rows[:1]) is None


def test_each_step_has_its_own_best_row() -> None:
    early, late = (np.full((TASKS, POINTS), -10.0) for _ in range(2))
    early[:, 1], late[:, 3] = -1.0, -2.0
    rows = [CommittedRow(label, None, (make(scores=scores),)) for label, scores in (("a", early), ("b", late))]
    text = compare_with_multitask([*rows, CommittedRow("multitask", "multitask", (make(mean=-13.0),))])
    assert text is not None
    assert "after step 1 `a`, +" in text
    assert "after step 3 `b`, +" in text


def test_only_rows_of_the_same_budget_are_compared_with_multitask() -> None:
    longer = make("longer", mean=-1.0, row={"options": "", "baseline": None, "env_steps": 6_000_000})
    multitask = CommittedRow("multitask", "multitask", (make(mean=-13.0),))
    rows = [CommittedRow("longer", None, (longer,)), CommittedRow("shorter", None, (make(mean=-13.0),)), multitask]
    text = compare_with_multitask(rows)
    assert text is not None
    assert "after step 1 `shorter`" in text
    assert "longer" not in text
    assert compare_with_multitask([rows[0], multitask]) is None


def test_the_best_row_of_fine_tuning_is_the_rival() -> None:
    """A weaker `multitask` beside a stronger one would make every method look better."""
    early, late = (np.full((TASKS, POINTS), -10.0) for _ in range(2))
    early[:, 1], late[:, 3] = -4.0, -5.0
    trained = CommittedRow("maml", None, (make(scores=np.full((TASKS, POINTS), -1.0)),))
    rivals = [
        CommittedRow(label, "multitask", (make(scores=scores),))
        for label, scores in (("plain", early), ("careful", late))
    ]
    for order in (rivals, rivals[::-1]):
        text = compare_with_multitask([trained, *order])
        assert text is not None
        assert "after step 1 `maml` against `plain`, +3.0 " in text
        assert "after step 3 `maml` against `careful`, +4.0 " in text
    longer = {"options": "", "baseline": "multitask", "env_steps": 6_000_000}
    other = CommittedRow("longer", "multitask", (make(scores=np.full((TASKS, POINTS), -0.5), row=longer),))
    assert "longer" not in (compare_with_multitask([trained, *rivals, other]) or "")


@pytest.mark.parametrize(
    ("page_text", "line"),
    [
        ("nothing", "page must have a block for the results of tiny"),
        ("<!-- reproduce tinny -->\n<!-- end -->\n", "page must have blocks of tiny, other, got 'tinny'"),
        (None, "page must be a file with blocks"),
    ],
)
def test_pages_that_do_not_fit(page_text: str | None, line: str, committed: Path) -> None:
    if page_text is not None:
        (committed / "page.md").write_text(page_text)
    outcome = report(committed, "tiny")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert line in outcome.err
    assert not (committed / "pictures").exists()


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"label": "old"}, "has the label 'old', which the table of tiny lacks"),
        ({"seed": 5}, "must be the result of tiny/maml-5"),
        ({"row": {"options": "--x", "baseline": None, "env_steps": 1}}, "was made with"),
        ({"points": [0.0, 1.0, 2.0, 4.0]}, "points must be the steps [0.0, 1.0, 2.0, 3.0], got [0.0, 1.0, 2.0, 4.0]"),
        (
            {"axis": "episode", "points": [1.0, 2.0, 3.0, 4.0]},
            "axis must be step with the baseline of the row",
        ),
        ({"env_steps": 3_000_001}, "used 3000001 environment steps, and its budget is 3000000"),
        ({"trained": 3}, "trained must be 1 with the settings of the run, got 3"),
        (
            {"trained": 3, "about": {"settings": {"outer": "maml", "inner_steps": 3}}},
            "has the trained point 3, and with its row it is 1",
        ),
    ],
)
def test_results_that_do_not_fit_the_table(changes: dict[str, object], line: str, committed: Path) -> None:
    (committed / "page.md").write_text(PAGE)
    change(committed / "results" / "tiny" / "maml-1.json", **changes)
    outcome = report(committed, "tiny")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert line in outcome.err
    assert (committed / "page.md").read_text() == PAGE


@pytest.mark.parametrize(("at", "value"), [(-1, 99_000_000), (1, 15_000_001), (2, 1)])
@pytest.mark.parametrize("name", ["iteration", "env_steps"])
def test_evaluations_are_in_order_and_within_the_run(name: str, at: int, value: int, tmp_path: Path) -> None:
    """Another number of steps would move a point of the curve of training."""
    kept = ROOT / "results" / "half_cheetah_velocity" / "proximal-0.json"
    evaluations = json.loads(kept.read_text())["evaluations"]
    evaluations[at][name] = value
    path = tmp_path / "changed.json"
    path.write_text(kept.read_text())
    change(path, evaluations=evaluations)
    with pytest.raises(ValueError, match=f"{name} of the evaluations must rise to"):
        read_result(path)


def test_seeds_with_other_tasks(committed: Path) -> None:
    (committed / "page.md").write_text(PAGE)
    path = committed / "results" / "tiny" / "maml-1.json"
    final = json.loads(path.read_text())["final"]
    final["tasks"]["goal"][0][0] += 1.0
    change(path, final=final)
    outcome = report(committed, "tiny")
    assert outcome.code == 2
    assert "the seeds of maml must have the same points and tasks" in outcome.err


@pytest.mark.parametrize("points", [[0.0, 2.0, 20.0], [0.0, 0.5, 10.0], [0.0, 1.0, 10.1], [1.0, 1.0, 10.0]])
def test_budgets_are_what_was_spent(points: list[float], tmp_path: Path) -> None:
    """Budgets multiplied by one number, or one of them changed, would make the table say what was not run."""
    kept = ROOT / "results" / "half_cheetah_direction" / "ppo-0.json"
    assert read_result(kept).points == (0.0, 1.0, 10.0)
    path = tmp_path / "ppo-0.json"
    path.write_text(kept.read_text())
    change(path, points=points)
    with pytest.raises(ValueError, match=r"points must be the budgets \[0.0, 1.0, 10.0\], got"):
        read_result(path)


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("grid_world/ANIL", {"trained": 0}, "trained must be 1"),
        ("half_cheetah_velocity/three_inner_steps,_proximal", {"trained": 1}, "trained must be 3"),
        ("half_cheetah_velocity/oracle", {"trained": 1}, "trained must be 0"),
        ("half_cheetah_velocity/rl2", {"trained": 0}, "trained must be 3"),
        ("half_cheetah_velocity/rl2", {"points": [0.0, 1.0, 2.0, 3.0]}, r"must be the episodes \[1.0, 2.0, 3.0, 4.0\]"),
        ("half_cheetah_velocity/rl2", {"axis": "step", "trained": 1}, "axis must be episode with the baseline"),
        ("half_cheetah_velocity/ppo", {"axis": "step", "points": [0.0, 1.0, 2.0]}, "axis must be budget"),
    ],
)
def test_axis_and_trained_point_follow_from_the_run(
    name: str, changes: dict[str, object], line: str, tmp_path: Path
) -> None:
    """Another trained point or axis would compare what no run was trained for; so would it in a row of one seed."""
    kept = ROOT / "results" / f"{name}-0.json"
    read_result(kept)
    path = tmp_path / "changed.json"
    path.write_text(kept.read_text())
    change(path, **changes)
    with pytest.raises(ValueError, match=line):
        read_result(path)


# What is committed.


def test_the_page_is_what_the_results_give() -> None:
    path = ROOT / "docs" / "results.md"
    text = path.read_text(encoding="utf-8")
    assert page.fill(text, ROOT / "results", list(table.REFERENCES)) == text


def labels(rows: Sequence[ReferenceRow]) -> list[str]:
    return [row.label for row in rows]


@pytest.mark.parametrize("name", table.REFERENCES)
def test_the_table(name: str, tmp_path: Path) -> None:
    reference = table.REFERENCES[name]
    assert len(set(labels(reference.rows))) == len(reference.rows)
    assert not any(":" in label for label in labels(reference.rows))
    assert all(len(published.returns) in (1, 4) and published.source for published in reference.published)
    given = Arguments(rows=tuple(f"{row.label}: {row.options}" for row in reference.rows), env=reference.env)
    assert list(parse_rows(given)) == labels(reference.rows)  # every option exists


@pytest.mark.slow
@pytest.mark.parametrize("name", table.REFERENCES)
def test_every_row_can_be_trained(name: str, tmp_path: Path) -> None:
    runs_of_name = choose([name], (), (), tmp_path, tmp_path)
    assert len(build(runs_of_name)) == sum(len(row.seeds) for row in table.REFERENCES[name].rows)
    assert not list(tmp_path.iterdir())
