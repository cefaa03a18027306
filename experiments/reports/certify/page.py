"""The page: all tables, with an explanation of each, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from metarl.experiments.reports.certify.certificates import EXACT, LIMIT, SEEN, Certificate
from metarl.experiments.reports.certify.estimators import FIRST_ORDER, OTHER, SAMPLED
from metarl.experiments.reports.certify.problems import OBJECTIVE, PATH_PRODUCT, PRODUCT
from metarl.experiments.reports.columns import Columns, number, table, text
from metarl.rl import SURROGATES

INTRODUCTION = """\
# Certificates of the meta-gradient estimators

What each outer update returns on average, measured through the library's own code on two problems with known exact
answers. This page is written by `metarl certify --write docs/certificates.md`. The same command checks every row and
ends with exit code 1 if an estimator does not have its documented bias.

An inner step can be seen in two ways, which lead to two different objectives:

- the **product form** is the gradient of w -> f(w_N) with *exact* inner gradients:
  prod_j (I - alpha H(w_j)) grad f(w_N);
- the **sampled objective** is the mean loss after inner steps on *sampled* data, E_D f(w_N(D)): its gradient has one
  more term, because w also determines which data are sampled (E-MAML, SG-MRL).

An estimator with independent and unbiased factors is unbiased for the product form if f is quadratic (the bandit, one
step). Otherwise it is unbiased for the **sampled product**, E_D prod_j (I - alpha H(w_j)) grad f(w_N) along sampled
inner steps: close to the other two, equal to neither.

How to read the tables: all losses are -J, the papers' scale. *D_h* says which data the Hessian uses: a fresh batch, or
the inner batch (reuse). SE is the standard error of a Monte Carlo mean; only a bias of several SE can be distinguished
from noise. *std* is the standard deviation of ONE task's meta-gradient, all components together: the cost of an
estimator besides its bias. A certificate fails beyond {limit} SE, an exact one beyond a relative {exact:.0e}.
Estimators that are equal on a problem share a row. Updates that optimise another objective by design are measured but
not judged.

![Bias against standard deviation](pictures/certificates.png)
"""

BANDIT = """\
## Gaussian bandit

Actions a ~ N(w, 1), reward -(a - c)^2, c = 1.5, w = 0.3, alpha = 0.2, one inner step, four actions in every batch, no
baseline, {samples:,} tasks. Targets: product form {product:.4f}, sampled objective {objective:.4f}. In episodes of one
step all surrogates but `reinforce` have the exact expected Hessian. *Closed form* is the expectation by normal moments.
(`imaml` has no finite mean here: on four actions I + H / lam can be arbitrarily close to singular.)
"""

MDP = """\
## Two states, two actions, three steps

One trajectory in every batch, a tabular softmax policy, alpha = 0.5, return to go, no discount, no baseline. The
gradient has two free components, one per state. *Exact* is the expectation through the update's own code over all
trajectories, with expected outer and Hessian data. *Monte Carlo* is {samples:,} tasks through the real oracle, with
sampled outer and Hessian data, and *off* is its distance from the exact expectation. Relative errors are of the exact
expectation if it is known. The first std is with expected outer and Hessian data, the second with everything sampled.
Here only `dice` has the exact expected Hessian. (`reptile` returns a displacement; like all the others it is multiplied
by the horizon.)
"""

STEPS = """\
## More inner steps, exactly

The same problem with N inner steps of one fresh trajectory each: relative errors of the exact expectation. Reusing the
inner batch for the Hessian of the log-probability loss without a score term (`maml`, reinforce, reuse) is what several
well-known codebases do: this wrong second derivative is worse than none (`fo_maml`).
"""

DISCOUNTED = """\
## Discounting

The two-state problem with the discount 0.9. The targets are those of the discounted return. With `discount_weights`
the credit of step t has the weight 0.9^t, and every estimator keeps the properties it has without a discount. Without
these weights, as in common practice and by default, the gradient is sum_t E[A_t grad log pi(a_t | s_t)] with
discounted A_t: it is the gradient of neither return, and every update inherits that bias.
"""

CREDITS = """\
## Baselines and normalisation

The policy gradient itself, before any adaptation, on the two-state problem with the discount 0.9; the first row uses
discount weights, the others do not, as by default. *Error* is the distance of the expectation from the target, divided
by the target's length. *Error of the direction* is the same after scaling the expectation so that its projection on the
target is one (normalised advantages change the length), with its standard error. *Projection* is that of the
expectation on the target; if it is negative, the mean step goes uphill. *std* is that of one draw's gradient, divided
by the projection. "baseline linear, on its own episodes, normalised" is the default of `ReinforcementLearning` and of
the command line. A linear baseline that is fitted to the same episodes has seen their actions, and shrinks or turns the
gradient; `cross_fit` removes that bias. Normalisation divides a draw by a number that depends on the same draw: draws
with small advantages get more weight in the mean. With `cross_fit` this changes only the length of a draw's gradient,
not its direction, but the mean over draws keeps an error, which falls with the number of episodes.
"""

HESSIANS = """\
## Hessians

Relative error of each surrogate's expected second derivative on the same problem (`loaded_dice` with lambda 0.5).
"""

WRONG = """\
## Wrong formulas, which must fail

Formulas from published code, on the bandit, each next to the right one measured by the same code. The right formula
must be within {limit} SE of its target, the wrong one more than {seen:g} SE away.
"""


def markdown_page(results: Mapping[str, Any]) -> str:
    """All tables, with an explanation of each, as Markdown."""
    samples, targets = results["samples"], results["bandit"][0]["targets"]
    product, objective = targets[PRODUCT][0], targets[OBJECTIVE][0]
    parts = [
        INTRODUCTION.format(limit=LIMIT, exact=EXACT),
        BANDIT.format(samples=samples["bandit"], product=product, objective=objective),
        table(BANDIT_COLUMNS, merge_equal(results["bandit"])) + "\n",
        MDP.format(samples=samples["mdp"]),
        table(MDP_COLUMNS, merge_equal(results["mdp"])) + "\n",
        STEPS,
        table(STEPS_COLUMNS, results["several_steps"]) + "\n",
        DISCOUNTED,
        table(DISCOUNTED_COLUMNS, results["discounted"]) + "\n",
        CREDITS,
        table(CREDIT_COLUMNS, results["credit"]) + "\n",
        HESSIANS,
        table(HESSIAN_COLUMNS, results["hessians"]) + "\n",
        WRONG.format(limit=LIMIT, seen=SEEN),
        table(WRONG_COLUMNS, results["wrong_formulas"]) + "\n",
    ]
    return "\n".join(parts)


def merge_equal(rows: Iterable[Certificate]) -> list[Certificate]:
    """Rows that differ only in the surrogate's name, merged into one with all the names."""
    groups: dict[tuple[Any, ...], list[Certificate]] = {}
    for row in rows:
        numbers = (round(x, 7) for x in (*row["expectation"], row["std"]))
        groups.setdefault((row["label"], row["hessian_data"], *numbers), []).append(row)
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


def surrogate_of_steps(row: Certificate) -> str:
    """Exact expectations of these updates are measured with one surrogate: they are equal for all."""
    return "all" if row["update"] in (*SAMPLED, *FIRST_ORDER) else str(row["surrogate"])


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

BANDIT_COLUMNS: Columns = {
    **ESTIMATOR,
    "expectation": first_component,
    "closed form": lambda row: "" if row["exact"] is None else f"{row['exact'][0]:.4f}",
    **{f"bias to the {name}": partial(bias, name) for name in (PRODUCT, OBJECTIVE)},
    "std": number("std", ".2f"),
    **VERDICT,
}
MDP_COLUMNS: Columns = {
    **ESTIMATOR,
    **EXACT_AND_SAMPLED,
    **ERRORS,
    "std": number("exact_std", ".4f"),
    "std, sampled": number("std", ".3f"),
    **VERDICT,
}
STEPS_COLUMNS: Columns = {
    "N": text("steps"),
    **{**ESTIMATOR, "surrogate": surrogate_of_steps},
    **ERRORS,
    "std": number("exact_std", ".4f"),
    **VERDICT,
}
DISCOUNTED_COLUMNS: Columns = {**WEIGHTS, **ESTIMATOR, **EXACT_AND_SAMPLED, **ERRORS, **VERDICT}
CREDIT_COLUMNS: Columns = {
    "credit": text("what"),
    **WEIGHTS,
    "episodes": text("episodes"),
    "target": text("target"),
    "error": lambda row: "" if row["normalized"] else f"{row['relative_error'][row['target']]:.3f}",
    "error of the direction": lambda row: f"{row['direction_error']:.3f} ± {row['direction_stderr']:.3f}",
    "projection": number("projection", "+.3f"),
    "std": number("relative_std", ".2f"),
    **VERDICT,
}
HESSIAN_COLUMNS: Columns = {"surrogate": text("surrogate"), "relative error": number("relative_error", ".3f")}
WRONG_COLUMNS: Columns = {
    "what": text("what"),
    "formula": text("formula"),
    "expectation": first_component,
    "target": lambda row: f"{row['target']} {row['target_value'][0]:.4f}",
    "off": lambda row: f"{row['bias_in_se']:+.1f} SE",
    "verdict": verdict_on_formula,
}
