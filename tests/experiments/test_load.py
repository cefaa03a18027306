"""Runs of the command line opened from Python, resumed for longer, and read from files of older versions."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import metarl
from metarl import MetaLearner, checkpoint
from metarl.experiments.common.run import new_run
from metarl.experiments.train import TrainConfig
from metarl.files import write_json
from metarl.rl import ReinforcementLearning
from metarl.step import OptimizerStep
from tests.experiments import runs

pytestmark = pytest.mark.usefixtures("no_report", "unrecorded")
SGD = ("six_logistic", "--outer-step", "sgd", "--inner-batch", 5, "--eval-steps", 1, "--final-tasks", 2)
WATCH_LITTLE = ("--eval-every", 99, "--eval-tasks", 2, "--save-every", 2)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at its beginning; to be copied."""
    tiny = TrainConfig(iterations=3, meta_batch_size=2, episodes=2, horizon=5, hidden=(8,))
    folder = tmp_path_factory.mktemp("begun")
    return new_run(dataclasses.replace(tiny, log_dir=folder, name="run")).folder


def rates(folder: Path) -> list[float]:
    return [line["train/learning_rate"] for line in runs.lines(folder)]


def config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def fall(iterations: int, first: int = 0, end: int | None = None, size: float = 3e-3) -> list[float]:
    """Learning rates as the schedule's definition has them."""
    numbers = range(first, iterations if end is None else end)
    return [size * (1 - 0.9 * min(n / iterations, 1)) for n in numbers]


def test_the_schedule_spans_the_new_total(tmp_path: Path) -> None:
    folder = runs.train(tmp_path / "run", "--iterations", 2)
    assert rates(folder) == pytest.approx(fall(2))
    outcome = runs.call("train", "--resume", folder, "--iterations", 6)
    assert outcome.code == 0, outcome.err
    assert rates(folder) == pytest.approx([*fall(2), *fall(6, first=2)])
    assert "anneal_iterations is 6 from iteration 3 on, it was 2" in outcome.out
    assert "iterations is 6 from iteration 3 on, it was 2" in outcome.out
    assert config(folder)["anneal_iterations"] == 6
    assert config(folder)["changes"] == [{"after_iteration": 2, "anneal_iterations": {"from": 2, "to": 6}}]
    runs.resume(folder, "--iterations", 7)
    assert rates(folder)[6:] == pytest.approx(fall(7, first=6))
    assert [entry["after_iteration"] for entry in config(folder)["changes"]] == [2, 6]


@pytest.mark.parametrize(
    ("first", "then", "wanted"),
    [
        (("--anneal-iterations", 3), (), fall(3, first=2, end=4)),
        (("--anneal-iterations", 0), (), [3e-3, 3e-3]),
        ((), ("--anneal-iterations", 2), [3e-4, 3e-4]),
        ((), ("--anneal-iterations", 0), [3e-3, 3e-3]),
        (("--anneal-iterations", 0), ("--learning-rate", 0.01), [0.01, 0.01]),
        ((), ("--learning-rate", 0.01), fall(4, first=2, size=0.01)),
    ],
)
def test_unless_told_otherwise(tmp_path: Path, first: Any, then: Any, wanted: list[float]) -> None:
    folder = runs.train(tmp_path / "run", "--iterations", 2, *first)
    runs.resume(folder, "--iterations", 4, *then)
    assert rates(folder)[2:] == pytest.approx(wanted)
    assert metarl.load(folder).iterations == 4


def test_changed_and_killed_before_it_saved(tmp_path: Path) -> None:
    """`config.json` is ahead of the checkpoint, and the run goes on all the same."""
    folder = runs.train(tmp_path / "run", "--iterations", 2)
    before = (folder / "checkpoint.pt").read_bytes()
    runs.resume(folder, "--iterations", 4, "--learning-rate", 0.01)
    whole = runs.saved(folder)
    (folder / "checkpoint.pt").write_bytes(before)
    runs.resume(folder)
    assert runs.saved(folder) == whole


def test_a_setting_that_was_not_changed_by_resuming_is_refused(tmp_path: Path) -> None:
    folder = runs.train(tmp_path / "run", "--iterations", 1)
    write_json(folder / "config.json", {**config(folder), "learning_rate": 0.5})
    with pytest.raises(ValueError, match=r"learning_rate is 0\.5, but the checkpoint was trained with 0\.003"):
        metarl.load(folder)


def test_open_a_run_of_train(tmp_path: Path) -> None:
    folder = runs.train(tmp_path / "run", "--iterations", 2, "--anneal-iterations", 4)
    before = runs.files(folder)
    learner = metarl.load(folder)
    assert learner.iterations == 2
    assert isinstance(learner.source, ReinforcementLearning)
    assert len(learner.evaluate(num_tasks=2, steps=1, warn=False).mean) == 2
    assert learner.adapt(learner.source.sample(2, learner._rng.spawn(1)[0])).keys() == learner.params.keys()
    learner = metarl.load(str(folder)).learn(2)
    assert runs.files(folder) == before
    runs.resume(folder, "--iterations", 4, "--anneal-iterations", 4)
    for key, leaf in checkpoint.load(folder / "checkpoint.pt")["params"].items():
        assert torch.equal(leaf, learner.params[key])


def test_open_a_run_on_fixed_data(tmp_path: Path) -> None:
    outcome = runs.call(
        "train_supervised", *SGD, *WATCH_LITTLE, "--iterations", 2, "--log-dir", tmp_path, "--name", "run"
    )
    assert outcome.code == 0, outcome.err
    assert metarl.load(tmp_path / "run").learn(1).iterations == 3


def test_changes_from_python(tmp_path: Path) -> None:
    folder = runs.train(tmp_path / "run", "--iterations", 1)
    step = metarl.load(folder, learning_rate=0.5, anneal_iterations=0).outer_step
    assert isinstance(step, OptimizerStep)
    assert (step.learning_rate, step.schedule) == (0.5, None)
    for name, value, message in (
        ("seed", 5, "seed cannot change"),
        ("learning_rate", -1.0, "learning_rate must"),
        ("learning_rates", 1.0, "did you mean 'learning_rate'"),
        ("device", "nonsense", "device must"),
    ):
        with pytest.raises(ValueError, match=message):
            metarl.load(folder, **{name: value})


def test_the_learner_alone_opens_the_checkpoint(tmp_path: Path) -> None:
    """Its schedule stands in the file."""
    folder = runs.train(tmp_path / "run", "--iterations", 2, "--anneal-iterations", 4)
    opened = metarl.load(folder)
    learner = MetaLearner.load(folder / "checkpoint.pt", metarl.load(folder).source)
    one, other = opened.learn(1).params, learner.learn(1).params
    assert all(torch.equal(leaf, other[key]) for key, leaf in one.items())
    with pytest.raises(ValueError, match=r"is a folder; metarl\.load\(.*\) opens the run in it"):
        MetaLearner.load(folder, opened.source)


def make_old(folder: Path) -> None:
    """As an older version would have left the run."""
    state = checkpoint.load(folder / "checkpoint.pt")
    state["config"].pop("schedule")
    torch.save({**state, "format": checkpoint.UNSEALED}, folder / "checkpoint.pt")
    new = ("actions", "normalize_observations", "cross_fit", "discount_weights", "changes")
    write_json(folder / "config.json", {key: value for key, value in config(folder).items() if key not in new})


def test_a_run_of_an_older_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = runs.train(tmp_path / "whole", "--iterations", 4, "--anneal-iterations", 4)
    old = runs.train(tmp_path / "old", "--iterations", 2, "--anneal-iterations", 4)
    make_old(old)
    learner = metarl.load(old)
    assert "without a digest" in caplog.text
    source = learner.source
    assert isinstance(source, ReinforcementLearning)
    assert (source.actions, source.normalize_observations) == ("clip", False)
    assert (source.cross_fit, source.discount_weights) == (False, False)
    with pytest.raises(ValueError, match=r"schedule must be given .* metarl\.load\("):
        MetaLearner.load(old / "checkpoint.pt", source)
    runs.resume(old, "--iterations", 4)
    assert runs.saved(old) == runs.saved(whole)


def test_no_code_of_the_folder_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.train(tmp_path / "run", "--iterations", 1)
    (tmp_path / "unknown_plugin.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    write_json(folder / "config.json", {**config(folder), "plugins": ["unknown_plugin"]})
    with pytest.raises(ValueError, match=r"plugins must name .* \['unknown_plugin'\]"):
        metarl.load(folder)
    (tmp_path / "unknown_plugin.py").write_text("")
    assert metarl.load(folder, plugins=["unknown_plugin"]).iterations == 1
    sys.modules.pop("unknown_plugin")


WRONG: dict[str, list[Any]] = {
    "iterations": ["2", 2.5, None, True, [2]],
    "learning_rate": ["x", [1], True, 10**400, -1.0, float("nan")],
    "hidden": [8, "8", [8.5], ["8"], None],
    "outer": [None, 1, "mamel", ["maml"]],
    "env": [None, 1, {}, "navigatoin"],
    "log_dir": [None, 1, [], "a\0b"],
    "hessian_data": ["other", 1, []],
    "outer_step": ["fallah", None, 1],
    "step_options": ["floor=0", None, ["floor=0"], [1]],
    "actions": ["clipped", None, 1],
    "normalize_observations": ["false", 0, None],
    "discount": ["0.9", None, 2.0],
    "plugins": ["a", [1], None],
    "changes": [1, "x", [1]],
    "seed": [-1, 0.5, 2**70],
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_of_another_type_are_one_line(
    tmp_path: Path, begun: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs.copy(begun, tmp_path / "run")
    whole = config(folder)
    monkeypatch.setattr("metarl.learner.MetaLearner.learn", lambda *_: pytest.fail("it starts"))
    for value in WRONG[name]:
        write_json(folder / "config.json", {**whole, name: value})
        for line in (("train", "--resume", folder, "--iterations", 9), ("evaluate", folder)):
            outcome = runs.call(*line)
            assert outcome.code == 2, (line, value)
            assert re.fullmatch(r"error: .{,600}\n", outcome.err), outcome.err
        with pytest.raises(ValueError, match=r"\w"):
            metarl.load(folder)


@pytest.mark.parametrize("text", ["", "[1]", "null", "{", "\udcff", "[" * 100_000, '{"env": 1}', '{"a": 1}'])
def test_a_configuration_that_is_none(tmp_path: Path, begun: Path, text: str) -> None:
    folder = runs.copy(begun, tmp_path / "run")
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json"):
        metarl.load(folder)
    outcome = runs.call("evaluate", folder)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"error: .{,600}\n", outcome.err)
