"""The README and the pages of docs/ as tests see them: blocks of Python, commands, links and headings."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from metarl.outer import OUTER

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

QUICK = {"learn(150": "learn(2", "episodes=20": "episodes=3", "num_tasks=40": "num_tasks=4"}
"""What is replaced in blocks before they run, so that they take seconds."""


def python_blocks(page: Path) -> list[str]:
    """The fenced Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def run_blocks(page: Path, **given: object) -> Iterator[dict[str, Any]]:
    """Run a page's blocks one after the other in one namespace, which begins with what is `given`.

    Yields the namespace, for a fixture; the outer updates that the blocks have registered are forgotten afterwards.
    """
    known = set(OUTER)
    module = ModuleType(page.stem)
    module.__dict__.update(given)
    sys.modules[page.stem] = module  # the blocks' classes are looked up there
    for block in python_blocks(page):
        for usual, quick in QUICK.items():
            block = block.replace(usual, quick)
        exec(compile(block, page.name, "exec"), module.__dict__)
    yield module.__dict__
    del sys.modules[page.stem]
    for name in set(OUTER) - known:
        del OUTER[name]


def commands(page: Path) -> list[list[str]]:
    """The words of every `metarl NAME ...` in a page's code, `torchrun -m metarl.experiments.NAME ...` among them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^ {4,}(.*)", text, flags=re.MULTILINE)
    found = []
    for line in code:
        line = re.sub(
            r".* -m metarl\.experiments\.([\w.]+)", lambda script: f"metarl {script[1].replace('_', '-')}", line
        )
        if command := re.match(r"(?:\.venv/bin/)?metarl ([a-z][^#]*)", line):
            try:
                found.append(shlex.split(command[1]))
            except ValueError:  # an apostrophe in a sentence, not a quotation
                found.append(command[1].split())
    return found


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures within the project."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [target for target in targets if not target.startswith(("http:", "https:"))]
