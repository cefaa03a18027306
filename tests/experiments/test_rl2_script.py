"""`metarl baseline rl2`: a run with the files of `metarl train`, resumed exactly, opened from Python."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import metarl
from metarl.agents.rl2 import RecurrentTrials
from metarl.experiments import train
from metarl.experiments.baselines import read_result, run_baseline
from metarl.experiments.baselines.rl2 import RL2Config, held_out_returns
from metarl.experiments.train import TrainConfig
from metarl.processes import Processes
from tests.experiments import runs

SIZES = ["--meta-batch-size", "2", "--trials", "2", "--trial-episodes", "3", "--horizon", "4", "--units", "6"]
TINY = [*SIZES, "--eval-every", "1", "--eval-tasks", "2", "--save-every", "1"]
ITERATION = 2 * 2 * 3 * 4


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "FINAL_TASKS", 5)
    monkeypatch.setattr(train, "FINAL_EPISODES", 3)


def start(folder: Path, iterations: int, *arguments: object) -> Path:
    words = ["rl2", *TINY, "--env-steps", iterations * ITERATION + 5, *arguments]
    outcome = runs.call("baseline", *words, "--log-dir", folder.parent, "--name", folder.name)
    assert outcome.code == 0, outcome.err
    return folder


def test_a_run_and_its_result(tmp_path: Path) -> None:
    folder = start(tmp_path / "run", 2)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["axis"] == "episode"
    assert evaluation["points"] == [1, 2, 3]
    assert np.asarray(evaluation["scores"]).shape == (5, 3)
    # one trial of each task: 4 steps an episode, unless it ends at the goal
    assert evaluation["env_steps"] == [0, 20, 40]
    assert evaluation["train_env_steps"] == 2 * ITERATION
    assert evaluation["parameters"] == 6 * 3 * (6 + 6) + 36 + 6 * 3 + 3 + 2  # of 6 inputs and 6 units
    lines = runs.lines(folder)
    assert [line["iteration"] for line in lines] == [1, 2]
    assert all(line[f"eval/return_episode_{k}"] < 0 for line in lines for k in (1, 2, 3))
    assert {"adaptation.png", "checkpoint.pt", "config.json"} <= {path.name for path in folder.iterdir()}
    assert list(folder.glob("events.out.tfevents.*"))

    text = runs.call("info", folder).out
    assert "2 of 2 iterations" in text
    assert "last evaluation, iteration 2, in episodes 1, 2, 3: " in text
    assert "final evaluation on 5 tasks, iteration 2, in episodes 1, 2, 3: " in text

    result = read_result(folder)
    assert result is not None
    learner = metarl.load(folder)
    assert isinstance(learner.source, RecurrentTrials)
    returns, _ = held_out_returns(learner.source, learner.params, 5, 3, train.FINAL_SEED)
    np.testing.assert_allclose(result.scores, returns, rtol=1e-5)
    distribution = learner.source.distribution
    goals = distribution.sample(5, np.random.default_rng([train.FINAL_SEED, 1]))["goal"]
    assert (learner.source.sample(5, np.random.default_rng([train.FINAL_SEED, 1])).task["goal"] == goals).all()


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", 4, "--anneal-iterations", 4)
    part = start(tmp_path / "part", 2, "--anneal-iterations", 4)
    outcome = runs.call("baseline", "rl2", "--resume", part, "--env-steps", 4 * ITERATION)
    assert outcome.code == 0, outcome.err
    one, other = (metarl.load(folder) for folder in (whole, part))
    assert one.iterations == other.iterations == 4
    assert all(torch.equal(leaf, other.params[name]) for name, leaf in one.params.items())
    assert json.loads((whole / "evaluation.json").read_text()) == json.loads((part / "evaluation.json").read_text())
    again = runs.call("baseline", "rl2", "--resume", part)
    assert again.code == 2
    assert "iterations must be more than the 4" in again.err


def test_from_python(tmp_path: Path) -> None:
    config = TrainConfig(horizon=4, eval_every=1, eval_tasks=2)
    sizes = {"trials": 2, "trial_episodes": 3, "units": 6, "meta_batch_size": 2}
    result = run_baseline("rl2", config, 1, tmp_path / "run", env_steps=ITERATION, **sizes)
    assert result.scores.shape == (5, 3)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 1
    again = run_baseline("rl2", config, 1, tmp_path / "run", env_steps=ITERATION, **sizes)
    assert again.summary() == result.summary()
    with pytest.raises(ValueError, match=r"options of rl2 must be one of .*'unit'"):
        run_baseline("rl2", config, 1, tmp_path / "other", unit=6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env-steps", ITERATION - 1], f"env_steps must be enough for an iteration, at least {ITERATION}"),
        (["--trials", 0], "trials must be"),
        (["--clip", -1], "clip must be"),
        (["--env", "navigatoin"], "env must be one of"),
        (["--actions", "squash", "--env", "gaussian_bandit"], "actions='squash' needs a Box with finite bounds"),
        (["--unit", 3], "Unrecognized options: --unit"),
    ],
)
def test_wrong_settings_are_one_line(words: list[object], message: str, tmp_path: Path) -> None:
    outcome = runs.call("baseline", "rl2", *TINY, "--log-dir", tmp_path, *words)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert message in outcome.err
    assert not list(tmp_path.iterdir())


def test_several_processes_are_refused() -> None:
    config = RL2Config(horizon=4).settle()
    with pytest.raises(ValueError, match="rl2 trains in one process, got 2"):
        config.build_learner(Processes(0, 2))
