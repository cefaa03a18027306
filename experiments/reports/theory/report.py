"""The results of the claims as a table, as JSON and as a page, which `page.md` begins."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from metarl.experiments.common.config import versions
from metarl.experiments.common.tables import markdown_table
from metarl.experiments.reports.theory.common import Findings, Row


class Claim(NamedTuple):
    """What is claimed, in a few words, and how it is checked."""

    name: str  # of its file and its picture
    title: str
    check: Callable[[bool], Findings]  # with `quick`


class CheckedClaim(NamedTuple):
    """A claim's findings, the seconds they took and the file of their picture."""

    title: str
    findings: Findings
    seconds: float
    picture: Path


def table(checked: dict[int, CheckedClaim]) -> str:
    """All rows and the seconds of each claim, as Markdown."""
    seconds = ", ".join(f"{number}: {found.seconds:.0f}" for number, found in checked.items())
    return f"{table_of_rows(checked)}\n\nseconds per claim: {seconds}"


def table_of_rows(checked: dict[int, CheckedClaim]) -> str:
    """A table with the rows of every claim."""
    cells = [
        [str(number), row.claim, row.source, row.expected, row.measured, verdict(row)]
        for number, found in checked.items()
        for row in found.findings.rows
    ]
    return markdown_table(["", "claim", "source", "expected", "measured", "holds"], cells)


def verdict(row: Row) -> str:
    """One or two words on a row."""
    if row.holds:
        return "yes"
    return "**no**" if row.required else "not seen"


def as_json(checked: dict[int, CheckedClaim]) -> dict[str, object]:
    """Everything but the pictures."""
    claims = {
        number: {
            "title": found.title,
            "seconds": found.seconds,
            "rows": [row._asdict() for row in found.findings.rows],
            "remarks": found.findings.remarks,
        }
        for number, found in checked.items()
    }
    return {"versions": versions(), "claims": claims}


def page(checked: dict[int, CheckedClaim], command: str, folder: Path) -> str:
    """A page in `folder` that `command` writes: a list of all statements, then a section for each claim."""
    start = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
    parts = [start.format(command=command, count=count(checked), statements=statements(checked))]
    for number, found in checked.items():
        path = Path(os.path.relpath(found.picture, folder)).as_posix()
        parts += [f"## {heading(number, found)}\n", table_of_rows({number: found}) + "\n"]
        parts += [f"![{found.title}]({path})\n", found.findings.remarks + "\n", f"({found.seconds:.0f} s)\n"]
    return "\n".join(parts)


def heading(number: int, found: CheckedClaim) -> str:
    """The heading of a claim's section."""
    return f"{number}. {found.title}"


def statements(checked: dict[int, CheckedClaim]) -> str:
    """Every statement with its verdict and a link to the section that has the numbers."""
    cells = [
        [f"[{number}](#{anchor(heading(number, found))})", row.claim, verdict(row)]
        for number, found in checked.items()
        for row in found.findings.rows
    ]
    return markdown_table(["section", "statement", "holds"], cells)


def count(checked: dict[int, CheckedClaim]) -> str:
    """How many statements there are, and how many have each verdict, in a sentence."""
    verdicts = [verdict(row) for found in checked.values() for row in found.findings.rows]
    total, seen = len(verdicts), {kind: verdicts.count(kind) for kind in ("yes", "not seen", "**no**")}
    failed = f", {seen['**no**']} should hold and did not" if seen["**no**"] else ""
    return f"{total} statements: {seen['yes']} hold, {seen['not seen']} not seen here{failed}."


def anchor(title: str) -> str:
    """The anchor of a heading, as Markdown makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())
