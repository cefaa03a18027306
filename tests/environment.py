"""The environment variables of processes that tests start."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def with_root(*paths: Path | str, **changes: str) -> dict[str, str]:
    """This process's, with the project's folder, `paths` and what was there before as PYTHONPATH, and `changes`."""
    before = os.environ.get("PYTHONPATH")
    folders = [str(ROOT), *map(str, paths), *([before] if before else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **changes}
