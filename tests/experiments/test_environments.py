"""Training on every kind of environment: functional, MuJoCo, any of Gymnasium's, images; to the end and resumed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metarl.experiments import train
from tests.experiments import runs

KINDS = {
    "half_cheetah_velocity": ("--env-options", "goal_high=3"),
    "hopper_random_parameters": ("--outer", "fo_maml"),
    "humanoid_direction": ("--outer", "fo_maml"),
    "cart_pole_goal": (),
    "grid_world_image": ("--features-dim", "8", "--eval-tasks", "1"),
}


@pytest.mark.usefixtures("no_pictures", "unrecorded")
@pytest.mark.parametrize("env", sorted(KINDS))
def test_resumed_equals_uninterrupted_bit_for_bit(env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, number in {"FINAL_TASKS": 3, "FINAL_EPISODES": 2, "EVALUATION_STEPS": 1}.items():
        monkeypatch.setattr(train, name, number)
    options = ("--env", env, *KINDS[env])
    whole = runs.train(tmp_path / "whole", *options, "--iterations", "2", "--anneal-iterations", "0")
    parts = runs.train(tmp_path / "parts", *options, "--iterations", "1", "--anneal-iterations", "0")
    outcome = runs.call("train", "--resume", parts, "--iterations", 2)
    assert outcome.code == 0, outcome.err
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, parts)]
    one, other = (state["params"] for state in states)
    assert all(torch.equal(one[name], other[name]) for name in one)
    evaluations = [json.loads((folder / "evaluation.json").read_text()) for folder in (whole, parts)]
    assert evaluations[0]["scores"] == evaluations[1]["scores"]
    assert np.isfinite(evaluations[0]["scores"]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]  # MuJoCo wrote no log
