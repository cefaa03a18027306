"""Check the papers' claims on problems with known answers: what is claimed, what is measured, whether it holds.

    metarl theory [--quick] [--json] [--claims 1 3] [--out FOLDER] [--write docs/theory.md]

Runs the library's own outer updates in float64 on the CPU, prints a table and draws a picture of each claim. Exit code
1 if a statement that should hold does not; times, and what these numbers are known to speak against, may differ.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from metarl.checkpoint import write_atomically
from metarl.experiments.common import cli
from metarl.experiments.common.recorded import versions
from metarl.experiments.common.tables import markdown_table
from metarl.experiments.reports.claims import CLAIMS, Findings, Row


@dataclass(frozen=True)
class Arguments:
    """What to check and where to put it."""

    quick: bool = False
    """Fewer iterations, repetitions and batch sizes: a minute, not several."""
    json: bool = False
    """Print one JSON object instead of the table."""
    claims: tuple[int, ...] = tuple(CLAIMS)
    """Numbers of the claims; default: all."""
    out: Path = Path("runs/theory")
    """Folder of the pictures."""
    write: Path | None = None
    """Write the report to this Markdown file as well."""


class Checked(NamedTuple):
    """A claim's findings and the seconds they took."""

    findings: Findings
    seconds: float


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl theory", __doc__)
    cli.prepared(lambda: check_arguments(given))
    given.out.mkdir(parents=True, exist_ok=True)
    checked = {number: check(number, given) for number in given.claims}
    if given.write is not None:
        given.write.parent.mkdir(parents=True, exist_ok=True)
        text = report(checked, given)
        write_atomically(given.write, lambda file: file.write(text.encode()))
    print(json.dumps(as_json(checked)) if given.json else table(checked))
    if any(row.required and not row.holds for found in checked.values() for row in found.findings.rows):
        raise SystemExit(cli.FAILED)


def check_arguments(given: Arguments) -> None:
    """Raise a `ValueError` for claims that are none, and where nothing can be written."""
    unknown = [number for number in given.claims if number not in CLAIMS]
    if unknown or not given.claims or len(set(given.claims)) < len(given.claims):
        raise ValueError(f"claims must be some of {sorted(CLAIMS)}, none twice, got {list(given.claims)}")
    cli.check_output_folder("out", given.out)
    if given.write is not None:
        cli.check_output("write", given.write)


def check(number: int, given: Arguments) -> Checked:
    """Check one claim and save its picture."""
    claim = CLAIMS[number]
    start = time.perf_counter()
    findings = claim.check(given.quick)
    seconds = time.perf_counter() - start
    write_atomically(picture(number, given), findings.figure.savefig)
    print(f"claim {number}, {claim.title}: {seconds:.0f} s", file=sys.stderr)
    return Checked(findings, seconds)


def picture(number: int, given: Arguments) -> Path:
    """Where a claim's picture is."""
    return given.out / f"theory_{CLAIMS[number].name}.png"


def verdict(row: Row) -> str:
    """One or two words on a row."""
    if row.holds:
        return "yes"
    return "**no**" if row.required else "not seen"


def rows_of(numbered: dict[int, Checked]) -> str:
    """The table: a heading, then the rows of each claim."""
    lines = [
        [str(number), row.claim, row.source, row.expected, row.measured, verdict(row)]
        for number, (findings, _) in numbered.items()
        for row in findings.rows
    ]
    return markdown_table(["", "claim", "source", "expected", "measured", "holds"], lines)


def table(checked: dict[int, Checked]) -> str:
    """All rows and the seconds of each claim, as Markdown."""
    spent = ", ".join(f"{number}: {found.seconds:.0f}" for number, found in checked.items())
    return "\n".join([rows_of(checked), "", f"seconds per claim: {spent}"])


def as_json(checked: dict[int, Checked]) -> dict[str, object]:
    """Everything but the pictures."""
    return {
        "versions": versions(),
        "claims": {
            number: {
                "title": CLAIMS[number].title,
                "seconds": seconds,
                "rows": [row._asdict() for row in findings.rows],
                "remarks": findings.remarks,
            }
            for number, (findings, seconds) in checked.items()
        },
    }


def report(checked: dict[int, Checked], given: Arguments) -> str:
    """A Markdown document with a section for each claim."""
    assert given.write is not None
    options = "--quick " if given.quick else ""
    chosen = "" if given.claims == tuple(CLAIMS) else f"--claims {' '.join(map(str, given.claims))} "
    lines = [
        "# The papers' claims, checked",
        "",
        "This file and its pictures are written by",
        "",
        f"    metarl theory {options}{chosen}--out {given.out} --write {given.write}",
        "",
        "with the library's own outer updates, in float64 on the CPU. *Expected* is what the source or a closed form "
        "says, *measured* what came out; *not seen* marks a published statement that these numbers do not support. P2 "
        "are six logistic regressions of 40 points in five dimensions, L = 0.528 "
        "(`metarl.theory.logistic.six_logistic_tasks`). F is MAML's objective, N the number of inner steps. "
        "Figures expected there without a closed form come from an independent computation.",
    ]
    for number, found in checked.items():
        path = os.path.relpath(picture(number, given), given.write.parent)
        lines += ["", f"## {number}. {CLAIMS[number].title}", "", rows_of({number: found}), ""]
        lines += [f"![{CLAIMS[number].title}]({Path(path).as_posix()})", "", found.findings.remarks, ""]
        lines += [f"({found.seconds:.0f} s)"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
