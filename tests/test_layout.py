"""Which rooms may import which; `metarl` works where `envs`, `agents` and `experiments` are a user's own folders."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import metarl

ROOT = Path(metarl.__file__).parent
BESIDE = ("envs", "agents", "experiments")  # folders beside metarl/, installed inside it
FORBIDDEN = (*BESIDE, *(f"metarl.{name}" for name in BESIDE))
FILES = sorted(ROOT.rglob("*.py"))
MODULES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in FILES
    if path.name != "__main__.py"
]

CORE = ("types", "tree", "inner", "derivatives", "wrappers", "outer", "step", "rl")
LAB = ("metarl.theory", "metarl.supervised", "metarl.checkpoint", "metarl.processes")
# all that an update may import of metarl
UPDATES = ("types", "tree", "inner", "learned_rules", "partial", "derivatives", "errors", "outer")

IMPORT_ALONE = f"""
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith({FORBIDDEN!r}):
            raise ImportError(f"metarl must not import {{name}}")

sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def imports(source: str) -> set[str]:
    """Names that `source` imports, anywhere in it: modules, and what is taken out of them."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def inside(names: set[str], packages: tuple[str, ...]) -> set[str]:
    return {name for name in names if any(f"{name}.".startswith(f"{package}.") for package in packages)}


def run_alone(*modules: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_ALONE, *modules]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)


def test_every_folder_is_installed() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    files = [*FILES, *(path for name in BESIDE for path in (ROOT.parent / name).rglob("*.py"))]
    folders = {path.parent for path in files}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    names = {".".join(folder.relative_to(ROOT.parent).parts) for folder in folders}
    found = {f"metarl.{name}" if name.startswith(BESIDE) else name for name in names}
    assert found == set(project["tool"]["setuptools"]["packages"])


def test_metarl_imports_without_the_other_packages() -> None:
    result = run_alone(*MODULES)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["agents", "metarl.agents"])
def test_the_finder_refuses(name: str) -> None:
    """The test above can fail."""
    assert f"metarl must not import {name}" in run_alone(name).stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_file_may_import(path: Path) -> None:
    names = imports(path.read_text(encoding="utf-8"))
    assert not inside(names, FORBIDDEN)
    if path.relative_to(ROOT).with_suffix("").parts[0] in CORE:
        assert not inside(names, LAB)


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.parent.name == "outer" and path.stem not in ("__init__", "registry")],
    ids=lambda path: path.stem,
)
def test_updates_know_no_plumbing(path: Path) -> None:
    own = inside(imports(path.read_text(encoding="utf-8")), ("metarl",)) - {"metarl"}
    assert own == inside(own, tuple(f"metarl.{name}" for name in UPDATES))


def test_tree_imports_only_torch() -> None:
    assert not inside(imports((ROOT / "tree.py").read_text(encoding="utf-8")), ("metarl", "numpy", "gymnasium"))


@pytest.mark.parametrize("path", sorted((ROOT / "statistics").glob("*.py")), ids=lambda path: path.stem)
def test_statistics_import_only_numpy(path: Path) -> None:
    names = imports(path.read_text(encoding="utf-8"))
    foreign = {name for name in names if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy"}}
    assert foreign == inside(foreign, ("metarl.errors", "metarl.statistics"))


def test_imports_sees_every_form() -> None:
    source = "import a.b as c\ndef f():\n    from d.e import g\n    from . import h\n"
    assert imports(source) == {"a.b", "d.e", "d.e.g"}
    assert inside({"metarl.theory.x", "metarl.theory_of", "metarl"}, LAB) == {"metarl.theory.x"}
