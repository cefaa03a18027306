"""Normalised observations: against numpy over everything drawn, frozen where they must be, the same after a resume."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor, nn

from metarl import MetaLearner
from metarl.agents import from_sb3, make_policy, to_sb3
from metarl.envs import FunctionalDistribution, GymDistribution, Navigation, make_distribution
from metarl.processes import Processes
from metarl.rl import NormalizedPolicy, ReinforcementLearning
from metarl.types import Batch
from metarl.wrappers import RecordDraws
from tests.envs.toy_envs import LENGTH, Learning, countdown, set_length
from tests.metarl.rl.test_rollout import WalkEnv

pytestmark = pytest.mark.usefixtures("unrecorded")

HORIZON = 7


def tasks_for(name: str) -> Any:
    if name == "pendulum":
        return GymDistribution("Pendulum-v1", spaces.Dict({"g": Box(5.0, 15.0, (), np.float32)}), horizon=HORIZON)
    return make_distribution(name, horizon=HORIZON)


def learner(name: str = "navigation", outer: str = "maml", normalize: bool = True, **kwargs: Any) -> MetaLearner:
    tasks = tasks_for(name)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [6]})
    source = ReinforcementLearning(tasks, policy, episodes=3, normalize_observations=normalize)
    return MetaLearner(source, outer, inner_lr=0.1, **{"meta_batch_size": 4, **kwargs})


def statistics(learner: MetaLearner) -> dict[str, Tensor]:
    return copy.deepcopy(learner.source.state_dict())  # type: ignore[attr-defined]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """All batches of learners, in order."""
    from metarl.rl.oracle import RLTaskBatch

    batches: list[Batch] = []
    draw = RLTaskBatch.draw

    def noted(self: RLTaskBatch, *args: Any) -> Batch:
        batches.append(draw(self, *args))
        return batches[-1]

    monkeypatch.setattr(RLTaskBatch, "draw", noted)
    return batches


def seen(batches: list[Batch]) -> np.ndarray:
    """All observations of running episodes, `[n, obs]`."""
    return np.concatenate([batch["obs"][batch["mask"] > 0].double().numpy() for batch in batches])


@pytest.mark.parametrize("name", ["navigation", "pendulum", "half_cheetah_velocity", "cart_pole"])
def test_mean_and_variance_are_those_of_everything_drawn(name: str, drawn: list[Batch]) -> None:
    one = learner(name, inner_steps=2)
    moments = one.source.policy.moments  # type: ignore[attr-defined]
    for iteration in range(1, 4):
        before = seen(drawn) if drawn else None
        count = len(drawn)
        one.learn(1)
        assert len(drawn) - count == 5  # two inner draws, an outer one, and one for each Hessian
        everything = seen(drawn)
        assert int(moments.count) == len(everything)
        np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(moments.variance, everything.var(0), rtol=1e-9, atol=1e-12)
        for batch in drawn[count:]:  # all of an iteration are normalised by what was seen before it
            obs = batch["obs"].double().numpy()
            wanted = obs if before is None else (obs - before.mean(0)) / np.sqrt(before.var(0) + 1e-8)
            running = batch["mask"].numpy() > 0
            got = batch["normalized_obs"].numpy()[running]
            np.testing.assert_allclose(got, np.clip(wanted, -10, 10)[running], rtol=2e-4, atol=2e-4)
        assert one.iterations == iteration


def test_the_policy_acts_on_what_the_loss_sees(drawn: list[Batch]) -> None:
    """The log-probabilities of the rollout are those of the network at the normalised observations."""
    one = learner("pendulum").learn(2)
    policy = one.source.policy
    assert isinstance(policy, NormalizedPolicy)
    tasks = one.source.sample(2, np.random.default_rng(0))
    params = {name: leaf.expand(2, *leaf.shape) for name, leaf in one.params.items()}
    batch = tasks.draw(params, "outer")
    network = {name.removeprefix("network."): leaf for name, leaf in one.params.items()}
    loc, scale = torch.func.functional_call(policy.network, network, (batch["normalized_obs"].flatten(0, 2),))
    wanted = torch.distributions.Normal(loc, scale).log_prob(batch["actions"].flatten(0, 2)).sum(-1)
    torch.testing.assert_close(batch["log_probs"].flatten(), wanted, rtol=1e-4, atol=1e-5)
    assert float(batch["normalized_obs"].std()) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("name", ["navigation", "pendulum"])
def test_evaluation_leaves_training_alone(name: str) -> None:
    def run(evaluate: bool) -> MetaLearner:
        one = learner(name).learn(2)
        if evaluate:
            before = statistics(one)
            one.evaluate(num_tasks=3, steps=1)
            one.adapt(one.source.sample(2, np.random.default_rng(0)))
            assert same(statistics(one), before)
        return one.learn(1)

    one, other = run(True), run(False)
    assert same(one.params, other.params)
    assert same(statistics(one), statistics(other))


def test_a_resume_is_exact(tmp_path: Path) -> None:
    whole, first = learner().learn(4), learner().learn(2)
    first.save(tmp_path / "checkpoint.pt")
    again = MetaLearner.load(tmp_path / "checkpoint.pt", learner().source)
    assert same(statistics(again), statistics(first))
    again.learn(2)
    assert same(again.params, whole.params)
    assert same(statistics(again), statistics(whole))


def test_without_it_nothing_changes(drawn: list[Batch]) -> None:
    one = learner(normalize=False).learn(1)
    assert one.source.state_dict() == {}  # type: ignore[attr-defined]
    assert all("normalized_obs" not in batch for batch in drawn)
    assert not any(name.startswith("network.") for name in one.params)


def test_the_first_iteration_is_that_without_it() -> None:
    plain, normalized = (learner(normalize=normalize).learn(1).params for normalize in (False, True))
    for name, leaf in plain.items():
        assert torch.equal(normalized[f"network.{name}"], leaf)


def test_an_iteration_that_fails_teaches_nothing() -> None:
    one = learner().learn(1)
    before = statistics(one)
    leaf = next(iter(one.params.values()))
    kept = leaf.clone()
    leaf.fill_(float("nan"))
    with pytest.raises(ArithmeticError):
        one.learn(1)
    assert same(statistics(one), before)
    leaf.copy_(kept)
    one.learn(1)
    assert not same(statistics(one), before)


@pytest.mark.parametrize("outer", ["hf_maml", "fo_maml", "e_maml", "moreau", "reptile", "imaml", "sign_maml"])
def test_every_update_takes_it(outer: str) -> None:
    one = learner(outer=outer).learn(2)
    assert float(one.source.policy.moments.count) > 0  # type: ignore[attr-defined]


def train_normalized(processes: Processes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Statistics after one iteration, and parameters after two, for `test_distributed.py`."""
    one = learner(processes=processes).learn(1)
    return statistics(one), one.learn(1).params


def test_copies_and_pickles_know_what_was_learned() -> None:
    policy = learner().learn(2).source.policy
    assert isinstance(policy, NormalizedPolicy)
    obs = torch.randn(5, 2)
    for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert torch.equal(other(obs)[0], policy(obs)[0])
        assert same(other.moments.state_dict(), policy.moments.state_dict())


def test_numbers_far_from_zero() -> None:
    """A million away, in pieces: to rounding of what is observed, not of the sums."""
    policy = NormalizedPolicy(nn.Identity(), Box(-np.inf, np.inf, (1,), np.float32))
    everything = 1e6 + np.random.default_rng(0).normal(size=(4, 2, 3, 50, 1))
    for piece in everything:
        obs = torch.from_numpy(piece)
        policy.learn(policy.observe(obs, torch.ones(2, 3, 50)).sum(0))
    assert float(policy.moments.mean) == pytest.approx(everything.mean(), abs=1e-6)
    assert float(policy.moments.variance) == pytest.approx(everything.var(), rel=1e-4)


def test_what_cannot_be_normalised_is_refused() -> None:
    walk, images = (
        FunctionalDistribution(WalkEnv(), spaces.Dict({"wall": Box(1, 4, ())}), 5),
        make_distribution("grid_world_image"),
    )
    discrete = make_distribution("tabular_mdp")
    for tasks in (images, discrete):
        policy = make_policy(tasks.observation_space, tasks.action_space)
        with pytest.raises(ValueError, match="normalize_observations needs a Box of floating-point numbers, got"):
            ReinforcementLearning(tasks, policy, normalize_observations=True)
    policy = make_policy(walk.observation_space, walk.action_space)
    source = ReinforcementLearning(walk, policy, normalize_observations=True)
    with pytest.raises(ValueError, match="normalize_observations must be True for a NormalizedPolicy"):
        dataclasses.replace(source, normalize_observations=False)
    source.normalize_observations = False
    with pytest.raises(ValueError, match="normalize_observations cannot change later"):
        source.sample(2, np.random.default_rng(0))


def test_checkpoints_and_sources_must_fit(tmp_path: Path) -> None:
    plain, normalized = learner(normalize=False), learner()
    for one in (plain, normalized):
        one.save(tmp_path / "checkpoint.pt")
        other = learner(normalize=one is plain).source
        with pytest.raises(ValueError, match=r"normalize_observations is (True|False), but the checkpoint has"):
            MetaLearner.load(tmp_path / "checkpoint.pt", other)
    state = normalized.state_dict()
    for bad in (torch.zeros(3, dtype=torch.float64), torch.zeros(2), torch.full((2,), torch.nan).double(), None, "x"):
        with pytest.raises(ValueError, match=r"finite 'mean' of shape \(2,\) in float64"):
            normalized.load_state_dict({**state, "source": {**state["source"], "mean": bad}})


def test_sources_of_evaluations_must_have_learned_the_same() -> None:
    one = learner().learn(1)
    with pytest.raises(ValueError, match=r"dataclasses.replace\(learner.source"):
        one.evaluate(learner().source, num_tasks=2, steps=0)
    assert isinstance(one.source, ReinforcementLearning)
    held_out = dataclasses.replace(one.source, episodes=5, distribution=Navigation(horizon=4))
    assert held_out.policy is one.source.policy
    one.evaluate(held_out, num_tasks=2, steps=1)


def test_it_helps_where_scales_differ() -> None:
    """Recorded batches show observations of unit scale after one iteration."""
    one = learner("cart_pole", meta_batch_size=8).learn(1)
    recording = RecordDraws(one.source.sample(4, np.random.default_rng(1)))
    one.adapt(recording)
    batch = recording.draws[0].batch
    running = batch["mask"] > 0
    raw, shown = batch["obs"][running].std(0), batch["normalized_obs"][running].std(0)
    assert float(raw.max() / raw.min()) > 8
    assert float(shown.max() / shown.min()) < 4


def test_to_sb3_hands_the_statistics_over() -> None:
    one = learner("pendulum").learn(2)
    policy = one.source.policy
    assert isinstance(policy, NormalizedPolicy)
    env = gymnasium.make("Pendulum-v1")
    model = to_sb3(policy, one.params, env, n_steps=8, batch_size=8, device="cpu")
    normalizer = model.get_vec_normalize_env()
    assert normalizer is not None
    for _ in range(5):
        obs = env.observation_space.sample()
        action, _ = model.predict(normalizer.normalize_obs(obs), deterministic=True)
        loc = torch.func.functional_call(policy, one.params, (torch.from_numpy(obs)[None],))[0]
        np.testing.assert_allclose(action, loc[0].detach().clamp(-2, 2), rtol=1e-4, atol=1e-5)
    model.learn(16)
    with pytest.raises(ValueError, match="VecNormalize"):
        from_sb3(model)


def test_from_sb3_refuses_statistics_it_would_lose() -> None:
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))
    with pytest.raises(ValueError, match="normalize_observations=True"):
        from_sb3(PPO("MlpPolicy", env, device="cpu"))


WRAPPERS = {
    "observations": (gymnasium.wrappers.NormalizeObservation, "NormalizeObservation"),
    "rewards": (gymnasium.wrappers.NormalizeReward, "NormalizeReward"),
    "of one's own": (Learning, "Learning"),
    "below others": (lambda env: gymnasium.wrappers.RecordEpisodeStatistics(Learning(env)), "Learning"),
}


def wrapped(kind: str, freeze: bool = False) -> Any:
    def make(length: int = 3) -> Any:
        env = WRAPPERS[kind][0](countdown().make({"length": length}).unwrapped)
        if freeze:
            env.update_running_mean = False
        return env

    return make


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_that_learn_are_refused_where_they_are_used_again(kind: str) -> None:
    message = rf"env must not learn if set_task.*got {WRAPPERS[kind][1]}, .*normalize_observations=True"
    with pytest.raises(ValueError, match=message):
        GymDistribution(wrapped(kind), LENGTH, horizon=3, set_task=set_length)
    with pytest.warns(UserWarning, match=f"env has {WRAPPERS[kind][1]}, which learn.*not independent"):
        GymDistribution(wrapped(kind), LENGTH, horizon=3)


def test_wrappers_that_have_been_frozen_are_taken() -> None:
    assert GymDistribution(wrapped("observations", freeze=True), LENGTH, horizon=3, set_task=set_length).horizon == 3
