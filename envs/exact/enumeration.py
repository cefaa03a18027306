"""A tabular MDP without sampling: all trajectories with their probabilities, and what follows from them exactly.

There are M = A^H S^(H - 1) trajectories: the actions, and the states after the first one (the state after the last
step earns nothing). N inner steps on one sampled trajectory each have M^N outcomes. Two uses:

- the *sampled objective*, the mean loss after the N inner steps, as a differentiable sum over all outcomes;
- `EnumeratedTaskBatch`, an oracle with one "task" for each outcome. An outer update returns its result for each of
  them, so the probability-weighted mean is its expectation, computed by the update's own code.

Losses are per step of the horizon, f = -J / H, as everywhere in `metarl.rl`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

from metarl.envs.exact.tabular import TabularMDP
from metarl.errors import check_int
from metarl.functional_call import call
from metarl.functional_env import TaskTensors
from metarl.rl.distributions import Categorical
from metarl.rl.sums import discounted_sums
from metarl.rl.surrogates import Surrogate, reinforce
from metarl.types import Batch, Params, Role

LARGEST = 1_000_000


class Trajectories(NamedTuple):
    """All trajectories of ONE MDP."""

    states: Tensor  # [M, H]
    actions: Tensor  # [M, H]
    rewards: Tensor  # [M, H]
    moves: Tensor  # [M], the probability of the states, given the actions
    discount: float = 1.0
    discount_weights: bool = True  # whether the credit of step t has the weight discount^t

    @property
    def credit(self) -> Tensor:
        """The discounted return to go of every action, `[M, H]`, weighted if `discount_weights`."""
        to_go = discounted_sums(self.rewards, self.discount)
        return to_go * self._powers if self.discount_weights else to_go

    @property
    def returns(self) -> Tensor:
        """The discounted returns, `[M]`."""
        return (self.rewards * self._powers).sum(-1)

    @property
    def _powers(self) -> Tensor:
        return self.discount ** torch.arange(self.rewards.shape[1], dtype=self.rewards.dtype)


def trajectories(
    tasks: TabularMDP, task: TaskTensors, discount: float = 1.0, discount_weights: bool = True
) -> Trajectories:
    """All trajectories of ONE task, with the credit that `ReinforcementLearning` gives their actions.

    Raises:
        ValueError: there are more than a million.
    """
    horizon, states, actions = tasks.horizon, tasks.num_states, tasks.num_actions
    number = actions**horizon * states ** (horizon - 1)
    if number > LARGEST:
        raise ValueError(f"horizon, states and actions must give at most {LARGEST} trajectories, got {number}")
    # Count through all combinations: one digit for each action and for each state after the first.
    sizes = [actions] * horizon + [states] * (horizon - 1)
    columns = torch.unravel_index(torch.arange(number), sizes)
    chosen = torch.stack(columns[:horizon], dim=1)
    visited = torch.stack([torch.zeros(number, dtype=torch.int64), *columns[horizon:]], dim=1)
    moves = task["transitions"][visited[:, :-1], chosen[:, :-1], visited[:, 1:]].prod(-1)
    return Trajectories(visited, chosen, task["rewards"][visited, chosen], moves, discount, discount_weights)


def probabilities(params: Params, known: Trajectories) -> Tensor:
    """The probabilities `[M]` of all trajectories under the softmax policy with `params["logits"]`."""
    log_probs = params["logits"].log_softmax(-1)[known.states, known.actions]  # [M, H]
    return log_probs.sum(-1).exp() * known.moves


def sampled_gradients(params: Params, known: Trajectories) -> Params:
    """The policy gradient of the loss on each single trajectory, leaf `[M, S, A]`, written by hand.

    g(tau)[s, a] = -1/H sum_t [s_t = s] ([a_t = a] - pi(a | s)) G_t, with the credit G_t.
    """
    policy = params["logits"].softmax(-1)
    visited = torch.nn.functional.one_hot(known.states, policy.shape[0]).to(policy.dtype)  # [M, H, S]
    chosen = torch.nn.functional.one_hot(known.actions, policy.shape[1]).to(policy.dtype) - policy[known.states]
    total = torch.einsum("mhs,mha,mh->msa", visited, chosen, known.credit.to(policy.dtype))
    return {"logits": -total / known.states.shape[1]}


def paths(
    params: Params, known: Trajectories, alpha: float, steps: int, episodes: int = 1
) -> list[tuple[Params, Tensor]]:
    """w_0 ... w_N for all outcomes of N inner steps on n = `episodes` trajectories each.

    Entry j has the parameters, leaf `[M^(n j), S, A]`, and the probabilities `[M^(n j)]` of these outcomes.
    """
    found = [({"logits": params["logits"][None]}, params["logits"].new_ones(1))]
    chosen = tuples(len(known.states), check_int("episodes", episodes))  # [M^n, n]
    for _ in range(check_int("steps", steps, minimum=0)):
        w, weight = found[-1]
        chance = vmap(lambda v: probabilities(v, known)[chosen].prod(-1))(w)  # [M^(n j), M^n]
        step = vmap(lambda v: sampled_gradients(v, known)["logits"][chosen].mean(1))(w)
        moved = w["logits"][:, None] - alpha * step
        found.append(({"logits": moved.flatten(0, 1)}, (weight[:, None] * chance).flatten()))
    return found


def tuples(number: int, length: int) -> Tensor:
    """All tuples of `length` of `number` things, `[number ** length, length]`."""
    counts = torch.unravel_index(torch.arange(number**length), [number] * length)
    return torch.stack(list(counts), dim=1)


def sampled_objective(
    tasks: TabularMDP,
    task: TaskTensors,
    params: Params,
    alpha: float,
    steps: int = 1,
    discount: float = 1.0,
    episodes: int = 1,
) -> Tensor:
    """`E f(w_N)` over `episodes` sampled trajectories per inner step: the objective whose gradient E-MAML estimates."""
    ends, weights = paths(params, trajectories(tasks, task, discount), alpha, steps, episodes)[-1]
    losses: Tensor = vmap(lambda w: -tasks.expected_return(w, task, discount) / tasks.horizon)(ends)
    return weights @ losses


def sampled_product(
    tasks: TabularMDP, task: TaskTensors, params: Params, alpha: float, steps: int = 1, discount: float = 1.0
) -> Params:
    """`E prod_j (I - alpha H(w_j)) grad f(w_N)` with exact Hessians along sampled inner steps.

    This is what a product of independent unbiased factors estimates. It is neither the product form at exact inner
    gradients nor the gradient of the sampled objective.
    """
    shape = params["logits"].shape

    def loss(flat: Tensor) -> Tensor:
        return -tasks.expected_return({"logits": flat.view(shape)}, task, discount) / tasks.horizon

    # Backwards through the tree of outcomes: multiply by I - alpha H(w_j), after summing over what can follow w_j.
    *before, (ends, weights) = paths(params, trajectories(tasks, task, discount), alpha, steps)
    vector = weights[:, None] * vmap(grad(loss))(ends["logits"].flatten(1))  # [M^N, P]
    for w, _ in reversed(before):
        curvature = vmap(jacrev(grad(loss)))(w["logits"].flatten(1))  # [M^j, P, P]
        vector = vector.view(len(curvature), -1, vector.shape[-1]).sum(1)
        vector = vector - alpha * (curvature @ vector[:, :, None])[:, :, 0]
    return {"logits": vector[0].view(shape)}


class EnumeratedTaskBatch:
    """An oracle for ONE update on ONE tabular MDP: its tasks are all outcomes of N inner draws, M^N of them.

    An `inner` draw gives each task its own trajectory, or n = `episodes` of them; there are then M^(n N) tasks. An
    `outer` or `hessian` draw gives each task all trajectories, weighted by their probabilities; the surrogates are
    linear in the advantages, so the loss is its own expectation. After an update, `weights`, one for each task, are the
    probabilities of the outcomes at the parameters each step actually had; `expectation` and `deviation` use them. The
    weighted mean is the update's expectation only if the update is linear in D_o and D_h. Conjugate gradients, for
    example, are not. Where there are many tasks, compute in chunks:
    `with Engine(record=False, chunk_size=4096).current():`.

    Args:
        tasks: the MDP's distribution.
        task: its tables, without a leading T.
        policy: a module from states `[B]` to `(logits [B, A],)`.
        surrogate: the loss, such as `metarl.rl.surrogates.dice`.
        steps: N, the number of inner draws.
        discount: gamma.
        discount_weights: whether the credit of step t has the weight gamma^t.
        episodes: n, trajectories in an inner draw.

    Raises:
        ValueError: there are more than a million outcomes.
    """

    def __init__(
        self,
        tasks: TabularMDP,
        task: TaskTensors,
        policy: nn.Module,
        surrogate: Surrogate,
        steps: int = 1,
        discount: float = 1.0,
        discount_weights: bool = True,
        episodes: int = 1,
    ) -> None:
        self.known = trajectories(tasks, task, discount, discount_weights)
        self.policy, self.surrogate, self.horizon = policy, surrogate, tasks.horizon
        number = len(self.known.states) ** check_int("episodes", episodes)
        self.num_tasks = number ** check_int("steps", steps, minimum=0)
        if self.num_tasks > LARGEST:
            raise ValueError(f"steps and episodes must give at most {LARGEST} outcomes, got {number} ** {steps}")
        self._tuples = tuples(len(self.known.states), episodes)
        self.weights = torch.ones(self.num_tasks, dtype=self.known.rewards.dtype)
        self._ahead = list(torch.unravel_index(torch.arange(self.num_tasks), [number] * steps)) if steps else []
        self._distribution = Categorical(tasks.num_actions)

    def draw(self, params: Params, role: Role) -> Batch:
        """Leaves `[T, n, H]` for an inner draw, `[T, M, H]` for the others, with T = M^(n N).

        Raises:
            LookupError: there were more inner draws than `steps`.
        """
        known, everyone = self.known, self.num_tasks
        if role == "inner":
            if not self._ahead:
                raise LookupError("there were more inner draws than steps; make a new task batch for each update")
            rows = self._tuples[self._ahead.pop(0)]  # [M^(n N), n]
        else:
            rows = torch.arange(len(known.states)).expand(everyone, -1)
        # Exact expectations: every trajectory counts with its probability at the present parameters.
        batch = {"obs": known.states[rows], "actions": known.actions[rows]}
        log_probs = vmap(self._log_probs)(params, batch)
        chance = log_probs.sum(-1).exp() * known.moves[rows]
        if role == "inner":
            self.weights = self.weights * chance.prod(1)
            share = torch.ones_like(chance)
        else:
            share = chance * chance.shape[1]  # the loss will take the mean over trajectories
        share = share[..., None]
        rewards, credit = share * known.rewards[rows], share * known.credit[rows]
        objective = -share[..., 0] * known.returns[rows] / self.horizon
        return {**batch, "log_probs": log_probs, "advantages": credit, "rewards": rewards, "objective": objective}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The surrogate's loss, per step of the horizon."""
        return self._surrogate_loss(self.surrogate, params, batch)

    def frozen_loss(self, params: Params, batch: Batch) -> Tensor:
        """The loss whose gradient is the inner step's with its data held fixed."""
        return self._surrogate_loss(reinforce, params, batch)

    def frozen_losses(self, params: Params, batch: Batch) -> Tensor:
        """The part of each trajectory `[n]` in `frozen_loss`, which is their mean."""
        return -(self._log_probs(params, batch) * batch["advantages"]).mean(-1)

    def score(self, params: Params, batch: Batch) -> Tensor:
        """The mean return; for an outer batch its expectation."""
        return batch["rewards"].sum(-1).mean()

    def cost(self, batch: Batch) -> Mapping[str, int]:
        """The number of trajectories, as samples."""
        return {"samples": batch["actions"].shape[0] * batch["actions"].shape[1]}

    def log_likelihood(self, params: Params, batch: Batch) -> Tensor:
        """The log-likelihood of each trajectory `[n]`, up to a constant in `params`."""
        return self._log_probs(params, batch).sum(-1)

    def objective(self, batch: Batch) -> Tensor:
        """Minus the discounted return per step of the horizon of each trajectory `[n]`, weighted as the batch is."""
        return batch["objective"]

    def expectation(self, stacked: Params) -> Params:
        """The mean of an update's result over all outcomes."""
        return {key: torch.tensordot(self.weights, leaf, dims=1) for key, leaf in stacked.items()}

    def deviation(self, stacked: Params) -> Tensor:
        """The standard deviation of an update's result: the root of the mean squared distance from its expectation."""
        mean = self.expectation(stacked)
        squares = sum((leaf - mean[key]).square().flatten(1).sum(1) for key, leaf in stacked.items())
        return torch.sqrt(self.weights @ torch.as_tensor(squares))

    def _surrogate_loss(self, surrogate: Surrogate, params: Params, batch: Batch) -> Tensor:
        log_probs = self._log_probs(params, batch)
        return surrogate(log_probs, batch["log_probs"], batch["advantages"], torch.ones_like(log_probs))

    def _log_probs(self, params: Params, batch: Batch) -> Tensor:
        """The log-probabilities of the actions of one task, `[n, H]`."""
        shape = batch["actions"].shape
        logits: tuple[Tensor] = call(self.policy, params, batch["obs"].flatten())
        return self._distribution.log_prob((logits[0].view(*shape, -1),), batch["actions"])
