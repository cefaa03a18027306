"""`metarl compare`: whether it runs and what it prints."""

import json
from pathlib import Path

import pytest
from PIL import Image

from metarl.experiments import train
from metarl.experiments.compare import iterations_for
from metarl.experiments.train import TrainConfig
from tests.experiments import runs


@pytest.mark.usefixtures("no_pictures")
def test_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "FINAL_TASKS", 8)
    monkeypatch.setattr(train, "FINAL_EPISODES", 4)
    options = ["--outer", "maml", "fo_maml", "--seeds", 0, 1, "--env-steps", 120]
    small = ["--meta-batch-size", 2, "--episodes", 2, "--horizon", 5]
    outcome = runs.call("compare", *options, *small, "--log-dir", tmp_path, "--name", "both")
    assert outcome.code == 0, outcome.err

    folder = tmp_path / "both"
    runs_of = {f"{outer}-{seed}" for outer in ("maml", "fo_maml") for seed in (0, 1)}
    assert {path.name for path in folder.iterdir()} == runs_of | {"comparison.json", "comparison.png"}
    results = json.loads((folder / "comparison.json").read_text())
    # an iteration draws D_in, D_o (and D_h for maml) of 2 x 2 x 5 steps
    assert {outer: row["iterations"] for outer, row in results.items()} == {"maml": 2, "fo_maml": 3}
    for outer, row in results.items():
        assert row["env_steps"] <= 120
        assert len(row["by_seed"]) == 2
        scores = [json.loads((folder / f"{outer}-{seed}" / "evaluation.json").read_text())["mean"] for seed in (0, 1)]
        assert row["mean"] == pytest.approx([(a + b) / 2 for a, b in zip(*scores, strict=True)])
        assert all(low <= mean <= high for mean, (low, high) in zip(row["mean"], row["ci95"], strict=True))
    with Image.open(folder / "comparison.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or []) > 50

    table = [line.split("|")[1:-1] for line in outcome.out.splitlines() if line.startswith("|")][-4:]
    assert [row[0].strip() for row in table] == ["row", "---", "`maml`", "`fo_maml`"]
    assert {len(row) for row in table} == {1 + 4 + 3}


@pytest.mark.usefixtures("no_pictures")
def test_rows_with_options_of_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "FINAL_TASKS", 4)
    monkeypatch.setattr(train, "FINAL_EPISODES", 2)
    rows = ["--rows", "plain:", "plain descent: --outer-step sgd --hidden 6", "--options=--hidden 5 --inner-lr 0.2"]
    small = ["--meta-batch-size", 2, "--episodes", 2, "--horizon", 5, "--env-steps", 120, "--seeds", 0]
    outcome = runs.call("compare", *rows, *small, "--log-dir", tmp_path, "--name", "both")
    assert outcome.code == 0, outcome.err
    found = {path.name: json.loads((path / "config.json").read_text()) for path in (tmp_path / "both").glob("*-0")}
    kept = {name: [config[key] for key in ("outer_step", "hidden", "inner_lr")] for name, config in found.items()}
    assert kept == {"plain-0": ["adam", [5], 0.2], "plain_descent-0": ["sgd", [6], 0.2]}
    assert [line.split("|")[1].strip() for line in outcome.out.splitlines() if line.startswith("|")][-2:] == [
        "plain",
        "plain descent",
    ]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--rows", "no colon"], "rows must be 'label: options of metarl train', the label of words, got 'no colon'"),
        (["--rows", "../up: --hidden 4"], "rows must be 'label: options of metarl train'"),
        (["--rows", "a: --hidden 4", "a: --hidden 5"], "rows must have different labels, got 'a' twice"),
        (["--rows", "a: --seed 3"], "rows must not have seed, which follows from the comparison, got '--seed 3'"),
        (["--options=--iterations 3"], "options must not have iterations"),
        (["--rows", "a: --hiden 4"], "--hiden"),
        (
            ["--rows", "a: --hidden '4"],
            'rows must be options of metarl train, got "--hidden \'4": No closing quotation',
        ),
    ],
)
def test_wrong_rows(tmp_path: Path, arguments: list[str], found: str) -> None:
    outcome = runs.call("compare", *arguments, "--log-dir", tmp_path, "--name", "both")
    assert outcome.code == 2
    assert found in outcome.err
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize(("first_order", "several"), [(0, 0), (0, 3), (2, 0), (2, 3), (3, 2), (9, 9)])
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
