"""What a user installs: the wheel, alone, in another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parents[1]
PACKAGES = ("metarl", "envs", "agents", "experiments")
NOT_SOURCE = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "tests")

WHERE = f"""
from importlib import import_module
from pathlib import Path
for name in {PACKAGES}:
    folder = Path(import_module(name).__file__).parent
    print(folder, (folder / "py.typed").exists())
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The command's output, which is shown when it fails; nothing of this checkout is on its path."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel in it; the dependencies are those of the running one.

    The wheel is built from a copy, so that nothing an earlier build left behind can get into it. The `.pth` file
    appends the running environment's packages without reading *their* `.pth` files: an editable install there does
    not count.
    """
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, "source", cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def test_all_packages_come_from_the_wheel_and_are_typed(installed: Path, tmp_path: Path) -> None:
    environment = installed.parents[1]
    for line in run(installed, "-c", WHERE, cwd=tmp_path).splitlines():
        folder, typed = line.rsplit(maxsplit=1)
        assert environment in Path(folder).parents
        assert typed == "True"


def test_trains_from_another_folder(installed: Path, tmp_path: Path) -> None:
    sizes = ["--iterations", "2", "--meta-batch-size", "2", "--episodes", "2", "--horizon", "5"]
    arguments = ["--env", "navigation", "--outer", "maml", *sizes, "--log-dir", "logs", "--name", "wheel"]
    run(installed, "-m", "metarl.experiments.train", *arguments, cwd=tmp_path)
    assert any((tmp_path / "logs").rglob("*"))
