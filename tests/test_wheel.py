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
PACKAGES = ("metarl", "metarl.envs", "metarl.agents", "metarl.experiments")
FOREIGN = ("envs", "agents", "experiments")
NOT_SOURCE = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "tests")

WHERE = f"""
from importlib import import_module
from pathlib import Path
for name in {PACKAGES}:
    print(Path(import_module(name).__file__).parent)
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


def test_one_package_is_installed_and_typed(installed: Path, tmp_path: Path) -> None:
    site = Path(run(installed, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    folders = [Path(line) for line in run(installed, "-c", WHERE, cwd=tmp_path).splitlines()]
    assert folders == [site.joinpath(*name.split(".")) for name in PACKAGES]
    assert (site / "metarl" / "py.typed").exists()
    assert all((site / "metarl/experiments/reports" / name / "page.md").exists() for name in ("certify", "theory"))
    assert all((site / "metarl/experiments/compare" / name).exists() for name in ("report.css", "report.js"))
    assert not any((site / name).exists() for name in FOREIGN)


def test_trains_beside_folders_with_the_names_of_ours(installed: Path, tmp_path: Path) -> None:
    for name in FOREIGN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a folder of the user')\n", encoding="utf-8")
    sizes = ["--iterations", "2", "--meta-batch-size", "2", "--episodes", "2", "--horizon", "5"]
    arguments = ["--env", "navigation", "--outer", "maml", *sizes, "--log-dir", "logs", "--name", "wheel"]
    run(installed.with_name("metarl"), "train", *arguments, cwd=tmp_path)
    opened = "import metarl; print(metarl.load('logs/wheel').iterations)"
    assert run(installed, "-c", opened, cwd=tmp_path) == "2\n"
