"""The inner loop: how a task's parameters move, and the path they leave.

Every rule is a function of ONE task, `rule(params, grads, anchor) -> params`; `adapt` applies it to all tasks.
"""

from typing import NamedTuple

import torch
from torch.func import vmap

from metarl.derivatives import gradients
from metarl.errors import check_real
from metarl.tree import stack
from metarl.types import Batch, Inner, Params, Rule, Tasks


def sgd(learning_rate: float) -> Rule:
    """`w - alpha g`, the inner step of MAML (Finn et al., 2017)."""
    alpha = check_real("learning_rate", learning_rate, open_low=False)

    def rule(params: Params, grads: Params, anchor: Params) -> Params:
        return {k: params[k] - alpha * grads[k] for k in params}

    return rule


def sign_sgd(learning_rate: float) -> Rule:
    """`w - alpha sign(g)` with `sign(0) = 0`, the inner step of Sign-MAML (Fan, Ram, Liu, 2021)."""
    alpha = check_real("learning_rate", learning_rate, open_low=False)

    def rule(params: Params, grads: Params, anchor: Params) -> Params:
        return {k: params[k] - alpha * torch.sign(grads[k]) for k in params}

    return rule


def prox_sgd(learning_rate: float, lam: float) -> Rule:
    """`w - alpha (g + lam (w - anchor))`: a gradient step on `f(w) + lam/2 |w - anchor|^2` (iMAML, 2019)."""
    alpha = check_real("learning_rate", learning_rate, open_low=False)
    lam = check_real("lam", lam, open_low=False)

    def rule(params: Params, grads: Params, anchor: Params) -> Params:
        return {k: params[k] - alpha * (grads[k] + lam * (params[k] - anchor[k])) for k in params}

    return rule


def restart_sgd(learning_rate: float) -> Rule:
    """`anchor - alpha g`: always from where adaptation began, the step of FO-MuML (Mishchenko et al., 2023)."""
    alpha = check_real("learning_rate", learning_rate, open_low=False)

    def rule(params: Params, grads: Params, anchor: Params) -> Params:
        return {k: anchor[k] - alpha * grads[k] for k in params}

    return rule


class Path(NamedTuple):
    """What adaptation leaves behind: N + 1 points and, between them, N batches and their gradients."""

    params: list[Params]  # w_0 ... w_N, stacked
    batches: list[Batch]  # D_0 ... D_{N-1}
    grads: list[Params]  # g_j = grad f(w_j; D_j)


def inner_step(rule: Rule, params: Params, grads: Params, anchor: Params) -> Params:
    """One step of `rule` for every task: stacked in, stacked out."""
    return vmap(rule)(params, grads, anchor)


def adapt(params: Params, tasks: Tasks, inner: Inner) -> Path:
    """Adapt `params` (not stacked: all tasks begin at the same point) to every task.

    Each step draws fresh data at the *current* parameters of each task.
    """
    anchor = stack(params, tasks.num_tasks)
    path = Path([anchor], [], [])
    for _ in range(inner.steps):
        w = path.params[-1]
        path.batches.append(tasks.draw(w, "inner"))
        path.grads.append(gradients(tasks, w, path.batches[-1]))
        path.params.append(inner_step(inner.rule, w, path.grads[-1], anchor))
    return path
