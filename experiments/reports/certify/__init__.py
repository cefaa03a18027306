"""Certify the meta-gradient estimators on problems whose exact answers are known.

    metarl certify [--quick] [--json] [--write docs/certificates.md]
    metarl certify --cheetah [--cheetah-run RUN] [--quick] [--json]

Measures every registered outer update, with every surrogate and every choice of Hessian data, by Monte Carlo through
the real reinforcement-learning oracle; on the tabular problem also by enumeration, without sampling. Known wrong
formulas must fail. Exit code 1 if an estimator does not have its documented bias.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metarl.experiments.common import cli
from metarl.experiments.reports.certify.certificates import (
    certify_discounted,
    certify_exactly,
    certify_pairs,
    certify_sampled,
)
from metarl.experiments.reports.certify.cheetah import (
    SEEDS,
    PolicyAt,
    cheetah_table,
    measure_cheetah,
    trained,
    untrained,
)
from metarl.experiments.reports.certify.credit import certify_credit
from metarl.experiments.reports.certify.estimators import VARIED, enumerate_estimators
from metarl.experiments.reports.certify.hessians import certify_hessians
from metarl.experiments.reports.certify.page import SECTIONS, markdown_page
from metarl.experiments.reports.certify.picture import draw_picture, draw_slopes
from metarl.experiments.reports.certify.problems import bandit, mdp
from metarl.experiments.reports.certify.slopes import certify_slopes
from metarl.experiments.reports.certify.wrong_formulas import certify_formulas
from metarl.files import write_atomically

SAMPLES, QUICK = {"bandit": 1_000_000, "mdp": 400_000}, {"bandit": 30_000, "mdp": 20_000}

CREDIT, CREDIT_QUICK = 4_000_000, 60_000  # episodes

SLOPES, SLOPES_QUICK = 400_000, 20_000  # a quarter of the actions for each number of trajectories


@dataclass(frozen=True)
class Arguments:
    """Settings of the certificates."""

    quick: bool = False
    """Fewer samples, at most two inner steps: under a minute."""
    json: bool = False
    """Print one JSON object instead of tables."""
    write: Path | None = None
    """Write the page to this file as well, and its pictures into the folder pictures next to it."""
    cheetah: bool = False
    """Measure only how much noisier DiCE's meta-gradient is than LVC's on half-cheetah direction (MuJoCo; minutes)."""
    cheetah_run: Path | None = None
    """With cheetah: the policy of this run, instead of untrained ones."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl certify", __doc__)
    cli.prepare(lambda: check_arguments(given))
    if given.cheetah:
        policies = cli.prepare(lambda: choose_policies(given))
        rows = measure_cheetah(policies, 2) if given.quick else measure_cheetah(policies)
        print(json.dumps(rows) if given.json else cheetah_table(rows))
        return
    results = certify(given.quick)
    print(json.dumps(results) if given.json else markdown_page(results))
    if given.write is not None:
        write_atomically(given.write, lambda file: file.write(markdown_page(results).encode()))
        pictures = given.write.parent / "pictures"
        write_atomically(pictures / "certificates.png", draw_picture(results).savefig)
        write_atomically(pictures / "certificates_slopes.png", draw_slopes(results["slopes"]).savefig)
    if failed := failures(results):
        cli.fail(f"certificates that fail: {'; '.join(failed)}", cli.FAILED)


def choose_policies(given: Arguments) -> list[PolicyAt]:
    """The policies for `cheetah`: one for each seed, or that of a run."""
    if given.cheetah_run is not None:
        return [trained(given.cheetah_run)]
    return [untrained(seed) for seed in range(1 if given.quick else SEEDS)]


def check_arguments(given: Arguments) -> None:
    """Raise a `ValueError` for settings that do not go together, and for a page that cannot be written."""
    if given.cheetah and given.write is not None:
        raise ValueError(f"write does not apply with cheetah, which prints a table; remove it, got {given.write}")
    if given.cheetah_run is not None and not given.cheetah:
        raise ValueError(f"cheetah_run does not apply without cheetah; remove it, got {given.cheetah_run}")
    check_target(given.write)


def check_target(path: Path | None) -> None:
    """Raise a `ValueError` if the page cannot be written, before minutes are spent."""
    if path is not None:
        cli.check_output("write", path, "the path of a file to write, such as docs/certificates.md")
        cli.check_output_folder("write", path.parent / "pictures")


def certify(quick: bool) -> dict[str, Any]:
    """Every certificate, as plain numbers."""
    number = QUICK if quick else SAMPLES
    baselines = {"bandit": VARIED["baseline"], "mdp": ("none",)}  # a single trajectory has no others as a baseline
    work = [(p, estimator) for p in (bandit(), mdp()) for estimator in enumerate_estimators(baselines[p.name])]
    progress = tqdm(work, desc="estimators", disable=None)
    rows = [
        (problem.name, certify_sampled(problem, estimator, number[problem.name])) for problem, estimator in progress
    ]
    return {
        "samples": number,
        **{name: [row for problem, row in rows if problem == name] for name in number},
        "several_steps": [row for steps in ((1, 2) if quick else (1, 2, 3)) for row in certify_exactly(steps)],
        "slopes": certify_slopes(SLOPES_QUICK if quick else SLOPES),
        "discounted": certify_discounted(number["mdp"]),
        "pairs": certify_pairs(number["mdp"]),
        "credit": certify_credit(CREDIT_QUICK if quick else CREDIT),
        "hessians": certify_hessians(),
        "wrong_formulas": certify_formulas(number["bandit"]),
    }


def failures(results: Mapping[str, Any]) -> list[str]:
    """The rows that fail, in words."""
    failed = [(name, row) for name in SECTIONS for row in results[name] if row["failed"]]
    keys = ("problem", "label", "what", "formula", "surrogate", "hessian_data", "steps", "episodes", "n", "verdict")
    return [f"{name}: " + ", ".join(str(row[key]) for key in keys if row.get(key)) for name, row in failed]
