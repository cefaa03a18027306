"""The page: all tables, with an explanation of each, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from metarl.experiments.reports.certify.certificates import EXACT, LIMIT, SEEN, Certificate
from metarl.experiments.reports.certify.estimators import FIRST_ORDER, LINEARISED, OTHER, SAMPLED
from metarl.experiments.reports.certify.problems import OBJECTIVE, PATH_PRODUCT, PRODUCT
from metarl.experiments.reports.columns import Columns, number, table, text
from metarl.rl import SURROGATES


def markdown_page(results: Mapping[str, Any]) -> str:
    """All tables, with an explanation of each, as Markdown: `page.md`, filled in."""
    targets = results["bandit"][0]["targets"]
    tables = {
        section: table(columns, merge_equal(results[section]) if section in MERGED else results[section])
        for section, columns in SECTIONS.items()
    }
    numbers = {"limit": LIMIT, "exact": EXACT, "seen": SEEN, "samples": results["samples"]}
    product, objective = targets[PRODUCT][0], targets[OBJECTIVE][0]
    page = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    return page.format(**tables, **numbers, product=product, objective=objective)


MERGED = ("bandit", "mdp", "pairs")
"""Tables in which equal rows share a line."""


def merge_equal(rows: Iterable[Certificate]) -> list[Certificate]:
    """Rows that differ only in the surrogate's name, merged into one with all the names."""
    groups: dict[tuple[Any, ...], list[Certificate]] = {}
    for row in rows:
        numbers = (round(x, 7) for x in (*row["expectation"], row["std"]))
        key = (row.get("problem"), row["label"], row["hessian_data"], *numbers)
        groups.setdefault(key, []).append(row)
    names = [[row["surrogate"] for row in group] for group in groups.values()]
    joined = ["all" if len(found) == len(SURROGATES) else ", ".join(found) for found in names]
    return [{**group[0], "surrogate": name} for group, name in zip(groups.values(), joined, strict=True)]


# Cells and columns.


def first_component(row: Certificate) -> str:
    """The Monte Carlo mean of the first component, with its standard error."""
    return f"{row['expectation'][0]:.4f} ± {row['stderr'][0]:.4f}"


def bias(target: str, row: Certificate) -> str:
    """The distance of the mean from a target, also in standard errors."""
    gap = row["expectation"][0] - row["targets"][target][0]
    return "" if row["update"] in OTHER else f"{gap:+.4f} ({row['bias_in_se'][target]:+.1f} SE)"


def error(target: str, row: Certificate) -> str:
    """The relative error to a target."""
    return "" if row["update"] in OTHER else f"{row['relative_error'][target]:.3f}"


def two(gradient: Sequence[float] | None) -> str:
    """The first action's component in each state; the other action's is its negative."""
    return "" if gradient is None else f"({gradient[0]:.4f}, {gradient[2]:.4f})"


def slope(name: str, row: Certificate) -> str:
    """A slope from the row before, if it has one."""
    value = row.get(name)
    return "" if value is None else f"{value:+.2f}"


def surrogate_of_steps(row: Certificate) -> str:
    """Exact expectations of these updates are measured with one surrogate: they are equal for all."""
    return "all" if row["update"] in (*SAMPLED, *FIRST_ORDER, *LINEARISED) else str(row["surrogate"])


def verdict_on_formula(row: Certificate) -> str:
    """The verdict on a right or a wrong formula."""
    if row["failed"]:
        return "**FAILS** its certificate"
    return "right: passes" if row["right"] else "wrong: fails, as it must"


ESTIMATOR: Columns = {"update": text("label"), "surrogate": text("surrogate"), "D_h": text("hessian_data")}
WEIGHTS: Columns = {"weights": lambda row: "0.9^t" if row["discount_weights"] else "none"}
ERRORS: Columns = {f"error to the {name}": partial(error, name) for name in (PRODUCT, OBJECTIVE, PATH_PRODUCT)}
VERDICT: Columns = {"verdict": text("verdict")}
EXACT_AND_SAMPLED: Columns = {
    "exact": lambda row: two(row["exact"]),
    "Monte Carlo": lambda row: f"{two(row['expectation'])} ± {max(row['stderr']):.4f}",
    "off": lambda row: "" if row["off_exact"] is None else f"{abs(row['off_exact']):.1f} SE",
}

SECTIONS: dict[str, Columns] = {
    "bandit": {
        **ESTIMATOR,
        "expectation": first_component,
        "closed form": lambda row: "" if row["exact"] is None else f"{row['exact'][0]:.4f}",
        **{f"bias to the {name}": partial(bias, name) for name in (PRODUCT, OBJECTIVE)},
        "std": number("std", ".2f"),
        **VERDICT,
    },
    "mdp": {
        **ESTIMATOR,
        **EXACT_AND_SAMPLED,
        **ERRORS,
        "std": number("exact_std", ".4f"),
        "std, sampled": number("std", ".3f"),
        **VERDICT,
    },
    "several_steps": {
        "N": text("steps"),
        **{**ESTIMATOR, "surrogate": surrogate_of_steps},
        **ERRORS,
        "std": number("exact_std", ".4f"),
        **VERDICT,
    },
    "slopes": {
        "problem": text("problem"),
        "update": text("label"),
        "n": text("n"),
        "bias": lambda row: "0" if row["bias"] < 1e-9 else f"{row['bias']:.5f}",
        "std": number("std", ".4f"),
        "slope of the bias": partial(slope, "bias_slope"),
        "slope of the variance": partial(slope, "variance_slope"),
        "off": lambda row: "" if row["off_exact"] is None else f"{abs(row['off_exact']):.1f} SE",
        **VERDICT,
    },
    "discounted": {**WEIGHTS, **ESTIMATOR, **EXACT_AND_SAMPLED, **ERRORS, **VERDICT},
    "pairs": {
        "action": text("problem"),
        **ESTIMATOR,
        "off": lambda row: "" if row["claim"] is None else f"{abs(row['bias_in_se'][row['claim']]):.1f} SE",
        **ERRORS,
        "std": number("std", ".2f"),
        **VERDICT,
    },
    "credit": {
        "credit": text("what"),
        **WEIGHTS,
        "episodes": text("episodes"),
        "target": text("target"),
        "error": lambda row: "" if row["normalized"] else f"{row['relative_error'][row['target']]:.3f}",
        "error of the direction": lambda row: f"{row['direction_error']:.3f} ± {row['direction_stderr']:.3f}",
        "projection": number("projection", "+.3f"),
        "std": number("relative_std", ".2f"),
        **VERDICT,
    },
    "hessians": {"surrogate": text("surrogate"), "relative error": number("relative_error", ".3f")},
    "wrong_formulas": {
        "what": text("what"),
        "formula": text("formula"),
        "expectation": first_component,
        "target": lambda row: f"{row['target']} {row['target_value'][0]:.4f}",
        "off": lambda row: f"{row['bias_in_se']:+.1f} SE",
        "verdict": verdict_on_formula,
    },
}
"""The columns of each table, by the name of its rows in the results."""
