"""Certify the meta-gradient estimators on two problems whose exact answers are known.

    python -m experiments.certify [--quick] [--json] [--write docs/certificates.md]

Every registered outer update, with every surrogate and every choice of Hessian data, by Monte Carlo through the real
reinforcement-learning oracle; on the tabular problem also by enumeration, without sampling. Known wrong formulas must
be seen to fail. Exit code 1 when an estimator is not what it is documented to be.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap
from tqdm import tqdm

from agents.exact import GaussianMean, TabularSoftmax
from envs.enumeration import EnumeratedTasks, sampled_objective, sampled_product
from envs.gaussian_bandit import GaussianBandit
from envs.tabular import TabularMDP, two_state_problem
from envs.tasks import FunctionalTasks
from experiments import cli
from metarl import tree
from metarl.checkpoint import write_atomically
from metarl.derivatives import gradients, hessian_vector_products
from metarl.execution import Execution
from metarl.inner import adapt, sgd
from metarl.outer import OUTER, Method, make_method, options
from metarl.outer.e_maml import sampled
from metarl.rl import SURROGATES, ReinforcementLearning
from metarl.rl.advantages import normalized
from metarl.rl.distributions import DiagonalGaussian, DistParams
from metarl.rl.exact import Estimate, expected_update, product_form
from metarl.rl.surrogates import make_surrogate
from metarl.types import Batch, Inner, MetaGrad, OuterUpdate, Params, Task, Tasks

LIMIT, SEEN, EXACT = 4.5, 6.0, 1e-8  # standard errors; standard errors; relative
CENTRE, MEAN, ALPHA, ACTIONS = 1.5, 0.3, 0.2, 4  # of the bandit
MDP_ALPHA = 0.5
SAMPLES, QUICK = {"bandit": 1_000_000, "mdp": 400_000}, {"bandit": 30_000, "mdp": 20_000}
LAMBDA = {"loaded_dice": 0.5}
VARIED = {"hessian_data": ("fresh", "inner"), "baseline": ("none", "tasks", "trajectories")}

PULLED, FIRST_ORDER, SAMPLED = ("maml", "multi_step_maml", "hf_maml"), ("fo_maml",), ("e_maml",)
OTHER = {
    "sign_maml": "the loss after sign steps",
    "moreau": "Moreau envelopes",
    "reptile": "a displacement",
    "imaml": "the loss at the proximal point",
}
LINEAR = (*PULLED, *FIRST_ORDER, *SAMPLED, "sign_maml", "moreau", "reptile")  # in D_o and in D_h: may be enumerated

PRODUCT, OBJECTIVE, PATH_PRODUCT = "product form", "sampled objective", "sampled product"


@dataclass(frozen=True)
class Arguments:
    """Settings of the certificates."""

    quick: bool = False
    """Fewer samples, at most two inner steps: under a minute."""
    json: bool = False
    """Print one JSON object instead of tables."""
    write: Path | None = None
    """Write the page here as well, and its picture into the folder pictures beside it."""


class Setting(NamedTuple):
    """One estimator."""

    update: str
    surrogate: str
    options: dict[str, str]
    steps: int = 1

    @property
    def hessian_data(self) -> str:
        """Where D_h comes from; empty for updates without one."""
        own = {"multi_step_maml": "fresh", "e_maml": "inner"}
        return self.options.get("hessian_data", own.get(self.update, ""))

    @property
    def label(self) -> str:
        """The update's name with its baseline, where it has a choice."""
        baseline = self.options.get("baseline", "none")
        return f"`{self.update}`" + (f", baseline {baseline}" if baseline != "none" else "")

    def method(self, alpha: float) -> Method:
        """The registered method."""
        return make_method(self.update, alpha, self.steps, **self.options)


def settings(baselines: tuple[str, ...]) -> Iterator[Setting]:
    """Every registered update with every surrogate and every choice of D_h and of these baselines."""
    varied = {**VARIED, "baseline": baselines}
    for update, surrogate in itertools.product(OUTER, SURROGATES):
        names = [name for name in varied if name in options(update)]
        for chosen in itertools.product(*(varied[name] for name in names)):
            yield Setting(update, surrogate, dict(zip(names, chosen, strict=True)))


class Exact(NamedTuple):
    """An expectation without sampling error, and the standard deviation over inner data where it is known."""

    mean: Tensor  # [P]
    std: float | None = None


@dataclass(frozen=True)
class Problem:
    """What a row is computed on. Targets are in the papers' scale, the loss -J: ours, per step, times the horizon."""

    name: str
    tasks: FunctionalTasks
    task: Task
    policy: nn.Module
    params: Params
    alpha: float  # times the horizon
    episodes: int
    targets: dict[str, Tensor]  # [P]
    good_hessian: tuple[str, ...]  # surrogates whose expected Hessian is exact here
    product: str  # what independent factors with exact Hessians estimate
    exact: Callable[[Setting], Exact | None]

    def source(self, surrogate: str) -> ReinforcementLearning:
        """The real oracle, with nothing that could bias it."""
        return ReinforcementLearning(
            self.tasks,
            self.policy,
            episodes=self.episodes,
            surrogate=surrogate,
            dice_lambda=LAMBDA.get(surrogate),
            discount=1.0,
            baseline="none",
            normalize_advantages=False,
        )

    def claim(self, setting: Setting) -> str | None:
        """The target the estimator is documented to be unbiased for."""
        if setting.update in SAMPLED:
            return OBJECTIVE
        unbiased = setting.update in PULLED and setting.hessian_data == "fresh"
        return self.product if unbiased and setting.surrogate in self.good_hessian else None


def bandit(dimension: int = 1) -> Problem:
    """Actions a ~ N(w, I), reward -|a - c|^2, four of them in every batch; in each dimension c = 1.5, w = 0.3."""
    tasks, policy = GaussianBandit(dimension), GaussianMean(dimension).double()
    task = {"centre": np.full(dimension, CENTRE, np.float32)}
    params = {"mean": torch.full((dimension,), MEAN, dtype=torch.float64)}
    one = tensors(task)
    targets = {
        PRODUCT: product_form(lambda w: -tasks.expected_return(w, one), params, ALPHA)["mean"],
        OBJECTIVE: grad(lambda w: tasks.sampled_objective(w, one, ALPHA, ACTIONS))(params)["mean"],
    }
    good = tuple(name for name in SURROGATES if name != "reinforce")
    exact = functools.partial(bandit_expectation, objective=targets[OBJECTIVE])
    return Problem("bandit", tasks, task, policy, params, ALPHA, ACTIONS, targets, good, PRODUCT, exact)


def bandit_expectation(setting: Setting, objective: Tensor) -> Exact | None:
    """E[G] on the one-dimensional bandit in closed form, where it has one.

    With e ~ N(0, 1) and d = c - w, one action has the gradient g = e (e - d)^2 and the second derivative
    h = (e^2 - 1) (e - d)^2 for likelihood ratios, h = -(e - d)^2 for log-probabilities. Then
    E[G] = (1 - alpha E[h]) 2 (E[w_1] - c) + 2 alpha^2 cov(h, g) / n, the covariance only where both have the same data.
    """
    d = CENTRE - MEAN
    if setting.update in SAMPLED:
        return Exact(objective)
    if setting.update == "reptile":
        return Exact(torch.tensor([-2.0 * d * ALPHA], dtype=torch.float64))
    end = 2 * (MEAN + 2 * ALPHA * d - CENTRE)
    if setting.update in (*FIRST_ORDER, "moreau"):  # one fixed-point step is FO-MAML
        return Exact(torch.tensor([end], dtype=torch.float64))
    if setting.update not in PULLED:
        return None
    wrong = setting.surrogate == "reinforce"
    mean, covariance = (-(1 + d**2), 10 * d + 2 * d**3) if wrong else (2.0, -44 * d - 8 * d**3)
    shared = 2 * ALPHA**2 * covariance / ACTIONS if setting.hessian_data == "inner" else 0.0
    return Exact(torch.tensor([(1 - ALPHA * mean) * end + shared], dtype=torch.float64))


def mdp() -> Problem:
    """Two states, two actions, three steps (P3), one trajectory in every batch, tabular softmax, return to go."""
    tasks, task, logits = two_state_problem()
    policy, params = TabularSoftmax(2, 2).double(), {"logits": torch.as_tensor(logits)}
    exact = functools.partial(enumerated, tasks=tasks, task=task, policy=policy, params=params)
    alpha, targets = MDP_ALPHA * tasks.horizon, mdp_targets(tasks, task, params, 1)
    return Problem("mdp", tasks, task, policy, params, alpha, 1, targets, ("dice",), PATH_PRODUCT, exact)


def mdp_targets(tasks: TabularMDP, task: Task, params: Params, steps: int) -> dict[str, Tensor]:
    """The three things an estimator may be compared with, exactly."""
    one, alpha = tensors(task), MDP_ALPHA * tasks.horizon
    found = {
        PRODUCT: product_form(lambda w: -tasks.expected_return(w, one) / tasks.horizon, params, alpha, steps),
        OBJECTIVE: grad(lambda w: sampled_objective(tasks, one, w, alpha, steps))(params),
        PATH_PRODUCT: sampled_product(tasks, one, params, alpha, steps),
    }
    return {name: tasks.horizon * w["logits"].flatten() for name, w in found.items()}


def enumerated(setting: Setting, tasks: TabularMDP, task: Task, policy: nn.Module, params: Params) -> Exact | None:
    """E[G] through the update's own code: all inner trajectories, expected outer and Hessian data.

    Where an update is not known to be linear in these (conjugate gradients are not), this need not be its expectation.
    """
    if setting.update not in LINEAR:
        return None
    surrogate = make_surrogate(setting.surrogate, LAMBDA.get(setting.surrogate))
    ways = EnumeratedTasks(tasks, tensors(task), policy, surrogate, setting.steps, Execution(chunk_size=4096))
    method = setting.method(MDP_ALPHA * tasks.horizon)
    grads = method.update(params, ways, method.inner).grads
    mean = tasks.horizon * tree.flatten({k: v[None] for k, v in ways.expectation(grads).items()})[0]
    return Exact(mean, tasks.horizon * float(ways.deviation(grads)))


def tensors(task: Task) -> dict[str, Tensor]:
    """ONE task's arrays as tensors."""
    return {key: torch.as_tensor(value) for key, value in task.items()}


def measured(problem: Problem, source: ReinforcementLearning, method: Method, samples: int) -> Estimate:
    """The expectation by Monte Carlo, in the papers' scale."""
    found, horizon = expected_update(source, problem.task, problem.params, method, samples), problem.tasks.horizon
    return Estimate(horizon * found.mean, horizon * found.stderr, horizon * found.std, samples)


def certificate(problem: Problem, setting: Setting, samples: int) -> dict[str, Any]:
    """Measure one estimator by Monte Carlo and compare it with what is documented of it; biases in standard errors."""
    sample = measured(problem, problem.source(setting.surrogate), setting.method(problem.alpha), samples)
    exact = problem.exact(setting)
    return {
        **compared(setting, problem, problem.targets, exact, sample),
        "samples": samples,
        "expectation": sample.mean.tolist(),
        "stderr": sample.stderr.tolist(),
        "std": sample.std,
        "off_exact": None if exact is None else sample.off(exact.mean),
        "bias_in_se": {name: sample.off(target) for name, target in problem.targets.items()},
    }


def compared(
    setting: Setting,
    problem: Problem,
    targets: Mapping[str, Tensor],
    exact: Exact | None,
    sample: Estimate | None,
) -> dict[str, Any]:
    """What an estimator is, its targets, and the verdict; relative errors are of the exact expectation where known."""
    claim, best = problem.claim(setting), exact or sample
    assert best is not None
    verdict, failed = judged(setting.update, claim, targets, exact, sample)
    return {
        "label": setting.label,
        **{"update": setting.update, "surrogate": setting.surrogate, "options": setting.options},
        **{"hessian_data": setting.hessian_data, "steps": setting.steps},
        "targets": {name: target.tolist() for name, target in targets.items()},
        "exact": None if exact is None else exact.mean.tolist(),
        "exact_std": None if exact is None else exact.std,
        "relative_error": {name: relative(best.mean, target) for name, target in targets.items()},
        **{"claim": claim, "verdict": verdict, "failed": failed},
    }


def relative(found: Tensor, target: Tensor) -> float:
    """`|found - target| / |target|`."""
    return float((found - target).norm() / target.norm())


def judged(
    update: str, claim: str | None, targets: Mapping[str, Tensor], exact: Exact | None, sample: Estimate | None
) -> tuple[str, bool]:
    """The verdict on an estimator, and whether it fails its certificate."""
    if exact is not None and sample is not None and abs(off := sample.off(exact.mean)) > LIMIT:
        return f"**FAILS**: {off:+.1f} SE from its exact expectation", True
    if claim is not None:
        sampled_off = sample is not None and abs(sample.off(targets[claim])) > LIMIT
        exact_off = exact is not None and relative(exact.mean, targets[claim]) > EXACT
        failed = sampled_off or exact_off
        return f"**FAILS**: documented as unbiased for the {claim}" if failed else f"unbiased for the {claim}", failed
    if update in OTHER:
        return f"other objective: {OTHER[update]}", False
    if update not in (*PULLED, *FIRST_ORDER):
        return "not classified", False
    return "biased" + (", by design" if update in FIRST_ORDER else ""), False


# Wrong formulas, each beside the right one. Both are measured by the same code.


def with_score_term(weight: Callable[[Tasks, Batch], Tensor] | None) -> OuterUpdate:
    """One inner step pulled back with D_in again, plus the score of D_in times a weight `[T]` from the outer batch."""

    def update(params: Params, tasks: Tasks, inner: Inner) -> MetaGrad:
        source, path = sampled(tasks), adapt(params, tasks, inner)
        (w, end), (data,) = path.params, path.batches
        batch = tasks.draw(end, "outer")
        v = gradients(tasks, end, batch)
        through_step = hessian_vector_products(tasks, w, data, v, source.frozen_loss)
        total = {key: v[key] - ALPHA * through_step[key] for key in v}
        if weight is not None:
            scores = vmap(grad(lambda u, d: source.log_likelihood(u, d).sum()))(w, data)
            total = tree.add(total, vmap(lambda a, s: tree.tree_map(lambda x: a * x, s))(weight(tasks, batch), scores))
        return MetaGrad(total, vmap(tasks.score)(end, batch))

    return update


def mean_loss(tasks: Tasks, batch: Batch) -> Tensor:
    """Minus the mean return after adaptation."""
    return vmap(sampled(tasks).objective)(batch).mean(1)


def mean_normalized_advantage(tasks: Tasks, batch: Batch) -> Tensor:
    """Minus the mean of advantages that were made to have the mean zero."""
    return -normalized(batch["advantages"], batch["mask"])[0].mean((1, 2))


class MeanOverDimensions(DiagonalGaussian):
    """Log-probabilities averaged over action dimensions instead of summed: no log-probabilities any more."""

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """Too small by the number of dimensions."""
        return super().log_prob(params, actions) / self.action_shape[0]


class Pair(NamedTuple):
    """A formula and a wrong version of it."""

    what: str
    problem: Problem
    target: str
    right: tuple[str, ReinforcementLearning, Method]
    wrong: tuple[str, ReinforcementLearning, Method]


def pairs() -> list[Pair]:
    """The wrong formulas that published code has."""
    one, two = bandit(), bandit(dimension=2)
    logs, summed, averaged = one.source("reinforce"), two.source("ratio"), two.source("ratio")
    averaged.action_distribution = MeanOverDimensions(2)
    full, none, zero = (
        Method(with_score_term(weight), Inner(sgd(ALPHA))) for weight in (mean_loss, None, mean_normalized_advantage)
    )
    maml = make_method("maml", ALPHA, 1)
    right = "score term weighted with the mean loss", logs, full
    return [
        Pair("log-probability loss, D_in again", one, OBJECTIVE, right, ("no score term", logs, none)),
        Pair("log-probabilities in two dimensions", two, PRODUCT, ("sum", summed, maml), ("mean", averaged, maml)),
        Pair("weight of the score term", one, OBJECTIVE, right, ("mean of normalised advantages", logs, zero)),
    ]


def wrong_formulas(samples: int) -> list[dict[str, Any]]:
    """Each pair measured: the right formula must pass, the wrong one must be seen to fail."""
    rows = []
    for pair in pairs():
        for right, (formula, source, method) in ((True, pair.right), (False, pair.wrong)):
            sample = measured(pair.problem, source, method, samples)
            off = sample.off(pair.problem.targets[pair.target])
            failed = abs(off) > LIMIT if right else abs(off) < SEEN
            rows.append(
                {
                    "what": pair.what,
                    "formula": formula,
                    "right": right,
                    "target": pair.target,
                    "target_value": pair.problem.targets[pair.target].tolist(),
                    "expectation": sample.mean.tolist(),
                    "stderr": sample.stderr.tolist(),
                    "std": sample.std,
                    "samples": samples,
                    "bias_in_se": off,
                    "failed": failed,
                }
            )
    return rows


def hessian_errors() -> list[dict[str, Any]]:
    """The relative error of every surrogate's expected Hessian on the tabular problem."""
    tasks, task, logits = two_state_problem()
    one, point = tensors(task), torch.as_tensor(logits)
    exact = dense(lambda w: -tasks.expected_return(w, one) / tasks.horizon, point)
    rows = []
    for name in SURROGATES:
        surrogate = make_surrogate(name, LAMBDA.get(name))
        oracle = EnumeratedTasks(tasks, one, TabularSoftmax(2, 2).double(), surrogate, steps=0)
        batch = tree.take(oracle.draw({"logits": point[None]}, "hessian"), 0)
        got = dense(functools.partial(oracle.loss, batch=batch), point)
        error = float((got - exact).norm() / exact.norm())
        rows.append({"surrogate": name, "relative_error": error, "failed": name == "dice" and error > EXACT})
    return rows


def dense(loss: Callable[[Params], Tensor], logits: Tensor) -> Tensor:
    """The Hessian `[P, P]` in the flattened logits."""

    def of_flat(flat: Tensor) -> Tensor:
        return loss({"logits": flat.view_as(logits)})

    result: Tensor = jacrev(grad(of_flat))(logits.flatten())
    return result


def several_steps(steps: int) -> list[dict[str, Any]]:
    """Exact relative errors on the tabular problem with N inner steps, one trajectory each."""
    problem = mdp()
    assert isinstance(problem.tasks, TabularMDP)
    targets = mdp_targets(problem.tasks, problem.task, problem.params, steps)
    chosen = [Setting("e_maml", "ratio", {"baseline": "none"}, steps), Setting("fo_maml", "ratio", {}, steps)]
    chosen += [Setting("multi_step_maml", surrogate, {}, steps) for surrogate in SURROGATES]
    chosen += [Setting("maml", surrogate, {"hessian_data": "inner"}, steps) for surrogate in SURROGATES]
    return [compared(setting, problem, targets, problem.exact(setting), None) for setting in chosen]


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
        "hessians": hessian_errors(),
        "wrong_formulas": wrong_formulas(number["bandit"]),
    }


def failures(results: Mapping[str, Any]) -> list[str]:
    """The rows that fail, in words."""
    sections = ("bandit", "mdp", "several_steps", "hessians", "wrong_formulas")
    failed = [(name, row) for name in sections for row in results[name] if row["failed"]]
    keys = ("label", "what", "formula", "surrogate", "hessian_data", "steps", "verdict")
    return [f"{name}: " + ", ".join(str(row[key]) for key in keys if row.get(key)) for name, row in failed]


# The page.

INTRODUCTION = """\
# Certificates of the meta-gradient estimators

What each outer update returns on average, measured through the library's own code on two problems whose exact answers
are known. Made by `python -m experiments.certify --write docs/certificates.md`; the same command checks every row, and
ends with exit code 1 when an estimator is not what it is documented to be.

An inner step can be seen in two ways, and they make two different objectives:

- the **product form** is the gradient of w -> f(w_N) with *exact* inner gradients:
  prod_j (I - alpha H(w_j)) grad f(w_N);
- the **sampled objective** is the mean loss after inner steps on *sampled* data, E_D f(w_N(D)): its gradient has one
  more term, because w also decides which data are sampled (E-MAML, SG-MRL).

An estimator whose factors are independent and unbiased is unbiased for the product form where f is quadratic (the
bandit, one step). Elsewhere it is unbiased for the **sampled product**, E_D prod_j (I - alpha H(w_j)) grad f(w_N) along
sampled inner steps: close to the other two, equal to neither.

How to read the tables: all losses are -J, the papers' scale. *D_h* says which data the Hessian has: fresh, or the inner
step's again (inner). SE is the standard error of a Monte Carlo mean; a bias is told from noise where it is several of
them. *std* is the standard deviation of ONE task's meta-gradient, all components together: the price of an estimator
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
with the log-probability loss and no score term (`maml`, reinforce, inner) is what several well-known codebases do: the
wrong second derivative is worse than none (`fo_maml`).
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
    ("e_maml", "ratio", "inner", -1.271),
    ("maml", "reinforce", "inner", -1.834),
    ("maml", "reinforce", "fresh", -2.130),
    ("maml", "ratio", "inner", -2.224),
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
        HESSIANS,
        table(
            ["surrogate", "relative error"],
            [[r["surrogate"], f"{r['relative_error']:.3f}"] for r in results["hessians"]],
        ),
        WRONG.format(limit=LIMIT, seen=SEEN),
        wrong_table(results["wrong_formulas"]),
    ]
    return "\n".join(parts)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


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
    return table(head, lines)


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
    return table(head, lines)


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
    return table(head, lines)


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
    return table(head, lines)


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
    return table(head, lines)


def picture(results: Mapping[str, Any]) -> Figure:
    """The bandit's expectations on the left; bias against standard deviation on the tabular problem on the right."""
    figure = Figure(figsize=(13.0, 4.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    forest(left, [pair for pair in grouped(results["bandit"]) if pair[0]["update"] not in OTHER])
    scatter(right, [pair for pair in grouped(results["mdp"]) if pair[0]["update"] not in OTHER])
    return figure


def name_of(row: Mapping[str, Any], surrogates: str) -> str:
    """A short name for a picture."""
    parts = [row["label"].replace("`", ""), "" if surrogates == "all" else surrogates, row["hessian_data"]]
    return ", ".join(part for part in parts if part)


def forest(ax: Axes, rows: list[tuple[dict[str, Any], str]]) -> None:
    """Expectations with four standard errors, and the two targets as lines."""
    for height, (row, _) in enumerate(rows):
        colour = "tab:red" if row["claim"] is None else "tab:green"
        ax.errorbar(row["expectation"][0], -height, xerr=4 * row["stderr"][0], fmt="o", color=colour, markersize=4)
    targets = rows[0][0]["targets"]
    for name, style in ((PRODUCT, "--"), (OBJECTIVE, ":")):
        ax.axvline(targets[name][0], linestyle=style, color="black", linewidth=1, label=name)
    ax.set_yticks([-height for height in range(len(rows))], [name_of(*pair) for pair in rows], fontsize=7)
    ax.set(xlabel="meta-gradient ± 4 standard errors")
    ax.set_title("Gaussian bandit (green: documented as unbiased)", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)


def scatter(ax: Axes, rows: list[tuple[dict[str, Any], str]]) -> None:
    """Exact relative error to the sampled objective against the deviation over inner data; equal points once."""
    points: dict[tuple[float, float], str] = {}
    for row, surrogates in rows:
        if row["exact_std"] is not None:
            place = round(row["exact_std"], 6), max(round(row["relative_error"][OBJECTIVE], 6), 1e-4)
            points.setdefault(place, name_of(row, surrogates))
    for number, (place, name) in enumerate(points.items()):
        ax.plot(*place, "osD^v"[number % 5], markersize=6, label=name, linestyle="none", alpha=0.8)
    ax.set(xscale="log", yscale="log", xlabel="standard deviation over inner data")
    ax.set_xticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("relative error to the sampled objective\n(0 is drawn at 1e-4)", fontsize=9)
    ax.set_title("Two states, two actions, three steps: exact", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))


def check_target(path: Path | None) -> None:
    """Raise a `ValueError` where no page can be written, before the minutes that come first."""
    if path is not None and (path.is_dir() or path.parent.is_file()):
        raise ValueError(f"write must be the path of a file to write, such as docs/certificates.md, got {str(path)!r}")


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "experiments.certify", __doc__)
    cli.prepared(lambda: check_target(given.write))
    results = certify(given.quick)
    print(json.dumps(results) if given.json else page(results))
    if given.write is not None:
        write_atomically(given.write, lambda file: file.write(page(results).encode()))
        write_atomically(given.write.parent / "pictures" / "certificates.png", picture(results).savefig)
    if failed := failures(results):
        cli.fail(f"certificates that fail: {'; '.join(failed)}", cli.FAILED)


if __name__ == "__main__":
    main()
