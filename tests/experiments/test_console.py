"""`metarl list`, `metarl info`, shell completion, and environments of your own on the command line."""

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import metarl
from metarl.checkpoint import package
from metarl.envs import ENVS, register
from metarl.experiments import command
from metarl.experiments.common.lock import FolderLock
from metarl.experiments.completion import options_of
from metarl.outer import OUTER
from metarl.rl import SURROGATES
from tests.experiments import runs
from tests.pages import ROOT

OWN = '''
"""Environments of a user's."""
import gymnasium
import numpy as np
from metarl import envs
from metarl.outer import register

SPACE = gymnasium.spaces.Dict({"g": gymnasium.spaces.Box(5.0, 15.0, (), np.float32)})


class Pendulums(envs.GymDistribution):
    """Pendulums under different gravity. More text."""

    def __init__(self, horizon: int = 20, strong: bool = False) -> None:
        super().__init__("Pendulum-v1", SPACE, horizon=30 if strong else horizon)


ready = Pendulums(7)
nothing = 3
envs.register("%s", Pendulums)
register("%s")(lambda inner_lr=0.1, inner_steps=1: None)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with environments in the working folder, and its name; what it registers is forgotten at the end."""
    name = f"own_envs_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN % (f"pendulums_{name}", f"update_{name}"))
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)
    ENVS.pop(f"pendulums_{name}", None)
    OUTER.pop(f"update_{name}", None)


def test_list(own: str) -> None:
    names = {"envs": ENVS, "updates": OUTER, "steps": ("adam", "trust_region"), "surrogates": SURROGATES}
    for kind, known in names.items():
        outcome = runs.call("catalogue", kind)
        lines = dict(line.split("  ", 1) for line in outcome.out.splitlines())
        assert {name.strip() for name in lines} >= set(known)
        assert all(len(line.strip()) > 5 for line in lines.values())
    assert own not in outcome.out
    assert "Pendulums under different gravity\n" in runs.call("catalogue", "envs", "--plugins", own).out
    assert f"update_{own}" in runs.call("catalogue", "updates", "--plugins", own).out
    assert runs.call("catalogue", "updates", "--plugins", "no_such_module").code == 2


def test_info(trained: Callable[[str], Path], tmp_path: Path) -> None:
    folder = trained("navigation")
    found = json.loads(runs.call("info", folder, "--json").out)
    assert (found["about"], found["algorithm"], found["iterations"], found["of_iterations"]) == (
        "navigation",
        "maml",
        3,
        3,
    )
    assert found["settings"]["horizon"] == 5
    assert "gae_lambda" not in found["settings"]  # as by default
    assert "gae_lambda" in json.loads(runs.call("info", folder, "--json", "--all").out)["settings"]
    lines = runs.lines(folder, untrained=True)
    for name, line in (("first", lines[0]), ("last", lines[-1])):
        assert found[name]["iteration"] == line["iteration"]
        assert found[name]["scores"] == [line[f"eval/return_step_{k}"] for k in range(4)]
    best = max(lines, key=lambda line: max(line[f"eval/return_step_{k}"] for k in range(4)))
    assert found["best"]["iteration"] == best["iteration"]
    assert found["final"]["mean"] == json.loads((folder / "evaluation.json").read_text())["mean"]
    text = runs.call("info", folder).out
    assert "3 of 3 iterations" in text
    assert "finished" in text
    assert runs.call("info", tmp_path).code == 2


def test_info_of_a_run_that_is_resumed(trained: Callable[[str], Path], tmp_path: Path) -> None:
    folder = runs.copy(trained("navigation"), tmp_path / "run")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "iterations": 9}))
    text = runs.call("info", folder).out
    assert re.search("3 of 9 iterations, .* stopped\n", text)
    assert "final evaluation on 40 tasks, iteration 3, after steps 0, 1, 2, 3: " in text
    with FolderLock(folder):
        assert re.search("3 of 9 iterations, .* written by this process\n", runs.call("info", folder).out)


def test_info_of_packages_which_have_no_log(tmp_path: Path) -> None:
    folder = ROOT / "policies" / "grid_world"
    text = runs.call("info", folder).out
    assert "50 of 50 iterations, no log, finished" in text
    members = package.read(folder)
    del members[package.MANIFEST]
    package.write(tmp_path / "policy.zip", members, {})
    assert runs.call("info", tmp_path / "policy.zip").out == text.replace(str(folder), str(tmp_path / "policy.zip"))
    (tmp_path / "other.zip").write_bytes(b"no package")
    outcome = runs.call("info", tmp_path / "other.zip")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "must be a zip file" in outcome.err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["tr"], {"train", "train-supervised"}),
        (["train", "--inner-l"], {"--inner-lr", "--inner-lr-rate"}),
        (["train", "--outer", "hf"], {"hf_maml"}),
        (["compare", "--env", "navi"], {"navigation", "navigation_ring"}),
        (["list", "up"], {"updates"}),
    ],
)
def test_completion_in_bash(words: list[str], wanted: set[str], completion: str) -> None:
    typed = " ".join(f'"{word}"' for word in ["metarl", *words])
    script = f'{completion}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words)}; _metarl; printf "%s\\n" "${{COMPREPLY[@]}}"'
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) == wanted


@pytest.fixture(scope="module")
def completion() -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command.main(["--print-completion", "bash"])
    return out.getvalue()


def test_completion_of_other_shells(capsys: pytest.CaptureFixture[str], completion: str) -> None:
    command.main(["--print-completion", "zsh"])
    assert capsys.readouterr().out == "autoload -U +X bashcompinit && bashcompinit\n" + completion
    with pytest.raises(SystemExit) as end:
        command.main(["--print-completion", "fish"])
    assert end.value.code == 2
    assert "print-completion must be one of" in capsys.readouterr().err
    assert "--tasks" in options_of("evaluate")


SMALL = ["--meta-batch-size", 2, "--episodes", 2, "--hidden", 8, "--iterations", 1, "--eval-tasks", 2]


@pytest.mark.usefixtures("unrecorded", "no_report")
def test_an_environment_of_your_own_by_module_and_object(own: str, tmp_path: Path) -> None:
    """Train on it, evaluate, and load the run: then its module must be listed."""
    for name, options, horizon in [("Pendulums", ["--env-options", "strong=true"], 30), ("ready", [], 7)]:
        folder = tmp_path / name
        outcome = runs.call("train", "--env", f"{own}:{name}", *options, *SMALL, "--log-dir", tmp_path, "--name", name)
        assert outcome.code == 0, outcome.err
        assert json.loads((folder / "config.json").read_text())["env"] == f"{own}:{name}"
        assert runs.lines(folder)[0]["rollout/episode_length_before"] == horizon
    outcome = runs.call("evaluate", folder, "--tasks", 2, "--episodes", 2, "--steps", 1)
    assert outcome.code == 0, outcome.err

    del sys.modules[own], OUTER[f"update_{own}"]
    with pytest.raises(ValueError, match=rf"plugins must name the modules \['{own}'\]"):
        metarl.load(folder)
    assert own not in sys.modules
    assert metarl.load(folder, plugins=[own]).iterations == 1


@pytest.mark.usefixtures("unrecorded", "no_report")
def test_a_registered_environment(own: str, tmp_path: Path) -> None:
    words = ["train", "--env", f"pendulums_{own}", *SMALL, "--log-dir", tmp_path, "--name", "run"]
    assert "env must be one of" in runs.call(*words).err
    outcome = runs.call(*words, "--plugins", own)
    assert outcome.code == 0, outcome.err
    with pytest.raises(ValueError, match="name must be new, but 'navigation' is"):
        register("navigation", ENVS[f"pendulums_{own}"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without a colon"):
        register("a:b", ENVS[f"pendulums_{own}"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}:Pendulum", "has no 'Pendulum'; did you mean 'Pendulums'"),
        ("{}:nothing", "must be a metarl.envs.EnvDistribution .*got 3"),
        ("{}:SPACE.spaces.get", "must be made with the options .*: missing a required argument"),
        ("no_such_module:Pendulums", "env must name importable modules, but 'no_such_module' is not"),
        ("{}:", "has no ''"),
    ],
)
def test_bad_own_environments(own: str, name: str, message: str, tmp_path: Path) -> None:
    outcome = runs.call("train", "--env", name.format(own), "--log-dir", tmp_path / "runs")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert re.search(message, outcome.err)
    assert not (tmp_path / "runs").exists()
