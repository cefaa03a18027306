"""Certify the meta-gradient estimators on two problems whose exact answers are known.

    metarl certify [--quick] [--json] [--write docs/certificates.md]

Every registered outer update, with every surrogate and every choice of Hessian data, by Monte Carlo through the real
reinforcement-learning oracle; on the tabular problem also by enumeration, without sampling. Known wrong formulas must
be seen to fail. Exit code 1 when an estimator is not what it is documented to be.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metarl.checkpoint import write_atomically
from metarl.experiments.common import cli
from metarl.experiments.reports.certify.credit import credit_certificates
from metarl.experiments.reports.certify.estimators import VARIED, settings
from metarl.experiments.reports.certify.hessians import hessian_errors
from metarl.experiments.reports.certify.judging import certificate, discounted, several_steps
from metarl.experiments.reports.certify.page import page
from metarl.experiments.reports.certify.picture import picture
from metarl.experiments.reports.certify.problems import bandit, mdp
from metarl.experiments.reports.certify.wrong_formulas import wrong_formulas

SAMPLES, QUICK = {"bandit": 1_000_000, "mdp": 400_000}, {"bandit": 30_000, "mdp": 20_000}

CREDIT, CREDIT_QUICK = 4_000_000, 60_000  # episodes


@dataclass(frozen=True)
class Arguments:
    """Settings of the certificates."""

    quick: bool = False
    """Fewer samples, at most two inner steps: under a minute."""
    json: bool = False
    """Print one JSON object instead of tables."""
    write: Path | None = None
    """Write the page here as well, and its picture into the folder pictures beside it."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl certify", __doc__)
    cli.prepared(lambda: check_target(given.write))
    results = certify(given.quick)
    print(json.dumps(results) if given.json else page(results))
    if given.write is not None:
        write_atomically(given.write, lambda file: file.write(page(results).encode()))
        write_atomically(given.write.parent / "pictures" / "certificates.png", picture(results).savefig)
    if failed := failures(results):
        cli.fail(f"certificates that fail: {'; '.join(failed)}", cli.FAILED)


def check_target(path: Path | None) -> None:
    """Raise a `ValueError` where no page can be written, before the minutes that come first."""
    if path is not None:
        cli.check_output("write", path, "the path of a file to write, such as docs/certificates.md")
        cli.check_output_folder("write", path.parent / "pictures")


def certify(quick: bool) -> dict[str, Any]:
    """Every certificate, as plain numbers."""
    number = QUICK if quick else SAMPLES
    work = [(bandit(), setting) for setting in settings(VARIED["baseline"])]
    work += [(mdp(), setting) for setting in settings(("none",))]  # a single trajectory has no other ones
    progress = tqdm(work, desc="estimators", disable=None)
    rows = [(problem.name, certificate(problem, setting, number[problem.name])) for problem, setting in progress]
    return {
        "samples": number,
        **{name: [row for problem, row in rows if problem == name] for name in number},
        "several_steps": [row for steps in ((1, 2) if quick else (1, 2, 3)) for row in several_steps(steps)],
        "discounted": discounted(number["mdp"]),
        "credit": credit_certificates(CREDIT_QUICK if quick else CREDIT),
        "hessians": hessian_errors(),
        "wrong_formulas": wrong_formulas(number["bandit"]),
    }


def failures(results: Mapping[str, Any]) -> list[str]:
    """The rows that fail, in words."""
    sections = ("bandit", "mdp", "several_steps", "discounted", "credit", "hessians", "wrong_formulas")
    failed = [(name, row) for name in sections for row in results[name] if row["failed"]]
    keys = ("label", "what", "formula", "surrogate", "hessian_data", "steps", "episodes", "verdict")
    return [f"{name}: " + ", ".join(str(row[key]) for key in keys if row.get(key)) for name, row in failed]
