"""`metarl train`: what a run leaves behind, and that a resumed run is the same run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import metarl
from metarl import checkpoint
from metarl.experiments.train import TrainConfig
from metarl.outer import OUTER, without_particles
from tests.experiments import runs

ENVS = ("navigation", "point_velocity")
BEFORE_AND_AFTER = ("rollout/return", "rollout/episode_length", "policy/entropy", "policy/std")
HELD_OUT = {f"{tag}/return_step_{k}" for tag in ("eval", "eval_ci95") for k in range(4)}
SCALARS = {
    *(f"{tag}_{when}" for tag in (*BEFORE_AND_AFTER, "baseline/explained_variance") for when in ("before", "after")),
    *("rollout/return_gain", "policy/kl", "train/inner_loss_change", "train/inner_lr"),
    *(f"train/{side}_{what}" for side in ("inner", "outer") for what in ("loss", "grad_norm")),
    *HELD_OUT,
    *("train/meta_grad_norm", "train/meta_grad_spread", "train/learning_rate"),
    *(f"time/{what}_seconds" for what in ("iteration", "sampling", "learning")),
    *("time/env_steps_per_second", "time/iteration_cpu_seconds"),
    *("oracle/gradients", "oracle/hessian_vector_products", "oracle/env_steps", "oracle/samples"),
}
HEAD = ("action_net.weight", "action_net.bias")
PLUGIN = """
from metarl.inner import sgd
from metarl.outer import Method, register
from metarl.outer.fo_maml import gradient_at_the_end
from metarl.types import Inner

@register("of_my_own")
def of_my_own(inner_lr=0.1, inner_steps=1, *, strength=1.0):
    return Method(gradient_at_the_end, Inner(sgd(inner_lr * strength), inner_steps))
"""


@pytest.fixture(params=ENVS)
def run(request: pytest.FixtureRequest, trained: Callable[[str], Path]) -> Path:
    return trained(request.param)


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def test_config_says_what_ran_on_what(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["env"] == run.name
    assert (config["iterations"], config["anneal_iterations"], config["hidden"]) == (3, 3, [8])
    assert {"python", "torch", "gymnasium", "numpy", "metarl-torch"} <= set(config["versions"])
    assert {"commit", "device_name"} <= set(config)


def test_metrics_have_a_line_per_iteration(run: Path) -> None:
    found = runs.lines(run)
    assert [line["iteration"] for line in found] == [1, 2, 3]
    assert all(set(line) == {"iteration"} | SCALARS for line in found)
    assert set(runs.lines(run, untrained=True)[0]) == {"iteration"} | HELD_OUT
    assert all(isinstance(value, int | float) for line in found for value in line.values())
    # maml draws D_in, D_o and D_h of 2 episodes for 2 tasks: 12 episodes, and 2 gradients and a product per task
    spent = [
        (line["oracle/samples"], line["oracle/gradients"], line["oracle/hessian_vector_products"]) for line in found
    ]
    assert spent == [(12, 4, 2), (24, 8, 4), (36, 12, 6)]


def test_evaluation_and_checkpoint(run: Path) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert (evaluation["num_tasks"], len(evaluation["mean"])) == (40, 4)
    assert runs.saved(run)["iterations"] == 3


@pytest.mark.parametrize("name", ["adaptation", "trajectories"])
def test_pictures_are_not_blank(run: Path, name: str) -> None:
    with Image.open(run / f"{name}.png") as image:
        colours = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
    assert colours is not None
    assert len(colours) > 50


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("env", ["gaussian_bandit", "tabular_mdp", "linear_gaussian"])
def test_problems_with_exact_answers_train_with_the_defaults(env: str, tmp_path: Path) -> None:
    options = ["--meta-batch-size", 2, "--episodes", 5, "--hidden", 8, "--iterations", 2]
    assert runs.call("train", "--env", env, *options, "--log-dir", tmp_path, "--name", env).code == 0
    assert [line["iteration"] for line in runs.lines(tmp_path / env)] == [1, 2]


def test_tensorboard(run: Path) -> None:
    log = events(run)
    finals = {f"final/return_step_{k}" for k in range(4)}
    assert set(log.Tags()["scalars"]) == SCALARS | finals
    found = json.loads((run / "evaluation.json").read_text())["mean"]
    assert [log.Scalars(tag)[0].value for tag in sorted(finals)] == pytest.approx(found)
    parameters = HParamsPluginData.FromString(log.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    assert parameters.session_start_info.hparams["env"].string_value == run.name
    assert {"figures/adaptation", "figures/trajectories"} == set(log.Tags()["images"])
    for tag in SCALARS:
        written = {event.step: event.value for event in log.Scalars(tag)}
        lines = runs.lines(run, untrained=tag in HELD_OUT)
        assert written == pytest.approx({line["iteration"]: line[tag] for line in lines})
    (text,) = log.Tensors("configuration/text_summary")
    assert f'"env": "{run.name}"' in text.tensor_proto.string_val[0].decode()


@pytest.mark.usefixtures("no_report")
def test_pictures_while_training_and_evaluation_at_both_ends(tmp_path: Path) -> None:
    settings = ("--iterations", 5, "--eval-every", 4)
    plain = runs.train(tmp_path / "plain", *settings)
    drawn = runs.train(tmp_path / "drawn", *settings, "--picture-every", 2)
    assert [event.step for event in events(drawn).Images("pictures/trajectories")] == [0, 2, 4]
    assert not events(plain).Tags()["images"]
    assert runs.untimed(plain) == runs.untimed(drawn)  # pictures change no numbers
    evaluated = [line["iteration"] for line in runs.lines(plain, untrained=True) if "eval/return_step_0" in line]
    assert evaluated == [0, 4, 5]
    assert "picture_every" in runs.call("train", "--picture-every", 0, "--log-dir", tmp_path).err


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("outer", sorted(without_particles()))
def test_every_outer_update(tmp_path: Path, outer: str) -> None:
    folder = runs.train(tmp_path / "run", "--outer", outer, "--iterations", 1)
    assert [line["iteration"] for line in runs.lines(folder)] == [1]
    assert runs.saved(folder)["config"]["outer"] == outer


@pytest.mark.usefixtures("no_report")
def test_options_reach_the_update(tmp_path: Path) -> None:
    options = ["--hessian-data", "reuse", "--outer-options", "delta=published", "rho=0.5"]
    folder = runs.train(tmp_path / "run", "--outer", "hf_maml", "--iterations", 1, *options)
    assert runs.saved(folder)["config"]["outer_options"] == {"hessian_data": "reuse", "delta": "published", "rho": 0.5}
    assert runs.lines(folder)[0]["oracle/samples"] == 8  # no D_h


@pytest.mark.usefixtures("no_report")
def test_same_seed_same_numbers_other_seed_others(tmp_path: Path) -> None:
    seeds = {"a": 0, "b": 0, "c": 1}
    found = {
        name: runs.untimed(runs.train(tmp_path / name, "--iterations", 2, "--seed", seeds[name])) for name in seeds
    }
    assert found["a"] == found["b"] != found["c"]


TRUSTING = ["--outer-step", "trust_region", "--step-options", "cg_iterations=3", "every=2"]
ADAPTING = ["--outer-step", "alpha_maml", "--learn-inner-lr", "scalar"]

PROXIMAL = ["--outer-step", "proximal", "--step-options", "epochs=3", "adaptive_kl=0.01", "target_kl=0.5"]


@pytest.mark.usefixtures("no_report")
def test_outer_steps(tmp_path: Path) -> None:
    """The first step of alpha_maml is that of sgd; then its rates move. A file alone makes it again."""
    few = ["--iterations", 1, "--anneal-iterations", 0]
    one = runs.train(tmp_path / "sgd", "--outer-step", "sgd", "--learning-rate", 0.5, *few)
    other = runs.train(tmp_path / "own", *ADAPTING, "--learning-rate", 0.5, "--iterations", 3)
    first = runs.train(tmp_path / "first", *ADAPTING, "--learning-rate", 0.5, "--iterations", 1)
    params = checkpoint.load(first / "checkpoint.pt")["params"]
    for name, value in checkpoint.load(one / "checkpoint.pt")["params"].items():
        torch.testing.assert_close(params[name], value, rtol=1e-6, atol=1e-7)
    found = runs.lines(other)
    assert found[0]["train/outer_lr"] == 0.5 != found[1]["train/outer_lr"]
    assert found[0]["train/inner_lr"] != found[1]["train/inner_lr"]
    assert json.loads((other / "config.json").read_text())["anneal_iterations"] == 0
    config = runs.saved(other)["config"]
    assert config["step_options"]["outer_lr"] == 0.5
    source = metarl.load(other).source
    again, opened = metarl.MetaLearner.load(other / "checkpoint.pt", source).learn(1), metarl.load(other).learn(1)
    for name, value in opened.params.items():
        assert torch.equal(again.params[name], value)
    options = ["--step-options", "hyper_lr_alpha=0", "hyper_lr_beta=0.5", "floor=none"]
    chosen = runs.train(tmp_path / "chosen", "--outer-step", "alpha_maml", *options, "--iterations", 1)
    saved = runs.saved(chosen)["config"]["step_options"]
    assert (saved["hyper_lr_alpha"], saved["hyper_lr_beta"], saved["floor"]) == (0.0, 0.5, None)


@pytest.mark.usefixtures("no_report")
def test_proximal_epochs(tmp_path: Path) -> None:
    """The first of them is the step of adam."""
    few = ["--iterations", 1, "--learning-rate", 0.01, "--max-grad-norm", 0.1, "--hessian-data", "reuse"]
    plain, one, run = (
        runs.train(tmp_path / name, "--outer-step", step, *few, *more)
        for name, step, more in (
            ("plain", "adam", ()),
            ("one", "proximal", ("--step-options", "epochs=1", "clip=none", "kl_coefficient=0")),
            ("more", "proximal", ("--step-options", "epochs=4", "clip=0.01")),
        )
    )
    params = [checkpoint.load(folder / "checkpoint.pt")["params"] for folder in (plain, one, run)]
    for name, value in params[0].items():
        assert torch.equal(params[1][name], value)
        assert not torch.equal(params[2][name], value)
    logged = runs.lines(run)[0]
    assert logged["train/epochs"] == 4
    assert logged["train/clip_fraction"] > 0
    config = runs.saved(run)["config"]
    assert (config["learning_rate"], config["max_grad_norm"], config["optimizer"]) == (0.01, 0.1, "Adam")
    assert config["step_options"]["clip"] == 0.01


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    "more",
    [["--outer", "maml"], ["--outer", "imaml"], ADAPTING, PROXIMAL, TRUSTING],
    ids=["maml", "imaml", "adapting", "proximal", "trusting"],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, more: list[str]) -> None:
    shared = more if more in (ADAPTING, TRUSTING) else [*more, "--anneal-iterations", 4]
    whole = runs.train(tmp_path / "whole", *shared, "--iterations", 4)
    parts = runs.train(tmp_path / "parts", *shared, "--iterations", 2)
    assert runs.saved(whole) != runs.saved(parts)
    runs.resume(parts, "--iterations", 4)
    assert runs.untimed(whole) == runs.untimed(parts)
    assert runs.saved(whole) == runs.saved(parts)
    assert [event.step for event in events(parts).Scalars("rollout/return_after")] == [1, 2, 3, 4]
    assert json.loads((parts / "config.json").read_text())["iterations"] == 4


@pytest.mark.usefixtures("no_report")
def test_resume_for_the_default_number_of_iterations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that was given counts, also when it is the option's default."""
    folder = runs.train(tmp_path / "run", "--iterations", 1)
    monkeypatch.setattr("metarl.learner.MetaLearner.learn", lambda learner, iterations, callbacks: learner)
    runs.resume(folder, "--iterations", 150)
    assert json.loads((folder / "config.json").read_text())["iterations"] == 150


@pytest.mark.usefixtures("no_pictures")
def test_resume_without_evaluation_only_evaluates(trained: Callable[[str], Path], tmp_path: Path) -> None:
    before = trained("navigation")
    folder = runs.copy(before, tmp_path / "run")
    (folder / "evaluation.json").unlink()
    runs.resume(folder)
    for name in ("evaluation.json", "metrics.jsonl", "checkpoint.pt"):
        assert (folder / name).read_bytes() == (before / name).read_bytes()


@pytest.mark.usefixtures("no_report")
def test_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)

    def forget() -> None:  # as a new process would
        OUTER.pop("of_my_own", None)
        sys.modules.pop("my_plugin", None)

    try:
        options = ["--plugins", "my_plugin", "--outer", "of_my_own", "--outer-options", "strength=0.5"]
        folder = runs.train(tmp_path / "run", "--iterations", 1, *options)
        forget()
        outcome = runs.call("evaluate", folder, "--tasks", 2, "--episodes", 2, "--json")
        assert (outcome.code, json.loads(outcome.out)["iterations"]) == (0, 1)
        forget()
        runs.resume(folder, "--iterations", 2)
    finally:
        forget()
    assert len(runs.lines(folder)) == 2


@pytest.mark.usefixtures("no_pictures")
def test_actions_and_normalised_observations(tmp_path: Path) -> None:
    """Two iterations and two more are four, statistics included; an evaluation takes them from the checkpoint."""
    chosen = ("--env", "point_velocity", "--normalize-observations", "--actions", "squash", "--anneal-iterations", 0)
    whole = runs.train(tmp_path / "whole", *chosen, "--iterations", 4)
    parts = runs.resume(runs.train(tmp_path / "parts", *chosen, "--iterations", 2), "--iterations", 4)
    one, other = (runs.saved(folder) for folder in (whole, parts))
    assert one["source"].keys() == {"count", "mean", "squares"}
    for key in ("source", "params"):
        assert other[key] == one[key]
    assert checkpoint.load(whole / "checkpoint.pt")["source"]["count"] == runs.lines(whole)[-1]["oracle/env_steps"]
    outcome = runs.call("evaluate", whole, "--tasks", 2, "--episodes", 2, "--steps", 1, "--json")
    assert outcome.code == 0, outcome.err


@pytest.mark.usefixtures("no_pictures")
def test_learned_step_sizes_to_the_end(tmp_path: Path) -> None:
    """The evaluation at the end, and a later one, take them as they are."""
    folder = runs.train(tmp_path / "run", "--learn-inner-lr", "layer", "--iterations", 2)
    assert len(json.loads((folder / "evaluation.json").read_text())["mean"]) == 4
    found = [
        runs.call("evaluate", folder, "--tasks", 2, "--episodes", 2, "--json", "--step-schedule", schedule)
        for schedule in ("halved", "constant")
    ]
    assert [outcome.code for outcome in found] == [0, 0]
    one, other = (json.loads(outcome.out)["mean"] for outcome in found)
    assert one == other


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"outer_step": "proximal"}, "reuse"),
        ({"outer_step": "trust_region"}, "reuse"),
        ({"outer_step": "proximal", "hessian_data": "fresh"}, "fresh"),
        ({"outer_step": "proximal", "outer_options": ("hessian_data=fresh",)}, None),
        ({"outer_step": "trust_region", "outer": "fo_maml"}, None),
    ],
)
def test_steps_that_replay_draws_reuse_the_inner_batch(given: dict[str, Any], wanted: str | None) -> None:
    assert TrainConfig(**given).settle().hessian_data == wanted


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("options", "patterns", "names"),
    [
        (("--adapt", "head", "*log_std"), ["head", "*log_std"], {*HEAD, "log_std"}),
        (("--context-size", 3), ["context"], {"context"}),
        (("--context-size", 3, "--adapt", "context", "head"), ["context", "head"], {"context", *HEAD}),
    ],
)
def test_partial_adaptation(options: Any, patterns: Any, names: set[str], tmp_path: Path) -> None:
    """Saved, resumed exactly, evaluated and loaded."""
    chosen = (*options, "--learn-inner-lr", "parameter", "--anneal-iterations", 0)
    whole = runs.train(tmp_path / "whole", *chosen, "--iterations", 2)
    parts = runs.resume(runs.train(tmp_path / "parts", *chosen, "--iterations", 1), "--iterations", 2)
    one, other = (runs.saved(folder) for folder in (whole, parts))
    assert one["config"]["adapt"] == patterns
    assert other["params"] == one["params"]
    sizes = {name.removeprefix("meta/inner_lr/") for name in one["params"] if name.startswith("meta/")}
    assert {name.rpartition("policy.")[2] for name in sizes} == names
    outcome = runs.call("evaluate", whole, "--tasks", 2, "--episodes", 2, "--steps", 1, "--json")
    assert outcome.code == 0, outcome.err
    assert metarl.load(whole).method.recipe.adapt == tuple(patterns)
