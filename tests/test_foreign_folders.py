"""Folders called `envs`, `agents` and `experiments` in the working directory, as many users have, do no harm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("envs", "agents", "experiments")
TINY = ["--meta-batch-size", "2", "--episodes", "2", "--horizon", "5", "--iterations", "1", "--eval-tasks", "2"]

LIBRARY = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

import metarl.envs  # registers with Gymnasium; the workers import this script, too


def main():
    env = gymnasium.make("metarl/Navigation-v0", goal=(0.3, 0.4))
    env.reset(seed=0)
    print(round(env.step(np.zeros(2, np.float32))[1], 3))
    space = Dict({"g": Box(5.0, 15.0, (), np.float32)})
    with metarl.envs.GymDistribution("Pendulum-v1", space, workers=2) as pendulums:
        print(pendulums.make_vec({"g": [9.8, 1.6]}, 1).reset(seed=0)[0].shape)
    print(metarl.load("runs/tiny").iterations)
    try:
        import envs
    except RuntimeError as error:
        print(error)


if __name__ == "__main__":
    main()
"""


def run(*arguments: str, cwd: Path) -> str:
    """What Python prints, in `cwd` and without a PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its packages refuse to be imported; the folder has a tiny run."""
    here = tmp_path_factory.mktemp("somebody")
    for name in NAMES:
        (here / name).mkdir()
        (here / name / "__init__.py").write_text(f"raise RuntimeError('the {name} of somebody else')\n")
    run("-m", "metarl", "train", "--env", "navigation", *TINY, "--log-dir", "runs", "--name", "tiny", cwd=here)
    return here


def test_a_run_is_complete(folder: Path) -> None:
    assert {"checkpoint.pt", "config.json", "evaluation.json"} <= {
        path.name for path in (folder / "runs/tiny").iterdir()
    }


def test_library_registry_workers_and_runs(folder: Path) -> None:
    (folder / "script.py").write_text(LIBRARY)
    assert run("script.py", cwd=folder).splitlines() == ["-0.5", "(2, 3)", "1", "the envs of somebody else"]


def test_scripts_run_as_modules_of_the_checkout(tmp_path: Path) -> None:
    """`python -m experiments.NAME`, for those who copy and change scripts."""
    run("-m", "experiments.train", "--env", "navigation", *TINY, "--log-dir", str(tmp_path), "--name", "tiny", cwd=ROOT)
    assert (tmp_path / "tiny" / "evaluation.json").exists()
