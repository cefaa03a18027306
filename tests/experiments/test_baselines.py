"""The baselines: the same held-out tasks, the same accounting, results that are kept and continued."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from metarl.engine import Engine
from metarl.experiments import train
from metarl.experiments.baselines import (
    BASELINES,
    make_result,
    policy_gradient,
    read_result,
    run_baseline,
    write_result,
)
from metarl.experiments.baselines.result import FILE
from metarl.experiments.common.run import new_run
from metarl.experiments.train import TrainConfig
from tests.experiments import runs

CONFIG = TrainConfig(meta_batch_size=2, episodes=2, horizon=5, hidden=(8,), eval_every=1, eval_tasks=2, save_every=1)
STEPS = 70  # three iterations of 2 x 2 x 5 and some more


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    monkeypatch.setattr(train, "FINAL_TASKS", 6)
    monkeypatch.setattr(train, "FINAL_EPISODES", 3)


def train_run(folder: Path, **changes: object) -> dict[str, object]:
    """A plain training run with the settings of the baselines, its `evaluation.json`."""
    config = dataclasses.replace(CONFIG, seed=1, log_dir=folder.parent, name=folder.name, iterations=3, **changes)  # type: ignore[arg-type]
    train.train(new_run(config))
    found: dict[str, object] = json.loads((folder / "evaluation.json").read_text())
    return found


def test_random_is_the_untrained_policy_of_a_run(tmp_path: Path) -> None:
    evaluation = train_run(tmp_path / "run")
    result = run_baseline("random", CONFIG, 1, tmp_path / "random")
    wanted: dict[str, object] = evaluation["random_init"]  # type: ignore[assignment]
    np.testing.assert_allclose(result.scores, np.asarray(wanted["scores"])[0], rtol=1e-6)
    assert result.scores.shape == (6, 4)
    assert result.env_steps.tolist() == wanted["costs"]["env_steps"][0]  # type: ignore[index]
    assert result.train_env_steps == 0


@pytest.mark.parametrize(("name", "observe_task", "points"), [("multitask", False, 4), ("oracle", True, 1)])
def test_trained_baselines_are_runs(tmp_path: Path, name: str, observe_task: bool, points: int) -> None:
    # what other updates need is not handed to `multitask`
    given = dataclasses.replace(CONFIG, hessian_data="reuse", outer_options=("hessian_data=reuse",))
    with Engine().current():
        result = run_baseline(name, given, 1, tmp_path / name, env_steps=STEPS)
        wanted = train_run(tmp_path / "run", outer="multitask", observe_task=observe_task)
    np.testing.assert_array_equal(result.scores, np.asarray(wanted["scores"])[0][:, :points])
    assert result.env_steps.tolist() == wanted["costs"]["env_steps"][0][:points]  # type: ignore[index]
    assert (result.axis, result.points) == ("step", tuple(range(points)))
    assert STEPS - 20 < result.train_env_steps <= STEPS
    config = json.loads((tmp_path / name / "config.json").read_text())
    assert (config["outer"], config["observe_task"], config["iterations"]) == ("multitask", observe_task, 3)


def test_a_result_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_baseline("multitask", CONFIG, 0, tmp_path / "kept", env_steps=STEPS)
    monkeypatch.delattr(policy_gradient, "train_in")  # so training again would fail
    again = run_baseline("multitask", CONFIG, 0, tmp_path / "kept", env_steps=STEPS)
    assert again.summary() == first.summary()
    for changed, name in ((dataclasses.replace(CONFIG, hidden=(9,)), "hidden"), (CONFIG, "seed")):
        with pytest.raises(ValueError, match=f"was made with {name}="):
            run_baseline("multitask", changed, int(name == "seed"), tmp_path / "kept", env_steps=STEPS)
    with pytest.raises(ValueError, match="was made with name='multitask', not 'oracle'"):
        run_baseline("oracle", CONFIG, 0, tmp_path / "kept", env_steps=STEPS)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    whole = run_baseline("multitask", CONFIG, 0, tmp_path / "whole", env_steps=STEPS)
    part = policy_gradient.pretraining(CONFIG, STEPS)
    run = new_run(dataclasses.replace(part, log_dir=tmp_path, name="part"))
    run.learner.learn(1)
    run.learner.save(run.folder / "checkpoint.pt")
    assert run_baseline("multitask", CONFIG, 0, run.folder, env_steps=STEPS).summary() == whole.summary()
    with pytest.raises(ValueError, match="has a run with iterations=3, not 2"):
        run_baseline("multitask", CONFIG, 0, without_result(run.folder), env_steps=STEPS - 20)


def without_result(folder: Path) -> Path:
    (folder / FILE).unlink()
    return folder


def test_bad_calls(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name must be one of .*'orakle'; did you mean 'oracle'"):
        run_baseline("orakle", CONFIG, 0, tmp_path / "x")
    with pytest.raises(ValueError, match="env_steps must be enough for an iteration, at least 20, got 19"):
        run_baseline("oracle", CONFIG, 0, tmp_path / "x", env_steps=19)
    (tmp_path / FILE).write_text('{"baseline": "random"}')
    with pytest.raises(ValueError, match=r"baseline\.json must be the result of a baseline"):
        read_result(tmp_path)
    assert read_result(tmp_path / "nowhere") is None
    assert set(BASELINES) >= {"random", "multitask", "oracle"}


def test_an_option_that_only_one_call_has_is_another_setting(tmp_path: Path) -> None:
    result = make_result("random", "step", [0], [[1.0]], [0], 0)
    write_result(tmp_path, result, {"seed": 0, "start": Path("run"), "none": None})
    same = read_result(tmp_path, {"seed": 0, "start": Path("run")})
    assert same is not None
    assert same.summary() == result.summary()
    for settings in ({"seed": 0}, {"seed": 0, "start": Path("run"), "tasks": 3}):
        with pytest.raises(ValueError, match=r"was made with (start='run', not None|tasks=None, not 3)"):
            read_result(tmp_path, settings)


# The command.

OPTIONS = "--options=--horizon 5 --episodes 2 --meta-batch-size 2 --hidden 8"


def test_the_command(tmp_path: Path) -> None:
    table = runs.call("baseline", "random", OPTIONS, "--log-dir", tmp_path)
    assert table.code == 0, table.err
    outcome = runs.call("baseline", "random", OPTIONS, "--log-dir", tmp_path, "--json")
    found = json.loads(outcome.out)
    assert found == {
        k: v for k, v in json.loads((tmp_path / "random-navigation-0" / FILE).read_text()).items() if k != "settings"
    }
    assert [row.split("|")[1].strip() for row in table.out.splitlines()[3:]] == ["0", "1", "2", "3"]
    assert f"{found['mean'][3]:.2f}" in table.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["orakle"], "error: the baseline must be one of .*'orakle'; did you mean 'oracle'"),
        (["oracle", "--options=--seed 3"], "error: options must not have seed"),
        (["oracle", "--env", "navigatoin"], "error: env must be one of .*did you mean 'navigation'"),
        (["oracle", "--options=--hidden '3"], "error: options must be options of metarl train"),
        (["oracle", "--seed", "-1"], "error: seed must be"),
    ],
)
def test_wrong_commands_are_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    outcome = runs.call("baseline", *words, "--log-dir", tmp_path)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert re.match(message, outcome.err)
    assert not list(tmp_path.iterdir())
