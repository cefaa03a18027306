"""How variance and bias change with n, the number of inner trajectories: E-MAML against the linearised score function.

On the bandit by Monte Carlo through the real oracle, whose outer batches have n actions, too; the bias is exact. On
the tabular problem all is exact, with the expected outer gradient, over all tuples of trajectories of one inner step.
"""

import math
from collections.abc import Iterator

import torch
from torch.func import grad

from metarl import tree
from metarl.engine import Engine
from metarl.envs.exact.enumeration import EnumeratedTaskBatch, sampled_objective
from metarl.envs.exact.tabular import TabularMDP
from metarl.experiments.reports.certify.certificates import LIMIT, Certificate
from metarl.experiments.reports.certify.estimators import Estimator
from metarl.experiments.reports.certify.problems import OBJECTIVE, Expectation, bandit, mdp, tensors
from metarl.rl.surrogates import ratio

UPDATES = (Estimator("e_maml", "ratio", {"baseline": "none"}), Estimator("lsf", "ratio", {}))
BANDIT_NUMBERS, MDP_NUMBERS = (4, 16, 64, 256), (1, 2, 3)

VARIANCE = {"e_maml": (0.8, 1.2), "lsf": (-1.3, -0.7)}
BIAS = -0.5
"""The claims, as slopes in log-log: variance Theta(n) and O(1/n), and a bias of at most O(n^(-1/2))."""


def certify_slopes(samples: int) -> list[Certificate]:
    """A row for each update and n, with the slopes from the row before; the last row of an update is judged."""
    rows: list[Certificate] = []
    for estimator in UPDATES:
        for measured in (measure_bandit(estimator, samples), measure_mdp(estimator)):
            group: list[Certificate] = []
            for row in measured:
                group.append({**row, **slopes(group[-1], row)} if group else row)
            rows += [*group[:-1], {**group[-1], **judge(estimator.update, group)}]
    return rows


def measure_bandit(estimator: Estimator, samples: int) -> Iterator[Certificate]:
    """The same number of actions for every n: fewer tasks with more actions."""
    for n in BANDIT_NUMBERS:
        problem = bandit(actions=n)
        method, number = estimator.method(problem.alpha), max(1000, 4 * samples // n)
        found = problem.measure(problem.source("ratio"), method, number, chunk=max(1, 400_000 // n))
        exact = problem.expectation(estimator)
        assert exact is not None
        off = found.z_score(exact.mean)
        yield describe(problem.name, estimator, n, problem.targets[OBJECTIVE], Expectation(exact.mean, found.std), off)


def measure_mdp(estimator: Estimator) -> Iterator[Certificate]:
    """Enumerated through the update's own code."""
    problem = mdp()
    one, tasks, horizon = tensors(problem.task), problem.tasks, problem.tasks.horizon
    assert isinstance(tasks, TabularMDP)
    for n in MDP_NUMBERS:
        objective = grad(lambda w, n=n: sampled_objective(tasks, one, w, problem.alpha, episodes=n))
        target = horizon * objective(problem.params)["logits"].flatten()
        batch = EnumeratedTaskBatch(tasks, one, problem.policy, ratio, episodes=n)
        method = estimator.method(problem.alpha)
        with Engine(record=False, chunk_size=4096).current():
            grads = method.update(problem.params, batch, method.inner).grads
        mean = horizon * tree.flatten({k: v[None] for k, v in batch.expectation(grads).items()})[0]
        yield describe(problem.name, estimator, n, target, Expectation(mean, horizon * float(batch.deviation(grads))))


def describe(
    problem: str, estimator: Estimator, n: int, target: torch.Tensor, found: Expectation, off: float | None = None
) -> Certificate:
    """One row; `off` is the distance of the sampled mean from the exact one, in standard errors."""
    assert found.std is not None
    return {
        "problem": problem,
        "label": estimator.label,
        **estimator._asdict(),
        "n": n,
        "target_norm": float(target.norm()),
        "bias": float((found.mean - target).norm()),
        "std": found.std,
        "off_exact": off,
        "verdict": "",
        "failed": off is not None and abs(off) > LIMIT,
    }


def slopes(before: Certificate, row: Certificate) -> Certificate:
    """The slopes of variance and bias in log-log; `None` for a bias of zero."""
    per_n = math.log(row["n"] / before["n"])
    is_biased = min(row["bias"], before["bias"]) > 1e-9
    return {
        "variance_slope": 2 * math.log(row["std"] / before["std"]) / per_n,
        "bias_slope": math.log(row["bias"] / before["bias"]) / per_n if is_biased else None,
    }


def judge(update: str, group: list[Certificate]) -> Certificate:
    """The verdict on the slopes at the largest n, and on the sampled means of all rows."""
    last, (low, high) = group[-1], VARIANCE[update]
    bias = last["bias_slope"]
    as_claimed = low < last["variance_slope"] < high and (bias is None if update == "e_maml" else bias < BIAS)
    failed = not as_claimed or any(row["failed"] for row in group)
    return {"verdict": "**FAILS**: not the claimed slopes" if failed else "slopes as claimed", "failed": failed}
