"""Each estimator measured, by sampling or exactly, and the verdict: is it what it is documented to be?"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metarl.envs.exact.expected_update import Estimate, expected_update
from metarl.envs.exact.tabular import TabularMDP
from metarl.experiments.reports.certify.estimators import FIRST_ORDER, OTHER, PULLED, SAMPLED, Setting
from metarl.experiments.reports.certify.problems import DISCOUNT, Exact, ExactProblem, mdp, mdp_targets
from metarl.outer import Method
from metarl.rl import SURROGATES, ReinforcementLearning

LIMIT, SEEN, EXACT = 4.5, 6.0, 1e-8  # standard errors; standard errors; relative


def measured(problem: ExactProblem, source: ReinforcementLearning, method: Method, samples: int) -> Estimate:
    """The expectation by Monte Carlo, in the papers' scale."""
    found, horizon = expected_update(source, problem.task, problem.params, method, samples), problem.tasks.horizon
    return Estimate(horizon * found.mean, horizon * found.stderr, horizon * found.std, samples)


def certificate(problem: ExactProblem, setting: Setting, samples: int) -> dict[str, Any]:
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
    problem: ExactProblem,
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
    if update not in (*PULLED, *FIRST_ORDER, *SAMPLED):
        return "not classified", False
    return "biased" + (", by design" if update in FIRST_ORDER else ""), False


def discounted(samples: int) -> list[dict[str, Any]]:
    """Estimators on the tabular problem with the discount 0.9, with the weights gamma^t and, as is usual, without."""
    chosen = [Setting("maml", surrogate, {"hessian_data": "fresh"}) for surrogate in SURROGATES]
    chosen += [Setting("hf_maml", "dice", {"hessian_data": "fresh"}), Setting("fo_maml", "ratio", {})]
    chosen.append(Setting("e_maml", "ratio", {"baseline": "none"}))
    problems = [mdp(DISCOUNT, discount_weights=weights) for weights in (True, False)]
    return [
        {**certificate(problem, setting, samples), "discount_weights": problem.discount_weights}
        for problem in problems
        for setting in chosen
    ]


def several_steps(steps: int) -> list[dict[str, Any]]:
    """Exact relative errors on the tabular problem with N inner steps, one trajectory each."""
    problem = mdp()
    assert isinstance(problem.tasks, TabularMDP)
    targets = mdp_targets(problem.tasks, problem.task, problem.params, steps)
    chosen = [Setting("e_maml", "ratio", {"baseline": "none"}, steps), Setting("fo_maml", "ratio", {}, steps)]
    chosen += [Setting("multi_step_maml", surrogate, {}, steps) for surrogate in SURROGATES]
    chosen += [Setting("maml", surrogate, {"hessian_data": "reuse"}, steps) for surrogate in SURROGATES]
    return [compared(setting, problem, targets, problem.exact(setting), None) for setting in chosen]
