"""The scripts around Stable-Baselines3: they run, they are short, and their displacements are gradients."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

import metarl
from metarl.agents import to_sb3
from metarl.experiments.bridge import fine_tune
from metarl.experiments.bridge.fine_tune import Arguments, Start, UntilReturn, count_steps
from tests.experiments import runs
from tests.pages import ROOT

pytestmark = pytest.mark.usefixtures("unrecorded", "no_report")
AROUND = ROOT / "experiments" / "bridge" / "around_sb3.py"


@pytest.fixture
def around() -> ModuleType:
    """The script with small sizes."""
    text = AROUND.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    for usual, quick in {
        "HORIZON = 20, 100": "HORIZON = 3, 5",
        "HELD_OUT = 10, 40, 1e-2, 20": "HELD_OUT = 2, 1, 1e-2, 2",
    }.items():
        assert usual in text
        text = text.replace(usual, quick)
    module = ModuleType("around")
    exec(compile(text, AROUND.name, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("method", ["fo_maml", "reptile"])
def test_meta_training_around_an_algorithm(around: Any, method: str) -> None:
    before, said = torch.nn.utils.parameters_to_vector(around.policy).detach().clone(), io.StringIO()
    with redirect_stdout(said):
        around.main(method)
    curve = re.search(r"calls of learn: \[(.*)\]", said.getvalue())
    assert curve is not None
    assert len(curve[1].split(",")) == 4
    assert not torch.equal(torch.nn.utils.parameters_to_vector(around.policy), before)


def test_the_last_displacement_is_the_gradient_at_the_adapted_parameters(around: Any) -> None:
    """FO-MAML's gradient, by autograd on the rollout of the last call; the loss is that of A2C's definition."""
    start = torch.nn.utils.parameters_to_vector(around.policy).detach().clone()
    path = around.learn(np.array([0.3, -0.2]), start, 2)
    assert torch.equal(path[0], start)
    model = around.model
    torch.nn.utils.vector_to_parameters(path[1].clone(), around.policy)
    (data,) = model.rollout_buffer.get(batch_size=None)
    values, log_prob, _ = model.policy.evaluate_actions(data.observations, data.actions)
    advantages = (data.advantages - data.advantages.mean()) / (data.advantages.std() + 1e-8)
    loss = -(advantages * log_prob).mean() + 0.01 * (data.returns - values.flatten()).square().mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, around.policy)])
    torch.testing.assert_close(path[2] - path[1], -0.1 * gradient, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(path[1] - path[0], -0.1 * gradient, rtol=1e-2)  # the first one is another gradient


def test_steps_of_sgd_are_those_of_meta_training(tmp_path: Path) -> None:
    """PPO's first step from meta-trained parameters goes along the policy gradient with the inner step size."""
    folder = runs.train(tmp_path / "run", "--iterations", 1)
    learner = metarl.load(folder)
    models: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tune, "to_sb3", lambda *a, **k: models.append(to_sb3(*a, **k)) or models[-1])
        given = Arguments(folder, target=0.0, limit=10, optimizer="sgd")
        start = Start(learner.params)
        task = {"goal": np.array([0.3, -0.2])}
        assert count_steps(given, learner.source, task, start, 0.1, 0) == np.inf  # type: ignore[arg-type]
    model = models[0]
    moved = {name: value.detach().clone() for name, value in model.policy.named_parameters()}
    actor = [name for name in moved if f"policy.{name}" in learner.params]
    with torch.no_grad():
        for name in actor:
            model.policy.get_parameter(name).copy_(learner.params[f"policy.{name}"])
    (data,) = model.rollout_buffer.get(batch_size=None)
    _, log_prob, _ = model.policy.evaluate_actions(data.observations, data.actions)
    advantages = (data.advantages - data.advantages.mean()) / (data.advantages.std() + 1e-8)
    loss = -(advantages * (log_prob - data.old_log_prob).exp()).mean()
    grads = torch.autograd.grad(loss, [model.policy.get_parameter(name) for name in actor])
    for name, g in zip(actor, grads, strict=True):
        torch.testing.assert_close(moved[name], learner.params[f"policy.{name}"] - 0.1 * g, rtol=1e-3, atol=1e-6)


def test_fine_tuning_counts_environment_steps(tmp_path: Path) -> None:
    folder = runs.train(tmp_path / "run", "--iterations", 1)
    few = ("--goals", 2, "--limit", 60)
    easy = runs.call("bridge.fine_tune", folder, *few, "--target", -1000)
    assert easy.code == 0, easy.err
    rows = [line.split("|")[2].split("[")[0].strip() for line in easy.out.splitlines() if line.startswith("| ")][2:]
    assert rows == ["10", "10", "20"]  # one rollout of 2 episodes of 5 steps; the adapted start took one before it
    one_step = runs.call("bridge.fine_tune", folder, *few, "--target", -1000, "--optimizer", "sgd")
    assert one_step.out.splitlines()[-3:] == easy.out.splitlines()[-3:]
    hard = runs.call("bridge.fine_tune", folder, *few, "--target", 0)
    assert hard.out.count("| 60 [60, 60] | 60 | 0 of 2 |") == 3


def test_the_limit_counts_environment_steps(tmp_path: Path) -> None:
    """It is enough for one rollout of 10 steps, but not for a second one or for an adaptation before it."""
    folder = runs.train(tmp_path / "run", "--iterations", 1)
    for limit in (10, 19):
        outcome = runs.call("bridge.fine_tune", folder, "--goals", 2, "--limit", limit, "--target", -1000)
        assert outcome.code == 0, outcome.err
        assert outcome.out.count("| 10 [10, 10] | 10 | 2 of 2 |") == 2
        assert outcome.out.count(f"| {limit} [{limit}, {limit}] | {limit} | 0 of 2 |") == 1
    learner, ends = metarl.load(folder), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tune, "to_sb3", lambda *a, **k: ends.append(to_sb3(*a, **k)) or ends[-1])
        given, task = Arguments(folder, target=0.0, limit=19), {"goal": np.array([0.3, -0.2])}
        assert count_steps(given, learner.source, task, Start(learner.params), 0.1, 0) == np.inf  # type: ignore[arg-type]
    assert [model.num_timesteps for model in ends] == [10]
    outcome = runs.call("bridge.fine_tune", folder, "--limit", 9)
    assert outcome.code == 2
    assert "limit must be enough for a rollout, at least 10, got 9" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--goals", 0), "goals must be"), (("--limit", 0), "limit must be"), (("--target", "nan"), "target must be")],
)
def test_bad_settings_are_one_line(tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    outcome = runs.call("bridge.fine_tune", tmp_path, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_training_ends_after_the_rollout_that_reaches_the_target() -> None:
    stop = UntilReturn(-10.0)
    assert isinstance(stop, BaseCallback)
    stop.num_timesteps = 40
    for returns, reached in [([-30.0, -10.0], None), ([], None), ([-12.0, -8.0], 40)]:
        stop.locals = {"infos": [{"episode": {"r": value}} for value in returns] + [{}]}
        assert stop._on_step()
        stop._on_rollout_end()
        assert stop.reached == reached
    assert not stop._on_step()
