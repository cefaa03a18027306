"""Baselines with Stable-Baselines3: PPO on single tasks, and models that a user brings."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import metarl
from metarl import checkpoint
from metarl.agents import PolicyModule, TaskVecEnv, to_sb3
from metarl.experiments import train
from metarl.experiments.baselines import ppo, run_baseline
from metarl.experiments.baselines.result import FILE, make_result, steps_to
from metarl.experiments.common.run import new_run
from metarl.experiments.train import TrainConfig
from metarl.random import global_seed
from metarl.tree import broadcast
from tests.experiments import runs
from tests.pages import ROOT

CONFIG = TrainConfig(meta_batch_size=2, episodes=2, horizon=5, hidden=(8,), eval_every=9, eval_tasks=2)
UNIT = 3 * 4 * 5  # gradient steps x episodes x horizon
ROLLOUT = 2 * 5


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    monkeypatch.setattr(train, "FINAL_TASKS", 5)
    monkeypatch.setattr(train, "FINAL_EPISODES", 4)


def test_ppo_from_scratch_is_sb3s_own(tmp_path: Path) -> None:
    result = run_baseline("ppo", CONFIG, 3, tmp_path / "ppo", tasks=2, budgets=(0.5, 1))
    assert result.points == (0, 0.5, 1)
    assert result.env_steps.tolist() == [0, 2 * UNIT / 2, 2 * UNIT]
    assert (result.axis, result.train_env_steps, result.scores.shape) == ("budget", 0, (2, 3))

    # one call of `learn` on the second held-out task, written out
    _, begin = ppo.read_start(dataclasses.replace(CONFIG, seed=3), None)
    policy = begin.source.policy
    assert isinstance(policy, PolicyModule)
    critic = policy.policy.mlp_extractor.value_net
    assert [layer.out_features for layer in critic if isinstance(layer, torch.nn.Linear)] == [8]  # as the actor's
    wanted = train.build_source(dataclasses.replace(CONFIG, seed=3)).initial_params()  # those of `random`
    assert all(torch.equal(leaf, begin.params[name]) for name, leaf in wanted.items())
    goals = begin.source.distribution.sample(5, np.random.default_rng([train.FINAL_SEED, 1]))["goal"]
    with global_seed(4):
        env = TaskVecEnv(begin.source.distribution, {"goal": goals[1]}, 2)
        model = to_sb3(policy, begin.params, env, seed=4, n_steps=5, batch_size=10, gamma=0.99)
        model.learn(UNIT)
    kept = checkpoint.load(tmp_path / "ppo" / "task_1.pt")["params"]
    weights = dict(model.policy.named_parameters())
    assert len(kept) == 2
    for name, leaf in kept[1].items():
        torch.testing.assert_close(leaf, weights[name.removeprefix("policy.")].detach(), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(leaf, kept[0][name], rtol=1e-4, atol=1e-6)


def test_scores_are_those_of_the_kept_parameters(tmp_path: Path) -> None:
    result = run_baseline("ppo", CONFIG, 0, tmp_path / "ppo", tasks=2, budgets=(1,))
    _, begin = ppo.read_start(CONFIG, None)
    source = dataclasses.replace(begin.source, episodes=400)
    goals = {"goal": source.distribution.sample(5, np.random.default_rng([train.FINAL_SEED, 1]))["goal"][:2]}
    kept = [checkpoint.load(tmp_path / "ppo" / f"task_{i}.pt")["params"][0] for i in (0, 1)]
    for point, params in enumerate(
        [broadcast(begin.params, 2), {k: torch.stack([w[k] for w in kept]) for k in kept[0]}]
    ):
        returns = source.tasks(goals, np.random.default_rng(0)).draw(params, "outer")["rewards"].sum(-1)
        error = returns.std(1) * (1 / 4 + 1 / 400) ** 0.5
        assert (np.abs(result.scores[:, point] - returns.mean(1).numpy()) < 4 * error.numpy() + 1e-6).all()


def test_fine_tuning_begins_at_the_run(tmp_path: Path) -> None:
    run = new_run(dataclasses.replace(CONFIG, log_dir=tmp_path, name="run", iterations=2, normalize_observations=True))
    run.learner.learn(2)
    run.learner.save(run.folder / "checkpoint.pt")
    other = dataclasses.replace(CONFIG, hidden=(9,))  # the run has its own
    result = run_baseline("ppo", other, 0, tmp_path / "ppo", start=run.folder, tasks=2, budgets=(0.5,))
    assert result.train_env_steps == run.learner.counts["env_steps"]
    learner = metarl.load(run.folder)
    _, begin = ppo.read_start(other, run.folder)
    assert all(torch.equal(leaf, learner.params[name]) for name, leaf in begin.params.items())
    obs = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    outputs = [
        torch.func.functional_call(policy, dict(params), obs)
        for policy, params in ((begin.source.policy, begin.params), (learner.source.policy, learner.params))  # type: ignore[attr-defined]
    ]
    torch.testing.assert_close(*outputs)


def test_a_changed_run_is_another_setting(tmp_path: Path) -> None:
    run = new_run(dataclasses.replace(CONFIG, log_dir=tmp_path, name="run", iterations=3, env="point_velocity"))
    run.learner.learn(1)
    run.learner.save(run.folder / "checkpoint.pt")

    def call(**start: Path) -> object:
        return run_baseline("ppo", CONFIG, 0, tmp_path / "ppo", tasks=1, budgets=(0.5,), **start).summary()

    assert call(start=run.folder) == call(start=run.folder)
    found = json.loads((tmp_path / "ppo" / FILE).read_text())["settings"]
    assert found["env"] == "point_velocity"  # not that of CONFIG
    with pytest.raises(ValueError, match=r"was made with start='.*', not None"):
        call()
    run.learner.learn(1)
    run.learner.save(run.folder / "checkpoint.pt")
    with pytest.raises(ValueError, match="was made with start_sha256="):
        call(start=run.folder)
    (tmp_path / "ppo" / FILE).unlink()
    with pytest.raises(ValueError, match=r"task_0\.pt was made with other settings"):
        call(start=run.folder)


def test_fine_tuning_begins_at_a_package(tmp_path: Path) -> None:
    package = ROOT / "policies" / "point_velocity"
    words = ("baseline", "ppo", "--run", package, "--log-dir", tmp_path, "--tasks", 1, "--budgets", 1)
    outcome = runs.call(*words, "--json")
    assert outcome.code == 0, outcome.err
    learner, found = metarl.load(package), json.loads(outcome.out)
    assert found["train_env_steps"] == learner.counts["env_steps"]
    saved = json.loads((tmp_path / "ppo-point_velocity-0" / FILE).read_text())["settings"]
    assert (saved["env"], saved["hidden"]) == (
        "point_velocity",
        json.loads((package / "config.json").read_text())["hidden"],
    )
    # point 0 is the package's policy
    source = dataclasses.replace(learner.source, episodes=400)  # type: ignore[type-var]
    task = {name: value[:1] for name, value in ppo.first_tasks(source.distribution, 1).items()}  # type: ignore[attr-defined]
    returns = (
        source.tasks(task, np.random.default_rng(0)).draw(broadcast(learner.params, 1), "outer")["rewards"].sum(-1)
    )  # type: ignore[attr-defined]
    assert abs(found["scores"][0][0] - float(returns.mean())) < 4 * float(returns.std()) * (1 / 4 + 1 / 400) ** 0.5


def test_it_goes_on_with_the_next_task_and_leaves_the_global_generators(tmp_path: Path) -> None:
    whole = run_baseline("ppo", CONFIG, 0, tmp_path / "ppo", tasks=2, budgets=(0.5,))
    (tmp_path / "ppo" / FILE).unlink()
    (tmp_path / "ppo" / "task_1.pt").unlink()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = (tmp_path / "ppo" / "task_0.pt").stat().st_mtime_ns
    again = run_baseline("ppo", CONFIG, 0, tmp_path / "ppo", tasks=2, budgets=(0.5,))
    assert again.summary() == whole.summary()
    assert (tmp_path / "ppo" / "task_0.pt").stat().st_mtime_ns == first
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert before[2] == random.getstate()
    (tmp_path / "ppo" / FILE).unlink()
    with pytest.raises(ValueError, match=r"task_0\.pt was made with other settings"):
        run_baseline("ppo", CONFIG, 0, tmp_path / "ppo", tasks=2, budgets=(1,))


def test_steps_to_a_return() -> None:
    result = make_result("ppo", "budget", [0, 1, 2], [[-3, -1, -2], [-3, -3, -3]], [0, 20, 40], 0)
    assert steps_to(result, -1).tolist() == [10, np.inf]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": (1, 0.5)}, "budgets must increase by a rollout of 10 steps at least"),
        ({"budgets": (0.01, 0.02)}, "budgets must increase by a rollout"),
        ({"budgets": ()}, "budgets must name at least one"),
        ({"budgets": (-1,)}, "budgets must be"),
        ({"tasks": 0}, "tasks must be"),
        ({"ppo_options": ("seed=3",)}, "ppo_options must be one of .*'seed'"),
        ({"start": Path("nowhere")}, "run must be"),
    ],
)
def test_bad_settings_of_ppo(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run_baseline("ppo", CONFIG, 0, tmp_path / "ppo", **options)
    assert not list(tmp_path.iterdir())


def test_ppo_needs_plain_actions_and_policies(tmp_path: Path) -> None:
    for changed, message in (
        ({"actions": "rescale"}, "actions must be 'clip'"),
        ({"context_size": 2}, "without context"),
    ):
        with pytest.raises(ValueError, match=message):
            run_baseline("ppo", dataclasses.replace(CONFIG, **changed), 0, tmp_path / "ppo", tasks=1)  # type: ignore[arg-type]


# Models of Stable-Baselines3.


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The untrained policy of seed 0 as a PPO model."""
    source = train.build_source(CONFIG)
    env = source.distribution.make({"goal": np.array([0.1, 0.2], np.float32)})
    path = tmp_path / "model.zip"
    assert isinstance(source.policy, PolicyModule)
    to_sb3(source.policy, None, env, n_steps=10, batch_size=10).save(path)
    return path


def test_a_model_adapts_as_the_same_policy_does(model: Path, tmp_path: Path) -> None:
    result = run_baseline("sb3", CONFIG, 0, tmp_path / "sb3", model=model)
    wanted = run_baseline("random", CONFIG, 0, tmp_path / "random")
    np.testing.assert_allclose(result.scores, wanted.scores, rtol=1e-6)
    assert result.env_steps.tolist() == wanted.env_steps.tolist()
    assert result.baseline == "sb3"


def test_a_model_adapts_the_chosen_parameters(model: Path, tmp_path: Path) -> None:
    head = dataclasses.replace(CONFIG, adapt=("head",))
    result = run_baseline("sb3", head, 0, tmp_path / "sb3", model=model)
    np.testing.assert_allclose(result.scores, run_baseline("random", head, 0, tmp_path / "random").scores, rtol=1e-6)
    everything = run_baseline("sb3", CONFIG, 0, tmp_path / "all", model=model)
    assert not np.allclose(result.scores[:, 1:], everything.scores[:, 1:], rtol=1e-6)


def test_a_changed_model_is_another_setting(model: Path, tmp_path: Path) -> None:
    run_baseline("sb3", CONFIG, 0, tmp_path / "sb3", model=model)
    PPO.load(model, env=train.build_distribution(CONFIG).make({"goal": np.zeros(2, np.float32)})).learn(10).save(model)
    with pytest.raises(ValueError, match="was made with model_sha256="):
        run_baseline("sb3", CONFIG, 0, tmp_path / "sb3", model=model)


def test_models_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no model")
    for changes, options, message in (
        ({}, {"model": tmp_path / "no.zip"}, "there is no file"),
        ({"normalize_observations": True}, {"model": model}, "normalize_observations must be off for sb3"),
        ({}, {"model": tmp_path / "text.zip"}, "must be a ppo model of Stable-Baselines3"),
        ({"env": "grid_world"}, {"model": model}, "model must have the observation_space of grid_world"),
        ({}, {"model": model, "algorithm": "sac"}, "algorithm must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            run_baseline("sb3", dataclasses.replace(CONFIG, **changes), 0, tmp_path / "sb3", **options)  # type: ignore[arg-type]


# The commands.


def test_the_commands(model: Path, tmp_path: Path) -> None:
    options = "--options=--horizon 5 --episodes 2 --hidden 8"
    outcome = runs.call(
        *("baseline", "ppo", "--tasks", 2, "--budgets", 0.5, 1, "--reach", -100, options, "--log-dir", tmp_path),
        *("--ppo-options", "n_epochs=2"),
    )
    assert outcome.code == 0, outcome.err
    assert "2 of 2 tasks reach -100; environment steps of the median task: 0" in outcome.out
    assert (tmp_path / "ppo-navigation-0" / FILE).is_file()
    outcome = runs.call("baseline", "sb3", model, options, "--log-dir", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "sb3: return on 5 held-out tasks" in outcome.out
    outcome = runs.call("baseline", "sb3", "--help")
    assert "only open files you trust" in " ".join(outcome.out.split())
    outcome = runs.call("baseline", "ppo", "--ppo-options", "n_epoch=2", "--log-dir", tmp_path, "--name", "x")
    assert outcome.code == 2
    assert "did you mean 'n_epochs'" in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--env", "navigation"), "env must not be given with a run, which has its own, got 'navigation'"),
        (("--options=--episodes 3",), "options must not have episodes with a run"),
    ],
)
def test_a_run_has_its_own_settings(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    package = ROOT / "policies" / "navigation"
    outcome = runs.call("baseline", "ppo", "--run", package, *words, "--log-dir", tmp_path)
    assert outcome.code == 2
    assert message in outcome.err
    assert not list(tmp_path.iterdir())
