"""The page: all tables, with what they mean, as Markdown."""

from collections.abc import Mapping
from typing import Any

from metarl.experiments.common.tables import markdown_table
from metarl.experiments.reports.certify.estimators import FIRST_ORDER, OTHER, SAMPLED
from metarl.experiments.reports.certify.judging import EXACT, LIMIT, SEEN
from metarl.experiments.reports.certify.problems import OBJECTIVE, PATH_PRODUCT, PRODUCT
from metarl.rl import SURROGATES

INTRODUCTION = """\
# Certificates of the meta-gradient estimators

What each outer update returns on average, measured through the library's own code on two problems whose exact answers
are known. Made by `metarl certify --write docs/certificates.md`; the same command checks every row, and
ends with exit code 1 when an estimator is not what it is documented to be.

An inner step can be seen in two ways, and they make two different objectives:

- the **product form** is the gradient of w -> f(w_N) with *exact* inner gradients:
  prod_j (I - alpha H(w_j)) grad f(w_N);
- the **sampled objective** is the mean loss after inner steps on *sampled* data, E_D f(w_N(D)): its gradient has one
  more term, because w also decides which data are sampled (E-MAML, SG-MRL).

An estimator whose factors are independent and unbiased is unbiased for the product form where f is quadratic (the
bandit, one step). Elsewhere it is unbiased for the **sampled product**, E_D prod_j (I - alpha H(w_j)) grad f(w_N) along
sampled inner steps: close to the other two, equal to neither.

How to read the tables: all losses are -J, the papers' scale. *D_h* says which data the Hessian has: a fresh batch, or
the inner batch (reuse). SE is the standard error of a Monte Carlo mean; a bias is told from noise where it is several
of them. *std* is the standard deviation of ONE task's meta-gradient, all components together: the price of an estimator
beside its bias. A certificate fails beyond {limit} SE, an exact one beyond a relative {exact:.0e}. Estimators that are
equal on a problem share a row. Updates that descend another objective by design are measured and not judged.

![Bias against standard deviation](pictures/certificates.png)
"""

BANDIT = """\
## Gaussian bandit

Actions a ~ N(w, 1), reward -(a - c)^2, c = 1.5, w = 0.3, alpha = 0.2, one inner step, four actions in every batch, no
baseline, {samples:,} tasks. Targets: product form {product:.4f}, sampled objective {objective:.4f}. With one step in an
episode all surrogates but `reinforce` have the exact expected Hessian. *Closed form* is the expectation by normal
moments. (`imaml` has no finite mean here: on four actions I + H / lam can be as close to singular as one likes.)
"""

EARLIER = """\
Single runs of 400,000 tasks on this problem have been quoted with the figures below. Where they differ from the closed
form, the quoted figure is the one that is off, by the noise of a single run; the means above, over more tasks, agree
with the closed forms.
"""

MDP = """\
## Two states, two actions, three steps

One trajectory in every batch, a tabular softmax policy, alpha = 0.5, return to go, no discount, no baseline. The
gradient has two free components, one per state. *Exact* is the expectation through the update's own code over all
trajectories, with expected outer and Hessian data. *Monte Carlo* is {samples:,} tasks through the real oracle, where
outer and Hessian data are sampled as well, and *off* says how far it is from the exact one. Relative errors are of the
exact expectation where there is one. The first std has expected outer and Hessian data, the second has everything
sampled. Here only `dice` has the exact expected Hessian. (What `reptile` returns is a displacement; like all the others
it is multiplied by the horizon.)
"""

STEPS = """\
## More inner steps, exactly

The same problem with N inner steps of one fresh trajectory each: relative errors of the exact expectation. Reusing D_in
with the log-probability loss and no score term (`maml`, reinforce, reuse) is what several well-known codebases do: the
wrong second derivative is worse than none (`fo_maml`).
"""

DISCOUNTED = """\
## Discounting

The two-state problem with the discount 0.9. The targets are those of the discounted return. With `discount_weights`
the credit of step t has the weight 0.9^t, and every estimator keeps the property that it has without a discount.
Without them, as in common practice and by default, the gradient is sum_t E[A_t grad log pi(a_t | s_t)] with
discounted A_t: it is the gradient of neither return, and every update inherits that bias.
"""

CREDITS = """\
## Baselines and normalisation

The policy gradient itself, before any adaptation, on the two-state problem with the discount 0.9; the first two rows
have other discount weights, all others the defaults'. *Error* is the distance of the expectation from the target,
divided by the target's length. *Error of the direction* is the same after the expectation was scaled so that its
projection on the target is one: where advantages are normalised there is no length to compare. It is followed by its
standard error. *Projection* is that of the expectation on the target; where it is negative, the mean step goes
uphill. *std* is of one draw's gradient, divided by the projection. "baseline linear, on its own episodes, normalised"
is the default of `ReinforcementLearning` and of the command line. A linear baseline that is fitted to the episodes it
serves has seen their actions, and shrinks or turns the gradient; `cross_fit` removes that bias. Normalisation divides
a draw by a number that the same draw gives: draws with small advantages weigh more in the mean. With `cross_fit` this
changes the length of a draw's gradient and not its direction, but the mean over draws keeps an error, which falls
with the number of episodes.
"""

HESSIANS = """\
## Hessians

Relative error of each surrogate's expected second derivative on the same problem (`loaded_dice` with lambda 0.5).
"""

WRONG = """\
## Wrong formulas, seen to fail

Formulas found in published code, on the bandit, each beside the right one measured by the same code. The right one must
be within {limit} SE of its target, the wrong one more than {seen:g} SE away.
"""

QUOTED = [
    ("maml", "ratio", "fresh", -0.865),
    ("hf_maml", "ratio", "fresh", -0.873),
    ("e_maml", "ratio", "reuse", -1.271),
    ("maml", "reinforce", "reuse", -1.834),
    ("maml", "reinforce", "fresh", -2.130),
    ("maml", "ratio", "reuse", -2.224),
]


def page(results: Mapping[str, Any]) -> str:
    """All tables, with what they mean, as Markdown."""
    samples, first = results["samples"], results["bandit"][0]["targets"]
    product, objective = first[PRODUCT][0], first[OBJECTIVE][0]
    parts = [
        INTRODUCTION.format(limit=LIMIT, exact=EXACT),
        BANDIT.format(samples=samples["bandit"], product=product, objective=objective),
        bandit_table(results["bandit"]),
        EARLIER,
        earlier_table(results["bandit"]),
        MDP.format(samples=samples["mdp"]),
        mdp_table(results["mdp"]),
        STEPS,
        steps_table(results["several_steps"]),
        DISCOUNTED,
        discounted_table(results["discounted"]),
        CREDITS,
        credit_table(results["credit"]),
        HESSIANS,
        hessian_table(results["hessians"]),
        WRONG.format(limit=LIMIT, seen=SEEN),
        wrong_table(results["wrong_formulas"]),
    ]
    return "\n".join(parts)


def hessian_table(rows: list[dict[str, Any]]) -> str:
    """A line for each surrogate."""
    lines = [[row["surrogate"], f"{row['relative_error']:.3f}"] for row in rows]
    return markdown_table(["surrogate", "relative error"], lines) + "\n"


def bandit_table(rows: list[dict[str, Any]]) -> str:
    """One line for every group of equal estimators."""
    head = ["update", "surrogate", "D_h", "expectation", "closed form"]
    head += [f"bias to the {name}" for name in (PRODUCT, OBJECTIVE)] + ["std", "verdict"]
    lines = []
    for row, surrogates in grouped(rows):
        line = [row["label"], surrogates, row["hessian_data"], f"{row['expectation'][0]:.4f} ± {row['stderr'][0]:.4f}"]
        line.append("" if row["exact"] is None else f"{row['exact'][0]:.4f}")
        for name in (PRODUCT, OBJECTIVE):
            gap = row["expectation"][0] - row["targets"][name][0]
            line.append("" if row["update"] in OTHER else f"{gap:+.4f} ({row['bias_in_se'][name]:+.1f} SE)")
        lines.append([*line, f"{row['std']:.2f}", row["verdict"]])
    return markdown_table(head, lines) + "\n"


def mdp_table(rows: list[dict[str, Any]]) -> str:
    """One line for every group of equal estimators."""
    head = ["update", "surrogate", "D_h", "exact", "Monte Carlo", "off"]
    head += [f"error to the {name}" for name in (PRODUCT, OBJECTIVE, PATH_PRODUCT)] + ["std", "std, sampled", "verdict"]
    lines = []
    for row, surrogates in grouped(rows):
        line = [row["label"], surrogates, row["hessian_data"], "" if row["exact"] is None else two(row["exact"])]
        line += [f"{two(row['expectation'])} ± {max(row['stderr']):.4f}"]
        line += ["" if row["off_exact"] is None else f"{abs(row['off_exact']):.1f} SE"]
        for name in (PRODUCT, OBJECTIVE, PATH_PRODUCT):
            line.append("" if row["update"] in OTHER else f"{row['relative_error'][name]:.3f}")
        spread = "" if row["exact_std"] is None else f"{row['exact_std']:.4f}"
        lines.append([*line, spread, f"{row['std']:.3f}", row["verdict"]])
    return markdown_table(head, lines) + "\n"


def two(gradient: list[float]) -> str:
    """The first action's component in each state; the other action's is its negative."""
    return f"({gradient[0]:.4f}, {gradient[2]:.4f})"


def steps_table(rows: list[dict[str, Any]]) -> str:
    """A line for each estimator and number of steps."""
    names = (PRODUCT, OBJECTIVE, PATH_PRODUCT)
    head = ["N", "update", "surrogate", "D_h", *(f"error to the {name}" for name in names), "std", "verdict"]
    lines = []
    for row in rows:
        surrogate = "all" if row["update"] in (*SAMPLED, *FIRST_ORDER) else row["surrogate"]
        errors = [f"{row['relative_error'][name]:.3f}" for name in names]
        start = [str(row["steps"]), row["label"], surrogate, row["hessian_data"]]
        lines.append([*start, *errors, f"{row['exact_std']:.4f}", row["verdict"]])
    return markdown_table(head, lines) + "\n"


def discounted_table(rows: list[dict[str, Any]]) -> str:
    """A line for each estimator, with and without the weights."""
    names = (PRODUCT, OBJECTIVE, PATH_PRODUCT)
    head = ["weights", "update", "surrogate", "D_h", "exact", "Monte Carlo", "off"]
    head += [*(f"error to the {name}" for name in names), "verdict"]
    lines = []
    for row in rows:
        start = ["0.9^t" if row["discount_weights"] else "none", row["label"], row["surrogate"], row["hessian_data"]]
        middle = [two(row["exact"]), f"{two(row['expectation'])} ± {max(row['stderr']):.4f}"]
        errors = [f"{row['relative_error'][name]:.3f}" for name in names]
        lines.append([*start, *middle, f"{abs(row['off_exact']):.1f} SE", *errors, row["verdict"]])
    return markdown_table(head, lines) + "\n"


def credit_table(rows: list[dict[str, Any]]) -> str:
    """A line for each way to give credit."""
    head = [
        "credit",
        "weights",
        "episodes",
        "target",
        "error",
        "error of the direction",
        "projection",
        "std",
        "verdict",
    ]
    lines = []
    for row in rows:
        start = [row["what"], "0.9^t" if row["discount_weights"] else "none", str(row["episodes"]), row["target"]]
        error = "" if row["normalized"] else f"{row['relative_error'][row['target']]:.3f}"
        direction = f"{row['direction_error']:.3f} ± {row['direction_stderr']:.3f}"
        lines.append(
            [*start, error, direction, f"{row['projection']:+.3f}", f"{row['relative_std']:.2f}", row["verdict"]]
        )
    return markdown_table(head, lines) + "\n"


def wrong_table(rows: list[dict[str, Any]]) -> str:
    """A line for each formula."""
    head = ["what", "formula", "expectation", "target", "off", "verdict"]
    lines = []
    for row in rows:
        value = f"{row['expectation'][0]:.4f} ± {row['stderr'][0]:.4f}"
        good = "right: passes" if row["right"] else "wrong: seen to fail"
        verdict = "**FAILS** its certificate" if row["failed"] else good
        target = f"{row['target']} {row['target_value'][0]:.4f}"
        lines.append([row["what"], row["formula"], value, target, f"{row['bias_in_se']:+.1f} SE", verdict])
    return markdown_table(head, lines) + "\n"


def grouped(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Rows that differ in the surrogate's name alone, as one with all the names."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        numbers = (round(x, 7) for x in (*row["expectation"], row["std"]))
        groups.setdefault((row["label"], row["hessian_data"], *numbers), []).append(row)
    names = [[row["surrogate"] for row in group] for group in groups.values()]
    joined = ["all" if len(found) == len(SURROGATES) else ", ".join(found) for found in names]
    return list(zip((group[0] for group in groups.values()), joined, strict=True))


def earlier_table(rows: list[dict[str, Any]]) -> str:
    """The quoted figures beside the closed forms, in standard errors of one run of 400,000 tasks."""
    head, lines = ["update", "surrogate", "D_h", "quoted", "closed form", "SE of such a run", "off"], []
    for update, surrogate, data, quoted in QUOTED:
        key = {"update": update, "surrogate": surrogate, "hessian_data": data}
        row = next(row for row in rows if key.items() <= row.items())
        exact, error = row["exact"][0], row["std"] / 400_000**0.5
        numbers = [f"{quoted:.3f}", f"{exact:.4f}", f"{error:.4f}", f"{(quoted - exact) / error:+.1f} SE"]
        lines.append([f"`{update}`", surrogate, data, *numbers])
    return markdown_table(head, lines) + "\n"
