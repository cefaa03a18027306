"""`metarl few-shot`: a tiny comparison from end to end, and that a signal leaves no half-trained row behind."""

import dataclasses
import json
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from metarl import MetaLearner
from metarl.engine import Engine
from metarl.experiments import few_shot
from metarl.experiments.common.evaluation import compare_pairs
from metarl.learned_rules import PER_STEP, PerStepNorm
from metarl.schedules import Cosine
from tests.experiments import runs

TINY = [
    *("--iterations", 2, "--pilot-iterations", 1, "--tasks", 6, "--meta-batch-size", 2, "--queries", 2),
    *("--inner-steps", 1, "--factors", 1.0, "--ways", 3),
]
ROWS = {"from scratch", "joint pretraining", "maml", "sign_maml", "bmaml", "ensemble"}


def folder_of_images(root: Path) -> Path:
    """Nine classes of four images."""
    rng = np.random.default_rng(0)
    for c in range(9):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(root / f"class{c}" / f"{i}.png")
    return root


@pytest.mark.parametrize("data", ["digits", "images"])
def test_a_comparison(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shot, "Engine", partial(Engine, record=False))  # without the seconds that records take
    options: list[Any] = ["--data", data, "--hidden", 8]
    if data == "images":
        options = ["--data", folder_of_images(tmp_path / "images"), "--split", 3, 3, 3]
        options += ["--image-size", 16, "--filters", 4]
    updates = ["--outer", *sorted(ROWS - {"from scratch", "joint pretraining"}), "--seeds", 0, 1, "--particles", 2]
    outcome = runs.call("few_shot", *options, *updates, *TINY, "--log-dir", tmp_path, "--name", "both", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found == json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert set(found["results"]) == ROWS
    for name, row in found["results"].items():
        assert np.shape(row["by_seed"]) == (2, 11)
        assert row["mean"] == pytest.approx(np.mean(row["by_seed"], 0))
        assert all(
            0 <= mean <= 1 and low <= mean <= high for mean, (low, high) in zip(row["mean"], row["ci95"], strict=True)
        )
        assert float(row["inner_lr"]) in [float(size) for size in row["validation"]], name
    assert len(found["results"]["maml"]["validation"]) == 1
    with Image.open(tmp_path / "both" / "comparison.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or []) > 50


def test_partial_adaptation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context, which every row with the network has, and which only updates start at zero."""
    monkeypatch.setattr(few_shot, "Engine", partial(Engine, record=False))
    rows = ["maml", "bmaml", "ensemble"]
    options = ["--outer", *rows, "--context-size", 2, "--hidden", 8, "--seeds", 0, "--particles", 2, "--equal-cost"]
    options = [*TINY, *options, "--iterations", 6, "--pilot-iterations", 5]
    outcome = runs.call("few_shot", *options, "--log-dir", tmp_path, "--name", "context", "--json")
    assert outcome.code == 0, outcome.err
    assert set(json.loads(outcome.out)["results"]) == {"from scratch", "joint pretraining", *rows}


def test_the_rules_of_all_steps_and_a_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update whose steps differ is judged with the rule of each step."""
    made, fit = [], few_shot.meta_train

    def kept(*given: Any) -> few_shot.Fitted:
        made.append(fit(*given))
        return made[-1]

    class Noted(Cosine):
        def __init__(self, iterations: int) -> None:
            super().__init__(iterations)
            spans.append(iterations)

    spans: list[int] = []
    monkeypatch.setattr(few_shot, "meta_train", kept)
    monkeypatch.setattr(few_shot, "SCHEDULES", {"cosine": Noted})
    monkeypatch.setattr(few_shot, "Engine", partial(Engine, record=False))
    options = ["--data", folder_of_images(tmp_path / "images"), "--split", 3, 3, 3, "--image-size", 16, "--filters", 4]
    tiny = [2 if before == "--inner-steps" else word for before, word in pairwise(["", *TINY])]
    outcome = runs.call(
        *("few_shot", *options, "--outer", "maml_plus_plus", *tiny, "--anneal", "cosine"),
        *("--log-dir", tmp_path, "--name", "one"),
    )
    assert outcome.code == 0, outcome.err
    assert spans == [2, 2, 1, 2, 2]  # pretraining with two seeds, the pilot, two runs
    for fitted in made:
        rules = cast(list[PerStepNorm], fitted.rules)
        assert [rule.step for rule in rules] == [0] + [1] * 9
        assert f"{PER_STEP}norm1.weight" in fitted.params


def test_a_signal_ends_the_program_without_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iterate = MetaLearner._iterate

    def interrupted(self: MetaLearner) -> Any:
        signal.raise_signal(signal.SIGINT)
        return iterate(self)

    monkeypatch.setattr(MetaLearner, "_iterate", interrupted)
    outcome = runs.call("few_shot", "--outer", "maml", *TINY, "--log-dir", tmp_path, "--name", "cut")
    assert outcome.code == 128 + signal.SIGINT
    assert "stopped by SIGINT" in outcome.err
    assert not (tmp_path / "cut" / "comparison.json").exists()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--data", "diggits"], ("data must", "'diggits'")),
        (["--ways", 1], ("ways must", "1")),
        (["--outer", "ensembel"], ("outer must", "did you mean 'ensemble'")),
        (["--particles", 0], ("particles must", "got 0")),
        (["--shots", 60], ("class", "62", "58")),
        (["--outer", "maml", "maml"], ("outer must", "twice")),
        (["--factors", 0], ("factors must", "0")),
        (["--network", "conv4"], ("conv4", "square")),
        (["--network", "conv4", "--hidden", 8], ("hidden does not apply to network 'conv4'", "(8,)")),
        (["--outer", "maml", "reptile", "--adapt", "head"], ("adapt does not apply to 'reptile'",)),
        (
            ["--outer", "maml", "--network", "conv4", "--context-size", 2],
            ("context_size does not apply to network 'conv4'", "2"),
        ),
        (["--filters", 8], ("filters does not apply to network 'mlp'", "8")),
        (["--rotations"], ("rotations does not apply to 'digits'",)),
        (["--outer", "maml", "--reference", "fo_maml"], ("reference must", "maml", "'fo_maml'")),
        (["--outer", "maml", "--equal-cost"], ("pilot_iterations must be at least 2", "'maml'", "1")),
    ],
)
def test_bad_input(options: list[Any], wanted: tuple[str, ...], tmp_path: Path) -> None:
    outcome = runs.call("few_shot", *TINY, *options, "--log-dir", tmp_path / "none")
    assert (outcome.code, outcome.out) == (2, "")
    assert all(text in outcome.err for text in wanted), outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "none").exists()


# --- equal cost, and paired differences

GRADIENTS_OF_AN_ITERATION = {  # of each task with two inner steps, by hand: gradients + 2 Hessian-vector products
    "fo_maml": 3,
    "sign_maml": 3,
    "maml": 3 + 2 * 2,
    "hf_maml": 3 + 2 * 2,  # two more gradients for each product
    "ensemble": 5 * (3 + 2 * 2),
    "bmaml": 5 * (4 + 2 * 2),  # the leader's step takes a gradient on each batch, and there is no outer gradient
}


@pytest.mark.parametrize("outer", GRADIENTS_OF_AN_ITERATION)
def test_the_cost_of_an_iteration(outer: str) -> None:
    given = few_shot.Arguments(hidden=(8,), inner_steps=2)
    source = few_shot.build_few_shot(given, 1, 2, torch.device("cpu"), 0).train
    counts = few_shot.small_learner(given, source, outer).learn(1).counts
    assert few_shot.cost(counts) == 2 * GRADIENTS_OF_AN_ITERATION[outer]  # two tasks
    counts = few_shot.divide_by_cost(dataclasses.replace(given, outer=(outer,), iterations=500), source)
    assert counts == {(outer, n): n * 3 // GRADIENTS_OF_AN_ITERATION[outer] for n in (500, 100)}


def test_the_iterations_of_an_annealed_update() -> None:
    """MAML++ with two inner steps: 4 gradients in 25 iterations, then 8, and 7 from iteration 50 on."""
    given = few_shot.Arguments(hidden=(8,), inner_steps=2, outer=("maml_plus_plus",), iterations=500)
    source = few_shot.build_few_shot(given, 1, 2, torch.device("cpu"), 0).train
    wanted = {500: 50 + (500 * 3 - 25 * 4 - 25 * 8) // 7, 100: 25 + (100 * 3 - 25 * 4) // 8}
    assert few_shot.divide_by_cost(given, source) == {("maml_plus_plus", n): k for n, k in wanted.items()}


def test_equal_cost_and_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shot, "Engine", partial(Engine, record=False))
    updates = ["--outer", "maml", "fo_maml", "sign_maml", "--reference", "fo_maml", "--equal-cost"]
    options: list[Any] = [*TINY, "--data", "strokes", "--hidden", 8, "--seeds", 0, 1, 2, *updates]
    options[options.index("--iterations") + 1] = options[options.index("--pilot-iterations") + 1] = 7
    where = ("--log-dir", tmp_path, "--name", "paired")
    outcome = runs.call("few_shot", *options, *where)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "paired" / "comparison.json").read_text())

    # One inner step: fo_maml takes 2 gradients, maml 4 in an iteration of two tasks.
    rows = found["results"]
    spent = {
        name: [rows[name][key] for key in ("iterations", "gradients", "hessian_vector_products")]
        for name in rows
        if name in updates
    }
    assert spent == {"fo_maml": [7, 28, 0], "sign_maml": [7, 28, 0], "maml": [3, 12, 6]}

    assert set(found["differences"]) == {"from scratch", "joint pretraining", "maml", "sign_maml"}
    for name, row in found["differences"].items():
        assert row["mean"] == pytest.approx(np.subtract(rows[name]["mean"], rows["fo_maml"]["mean"]), abs=1e-6)
        by_seed = np.subtract(rows[name]["by_seed"], rows["fo_maml"]["by_seed"])  # [seeds, steps + 1]
        half = 4.302653 * by_seed.std(0, ddof=1) / 3**0.5  # t of two degrees of freedom
        assert np.array(row["over_seeds"]) == pytest.approx(
            np.stack([by_seed.mean(0) - half, by_seed.mean(0) + half], 1), abs=1e-5
        )
    assert "| sign_maml | seeds | " in outcome.out
    assert outcome.out.count("| tasks |") == 4


def test_pairs_of_the_same_task_are_compared() -> None:
    """Equal scores differ by nothing, however much tasks and seeds vary; in another order they do not pair."""
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(4, 1, 1)) + rng.normal(size=(1, 30, 2))).astype(np.float32)
    same = compare_pairs(scores + np.float32(0.25), scores)
    for kind in ("ci95", "over_seeds", "over_tasks"):
        assert np.array(same[kind]) == pytest.approx(np.full((2, 2), 0.25), abs=1e-5)
    wide = compare_pairs(scores + np.float32(0.25), scores[:, ::-1])
    assert all(high - low > 0.3 for low, high in wide["over_tasks"])
    # one seed says nothing about others
    assert compare_pairs(scores[:1], scores[:1])["over_seeds"] == [None, None]
