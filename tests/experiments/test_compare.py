"""`metarl compare`: its plan, its runs, and its files."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.experiments import compare, train
from metarl.experiments.compare.jobs import Job, do
from metarl.experiments.compare.plan import Arguments, iterations_for, plan, read_sweep
from metarl.experiments.compare.tables import latex_text
from metarl.experiments.train import TrainConfig
from metarl.files import write_json
from tests.experiments import runs

SMALL = ["--meta-batch-size", 2, "--episodes", 2, "--horizon", 5, "--env-steps", 120]
QUICK = "--options=--eval-every 1 --eval-tasks 2 --hidden 6"


def run_here(jobs: Sequence[Job], workers: int, done: int = 0) -> None:
    """`run_all` in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for job in jobs:
        message = do(job, lambda _: None)
        assert message.kind == "done", message.text
    torch.set_num_threads(threads)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> list[str]:
    """Train in this process, without pictures of the runs, and evaluate little; the names of the runs that trained."""
    trained: list[str] = []

    def run(jobs: Sequence[Job], workers: int, done: int = 0) -> None:
        trained.extend(job.name for job in jobs)
        run_here(jobs, workers, done)

    monkeypatch.setattr(compare, "run_all", run)
    monkeypatch.setattr(train, "FINAL_TASKS", 5)
    monkeypatch.setattr(train, "FINAL_EPISODES", 2)
    return trained


def run_compare(out: Path, *arguments: object) -> runs.Outcome:
    return runs.call("compare", *SMALL, QUICK, "--out", out, *arguments)


def read_results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    return found


def test_compare(tmp_path: Path, here: list[str]) -> None:
    out = tmp_path / "both"
    outcome = run_compare(out, "--outer", "maml", "fo_maml", "--seeds", 0, 1)
    assert outcome.code == 0, outcome.err

    names = [f"{outer}-{seed}" for outer in ("maml", "fo_maml") for seed in (0, 1)]
    assert sorted(path.name for path in (out / "runs").iterdir()) == sorted(names) == sorted(here)
    results = read_results(out)["rows"]
    # an iteration draws D_in, D_o (and D_h for maml) of 2 x 2 x 5 steps
    assert {outer: row["iterations"] for outer, row in results.items()} == {"maml": 2, "fo_maml": 3}
    for outer, row in results.items():
        assert row["env_steps"] <= 120
        assert row["trained_point"] == 1
        scores = [
            json.loads((out / "runs" / f"{outer}-{seed}" / "evaluation.json").read_text())["mean"] for seed in (0, 1)
        ]
        assert row["mean"] == pytest.approx([(a + b) / 2 for a, b in zip(*scores, strict=True)])
        assert all(low <= mean <= high for mean, (low, high) in zip(row["mean"], row["ci95"], strict=True))
        lines = [runs.lines(out / "runs" / f"{outer}-{seed}") for seed in (0, 1)]
        assert row["cpu_seconds"] == pytest.approx(
            np.mean([sum(line["time/iteration_cpu_seconds"] for line in own) for own in lines])
        )
    for picture in ("curves", "adaptation"):
        with Image.open(out / f"{picture}.png") as image:
            assert len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or []) > 50


def test_tables_agree(tmp_path: Path, here: list[str]) -> None:
    out = tmp_path / "both"
    outcome = run_compare(out, "--outer", "maml", "--rows", "<b>&_%: --inner-lr 0.2", "--seeds", 0, 1)
    assert outcome.code == 0, outcome.err
    results = read_results(out)["rows"]

    markdown = (out / "table.md").read_text()
    assert markdown in outcome.out
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines()]
    assert [row[0] for row in cells] == ["row", "---", "`maml`", "<b>&_%"]
    assert {len(row) for row in cells} == {1 + 4 + 3}

    latex = (out / "table.tex").read_text()
    body = [line.removesuffix(r" \\").split(" & ") for line in latex.splitlines() if line.endswith(r" \\")]
    assert [row[0] for row in body] == ["row", "maml", r"\textless{}b\textgreater{}\&\_\%"]
    assert [cell.replace("$-$", "-") for cell in body[1][1:]] == cells[2][1:]

    with (out / "table.csv").open(newline="") as file:
        table = {row["row"]: row for row in csv.DictReader(file)}
    assert {label: float(row["step_3_mean"]) for label, row in table.items()} == {
        label: row["mean"][3] for label, row in results.items()
    }
    with (out / "scores.csv").open(newline="") as file:
        scores = list(csv.DictReader(file))
    assert len(scores) == 2 * 2 * 5 * 4
    of_maml = [float(row["score"]) for row in scores if row["row"] == "maml" and row["step"] == "3"]
    assert np.mean(of_maml) == pytest.approx(results["maml"]["mean"][3])
    seed_0 = [float(r["score"]) for r in scores if (r["row"], r["seed"], r["step"]) == ("maml", "0", "2")]
    evaluation = json.loads((out / "runs" / "maml-0" / "evaluation.json").read_text())
    assert seed_0 == [task[2] for task in evaluation["scores"][0]]


@pytest.mark.parametrize("sign", ["\\", "~", "^", "{", "}", "$", "#", "|", "<", ">"])
def test_latex_of_signs(sign: str) -> None:
    assert latex_text(f"a{sign}b") not in (f"a{sign}b", "ab")


def test_an_own_environment(tmp_path: Path, here: list[str]) -> None:
    arguments = ("--outer", "maml", "--seeds", 0)
    found = []
    for name in ("metarl.envs:Navigation", "navigation"):
        outcome = run_compare(tmp_path / name, *arguments, "--env", name)
        assert outcome.code == 0, outcome.err
        found.append(read_results(tmp_path / name)["rows"]["maml"]["mean"])
    assert found[0] == found[1]


def test_an_evaluation_of_an_older_version(tmp_path: Path, here: list[str]) -> None:
    arguments = ("--outer", "maml", "--seeds", 0)
    assert run_compare(tmp_path / "out", *arguments).code == 0
    (path,) = (tmp_path / "out").glob("runs/*/evaluation.json")
    write_json(path, {name: value for name, value in json.loads(path.read_text()).items() if name != "costs"})
    outcome = run_compare(tmp_path / "out", *arguments)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"{path} must be an adaptation curve" in outcome.err
    # what the message says works
    path.unlink()
    assert run_compare(tmp_path / "out", *arguments).code == 0
    assert path.exists()


def test_what_is_done_is_reused(tmp_path: Path, here: list[str]) -> None:
    out = tmp_path / "growing"
    assert run_compare(out, "--outer", "maml", "--seeds", 0).code == 0
    first = runs.files(out / "runs")
    assert run_compare(out, "--outer", "maml", "fo_maml", "--seeds", 0, 1).code == 0
    assert here == ["maml-0", "maml-1", "fo_maml-0", "fo_maml-1"]
    assert {name: data for name, data in runs.files(out / "runs").items() if name in first} == first


def test_another_setting_is_refused(tmp_path: Path, here: list[str]) -> None:
    out = tmp_path / "one"
    assert run_compare(out, "--outer", "maml", "--seeds", 0).code == 0
    before = runs.files(out)
    outcome = run_compare(out, "--outer", "fo_maml", "maml", "--seeds", 0, "--set", "maml.inner_lr=0.3")
    assert outcome.code == 2
    assert f"inner_lr must be that of the run in {out}/runs/maml-0, None, got 0.3" in outcome.err
    assert runs.files(out) == before


def test_a_moved_comparison_continues(tmp_path: Path, here: list[str]) -> None:
    assert run_compare(tmp_path / "old", "--outer", "maml", "--seeds", 0).code == 0
    (tmp_path / "old" / "runs" / "maml-0" / "evaluation.json").unlink()
    (tmp_path / "old").rename(tmp_path / "new")
    assert run_compare(tmp_path / "new", "--outer", "maml", "--seeds", 0).code == 0
    assert here == ["maml-0", "maml-0"]
    assert (tmp_path / "new" / "runs" / "maml-0" / "evaluation.json").exists()


def test_a_run_killed_before_it_began(tmp_path: Path, here: list[str]) -> None:
    bare = tmp_path / "out" / "runs" / "maml-0"
    bare.mkdir(parents=True)
    (tmp_path / "out" / "comparison.json").write_text("{}")
    (bare / "config.json").write_text("{")
    assert run_compare(tmp_path / "out", "--outer", "maml", "--seeds", 0).code == 0
    assert (bare / "evaluation.json").exists()


def test_a_run_that_diverges_is_a_result(tmp_path: Path, here: list[str]) -> None:
    arguments = ("--outer", "maml", "--set", "outer_step=sgd", "--sweep", "learning_rate", "0.01", "1e39", "--seeds", 0)
    outcome = run_compare(tmp_path / "out", *arguments)
    assert outcome.code == 0, outcome.err
    fine, diverged = read_results(tmp_path / "out")["rows"].values()
    assert "mean" in fine
    assert "mean" not in diverged
    assert list(diverged["diverged"]) == ["0"]
    assert "diverged (1 of 1 seeds)" in outcome.out
    assert run_compare(tmp_path / "out", *arguments).code == 0
    assert len(here) == 2  # it is not tried again


def test_rows_with_options_of_train(tmp_path: Path, here: list[str]) -> None:
    rows = ["--rows", "plain:", "plain descent: --outer-step sgd --hidden 6", "--options=--hidden 5 --inner-lr 0.2"]
    outcome = runs.call("compare", *rows, *SMALL, "--seeds", 0, "--out", tmp_path / "both")
    assert outcome.code == 0, outcome.err
    found = {path.name: json.loads((path / "config.json").read_text()) for path in (tmp_path / "both/runs").glob("*-0")}
    kept = {name: [config[key] for key in ("outer_step", "hidden", "inner_lr")] for name, config in found.items()}
    assert kept == {"plain-0": ["adam", [5], 0.2], "plain_descent-0": ["sgd", [6], 0.2]}
    assert [line.split("|")[1].strip() for line in outcome.out.splitlines() if line.startswith("|")][-2:] == [
        "plain",
        "plain descent",
    ]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--rows", "no colon"], "rows must be 'label: options of metarl train', got 'no colon'"),
        (["--rows", ": --hidden 4"], "rows must be 'label: options of metarl train'"),
        (["--rows", "a: --hidden 4", "a: --hidden 5"], "rows must have different labels, got 'a' twice"),
        (["--rows", "a&b:", "a%b:"], "rows must have labels that differ in more than special signs"),
        (["--rows", "a: --seed 3"], "rows must not have seed, which follows from the comparison, got '--seed 3'"),
        (["--baselines", "sb3"], "baselines must be one of"),
        (["--options=--iterations 3"], "options must not have iterations"),
        (["--options=--find-inner-lr"], "options must not have find_inner_lr"),
        (["--rows", "a: --hiden 4"], "--hiden"),
        (
            ["--rows", "a: --hidden '4"],
            'rows must be options of metarl train, got "--hidden \'4": No closing quotation',
        ),
    ],
)
def test_wrong_rows(tmp_path: Path, arguments: list[str], found: str) -> None:
    outcome = runs.call("compare", *arguments, "--out", tmp_path / "both")
    assert outcome.code == 2
    assert found in outcome.err
    assert not (tmp_path / "both").exists()


def planned(**given: Any) -> dict[str, TrainConfig]:
    small = {"meta_batch_size": 2, "episodes": 2, "horizon": 5, "env_steps": 120, "seeds": (0,), "out": Path("nowhere")}
    return {row.label: row.config for row in plan(Arguments(**{**small, **given}))}


def test_settings_of_all_rows_and_of_one() -> None:
    entries = (
        "maml.inner_lr=0.5",
        "inner_lr=0.2",
        "hidden=5,6",
        "fo_maml.inner-steps=2",
        "maml.outer_options=hessian_data=reuse",
    )
    found = planned(outer=("maml", "fo_maml"), set=entries)
    assert {label: (c.inner_lr, c.hidden, c.inner_steps) for label, c in found.items()} == {
        "maml": (0.5, (5, 6), None),
        "fo_maml": (0.2, (5, 6), 2),
    }
    # the budget counts what each row draws: D_h is D_in; two steps draw three times
    assert {label: config.iterations for label, config in found.items()} == {"maml": 3, "fo_maml": 2}


def test_a_label_with_a_point() -> None:
    assert planned(rows=("v1.2: --hidden 4",), set=("v1.2.inner_lr=0.5",))["v1.2"].inner_lr == 0.5


def test_sweep() -> None:
    found = planned(outer=("maml",), sweep=(("inner_lr", "0.1", "0.2"), ("inner_steps", "1", "2")))
    assert {label: (c.inner_lr, c.inner_steps) for label, c in found.items()} == {
        f"maml inner_lr={lr} inner_steps={steps}": (float(lr), int(steps)) for lr in ("0.1", "0.2") for steps in "12"
    }
    with pytest.raises(ValueError, match="at most two settings"):
        read_sweep((("inner_lr", "1"), ("learning_rate", "1"), ("discount", "1")))


def test_jobs_default_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 4}, raising=False)
    assert compare.count_jobs(Arguments()) == 3
    assert compare.count_jobs(Arguments(jobs=7)) == 7


@pytest.mark.parametrize(
    ("first_order", "several"),
    [(0, 3), (2, 0), (3, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0, 0), (2, 3), (9, 9)))],
)
def test_the_budget_of_an_update_whose_cost_is_annealed(first_order: int, several: int) -> None:
    """Two inner steps: draws of D_in and D_o at each point, or one D_o, and two D_h unless it is first-order."""
    options = (f"second_order_from={first_order}", f"multi_step_iterations={several}")
    config = TrainConfig(
        outer="maml_plus_plus", inner_steps=2, outer_options=options, meta_batch_size=2, episodes=2, horizon=3
    )
    for budget in (1, 3, 4, 8, 13, 30):  # draws
        spent = wanted = 0
        while True:
            spent += 2 + (2 if wanted < several else 1) + (0 if wanted < first_order else 2)
            if spent > budget:
                break
            wanted += 1
        if wanted:
            assert iterations_for(config, 12 * budget + 11) == wanted
        else:
            with pytest.raises(ValueError, match="env_steps must be enough for an iteration"):
                iterations_for(config, 12 * budget + 11)
