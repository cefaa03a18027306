"""Bad command lines: exit code 2, one line that names the argument and what was found, and nothing is written.

`python -m tests.experiments.test_bad_input` prints the table of commands and messages.
"""

import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_type_hints

import pytest
import torch

from metarl.experiments import compare, train
from metarl.experiments.common.run import new_run
from metarl.experiments.reports import benchmark
from metarl.experiments.train import TrainConfig
from metarl.files import write_json
from tests.experiments import runs

WORDS = ("0", "-1", "1.5", "x", "nan")
INTEGERS = {  # the setting, and the bad ones among WORDS
    **dict.fromkeys(("iterations", "inner_steps", "meta_batch_size", "episodes", "horizon", "hidden"), WORDS),
    **dict.fromkeys(("eval_every", "eval_tasks", "save_every", "features_dim", "picture_every"), WORDS),
    **dict.fromkeys(("anneal_iterations", "seed", "eval_seed", "context_size"), WORDS[1:]),  # here zero is good
}
REALS = {
    **dict.fromkeys(("inner_lr", "learning_rate", "inner_lr_rate", "max_grad_norm"), ("0", "-0.1", "nan", "inf", "x")),
    **dict.fromkeys(("discount", "gae_lambda", "dice_lambda"), ("-0.1", "1.5", "nan", "inf", "x")),
    "log_std_init": ("nan", "-inf", "3", "-21", "x"),
}


class Bad(NamedTuple):
    """A script, its arguments, and what the message must contain."""

    script: str
    line: str
    wanted: tuple[str, ...]


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def bad_numbers() -> Iterator[Bad]:
    for name, values in (INTEGERS | REALS).items():
        for value in values:
            parsed = value in ("0", "-1") if name in INTEGERS else value != "x"
            wanted = (name, f"got {float(value) if name in REALS else value}") if parsed else (option(name), value)
            yield Bad("train", f"{option(name)} {value}", wanted)


CASES = [
    *bad_numbers(),
    Bad("train", "--seed 99999999999999999999", ("seed", "99999999999999999999")),
    Bad("train", "--env navigatoin", ("env must", "'navigatoin'", "did you mean 'navigation'")),
    Bad("train", "--env cheetah", ("env must", "'cheetah'", "point_velocity")),
    Bad("train", "--env-options goal_low", ("env_options must be name=value", "'goal_low'")),
    Bad("train", "--env-options gaol_low=0.1", ("option must", "'gaol_low'", "did you mean 'goal_low'")),
    Bad("train", "--env-options goal_low=x", ("goal_low must", "'x'")),
    Bad("train", "--env half_cheetah_velocity --env-options threads=0", ("threads must", "got 0")),
    Bad("train", "--env grid_world --env-options size=1", ("size must", "got 1")),
    Bad("train", "--surrogate loaded_dice", ("dice_lambda must be given if surrogate='loaded_dice'",)),
    Bad("train", "--dice-lambda 0.5", ("dice_lambda must be given if", "got 0.5 and 'ratio'")),
    Bad("train", "--outer e_maml --meta-batch-size 1", ("meta_batch_size must be at least 2", "got 1")),
    Bad(
        "train",
        "--outer e_maml --outer-options baseline=trajectories --episodes 1",
        ("episodes must be at least 2", "got 1"),
    ),
    Bad("train", "--outer mamel", ("outer must", "'mamel'", "did you mean 'maml'")),
    Bad("train", "--outer bmaml", ("source must have particles", "ReinforcementLearning")),
    Bad("train", "--outer ppo", ("outer must", "'ppo'", "reptile")),
    Bad("train", "--itrations 3", ("--itrations", "did you mean --iterations?")),
    Bad("train", "--surrogate rati", ("surrogate must", "'rati'", "did you mean 'ratio'")),
    Bad("train", "--baseline linaer", ("baseline must", "'linaer'", "did you mean 'linear'")),
    Bad("train", "--activation gelu", ("--activation", "gelu")),
    Bad("train", "--hessian-data old", ("--hessian-data", "old")),
    Bad("train", "--hidden 8 0", ("hidden must", "got 0")),
    Bad("train", "--device cuda:9", ("device must", "'cuda:9'")),
    Bad("train", "--device nonsense", ("device must", "'nonsense'")),
    Bad("train", "--device meta", ("device must", "'meta'")),
    Bad("train", "--device privateuseone", ("device must", "'privateuseone'")),
    Bad("train", "--device mps:7", ("device must", "'mps:7'")),
    Bad("train", "--log-dir . --name done", ("done exists", "--name", "--resume done")),
    Bad("train", "--name a/b", ("name must", "'a/b'")),
    Bad("train", "--name ..", ("name must", "'..'")),
    Bad("train", "--log-dir file", ("log_dir must", "got file")),
    Bad("train", "--log-dir file/below", ("log_dir must", "got file/below")),
    Bad("train", "--step-options floor=0", ("step_options does not apply to outer step 'adam'",)),
    Bad("train", "--outer-step alpha_maml", ("hyper_lr_alpha needs", "--learn-inner-lr scalar")),
    Bad("train", "--outer-step trust_region --outer reptile", ("trust_region needs an update", "reptile follows")),
    Bad("train", "--outer-step trust_region --learning-rate 0.1", ("learning_rate does not apply",)),
    Bad("train", "--outer-step trust_region --max-grad-norm 1", ("max_grad_norm does not apply",)),
    Bad("train", "--outer-step trust_region --step-options max_kll=1", ("step_options must", "mean 'max_kl'")),
    Bad("train", "--outer-step trust_region --step-options max_kl=0", ("max_kl must", "got 0.0")),
    Bad("train", "--outer-step trust_region --step-options every=999", ("every must be at most",)),
    Bad("train", "--outer-step alpha_maml --anneal-iterations 9", ("anneal_iterations does not apply",)),
    Bad("train", "--outer-step proximal --outer e_maml", ("proximal needs", "'e_maml'", "replayed draws")),
    Bad("train", "--outer-step proximal --outer reptile", ("proximal needs", "'reptile'")),
    Bad("train", "--outer-step proximal --surrogate dice", ("surrogate must be 'ratio'", "'dice'")),
    Bad("train", "--outer-step proximal --step-options epoch=3", ("'epoch'", "did you mean 'epochs'")),
    Bad("train", "--outer-step proximal --step-options optimizer=SGD", ("step_options must", "'optimizer'")),
    Bad("train", "--outer-step proximal --step-options clip=-1", ("clip must", "got -1.0")),
    Bad("train", "--outer-step proximal --step-options target_kl=far", ("target_kl must", "'far'")),
    Bad("train_supervised", "sinusoid --outer-step proximal", ("--outer-step", "proximal")),
    Bad("train", "--outer-step alpha_mamel", ("--outer-step", "alpha_mamel")),
    Bad("train", "--outer-options delta", ("outer_options must", "'delta'")),
    Bad("train", "--outer imaml --outer-options lan=2", ("outer 'imaml'", "'lan'", "did you mean 'lam'")),
    Bad("train", "--outer imaml --outer-options lam=0", ("lam must", "got 0")),
    Bad("train", "--outer imaml --outer-options cg_steps=1.5", ("cg_steps must", "got 1.5")),
    Bad("train", "--outer hf_maml --outer-options delta=publish", ("delta must", "did you mean 'published'")),
    Bad("train", "--outer hf_maml --outer-options delta=published rho=NaN", ("rho must", "got nan")),
    Bad("train", "--outer fo_maml --hessian-data reuse", ("outer 'fo_maml'", "'hessian_data'")),
    Bad("train", "--plugins no_such_module", ("plugins must", "'no_such_module'")),
    Bad("train", "--plugins .relative", ("plugins must", "'.relative'")),
    Bad("train", "--plugins broken_plugin", ("plugins must", "'broken_plugin'")),
    Bad("train", "--resume empty", ("run must", "empty/config.json")),
    Bad("train", "--resume missing", ("run must", "missing/config.json")),
    Bad("train", "--resume file", ("run must", "file/config.json")),
    Bad("train", "--resume open --inner-lr 0.5", ("inner_lr cannot change", "None", "got 0.5")),
    Bad("train", "--resume open --learning-rate 0", ("learning_rate must", "got 0")),
    Bad("train", "--resume open --anneal-iterations -1", ("anneal_iterations must", "got -1")),
    Bad("train", "--resume open --env navigation_ring", ("env cannot change", "'navigation_ring'")),
    Bad("train", "--resume sign --outer maml", ("outer cannot change", "'sign_maml'", "got 'maml'")),
    Bad("train", "--resume open --iterations 0", ("iterations must", "got 0")),
    Bad("train", "--resume done", ("iterations must be more than the 1 that done has, got 1",)),
    Bad("train", "--resume truncated", ("truncated/checkpoint.pt", "truncated")),
    Bad("evaluate", "", ("RUN",)),
    Bad("evaluate", "missing", ("run must", "missing/config.json")),
    Bad("evaluate", "empty", ("run must", "empty/config.json")),
    Bad("evaluate", "not_json", ("run must", "not_json/config.json")),
    Bad("evaluate", "no_object", ("run must", "no_object/config.json")),
    Bad("evaluate", "lacking", ("run must", "lacking/config.json", "lacks horizon")),
    Bad("evaluate", "wrong_type", ("run must", "wrong_type/config.json", "hidden")),
    Bad("evaluate", "no_checkpoint", ("checkpoint must", "no file no_checkpoint/checkpoint.pt")),
    Bad("evaluate", "truncated", ("checkpoint truncated/checkpoint.pt", "truncated")),
    Bad("evaluate", "foreign", ("checkpoint foreign/checkpoint.pt", "found 'no format'")),
    Bad("evaluate", "hollow", ("checkpoint", "missing")),
    Bad("evaluate", "text", ("checkpoint text/checkpoint.pt", "not a checkpoint")),
    Bad("evaluate", "other_settings", ("learning_rate is 0.5", "0.003")),
    Bad("evaluate", "other_shapes", ("shapes", "(8, 2)", "(7, 2)")),
    Bad("evaluate", "done --tasks 0", ("tasks must", "got 0")),
    Bad("evaluate", "done --steps -1", ("steps must", "got -1")),
    Bad("evaluate", "done --episodes 0", ("episodes must", "got 0")),
    Bad("evaluate", "done --seed -1", ("seed must", "got -1")),
    Bad("evaluate", "done --steps many", ("--steps", "many")),
    Bad("evaluate", "done --step-schedule doubled", ("--step-schedule", "doubled")),
    Bad("evaluate", "done --device cuda:9", ("device must", "'cuda:9'")),
    Bad("evaluate", "done --plugins no_such_module", ("plugins must", "'no_such_module'")),
    Bad("evaluate", "ring --ood", ("NavigationRing", "no out-of-distribution tasks")),
    *(
        Bad("train_supervised", f"sinusoid --name huge --{name} {2**62}", (name.replace("-", "_"), "fit into memory"))
        for name in ("meta-batch-size", "shots", "queries", "eval-tasks", "eval-steps", "final-tasks", "inner-steps")
    ),
    Bad("train", "--name \udcff", ("name must be UTF-8",)),
    Bad("train", "--log-dir new/\udcff", ("log_dir must be UTF-8",)),
    Bad("compare", "--outer maml mamel", ("outer must", "'mamel'", "did you mean 'maml'")),
    Bad("compare", "--outer maml maml", ("outer", "none twice", "maml")),
    Bad("compare", "--env navigatoin", ("env must", "'navigatoin'")),
    Bad("compare", "--env-steps 0", ("env_steps must", "got 0")),
    Bad("compare", "--outer maml --env-steps 10", ("env_steps must", "got 10")),
    Bad("compare", "--env-steps nan", ("--env-steps", "nan")),
    Bad("compare", "--seeds 1 1", ("seeds", "(1, 1)")),
    Bad("compare", "--seeds 0 -1", ("seed", "-1")),
    *(Bad("compare", f"--meta-batch-size {n}", ("meta_batch_size must", f"got {n}")) for n in (0, -1)),
    *(Bad("compare", f"--episodes {n}", ("episodes must", f"got {n}")) for n in (0, -1)),
    *(Bad("compare", f"--horizon {n}", ("horizon must", f"got {n}")) for n in (0, -1)),
    Bad("compare", "--device nonsense", ("device must", "'nonsense'")),
    Bad("compare", "--outer maml --out done", ("out must", "done", "new folder or a comparison's")),
    Bad("compare", "--outer maml --out file", ("out must", "file")),
    *(Bad("compare", f"--outer maml --jobs {n}", ("jobs must", f"got {n}")) for n in (0, -1)),
    Bad("compare", "--outer maml --set maml.iner_lr=1", ("set: the setting must", "did you mean 'inner_lr'")),
    Bad("compare", "--outer maml --set mamml.inner_lr=1", ("set: the row must", "did you mean 'maml'")),
    Bad("compare", "--outer maml --set inner_lr", ("set must be name=value", "'inner_lr'")),
    Bad("compare", "--outer maml --set .inner_lr=1", ("set must be name=value", "'.inner_lr=1'")),
    Bad("compare", "--outer maml --set inner_lr=fast", ("set: inner_lr must be a number", "'fast'")),
    Bad("compare", "--outer maml --set inner_lr=1 inner-lr=2", ("set must name a setting once",)),
    Bad("compare", "--outer maml --set maml.seed=1", ("set must not have seed",)),
    Bad("compare", "--outer maml --set device=cpu", ("set must not have device", "--device")),
    Bad("compare", "--outer maml --sweep inner_lr", ("sweep must be a setting and its values", "'inner_lr'")),
    Bad("compare", "--outer maml --sweep iner_lr 1 2", ("sweep: the setting must", "did you mean 'inner_lr'")),
    Bad("compare", "--outer maml --sweep inner_lr 0.1 0.10", ("sweep must name a setting and a value once",)),
    Bad("compare", "--outer maml --sweep inner_lr 1 --sweep inner_lr 2", ("sweep must name a setting",)),
    Bad("compare", "--outer maml --sweep inner_lr 0 1", ("inner_lr must", "0")),
    Bad("reports.benchmark", "--repetitions 0", ("repetitions must", "got 0")),
    Bad("reports.benchmark", "--device nonsense", ("device must", "'nonsense'")),
    Bad("reports.benchmark", "--fast", ("--fast",)),
    Bad("reports.benchmark", "--only navigatoin", ("only must", "'navigatoin'", "did you mean 'navigation'")),
    Bad("reports.benchmark", "--only rollouts --picture growth.png", ("picture must", "growth.png")),
    Bad("reports.benchmark", "--picture nowhere/growth.png", ("picture must", "nowhere/growth.png")),
]
if not torch.cuda.is_available():
    CASES.append(Bad("train", "--device cuda", ("device must", "'cuda'")))


def make_site(site: Path) -> None:
    """Folders of runs, good and broken, in `site`; nothing is trained but one iteration."""
    tiny = TrainConfig(iterations=1, meta_batch_size=2, episodes=2, horizon=5, hidden=(8,), log_dir=Path())
    with contextlib.chdir(site):
        done = new_run(dataclasses.replace(tiny, name="done"))
        done.learner.learn(1).save(done.folder / "checkpoint.pt")
        write_json(done.folder / "evaluation.json", {})
        new_run(dataclasses.replace(tiny, name="ring", env="navigation_ring"))
        new_run(dataclasses.replace(tiny, name="sign", outer="sign_maml"))
        Path("empty").mkdir()
        Path("file").write_text("a file")
        Path("broken_plugin.py").write_text("def (")

        changes = {
            "other_settings": {"learning_rate": 0.5},
            "other_shapes": {"hidden": [7]},
            "wrong_type": {"hidden": 8},
        }
        contents = {"not_json": "{", "no_object": "[1]", "lacking": None}
        checkpoints = ("open", "no_checkpoint", "truncated", "foreign", "hollow", "text")
        for name in (*changes, *contents, *checkpoints):
            runs.copy(done.folder, Path(name))
            Path(name, "evaluation.json").unlink()
        config = json.loads(Path("done/config.json").read_text())
        for name, change in changes.items():
            write_json(Path(name, "config.json"), {**config, **change})
        for name, text in contents.items():
            Path(name, "config.json").write_text(
                text or json.dumps({k: v for k, v in config.items() if k != "horizon"})
            )
        whole = Path("done/checkpoint.pt").read_bytes()
        Path("no_checkpoint/checkpoint.pt").unlink()
        Path("truncated/checkpoint.pt").write_bytes(whole[: len(whole) // 2])
        Path("text/checkpoint.pt").write_text("a file")
        torch.save({"weights": torch.zeros(3)}, "foreign/checkpoint.pt")
        torch.save({"format": "metarl-checkpoint-1"}, "hollow/checkpoint.pt")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    make_site(folder)
    return folder


@pytest.fixture
def site(template: Path, tmp_path: Path) -> Path:
    """A copy, so that a case that fails does not spoil the next one."""
    return runs.copy(template, tmp_path / "site")


def refused(bad: Bad, site: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Outcome:
    """What the script says in `site`; starting to train or to measure is an error."""

    def must_not_start(*_: object) -> None:
        raise AssertionError("it starts")

    for module, name in ((train, "train"), (compare, "run_all"), (benchmark, "run_parts")):
        monkeypatch.setattr(module, name, must_not_start)
    monkeypatch.chdir(site)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    return runs.call(bad.script, *bad.line.split())


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: f"{bad.script} {bad.line}".strip())
def test_refused(bad: Bad, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = runs.files(site)
    outcome = refused(bad, site, monkeypatch)
    assert runs.files(site) == before
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"error: .{,600}\n", outcome.err)
    assert not re.search("[─-]{4}|helptext", outcome.err)  # nothing of the argument parser's boxes
    for part in bad.wanted:
        assert part in outcome.err


def test_every_number_of_the_configuration_has_rows() -> None:
    hints = get_type_hints(TrainConfig)
    numbers = {name for name, hint in hints.items() if re.search(r"\b(int|float)\b", str(hint))}
    assert numbers == set(INTEGERS) | set(REALS)


def test_in_a_process_of_its_own(site: Path) -> None:
    before = runs.files(site)
    process = runs.start("train", "--outer", "mamel", "--log-dir", site)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"error: outer must be one of \[.*\], got 'mamel'; did you mean 'maml'\?\n", err)
    assert runs.files(site) == before


def print_table() -> None:
    """Every case with its message, in Markdown."""
    print("| command line | message |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        make_site(Path(folder))
        for number, bad in enumerate(CASES):
            with tempfile.TemporaryDirectory() as below, pytest.MonkeyPatch.context() as monkeypatch:
                site = runs.copy(Path(folder), Path(below, str(number)))
                try:
                    text = refused(bad, site, monkeypatch).err.strip()
                except Exception as error:  # a bug: the table shows it
                    text = f"TRACEBACK {type(error).__name__}: {error}"
            print(f"| `{bad.script} {bad.line}` | {text} |".replace("\n", " "))


if __name__ == "__main__":
    print_table()
