"""E-MAML (Stadie et al., 2018) and SG-MRL (Fallah et al., 2021, eq. 6.1): the exact gradient of the sampled objective.

    J(w) = E_{D_0 ~ w_0, ..., D_{N-1} ~ w_{N-1}} f(w_N),    w_{j+1} = w_j - alpha grad f(w_j; D_j)

The parameters affect adaptation twice: through the inner step, and through which data are sampled. So every step's
adjoint has MAML's term, with the data held fixed, and a score-function term weighted by the outcome of adaptation:

    g_j = (d w_{j+1} / d w_j)^T g_{j+1} + sum_{tau in D_j} (f^(w_N; D_o) - b_tau) grad log p(tau; w_j)

`f^` is the sampled average of the *objective* itself (minus the return). The mean of normalised advantages cannot be
the weight: it is always zero. With fixed data, the inner step is the gradient of log-probabilities times advantages, so
its derivative is the Hessian of that loss, for every surrogate of the inner and outer gradients.

The score term is unbiased but noisy: its variance grows with the number of inner trajectories (Tang, 2022). A baseline
b_tau that does not depend on tau does not change the expectation: the mean outcome of all *other tasks*, or the mean
objective of the task's *other trajectories* in D_j.

On data that do not depend on the parameters the score term is zero, and this is MAML with `hessian_data="reuse"`.
"""

from typing import Literal

from torch import Tensor
from torch.func import vmap

from metarl.derivatives import as_sampled, gather_tasks, gradients_and_scores, hessian_vector_products, score_terms
from metarl.errors import check_choice
from metarl.inner import adaptation_path, has_adjoint, sgd
from metarl.outer.pull_back import pull_back
from metarl.outer.registry import Method, register
from metarl.tree import add
from metarl.types import Batch, Inner, MetaGrad, Params, TaskBatch


@register("e_maml")
def e_maml(
    inner_lr: float = 0.1, inner_steps: int = 1, *, baseline: Literal["none", "tasks", "trajectories"] = "tasks"
) -> Method:
    """E-MAML; `baseline` of a trajectory's weight: `none`, the other `tasks` or the task's other `trajectories`.

    Example, on (x - 1)^2 from x = 0. Its data do not depend on x, so the score term is zero, as in MAML:
        >>> import torch
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([1.0])})
        >>> method = e_maml(inner_lr=0.25, baseline="none")
        >>> method.update({"x": torch.tensor(0.0)}, tasks, method.inner).grads["x"]  # (1 - 0.25 * 2) grad f(0.5)
        tensor([-0.5000])
    """
    check_choice("baseline", baseline, ("none", "tasks", "trajectories"))

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        sampled = as_sampled(tasks)
        path = adaptation_path(params, tasks, inner, grads=not has_adjoint(inner.rule))
        end = path.params[-1]
        batch = tasks.draw(end, "outer")

        # the outcome of adaptation is the weight of all inner trajectories of a task
        outcome = vmap(sampled.objective)(batch).mean(1)  # [T]
        if baseline == "tasks":
            everyone, own = gather_tasks(tasks, outcome)
            outcome = outcome - mean_of_others(everyone)[own]

        def multiply(tasks: TaskBatch, w: Params, data: Batch, u: Params) -> Params:
            through_step = hessian_vector_products(tasks, w, data, u, sampled.frozen_loss)
            weights = outcome[:, None]  # [T, 1]
            if baseline == "trajectories":
                weights = weights - vmap(mean_of_others)(vmap(sampled.objective)(data))  # [T, n]
            return add(through_step, score_terms(tasks, w, data, weights))

        grads, score = gradients_and_scores(tasks, end, batch)
        return MetaGrad(pull_back(tasks, path, inner, grads, multiply, "reuse"), score)

    return Method(
        update,
        Inner(sgd(inner_lr), inner_steps),
        min_tasks=2 if baseline == "tasks" else 1,
        min_episodes=2 if baseline == "trajectories" else 1,
        differentiates_twice=True,
    )


def mean_of_others(x: Tensor) -> Tensor:
    """For each entry of `x` `[n]` the mean of all others.

    Raises:
        ValueError: for a single entry.
    """
    if len(x) < 2:
        raise ValueError(f"e_maml's baseline is the mean of all others, so it needs at least two, got {len(x)}")
    return (x.sum() - x) / (len(x) - 1)
