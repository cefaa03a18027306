"""`metarl` stands alone: users often have folders called `envs`, `agents` and `experiments` of their own."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import metarl

FORBIDDEN = ("envs", "agents", "experiments")
ROOT = Path(metarl.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(ROOT)], "metarl."))

IMPORT_ALONE = f"""
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN!r}:
            raise ImportError(f"metarl must not import {{name}}")

sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def imported(source: str) -> set[str]:
    """Top-level names that `source` imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def run_alone(*modules: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_ALONE, *modules]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)


def test_all_submodules_are_found() -> None:
    """Every file under `metarl/` is in a package, hence in the wheel and in the two tests below."""
    files = {path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py")}
    names = {".".join(path.parts).removesuffix(".__init__") for path in files}
    assert names == {"metarl", *MODULES}


def test_metarl_imports_without_the_other_packages() -> None:
    result = run_alone("metarl", *MODULES)
    assert result.returncode == 0, result.stderr


def test_the_finder_refuses() -> None:
    """The test above can fail."""
    result = run_alone("agents")
    assert "metarl must not import agents" in result.stderr


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_metarl_names_them(path: Path) -> None:
    assert not imported(path.read_text(encoding="utf-8")) & set(FORBIDDEN)


def test_imported_sees_every_form() -> None:
    source = "import a.b as c\ndef f():\n    from d.e import g\n    from . import h\n"
    assert imported(source) == {"a", "d"}
