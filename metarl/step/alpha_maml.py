"""Alpha MAML (Behl, Baydin, Torr, 2019): both step sizes descend on the meta-objective while w is trained.

    h_k     = -<G_k, d_{k-1}>               dL/dbeta, as w_k = w_{k-1} - beta d_{k-1}
    beta_k  = beta_{k-1} - eta_beta h_k     so beta grows while consecutive meta-gradients agree
    w_{k+1} = w_k - beta_k d_k
    alpha_{k+1} = alpha_k - eta_alpha dL/dalpha,    dL/dalpha = -mean_i <grad f_i(w_i'), grad f_i(w)>

G is the mean meta-gradient without that of alpha, and d the direction of the step: G, or G clipped. L is the
meta-objective on the data of iteration k, so dL/dbeta needs no new gradient: it reuses G_{k-1}. With one inner step
dL/dalpha is the published inner product; with N steps it is the gradient that `metarl.learned_rules` defines, through
all of them. Both rates are updated before they are used again: beta at once, alpha at the next inner step.

The published rule is additive, so a large hypergradient can make a rate negative, and then steps ascend. Here a rate
that falls below `floor` is set to it; `floor=None` is the published rule.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from metarl import tree
from metarl.errors import NonFiniteError, check_real
from metarl.learned_rules import step_sizes
from metarl.state_dict import check_like
from metarl.step.optimizer import Stepped, Update
from metarl.types import Params, TaskBatch


class HypergradientStep:
    """A step `w - beta G` with beta, and the learned inner step sizes alpha, adapted by hypergradients.

    It moves the inner step sizes that `learn_inner_lr` makes: `scalar` is the published rule, and of the other kinds
    each step size moves by its own gradient. It logs beta (`outer_lr`), dL/dbeta (`outer_lr_hypergradient`, 0 at first)
    and dL/dalpha (`inner_lr_hypergradient`, the sum over all step sizes); the learner logs alpha.

    Args:
        params: the initial parameters, those of the inner rule included: `method.initial_params(source)`.
        outer_lr: the initial beta.
        hyper_lr_alpha: eta_alpha; 0 leaves alpha as it is.
        hyper_lr_beta: eta_beta; 0 leaves beta as it is.
        floor: the smallest value of a rate, at least 0; `None`: none, a rate may become negative.
        max_grad_norm: a longer G is scaled down to this norm; the gradient of alpha is not.

    Raises:
        ValueError: for numbers that cannot work, and for `hyper_lr_alpha` without learned inner step sizes.

    Example:
        >>> from metarl import MetaLearner, make_method
        >>> from metarl.supervised.sinusoid import Sinusoids
        >>> source, method = Sinusoids(), make_method("maml", 0.01, learn_inner_lr="scalar")
        >>> step = HypergradientStep(method.initial_params(source), 0.01, hyper_lr_alpha=1e-5, hyper_lr_beta=1e-5)
        >>> learner = MetaLearner.from_parts(source, method, step, meta_batch_size=4).learn(3)
        >>> bool(learner.params["meta/inner_lr"] != 0.01), step.outer_lr != 0.01
        (True, True)
    """

    def __init__(
        self,
        params: Params,
        outer_lr: float = 1e-2,
        hyper_lr_alpha: float = 1e-4,
        hyper_lr_beta: float = 1e-4,
        floor: float | None = 0.0,
        max_grad_norm: float | None = None,
    ) -> None:
        self.outer_lr = check_real("outer_lr", outer_lr, open_low=False)
        self.hyper_lr_alpha = check_real("hyper_lr_alpha", hyper_lr_alpha, open_low=False)
        self.hyper_lr_beta = check_real("hyper_lr_beta", hyper_lr_beta, open_low=False)
        self.floor = None if floor is None else check_real("floor", floor, open_low=False)
        self.max_grad_norm = None if max_grad_norm is None else check_real("max_grad_norm", max_grad_norm)
        self._initial_outer_lr = self.outer_lr
        if self.hyper_lr_alpha and not step_sizes(params):
            raise ValueError(
                "hyper_lr_alpha needs learned inner step sizes: set learn_inner_lr='scalar' (--learn-inner-lr scalar),"
                f" or hyper_lr_alpha=0 to adapt only the outer step size, got {self.hyper_lr_alpha}"
            )
        self._direction = tree.tree_map(torch.zeros_like, rest(params))  # d_{k-1}: h is 0 in the first step

    def config(self) -> dict[str, Any]:
        """The settings that make the same step again: `HypergradientStep(params, **config)`."""
        own = ("hyper_lr_alpha", "hyper_lr_beta", "floor", "max_grad_norm")
        return {"outer_lr": self._initial_outer_lr, **{name: getattr(self, name) for name in own}}

    def __call__(self, params: Params, tasks: TaskBatch, update: Update) -> Stepped:
        """Take the meta-gradient at `params`, adapt beta, step, and adapt alpha."""
        meta_grad = update(params, tasks)
        grads = meta_grad.grads
        G, of_alpha = rest(grads), step_sizes(grads)

        # beta: the derivative of the loss here along the step that led here
        slope = 0.0 - float(tree.dot(G, self._direction))
        if not math.isfinite(slope):
            raise NonFiniteError("outer_lr_hypergradient")
        self.outer_lr = self._limit(self.outer_lr - self.hyper_lr_beta * slope)

        # w
        self._direction = clip(G, self.max_grad_norm)
        stepped = tree.add_scaled(rest(params), -self.outer_lr, self._direction)

        # alpha: each step size by its own gradient
        for name, grad in of_alpha.items():
            moved = params[name] - self.hyper_lr_alpha * grad
            stepped[name] = moved if self.floor is None else moved.clamp(min=self.floor)

        info = {"outer_lr": self.outer_lr, "outer_lr_hypergradient": slope}
        if of_alpha:
            info["inner_lr_hypergradient"] = float(sum(grad.sum() for grad in of_alpha.values()))
        return Stepped({name: stepped[name] for name in params}, meta_grad, info)

    def state_dict(self) -> dict[str, Any]:
        """Beta and the direction of the last step."""
        return {"outer_lr": self.outer_lr, "direction": self._direction}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            StateError: when it does not fit the parameters, naming the entry.
        """
        check_like(state, self.state_dict(), ("outer_step",))
        self.outer_lr = float(state["outer_lr"])
        self._direction = {name: state["direction"][name].to(leaf.device) for name, leaf in self._direction.items()}

    def _limit(self, rate: float) -> float:
        return rate if self.floor is None else max(rate, self.floor)


def rest(params: Params) -> Params:
    """Everything that beta moves: all parameters but the inner step sizes."""
    return {name: leaf for name, leaf in params.items() if name not in step_sizes(params)}


def clip(grads: Params, max_norm: float | None) -> Params:
    """`grads`, scaled down to `max_norm` if they are longer."""
    norm = tree.norm(grads)
    if max_norm is None or float(norm) <= max_norm:
        return grads
    return tree.tree_map(lambda leaf: leaf * (max_norm / norm), grads)
