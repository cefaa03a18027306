"""The certificate of an estimator: does it have its documented bias, by sampling or exactly?"""

from typing import Any, TypeAlias

from torch import Tensor

from metarl.envs.exact.expected_update import Estimate
from metarl.experiments.reports.certify.estimators import FIRST_ORDER, LINEARISED, OTHER, PULLED, SAMPLED, Estimator
from metarl.experiments.reports.certify.problems import DISCOUNT, ExactProblem, Expectation, mdp, pairs
from metarl.rl import SURROGATES

LIMIT, SEEN, EXACT = 4.5, 6.0, 1e-8  # standard errors; standard errors; relative

Certificate: TypeAlias = dict[str, Any]
"""A row of the results, as plain numbers and texts."""


def certify_sampled(problem: ExactProblem, estimator: Estimator, samples: int) -> Certificate:
    """The certificate of an estimator by Monte Carlo; biases are in standard errors."""
    sample = problem.measure(problem.source(estimator.surrogate), estimator.method(problem.alpha), samples)
    exact = problem.expectation(estimator)
    return {
        **compare(estimator, problem, exact, sample),
        "samples": samples,
        "expectation": sample.mean.tolist(),
        "stderr": sample.stderr.tolist(),
        "std": sample.std,
        "off_exact": None if exact is None else sample.z_score(exact.mean),
        "bias_in_se": {name: sample.z_score(target) for name, target in problem.targets.items()},
    }


def compare(
    estimator: Estimator, problem: ExactProblem, exact: Expectation | None, sample: Estimate | None
) -> Certificate:
    """What an estimator is, its targets, and the verdict; relative errors are of the exact expectation if known."""
    claim, best = problem.claim(estimator), exact or sample
    assert best is not None
    verdict, failed = judge(estimator.update, claim, problem.targets, exact, sample)
    return {
        "label": estimator.label,
        **estimator._asdict(),
        "hessian_data": estimator.hessian_data,
        "targets": {name: target.tolist() for name, target in problem.targets.items()},
        "exact": None if exact is None else exact.mean.tolist(),
        "exact_std": None if exact is None else exact.std,
        "relative_error": {name: relative_error(best.mean, target) for name, target in problem.targets.items()},
        **{"claim": claim, "verdict": verdict, "failed": failed},
    }


def relative_error(found: Tensor, target: Tensor) -> float:
    """`|found - target| / |target|`."""
    return float((found - target).norm() / target.norm())


def judge(
    update: str, claim: str | None, targets: dict[str, Tensor], exact: Expectation | None, sample: Estimate | None
) -> tuple[str, bool]:
    """The verdict on an estimator, and whether it fails its certificate."""
    if exact is not None and sample is not None and abs(off := sample.z_score(exact.mean)) > LIMIT:
        return f"**FAILS**: {off:+.1f} SE from its exact expectation", True
    if claim is not None:
        sampled_off = sample is not None and abs(sample.z_score(targets[claim])) > LIMIT
        exact_off = exact is not None and relative_error(exact.mean, targets[claim]) > EXACT
        failed = sampled_off or exact_off
        return f"**FAILS**: documented as unbiased for the {claim}" if failed else f"unbiased for the {claim}", failed
    if update in OTHER:
        return f"other objective: {OTHER[update]}", False
    if update not in (*PULLED, *FIRST_ORDER, *SAMPLED, *LINEARISED):
        return "not classified", False
    return "biased" + (", by design" if update in (*FIRST_ORDER, *LINEARISED) else ""), False


def certify_discounted(samples: int) -> list[Certificate]:
    """Estimators on the tabular problem with the discount 0.9, with the weights gamma^t and, as usual, without."""
    estimators = [Estimator("maml", surrogate, {"hessian_data": "fresh"}) for surrogate in SURROGATES]
    estimators += [Estimator("hf_maml", "dice", {"hessian_data": "fresh"}), Estimator("fo_maml", "ratio", {})]
    estimators += [Estimator("e_maml", "ratio", {"baseline": "none"}), Estimator("lsf", "ratio", {})]
    return [
        {**certify_sampled(problem, estimator, samples), "discount_weights": problem.discount_weights}
        for problem in (mdp(DISCOUNT), mdp(DISCOUNT, discount_weights=False))
        for estimator in estimators
    ]


def certify_pairs(samples: int) -> list[Certificate]:
    """Estimators on the bandits whose action has several numbers."""
    fresh, reuse = {"hessian_data": "fresh"}, {"hessian_data": "reuse"}
    estimators = [Estimator("maml", surrogate, fresh) for surrogate in SURROGATES]
    estimators += [Estimator("maml", "ratio", reuse), Estimator("hf_maml", "ratio", fresh)]
    estimators += [Estimator("fo_maml", "ratio", {}), Estimator("e_maml", "ratio", {"baseline": "none"})]
    return [
        {**certify_sampled(problem, estimator, samples), "problem": problem.name}
        for problem in (pairs(binary=False), pairs(binary=True))
        for estimator in estimators
    ]


def certify_exactly(steps: int) -> list[Certificate]:
    """Exact relative errors on the tabular problem with N inner steps, one trajectory each."""
    problem = mdp(steps=steps)
    estimators = [Estimator("e_maml", "ratio", {"baseline": "none"}, steps), Estimator("fo_maml", "ratio", {}, steps)]
    estimators.append(Estimator("lsf", "ratio", {}, steps))
    estimators += [Estimator("binom_maml", "dice", {"order": order}, steps) for order in range(1, max(2, steps))]
    estimators += [Estimator("multi_step_maml", surrogate, {}, steps) for surrogate in SURROGATES]
    estimators += [Estimator("maml", surrogate, {"hessian_data": "reuse"}, steps) for surrogate in SURROGATES]
    return [compare(estimator, problem, problem.expectation(estimator), None) for estimator in estimators]
