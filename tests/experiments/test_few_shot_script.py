"""`metarl few-shot`: a tiny comparison from end to end, and that a signal leaves no half-trained row behind."""

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
from metarl.experiments import few_shot
from tests.experiments import runs

TINY = [
    *("--iterations", 2, "--pilot-iterations", 1, "--tasks", 6, "--meta-batch-size", 2, "--queries", 2),
    *("--inner-steps", 1, "--factors", 1.0, "--ways", 3),
]
ROWS = {"from scratch", "joint pretraining", "maml", "sign_maml"}


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
    updates = ["--outer", "maml", "sign_maml", "--seeds", 0, 1]
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
        (["--shots", 60], ("class", "62", "58")),
        (["--outer", "maml", "maml"], ("outer must", "twice")),
        (["--factors", 0], ("factors must", "0")),
        (["--network", "conv4"], ("conv4", "square")),
        (["--network", "conv4", "--hidden", 8], ("hidden does not apply to network 'conv4'", "(8,)")),
        (["--filters", 8], ("filters does not apply to network 'mlp'", "8")),
        (["--rotations"], ("rotations does not apply to 'digits'",)),
    ],
)
def test_bad_input(options: list[Any], wanted: tuple[str, ...], tmp_path: Path) -> None:
    outcome = runs.call("few_shot", *TINY, *options, "--log-dir", tmp_path / "none")
    assert (outcome.code, outcome.out) == (2, "")
    assert all(text in outcome.err for text in wanted), outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "none").exists()
