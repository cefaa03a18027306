"""RL^2: the cell is GRUCell's, hidden states live as long as a trial, advantages and loss are PPO's.

Each check is a function of a source, and rejects the wrong formulas in `MUTANTS`.
"""

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.func import grad, vmap

from metarl import MetaLearner, make_method
from metarl.agents.rl2 import RecurrentPolicy, RecurrentPPO, RecurrentTrials, TrialBatch, Trials
from metarl.agents.rl2 import trials as trials_module
from metarl.agents.rl2.policy import entropy
from metarl.agents.rl2.ppo import OF_STEPS, episode_returns
from metarl.callbacks import Callback
from metarl.engine import Engine
from metarl.envs import FunctionalDistribution, GridWorld
from metarl.envs.cart_pole import CartPoleGoal
from metarl.functional_env import FunctionalEnv, TaskTensors
from metarl.tree import broadcast
from metarl.types import Params

K, E, T = 3, 2, 4


class Walk(FunctionalEnv):
    """A counter, which is observed; the episode ends when it reaches `task["length"]`. Reward: counter + action."""

    def __init__(self, discrete: bool = False) -> None:
        self.observation_space = Box(0.0, 10.0, (1,), np.float32)
        self.action_space: Any = Discrete(3) if discrete else Box(-2.0, 2.0, (2,), np.float32)

    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        return torch.zeros(len(task["length"]), 1)

    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        return state + 1

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        return next_state[:, 0] + action.reshape(len(state), -1).float().sum(1)

    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        return state

    def terminal(self, state: Tensor, task: TaskTensors) -> Tensor:
        return state[:, 0] >= task["length"]


class Walks(FunctionalDistribution):
    def __init__(self, discrete: bool = False) -> None:
        super().__init__(Walk(discrete), gymnasium.spaces.Dict({"length": Discrete(4, start=1)}), horizon=3)

    def sample(self, num_tasks: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"length": 1 + np.arange(num_tasks) % 4}  # the longest is cut at the horizon


def make_source(
    policy: type[RecurrentPolicy] = RecurrentPolicy, discrete: bool = False, **settings: Any
) -> RecurrentTrials:
    tasks = Walks(discrete)
    given = {"trials": E, "episodes": K, "entropy_coefficient": 0.1, "discount": 0.9, "gae_lambda": 0.8, "clip": 0.1}
    made = policy(tasks.observation_space, tasks.action_space, units=5, seed=3)
    return RecurrentTrials(tasks, made, **{**given, **settings})


def batch_of(source: RecurrentTrials, seed: int = 0) -> TrialBatch:
    return source.sample(T, np.random.default_rng(seed))


def moved(params: Params, size: float = 0.05) -> Params:
    """Perturbed parameters: the ratios are not 1, and some are clipped."""
    generator = torch.Generator().manual_seed(1)
    return {name: leaf + size * torch.randn(leaf.shape, generator=generator) for name, leaf in params.items()}


def reference_outputs(source: RecurrentTrials, params: Params, inputs: Tensor) -> tuple[list[Any], Tensor, Tensor]:
    """Distributions and values of one row after the other by `nn.GRUCell` and `torch.distributions`; final states."""
    policy, cell = source.policy, nn.GRUCell(inputs.shape[-1], source.policy.units)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    for name in names:
        setattr(cell, name, nn.Parameter(params[name].detach().clone()))
    heads = {name: leaf.detach().clone().requires_grad_() for name, leaf in params.items() if name not in names}
    leaves = {**{name: getattr(cell, name) for name in names}, **heads}
    dists, values, ends = [], [], []
    for row in inputs:  # [L, I]
        hidden = torch.zeros(1, policy.units)
        for x in row:
            hidden = cell(x[None], hidden)
            mean = nn.functional.linear(hidden, leaves["action_weight"], leaves["action_bias"])[0]
            values.append(nn.functional.linear(hidden, leaves["value_weight"], leaves["value_bias"])[0, 0])
            if isinstance(policy.action_space, Discrete):
                dists.append(torch.distributions.Categorical(logits=mean))
            else:
                dists.append(
                    torch.distributions.Independent(torch.distributions.Normal(mean, leaves["log_std"].exp()), 1)
                )
        ends.append(hidden[0])
    source._reference_leaves = leaves  # type: ignore[attr-defined]
    return dists, torch.stack(values), torch.stack(ends)


# The checks.


def check_loss(source: RecurrentTrials) -> None:
    """The loss and its gradient are those of PPO written step by step, with `nn.GRUCell`."""
    start = source.initial_params()
    batch = batch_of(source).draw(broadcast(start, T), "outer")
    rows = {name: batch[name].flatten(0, 1) for name in OF_STEPS}
    at = moved(start, 0.3 if isinstance(source.policy.action_space, Discrete) else 0.05)  # some ratios are clipped
    w = {name: leaf.clone().requires_grad_() for name, leaf in at.items()}
    loss = source.loss(w, rows)
    got = torch.autograd.grad(loss, list(w.values()))

    dists, values, _ = reference_outputs(source, at, rows["inputs"])
    leaves, total, number, clipped = source._reference_leaves, 0.0, 0, 0  # type: ignore[attr-defined]
    flat = {name: leaf.flatten(0, 1) for name, leaf in rows.items()}
    for i, dist in enumerate(dists):
        if flat["mask"][i] == 0:
            continue
        number += 1
        ratio = (dist.log_prob(flat["actions"][i]) - flat["log_probs"][i]).exp()
        advantage = flat["advantages"][i]
        clipped += int((ratio - 1).abs() > source.clip)
        total = total - torch.min(ratio * advantage, ratio.clamp(1 - source.clip, 1 + source.clip) * advantage)
        total = total + source.value_coefficient * (values[i] - flat["targets"][i]) ** 2
        total = total - source.entropy_coefficient * dist.entropy()
    assert 0 < clipped < number
    wanted = torch.autograd.grad(total / number, [leaves[name] for name in w])
    torch.testing.assert_close(loss, total / number, rtol=1e-5, atol=1e-6)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def check_hidden(source: RecurrentTrials) -> None:
    """Unrolled over all inputs of a trial from a zero state, GRUCell gives what the policy had when it acted."""
    start = source.initial_params()
    for seed in (0, 1):  # the state is reset between batches, too
        trials = batch_of(source, seed).rollout(start)
        flat = Trials(*(leaf.flatten(0, 1) for leaf in trials))
        for i, steps in enumerate(flat.mask.sum(1).int().tolist()):
            dists, values, ends = reference_outputs(source, start, flat.inputs[i : i + 1, :steps])
            log_probs = torch.stack([d.log_prob(a) for d, a in zip(dists, flat.actions[i], strict=False)])
            torch.testing.assert_close(flat.log_probs[i, :steps], log_probs, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(flat.values[i, :steps], values, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(flat.hidden[i], ends[0], rtol=1e-4, atol=1e-5)


def check_inputs(source: RecurrentTrials) -> None:
    """(s, a, r, d) of the walks: the counter, what was done before, its reward, and whether an episode has ended."""
    trials = batch_of(source).rollout(source.initial_params())
    discrete = isinstance(source.policy.action_space, Discrete)
    for task in range(T):
        length = min(1 + task, 3)
        assert trials.lengths[task].tolist() == [[length] * K] * E
        for e in range(E):
            x, actions, rewards = (leaf[task, e] for leaf in (trials.inputs, trials.actions, trials.rewards))
            assert trials.mask[task, e].tolist() == [1] * K * length + [0] * (K * (3 - length))
            for step in range(K * length):
                sent = nn.functional.one_hot(actions, 3).float() if discrete else actions.clamp(-2, 2)
                number, reward = step % length, (sent * torch.arange(3)).sum(1) if discrete else sent.sum(1)
                assert float(rewards[step]) == pytest.approx(number + 1 + float(reward[step]), rel=1e-5)
                before = torch.cat([sent[step - 1], rewards[step - 1, None]]) if step else torch.zeros(len(sent[0]) + 1)
                ended = float(step > 0 and number == 0)
                torch.testing.assert_close(x[step], torch.tensor([number, *before.tolist(), ended]))
            by_episode = rewards[: K * length].view(K, length).sum(1)
            torch.testing.assert_close(trials.returns[task, e], by_episode)


def check_advantages(source: RecurrentTrials) -> None:
    """GAE over the steps of the whole trial, by a loop backwards, and targets in the units of their statistics."""
    start, tasks = source.initial_params(), batch_of(source)
    trials, batch = batch_of(source).rollout(start), tasks.draw(broadcast(start, T), "outer")
    mean, scale = source.value_scale()
    credit, targets = torch.zeros_like(trials.rewards), torch.zeros_like(trials.rewards)
    for row in np.ndindex(T, E):
        advantage, following = 0.0, 0.0
        for step in reversed(range(int(trials.mask[row].sum()))):
            value = float(trials.values[row][step]) * scale + mean
            error = float(trials.rewards[row][step]) + source.discount * following - value
            advantage = error + source.discount * source.gae_lambda * advantage
            credit[row][step], targets[row][step], following = advantage, advantage + value, value
    chosen = trials.mask > 0
    normal = (credit - credit[chosen].mean()) / credit[chosen].std(correction=0)
    torch.testing.assert_close(batch["advantages"][chosen], normal[chosen], rtol=1e-4, atol=1e-4)
    assert not batch["advantages"][~chosen].any()
    # before training the statistics are those of the batch itself
    own = targets[chosen]
    middle, spread = (mean, scale) if source._targets[0] > 0 else (own.mean(), own.std(correction=0))
    torch.testing.assert_close(batch["targets"][chosen], (own - middle) / spread, rtol=1e-4, atol=1e-4)


CHECKS = (check_loss, check_hidden, check_inputs, check_advantages)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("check", CHECKS)
def test_it_is_right(check: Callable[[RecurrentTrials], None], discrete: bool) -> None:
    check(make_source(discrete=discrete))


def test_actions_are_sent_as_the_policy_does() -> None:
    tasks = Walks()
    policy = RecurrentPolicy(tasks.observation_space, tasks.action_space, units=5, actions="squash")
    trials = (
        RecurrentTrials(tasks, policy, trials=E, episodes=K)
        .sample(T, np.random.default_rng(0))
        .rollout(dict(policy.named_parameters()))
    )
    sent = 2 * trials.actions[:, :, 0].tanh()  # the box is [-2, 2]
    torch.testing.assert_close(trials.rewards[:, :, 0], 1 + sent.sum(-1))
    last = trials.inputs[3, :, 1, 1:3]  # what the policy sees of it in the next step
    torch.testing.assert_close(last, sent[3])


def test_advantages_use_the_statistics_of_earlier_iterations() -> None:
    source = make_source()
    tasks = batch_of(source, 7)
    batch = tasks.draw(broadcast(source.initial_params(), T), "outer")
    source.learn_from(tasks, lambda rows: rows.sum(0))
    chosen = batch["mask"] > 0
    assert float(batch["targets"][chosen].mean()) == pytest.approx(0, abs=1e-5)
    assert source.value_scale()[1] != pytest.approx(1, abs=0.05)
    check_advantages(source)


# Wrong formulas, each of which a check rejects.


class KeepsTheNew(RecurrentPolicy):
    """h' = z n + (1 - z) h, as some papers write it: other weights."""

    def advance(self, projected: Tensor, hidden: Tensor) -> Tensor:
        after = super().advance(projected, hidden)
        recurrent, cut = hidden @ self.weight_hh.mT + self.bias_hh, 2 * self.units
        gates = torch.sigmoid(projected[..., :cut] + recurrent[..., :cut])
        new = torch.tanh(projected[..., cut:] + gates[..., : self.units] * recurrent[..., cut:])
        return new + hidden - after


class ResetsBefore(RecurrentPolicy):
    """U_n (r h) + c_n instead of r (U_n h + c_n)."""

    def advance(self, projected: Tensor, hidden: Tensor) -> Tensor:
        recurrent, cut = hidden @ self.weight_hh.mT + self.bias_hh, 2 * self.units
        gates = torch.sigmoid(projected[..., :cut] + recurrent[..., :cut])
        reset, keep = gates[..., : self.units], gates[..., self.units :]
        new = torch.tanh(projected[..., cut:] + (reset * hidden) @ self.weight_hh[cut:].mT + self.bias_hh[cut:])
        return new + keep * (hidden - new)


class Forgets(RecurrentPolicy):
    """Begins every episode with a zero state."""

    def forward(self, x: Tensor, hidden: Tensor) -> Any:
        return super().forward(x, hidden * (1 - x[:, -1:]))


class SeesNoReward(RecurrentPolicy):
    def remember(self, sent: Tensor, reward: Tensor, ended: bool) -> Tensor:
        return super().remember(sent, 0 * reward, ended)


def stay_on(monkeypatch: pytest.MonkeyPatch) -> RecurrentTrials:
    """The state goes on from one batch to the next."""
    kept: list[Tensor] = []
    run = trials_module._Rollout.run_episode

    def go_on(self: Any, hidden: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        kept.append(run(self, kept[-1] if kept and not hidden.any() else hidden, last)[0])
        return kept[-1], last

    monkeypatch.setattr(trials_module._Rollout, "run_episode", go_on)
    return make_source()


def cut_advantages(monkeypatch: pytest.MonkeyPatch) -> RecurrentTrials:
    """Advantages end with the first step instead of going on over the trial."""
    right = trials_module.generalized_advantages
    monkeypatch.setattr(trials_module, "generalized_advantages", lambda *args: right(*args[:-1], 0.0))
    return make_source()


def unclipped(monkeypatch: pytest.MonkeyPatch) -> RecurrentTrials:
    source = make_source()
    loose = make_source(clip=1e9)
    monkeypatch.setattr(source, "loss", loose.loss)
    return source


def averaged_over_padding(monkeypatch: pytest.MonkeyPatch) -> RecurrentTrials:
    source = make_source()
    right = source.loss
    monkeypatch.setattr(source, "loss", lambda w, batch: right(w, batch) * batch["mask"].mean())
    return source


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], RecurrentTrials], Callable[[RecurrentTrials], None]]] = {
    "the gate is turned around": (lambda _: make_source(KeepsTheNew), check_loss),
    "reset before the product": (lambda _: make_source(ResetsBefore), check_loss),
    "no clipping": (unclipped, check_loss),
    "the mean over padding": (averaged_over_padding, check_loss),
    "a zero state in every episode": (lambda _: make_source(Forgets), check_hidden),
    "the state of the last trial": (stay_on, check_hidden),
    "no reward in the inputs": (lambda _: make_source(SeesNoReward), check_inputs),
    "another lambda": (cut_advantages, check_advantages),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_formulas_are_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, check = MUTANTS[name]
    with pytest.raises(AssertionError):
        check(make(monkeypatch))


# What plain products are good for.


def test_tasks_can_be_vectorised_and_differentiated_twice() -> None:
    source = make_source()
    params = source.initial_params()
    batch = batch_of(source).draw(broadcast(params, T), "outer")
    rows = {name: batch[name] for name in OF_STEPS}
    stacked = vmap(grad(source.loss), (None, 0))(moved(params), rows)
    for i in range(T):
        one = grad(source.loss)(moved(params), {name: leaf[i] for name, leaf in rows.items()})
        for name, leaf in one.items():
            torch.testing.assert_close(stacked[name][i], leaf, rtol=1e-4, atol=1e-6)

    # the Hessian along a direction, by a central difference in double precision
    one = {name: leaf[1].double() for name, leaf in rows.items()}
    at = {name: leaf.double() for name, leaf in moved(params, 0.01).items()}
    along = {name: torch.ones_like(leaf) for name, leaf in at.items()}
    first = grad(source.loss)
    exact = grad(lambda w: sum((first(w, one)[name] * along[name]).sum() for name in w))(at)
    delta = 1e-5
    ends = [first({name: leaf + sign * delta * along[name] for name, leaf in at.items()}, one) for sign in (1, -1)]
    for name, leaf in exact.items():
        torch.testing.assert_close(leaf, (ends[0][name] - ends[1][name]) / (2 * delta), rtol=1e-4, atol=1e-5)


def test_rollouts_are_recorded(caplog: pytest.LogCaptureFixture) -> None:
    source = make_source()
    plain = batch_of(source).rollout(source.initial_params())
    with Engine().current(), caplog.at_level("INFO"):
        recorded = batch_of(source).rollout(source.initial_params())
    assert "the recurrent policy: recorded" in caplog.text
    for one, other in zip(plain, recorded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("truncate", [1, 2, 100])
def test_truncated_backpropagation(truncate: int) -> None:
    source, cut = make_source(), make_source(truncate=truncate)
    params = source.initial_params()
    batch = batch_of(source).draw(broadcast(params, T), "outer")
    rows = {name: batch[name].flatten(0, 1) for name in OF_STEPS}
    torch.testing.assert_close(source.loss(params, rows), cut.loss(params, rows))
    whole, part = (grad(s.loss)(params, rows)["weight_hh"] for s in (source, cut))
    assert torch.allclose(whole, part, rtol=1e-4, atol=1e-7) == (truncate == 100)

    # the same by rows that begin with the state they had, as constants
    steps, states = rows["inputs"].shape[1], []
    hidden = torch.zeros(len(rows["mask"]), 5)
    with torch.no_grad():
        for t in range(steps):
            states.append(hidden)
            hidden = source.policy(rows["inputs"][:, t], hidden)[0]

    def pieces(w: Params) -> Tensor:
        found = []
        for t in range(0, steps, truncate):
            h = states[t]
            for s in range(t, min(t + truncate, steps)):
                h = torch.func.functional_call(source.policy, w, (rows["inputs"][:, s], h))[0]
                found.append(h)
        return (torch.stack(found) * torch.linspace(0, 1, steps)[:, None, None]).sum()

    def unrolled(w: Params) -> Tensor:
        outputs: list[Tensor] = []
        heads = cut.policy.heads
        try:
            cut.policy.heads = lambda h: outputs.append(h) or heads(h)  # type: ignore[assignment, func-returns-value]
            cut.outputs(w, rows)
        finally:
            del cut.policy.heads
        return (outputs[0] * torch.linspace(0, 1, steps)[:, None]).sum()

    for name in ("weight_hh", "weight_ih"):
        torch.testing.assert_close(grad(unrolled)(params)[name], grad(pieces)(params)[name], rtol=1e-4, atol=1e-5)


# The outer step.


def make_learner(source: RecurrentTrials, **settings: Any) -> MetaLearner:
    step = RecurrentPPO(source.initial_params(), source, **settings)
    return MetaLearner.from_parts(source, make_method("multitask"), step, meta_batch_size=T)


def test_one_minibatch_is_a_step_of_adam() -> None:
    source = make_source()
    learner = make_learner(source, epochs=1, minibatches=1, learning_rate=0.01, max_grad_norm=None)
    params = learner.params
    tasks = source.sample(T, np.random.default_rng(0))  # as the learner of seed 0 does
    batch = tasks.draw(broadcast(params, T), "outer")
    w = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    source.loss(w, {name: batch[name].flatten(0, 1) for name in OF_STEPS}).backward()
    torch.optim.Adam(w.values(), lr=0.01).step()
    learner.learn(1)
    for name, leaf in learner.params.items():
        torch.testing.assert_close(leaf, w[name].detach(), rtol=1e-5, atol=1e-6)


def test_every_epoch_sees_every_trial_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source, seen = make_source(), []
    right = source.loss
    monkeypatch.setattr(source, "loss", lambda w, batch: seen.append(batch) or right(w, batch))
    make_learner(source, epochs=2, minibatches=3).learn(1)
    assert [len(batch["mask"]) for batch in seen] == [3, 3, 2] * 2
    epochs = [torch.cat([batch["actions"] for batch in seen[i : i + 3]]) for i in (0, 3)]
    rows = [sorted(map(str, epoch.tolist())) for epoch in epochs]
    assert rows[0] == rows[1]
    assert len(set(rows[0])) == T * E
    assert not torch.equal(*epochs)  # in another order


def test_training_goes_on_bit_for_bit() -> None:
    learners = [make_learner(make_source(), epochs=2, seed=4) for _ in range(3)]
    whole, first, second = learners
    whole.learn(4)
    second.load_state_dict(first.learn(2).state_dict())
    second.learn(2)
    assert all(torch.equal(leaf, second.params[name]) for name, leaf in whole.params.items())
    assert torch.equal(whole.source.state_dict()["targets"], second.source.state_dict()["targets"])  # type: ignore[attr-defined]
    assert whole.counts == second.counts
    with pytest.raises(ValueError, match="outer_step"):
        second.load_state_dict({**first.state_dict(), "outer_step": {**first.outer_step.state_dict(), "rng": "x"}})


def test_counts_and_logs() -> None:
    log: list[dict[str, float]] = []

    class Log(Callback):
        def on_iteration(self, learner: MetaLearner, metrics: dict[str, float]) -> None:
            log.append(dict(metrics))

    learner = make_learner(make_source()).learn(1, [Log()])
    assert learner.counts["env_steps"] == E * K * (1 + 2 + 3 + 3)
    assert learner.counts["samples"] == T * E * K
    returns, lengths = episode_returns(
        learner.source.sample(T, np.random.default_rng(0)), make_source().initial_params()
    )
    assert log[0]["rollout/return_before"] == pytest.approx(float(returns[:, 0].mean()), rel=1e-5)
    assert log[0]["rollout/return_after"] == pytest.approx(float(returns[:, K - 1].mean()), rel=1e-5)
    assert lengths.tolist() == [[min(1 + task, 3)] * K for task in range(T)]
    assert log[0]["train/entropy"] == pytest.approx(2 * (-0.5 + 0.5 * (1 + math.log(2 * math.pi))), abs=0.1)
    assert all(f"train/{name}" in log[0] for name in ("kl", "clip_fraction", "value_loss", "explained_variance"))


@pytest.mark.parametrize("tasks", [CartPoleGoal(horizon=40), GridWorld(horizon=3, image=True)], ids=["numpy", "image"])
def test_other_environments(tasks: Any) -> None:
    policy = RecurrentPolicy(tasks.observation_space, tasks.action_space, units=4)
    source = RecurrentTrials(tasks, policy, trials=2, episodes=2)
    trials = source.sample(3, np.random.default_rng(0)).rollout(source.initial_params())
    assert float(trials.inputs[..., : policy.seen].abs().max()) <= 1 or isinstance(tasks, CartPoleGoal)
    assert bool((trials.mask.sum(-1) == trials.lengths.sum(-1)).all())
    assert float(trials.rewards.sum()) == pytest.approx(float(trials.returns.sum()), rel=1e-5)
    assert make_learner_of(source).learn(1).iterations == 1


def make_learner_of(source: RecurrentTrials) -> MetaLearner:
    step = RecurrentPPO(source.initial_params(), source, minibatches=2)
    return MetaLearner.from_parts(source, make_method("multitask"), step, meta_batch_size=3)


def test_entropy() -> None:
    loc, scale = torch.zeros(3, 2), torch.tensor([0.5, 2.0]).expand(3, 2)
    normal = torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)
    torch.testing.assert_close(entropy((loc, scale)), normal.entropy())
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(entropy((logits,)), torch.distributions.Categorical(logits=logits).entropy())


def test_bad_calls() -> None:
    tasks = Walks()
    with pytest.raises(ValueError, match="observation_space must be a Box or a Discrete"):
        RecurrentPolicy(gymnasium.spaces.MultiBinary(2), tasks.action_space)
    for name, value in (("trials", 0), ("episodes", 1.5), ("discount", 1.1), ("clip", 0.0), ("truncate", 0)):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            make_source(**{name: value})
    source = make_source()
    with pytest.raises(ValueError, match="cannot change after"):
        source.trials = 3
    with pytest.raises(ValueError, match="params must be the same for all tasks"):
        batch_of(source).draw({k: leaf.clone() for k, leaf in broadcast(source.initial_params(), T).items()}, "outer")
    step = RecurrentPPO(source.initial_params(), source)
    with pytest.raises(ValueError, match="source must be the one"):
        MetaLearner.from_parts(make_source(), make_method("multitask"), step, meta_batch_size=2)


# Learning.


class Doors(FunctionalDistribution):
    """One of four doors pays 1; an episode is one choice, and nothing is seen. Only memory helps."""

    def __init__(self) -> None:
        super().__init__(DoorsEnv(), gymnasium.spaces.Dict({"door": Discrete(4)}), horizon=1)


class DoorsEnv(FunctionalEnv):
    observation_space = Box(0.0, 1.0, (1,), np.float32)
    action_space = Discrete(4)

    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        return torch.zeros(len(task["door"]), 1)

    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        return state

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        return (action == task["door"]).float()

    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        return state


@pytest.mark.slow
def test_it_learns_to_explore_and_to_remember() -> None:
    """The best strategy opens another door each time until one pays: 1/4, 2/4, 3/4, 1, 1."""
    tasks = Doors()
    policy = RecurrentPolicy(tasks.observation_space, tasks.action_space, units=32)
    source = RecurrentTrials(tasks, policy, trials=10, episodes=5, entropy_coefficient=0.01)
    step = RecurrentPPO(source.initial_params(), source, learning_rate=5e-3)
    learner = MetaLearner.from_parts(source, make_method("multitask"), step, meta_batch_size=40)
    with Engine().current():
        learner.learn(150)
    returns, _ = episode_returns(learner.source.sample(400, np.random.default_rng(1)), learner.params)
    best = torch.tensor([0.25, 0.5, 0.75, 1.0, 1.0], dtype=torch.float64)
    assert (returns.double().mean(0) - best).abs().max() < 0.08
