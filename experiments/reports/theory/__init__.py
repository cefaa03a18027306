"""Check the papers' claims on problems with known answers: what is claimed, what is measured, whether it holds.

    metarl theory [--quick] [--json] [--claims 1 3] [--out FOLDER] [--write docs/theory.md]

Runs the library's own outer updates in float64 on the CPU, prints a table and draws a picture of each claim. Exit code
1 if a required statement does not hold. Running times, and statements known not to hold, are not required.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from metarl.engine import Engine
from metarl.experiments.common import cli
from metarl.experiments.reports.theory import (
    alpha_ranges,
    batches,
    complexity,
    descent,
    envelopes,
    estimator,
    floors,
    imaml,
    moreau,
    multi_step,
    multi_step_errors,
    multi_step_rates,
    sign,
    smoothness,
    step_size,
    two_quadratics,
)
from metarl.experiments.reports.theory.report import CheckedClaim, Claim, as_json, page, table
from metarl.files import write_atomically

CLAIMS = {
    1: Claim("two_quadratics", "FO-MAML converges elsewhere than MAML", two_quadratics.check),
    2: Claim("floors", "FO-MAML stalls, MAML and HF-MAML do not", floors.check),
    3: Claim("batches", "What larger batches and a smaller alpha buy", batches.check),
    4: Claim("multi_step", "Several inner steps need alpha of order 1/(N L)", multi_step.check),
    5: Claim("sign", "Sign-MAML: first order, exact, blind to scale", sign.check),
    6: Claim("moreau", "FO-MuML descends on the Moreau envelopes", moreau.check),
    7: Claim("imaml", "iMAML's objective is neither convex nor smooth", imaml.check),
    8: Claim("step_size", "The adaptive step size", step_size.check),
    9: Claim("complexity", "O(1/eps^2) iterations to an eps-stationary point", complexity.check),
    10: Claim("estimator", "One-step MAML's estimator: bias and moments", estimator.check),
    11: Claim("smoothness", "MAML is smooth with L(w), which the step size estimates", smoothness.check),
    12: Claim("descent", "MAML's descent and the printed floors", descent.check),
    13: Claim("multi_step_rates", "Several steps: O(1/eps^2) iterations, a cost linear in N", multi_step_rates.check),
    14: Claim("multi_step_errors", "Several steps: smoothness, noise, and l_S against l_T", multi_step_errors.check),
    15: Claim("envelopes", "FO-MuML needs no smooth Hessian", envelopes.check),
    16: Claim("alpha_ranges", "The theorems' inner step sizes", alpha_ranges.check),
}
"""By number; each has a file with its name."""


@dataclass(frozen=True)
class Arguments:
    """Which claims to check, and where to write the results."""

    quick: bool = False
    """Fewer iterations, repetitions and batch sizes: a minute instead of several."""
    json: bool = False
    """Print one JSON object instead of the table."""
    claims: tuple[int, ...] = tuple(CLAIMS)
    """Numbers of the claims; default: all."""
    out: Path = Path("runs/theory")
    """Folder of the pictures."""
    write: Path | None = None
    """Write the report to this Markdown file as well."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl theory", __doc__)
    cli.prepare(lambda: check_arguments(given))
    given.out.mkdir(parents=True, exist_ok=True)
    checked = {number: check(number, given.quick, given.out) for number in given.claims}
    if given.write is not None:
        given.write.parent.mkdir(parents=True, exist_ok=True)
        text = page(checked, command(given), given.write.parent)
        write_atomically(given.write, lambda file: file.write(text.encode()))
    print(json.dumps(as_json(checked)) if given.json else table(checked))
    if any(row.required and not row.holds for found in checked.values() for row in found.findings.rows):
        raise SystemExit(cli.FAILED)


def check_arguments(given: Arguments) -> None:
    """Raise a `ValueError` for unknown claims, and for places that cannot be written."""
    unknown = [number for number in given.claims if number not in CLAIMS]
    if unknown or not given.claims or len(set(given.claims)) < len(given.claims):
        raise ValueError(f"claims must be some of {sorted(CLAIMS)}, without repetition, got {list(given.claims)}")
    cli.check_output_folder("out", given.out)
    if given.write is not None:
        cli.check_output("write", given.write)


def check(number: int, quick: bool, folder: Path) -> CheckedClaim:
    """Check one claim and save its picture in `folder`."""
    claim = CLAIMS[number]
    start = time.perf_counter()
    with Engine().current():  # the learners in the claims use it, too, and share its records
        findings = claim.check(quick)
    seconds = time.perf_counter() - start
    picture = folder / f"theory_{claim.name}.png"
    write_atomically(picture, findings.figure.savefig)
    print(f"claim {number}, {claim.title}: {seconds:.0f} s", file=sys.stderr)
    return CheckedClaim(claim.title, findings, seconds, picture)


def command(given: Arguments) -> str:
    """The command that writes the page again."""
    options = ["--quick"] if given.quick else []
    if given.claims != Arguments.claims:
        options += ["--claims", *map(str, given.claims)]
    return " ".join(["metarl theory", *options, "--out", str(given.out), "--write", str(given.write)])
