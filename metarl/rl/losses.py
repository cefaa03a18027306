"""Functions of one task's rollouts: the loss, the score and the log-likelihood.

The loss is a surrogate per step of the horizon. With the discount 1 its gradient descends minus the return; with
`discount_weights` minus the discounted return. By default, as in common practice, advantages are discounted and the
weights gamma^t of the steps are left out: the gradient is then sum_t E[A_t grad log pi(a_t | s_t)] with discounted A_t,
which is the gradient of neither return (Thomas, 2014), and of no function at all (Nota and Thomas, 2020).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from metarl.functional_call import call
from metarl.rl.distributions import ActionDistribution
from metarl.rl.normalization import PREFIX
from metarl.rl.surrogates import Surrogate, reinforce
from metarl.types import Batch, Params


@dataclass(frozen=True)
class Losses:
    """Functions of ONE task's parameters and batch; leaves of the batch are `[E, L, ...]`.

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
        return self._surrogate_loss(self.surrogate, params, batch)

    def frozen_loss(self, params: Params, batch: Batch) -> Tensor:
        """The loss whose gradient is the inner step's with its data held fixed: log-probabilities times advantages."""
        return self._surrogate_loss(reinforce, params, batch)

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

    def _surrogate_loss(self, surrogate: Surrogate, params: Params, batch: Batch) -> Tensor:
        log_probs = self._log_probs(params, batch)
        loss = surrogate(log_probs, batch["log_probs"], batch["advantages"], batch["mask"])
        share = log_probs.shape[-1] / self.horizon  # of the horizon, in the arrays
        return loss if share == 1 else share * loss

    def _log_probs(self, params: Params, batch: Batch) -> Tensor:
        """Log-probabilities of one task's actions, `[E, L]`."""
        shape, obs = batch["mask"].shape, batch["normalized_obs" if self.normalized else "obs"]
        if self.normalized:
            params = {name.removeprefix(PREFIX): leaf for name, leaf in params.items()}
        outputs = call(self.network, params, obs.flatten(0, 1))
        outputs = tuple(x.view(*shape, *x.shape[1:]) for x in outputs)
        return self.distribution.log_prob(outputs, batch["actions"])
