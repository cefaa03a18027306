"""Surrogate losses: functions of the action log-probabilities whose gradient is minus the policy gradient.

They take the credit A_t of each action as it is. With the weights gamma^t in it the gradient is that of the discounted
return; without them, as usual, and with gamma < 1 it is the gradient of no return (see `Losses`).

Their *second* derivatives differ, and with them the meta-gradients (Rothfuss et al., 2019; Farquhar et al., 2019).
With s_t the score of action t and A_t its advantage, the Hessian of the return is H1 + H2 + H12 + H12^T:

| surrogate | expected second derivative | |
| --- | --- | --- |
| `ratio` | H1 + H2 | low variance; exact for horizon 1; the default (LVC) |
| `dice` | H1 + H2 + H12 + H12^T | unbiased at any horizon when A is; higher variance |
| `loaded_dice` | between `ratio` (lambda 0) and `dice` (lambda 1) | trades bias for variance |
| `reinforce` | H2 only | wrong; worse than no second derivative at all. For first-order methods and comparison |

Each takes one task's `log_probs`, `old_log_probs` (those of the policy that acted), `advantages` and `mask`, all
`[E, H]`, and returns the loss *per step of the horizon*: the sum over steps, the mean over episodes, divided by H. The
divisor is a constant, so the estimate stays unbiased when episodes end early.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import vjp

from metarl.errors import check_choice, check_real
from metarl.functional_call import call
from metarl.rl.distributions import ActionDistribution, DiagonalGaussian, DistParams
from metarl.rl.normalization import PREFIX
from metarl.rl.sums import decayed_sums
from metarl.types import Batch, Params

Surrogate: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def ratio(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Likelihood ratios of single actions times advantages (J^LR and LVC of Rothfuss et al., eq. 6.4-6.5)."""
    log_ratio = (log_probs - old_log_probs) * mask  # before the exponential, which steps after the end might overflow
    return -(torch.exp(log_ratio) * advantages * mask).mean()


def clipped_ratio(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: Tensor) -> Tensor:
    """`ratio` without its gain outside 1 - clip ... 1 + clip: `min(r A, clip(r) A)` (Schulman et al., 2017, eq. 7).

    An action there has no gradient if its advantage asks for a ratio further away, and that of `ratio` otherwise.
    """
    ratios = torch.exp((log_probs - old_log_probs) * mask)
    clipped = ratios.clamp(1 - clip, 1 + clip)
    return -(torch.minimum(ratios * advantages, clipped * advantages) * mask).mean()


def reinforce(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities times advantages (Williams, 1992): correct at first order only."""
    return -(log_probs * advantages * mask).mean()


def loaded_dice(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, lam: float = 1.0) -> Tensor:
    """Loaded DiCE (Farquhar et al., 2019, eq. 6.3): `(f(w_t) - f(v_t)) A_t`, f = exp of the log-ratio.

    `v_t = lam w_{t-1}` discounts the actions so far and `w_t = v_t + log pi(a_t)`; `lam` in [0, 1].
    """
    log_ratio = (log_probs - old_log_probs) * mask
    up_to = decayed_sums(log_ratio, lam)
    return -((torch.exp(up_to) - torch.exp(up_to - log_ratio)) * advantages * mask).mean()


def dice(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Loaded DiCE with lambda = 1: `(box(a_<=t) - box(a_<t)) A_t`, box the likelihood ratio of all actions so far."""
    return loaded_dice(log_probs, old_log_probs, advantages, mask, 1.0)


SURROGATES: dict[str, Surrogate] = {"ratio": ratio, "reinforce": reinforce, "dice": dice, "loaded_dice": loaded_dice}


def make_surrogate(name: str, dice_lambda: float | None = None) -> Surrogate:
    """The surrogate called `name`; `dice_lambda` belongs to `loaded_dice`.

    Raises:
        ValueError: for an unknown name, and for a lambda outside [0, 1], missing, or given for another surrogate.
    """
    check_choice("surrogate", name, SURROGATES)
    if dice_lambda is not None:
        check_real("dice_lambda", dice_lambda, high=1.0, open_low=False)
    if (name == "loaded_dice") != (dice_lambda is not None):
        raise ValueError(
            f"dice_lambda must be given if surrogate='loaded_dice', and only then, got {dice_lambda!r} and {name!r}"
        )
    if dice_lambda is None:
        return SURROGATES[name]
    return functools.partial(loaded_dice, lam=dice_lambda)


@dataclass(frozen=True)
class Losses:
    """Functions of ONE task's parameters and batch; leaves of the batch are `[E, L, ...]`.

    The loss is a surrogate per step of the horizon. With the discount 1 its gradient descends minus the return; with
    `discount_weights` minus the discounted return. By default, as in common practice, advantages are discounted and the
    weights gamma^t of the steps are left out: the gradient is then sum_t E[A_t grad log pi(a_t | s_t)] with discounted
    A_t, which is the gradient of neither return (Thomas, 2014), and of no function at all (Nota and Thomas, 2020).

    Attributes:
        network: the policy, without the normalisation of its observations.
        distribution: of its actions.
        surrogate: the loss.
        horizon: steps per episode, at most.
        normalized: whether the network gets the observations as normalised in the draw: the statistics may have changed
            since.
    """

    network: nn.Module
    distribution: ActionDistribution
    surrogate: Surrogate
    horizon: int
    normalized: bool

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The surrogate loss of one task, per step of the horizon."""
        return self._loss_at(self._outputs(params, batch), batch)

    def clipped_loss(self, params: Params, batch: Batch, clip: Tensor) -> Tensor:
        """`loss` with `clipped_ratio`, for steps away from the policy that acted.

        Raises:
            ValueError: unless the surrogate is `ratio`.
        """
        if self.surrogate is not ratio:
            raise ValueError("surrogate must be 'ratio' for a clipped loss, which clips ratios of single actions")
        return self._surrogate_loss(functools.partial(clipped_ratio, clip=clip), params, batch)

    def clipped_share(self, params: Params, batch: Batch, clip: Tensor) -> Tensor:
        """The share of one task's actions whose ratio to the policy that acted is outside 1 - clip ... 1 + clip."""
        mask = batch["mask"]
        ratios = torch.exp((self._log_probs(params, batch) - batch["log_probs"]) * mask)
        return (((ratios - 1).abs() > clip) * mask).sum() / mask.sum()

    def frozen_loss(self, params: Params, batch: Batch) -> Tensor:
        """The loss whose gradient is the inner step's with its data held fixed: log-probabilities times advantages."""
        return self._surrogate_loss(reinforce, params, batch)

    def frozen_losses(self, params: Params, batch: Batch) -> Tensor:
        """The part of each of one task's episodes in `frozen_loss` `[E]`, which is their mean."""
        return -(self._log_probs(params, batch) * batch["advantages"] * batch["mask"]).sum(-1) / self.horizon

    def score(self, params: Params, batch: Batch) -> Tensor:
        """The mean undiscounted return of one task's episodes."""
        return batch["rewards"].sum(-1).mean()

    def log_likelihood(self, params: Params, batch: Batch) -> Tensor:
        """The log-probability of each of one task's episodes `[E]`, up to terms that do not depend on `params`."""
        return (self._log_probs(params, batch) * batch["mask"]).sum(-1)

    def objective(self, batch: Batch) -> Tensor:
        """Minus the discounted return per step of the horizon, of each of one task's episodes `[E]`.

        It is in units of the advantages' standard deviation if they are normalised. The loss's gradient descends it if
        the discount is 1 or `discount_weights` are on, otherwise approximately.
        """
        return batch["objective"]

    def kl(self, old: Params, new: Params, batch: Batch) -> Tensor:
        """The mean divergence KL(pi_old || pi_new) over one task's states, in nats."""
        return _mean(self.distribution.kl(self._outputs(old, batch), self._outputs(new, batch)), batch)

    def describe(self, old: Params, new: Params, before: Batch, after: Batch) -> dict[str, Tensor]:
        """Values of one task's policy before adaptation, `old`, and after it, `new`, for the log.

        Entropies and standard deviations are means over the states of the batch that each policy drew. The divergence
        and the change of the surrogate loss are those on `before`.
        """
        was, is_ = self._outputs(old, before), self._outputs(new, before)  # in the same states
        found = {
            "policy/kl": _mean(self.distribution.kl(was, is_), before),
            "train/inner_loss_change": self._loss_at(is_, before) - self._loss_at(was, before),
        }
        for when, outputs, batch in (("before", was, before), ("after", self._outputs(new, after), after)):
            found[f"policy/entropy_{when}"] = _mean(self.distribution.entropy(outputs), batch)
            if isinstance(self.distribution, DiagonalGaussian):
                found[f"policy/std_{when}"] = _mean(outputs[1].mean(-1), batch)
        return found

    def fisher_product(self, params: Params, batch: Batch, vector: Params) -> Params:
        """The Fisher matrix of one task's policy, the mean over its states, times `vector`: J^T M J v.

        J is the Jacobian of the action distribution's parameters, M their Fisher matrix. It is the Hessian of
        `kl(params, new, batch)` at `new = params`.
        """
        outputs, pull = vjp(lambda w: self._outputs(w, batch), params)[:2]
        # J v is the transpose of u -> J^T u, which is linear (no forward mode: importing it warns in torch 2.13)
        push = vjp(lambda u: pull(u)[0], tuple(torch.zeros_like(x) for x in outputs))[1]
        tangents = self.distribution.fisher_product(outputs, push(vector)[0])
        weights = batch["mask"] / batch["mask"].sum()
        weighted = tuple(x * weights.view(*weights.shape, *[1] * (x.dim() - weights.dim())) for x in tangents)
        return cast(Params, pull(weighted)[0])

    def _surrogate_loss(self, surrogate: Surrogate, params: Params, batch: Batch) -> Tensor:
        return self._loss_at(self._outputs(params, batch), batch, surrogate)

    def _loss_at(self, outputs: DistParams, batch: Batch, surrogate: Surrogate | None = None) -> Tensor:
        log_probs = self.distribution.log_prob(outputs, batch["actions"])
        surrogate = surrogate or self.surrogate
        loss = surrogate(log_probs, batch["log_probs"], batch["advantages"], batch["mask"])
        share = log_probs.shape[-1] / self.horizon  # of the horizon, in the arrays
        return loss if share == 1 else share * loss

    def _log_probs(self, params: Params, batch: Batch) -> Tensor:
        """Log-probabilities of one task's actions, `[E, L]`."""
        return self.distribution.log_prob(self._outputs(params, batch), batch["actions"])

    def _outputs(self, params: Params, batch: Batch) -> DistParams:
        """The parameters of the action distributions in one task's states, `[E, L, ...]` each."""
        shape, obs = batch["mask"].shape, batch["normalized_obs" if self.normalized else "obs"]
        if self.normalized:
            params = {name.removeprefix(PREFIX): leaf for name, leaf in params.items()}
        outputs = call(self.network, params, obs.flatten(0, 1))
        return tuple(x.view(*shape, *x.shape[1:]) for x in outputs)


def _mean(values: Tensor, batch: Batch) -> Tensor:
    """The mean over one task's states of values `[E, L]`."""
    return (values * batch["mask"]).sum() / batch["mask"].sum()
