"""One task adapted and used: an environment's own episodes, the mathematics of evaluations, SB3's `predict`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from metarl import MetaLearner, adapt
from metarl.agents import make_context_policy, make_policy
from metarl.engine import Engine
from metarl.envs import EnvDistribution, GridWorld, GymDistribution, Navigation
from metarl.functional_call import call
from metarl.rl import AdaptedPolicy, ReinforcementLearning, one_env
from metarl.rl.adapted_policy import one_task
from metarl.rl.normalization import NormalizedPolicy
from metarl.supervised.networks import mlp
from metarl.supervised.sinusoid import Sinusoids
from metarl.wrappers import RecordDraws, ReplayDraws

pytestmark = pytest.mark.usefixtures("unrecorded")
GOAL = {"goal": np.array([0.3, -0.2], np.float32)}
GRAVITY = Dict({"g": Box(5.0, 15.0, (), np.float32)})
LENGTH = Dict({"length": Box(0.3, 0.7, (), np.float32)})


def set_length(env: Any, task: Any) -> None:
    env.length = float(task["length"])


def make_learner(tasks: EnvDistribution, method: str = "maml", *, adapt: Any = None, **settings: Any) -> MetaLearner:
    """Two iterations of a small policy."""
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [8]})
    source = ReinforcementLearning(tasks, policy, **{"episodes": 3, **settings})
    return MetaLearner(source, method, inner_lr=0.5, adapt=adapt, meta_batch_size=2, learning_rate=0.02).learn(2)


class Counted(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Counts steps and resets, and notes the seeds."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.steps, self.seeds, self.closed = 0, [], False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seeds.append(seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.env.step(action)

    def close(self) -> None:
        self.closed = True


TASKS: dict[str, tuple[Callable[[], EnvDistribution], dict[str, Any]]] = {
    "box": (lambda: Navigation(horizon=20), GOAL),
    "random_starts": (lambda: GymDistribution("CartPole-v1", LENGTH, set_task=set_length), {"length": np.float32(0.4)}),
    "long": (lambda: GymDistribution("Pendulum-v1", GRAVITY, horizon=300), {"g": np.float32(9.0)}),
    "discrete": (lambda: GridWorld(horizon=8), GridWorld().example()),
}


@pytest.mark.parametrize(("name", "method"), [*((name, "maml") for name in TASKS), ("box", "es_maml")])
def test_an_environment_adapts_as_its_parameters_do(name: str, method: str) -> None:
    """One after the other in one environment, or side by side in vectorised ones: the same episodes, the same result.

    The second step draws at the parameters of the first, so both must agree there, too.
    """
    make, task = TASKS[name]
    learner = make_learner(make(), method, actions="rescale" if name == "long" else "clip")
    tasks = learner.source.distribution  # type: ignore[attr-defined]
    env = Counted(tasks.make(task))
    own, known = learner.adapt(env, steps=2, seed=3), learner.adapt(task, steps=2, seed=3)
    assert own.params.keys() == learner.params.keys()
    for key, value in own.params.items():
        torch.testing.assert_close(value, known.params[key], rtol=1e-4, atol=1e-5)
    assert own.env_steps == known.env_steps == env.steps
    assert len(set(env.seeds)) == len(env.seeds) >= 6  # every episode of every draw has its own
    assert not env.closed
    assert any(not torch.equal(value, learner.params[key]) for key, value in own.params.items())
    assert any(not torch.equal(value, learner.adapt(env, 2, seed=4).params[key]) for key, value in own.params.items())


def test_without_the_seeds_of_episodes_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    true = one_env.split
    seen = "metarl.rl.actor.split"
    monkeypatch.setattr(seen, lambda noise: [x._replace(seed=noise.seed) for x in true(noise)])
    with pytest.raises(AssertionError):
        test_an_environment_adapts_as_its_parameters_do("random_starts", "maml")
    monkeypatch.setattr(seen, lambda noise: [true(noise)[0]._replace(seed=x.seed) for x in true(noise)])
    with pytest.raises(AssertionError):
        test_an_environment_adapts_as_its_parameters_do("box", "maml")


@pytest.mark.parametrize("setting", ["plain", "learned", "normalized", "head", "long_steps"])
def test_the_same_episodes_give_the_parameters_of_evaluations(setting: str) -> None:
    """The recorded episodes of an environment, replayed as a batch of tasks in the loop that evaluations use."""
    more: dict[str, Any] = {"normalize_observations": True} if setting == "normalized" else {}
    method = "maml_plus_plus" if setting == "learned" else "maml"
    learner = make_learner(Navigation(horizon=10), method, adapt="head" if setting == "head" else None, **more)
    sizes = [0.3, None] if setting == "long_steps" else None
    source = learner.source
    assert isinstance(source, ReinforcementLearning)
    env = Navigation(horizon=10).make(GOAL)
    adapted = learner.adapt(env, 2, step_sizes=sizes, seed=1)

    recording = RecordDraws(one_task(source, env, None, 1))
    learner.adapt(recording, 2, step_sizes=sizes)
    assert [draw.role for draw in recording.draws] == ["inner", "inner"]
    replayed = ReplayDraws(
        source.tasks({k: v[None] for k, v in GOAL.items()}, np.random.default_rng(9)), recording.draws
    )
    if sizes is None:
        end = adapt(learner.params, replayed, learner.method.inner._replace(steps=2))
    else:
        end = learner.adapt(replayed, 2, step_sizes=sizes)
        usual = learner.adapt(env, 2, seed=1).params
        assert any(not torch.equal(usual[k], adapted.params[k]) for k in usual)
    for key, value in adapted.params.items():
        assert torch.equal(value, end[key][0]), key
        assert not key.startswith("meta/")
    frozen = {k for k, v in adapted.params.items() if torch.equal(v, learner.params[k])}
    assert bool({k for k in frozen if "mlp" in k}) == (setting == "head")


def test_recorded_policies_act_alike() -> None:
    learner = make_learner(Navigation(horizon=20))
    plain = learner.adapt(Navigation(horizon=20).make(GOAL), 2)
    learner.engine = Engine()
    recorded = learner.adapt(Navigation(horizon=20).make(GOAL), 2)
    for key, value in plain.params.items():
        torch.testing.assert_close(recorded.params[key], value, rtol=1e-4, atol=1e-5)


def test_a_context_moves_alone() -> None:
    tasks = Navigation(horizon=10)
    policy = make_context_policy(tasks.observation_space, tasks.action_space, 3, policy_kwargs={"net_arch": [8]})
    source = ReinforcementLearning(tasks, policy, episodes=3)
    learner = MetaLearner(source, "maml", inner_lr=5.0, adapt="context", meta_batch_size=2).learn(1)
    adapted = learner.adapt(tasks.make(GOAL), steps=1)
    moved = {k for k, v in adapted.params.items() if not torch.equal(v, learner.params[k])}
    assert moved == {"context"}
    before = AdaptedPolicy(source, learner.params)
    obs = np.array([[0.1, 0.2], [0.0, -0.3]], np.float32)
    assert not np.array_equal(before.predict(obs, deterministic=True)[0], adapted.predict(obs, deterministic=True)[0])


# predict


@pytest.mark.parametrize("actions", ["clip", "rescale", "squash"])
@pytest.mark.parametrize("normalize", [False, True])
def test_predict_sends_what_training_sends(actions: str, normalize: bool) -> None:
    learner = make_learner(
        GymDistribution("Pendulum-v1", GRAVITY, horizon=10), actions=actions, normalize_observations=normalize
    )
    source = learner.source
    assert isinstance(source, ReinforcementLearning)
    params = {k: 30 * v for k, v in learner.params.items()}  # far outside the bounds of 2
    policy = AdaptedPolicy(source, params)
    obs = np.array([[0.1, 0.9, 3.0], [0.7, -0.7, -2.0]], np.float32)
    raw = torch.as_tensor(obs)
    if normalize:
        assert isinstance(source.policy, NormalizedPolicy)
        moments = source.policy.moments
        raw = ((raw - moments.mean) / (moments.variance + 1e-8).sqrt()).float()
        loc, _ = call(source.policy.network, source.policy.own(params), raw)
    else:
        loc, _ = call(source.policy, params, raw)
    sent = {"clip": loc, "rescale": 2 * loc, "squash": 2 * loc.tanh()}[actions].clamp(-2, 2).detach().numpy()
    found, state = policy.predict(obs, deterministic=True)
    assert (found.dtype, found.shape, state) == (np.float32, (2, 1), None)
    np.testing.assert_allclose(found, sent, rtol=1e-5)
    assert np.abs(sent).max() == pytest.approx(2.0, rel=1e-3)
    one, _ = policy.predict(obs[0], deterministic=True)
    assert one.shape == (1,)
    np.testing.assert_allclose(one, sent[0], rtol=1e-5)


def test_predict_samples_from_the_distribution() -> None:
    learner = make_learner(Navigation(horizon=5))
    policy = learner.adapt(GOAL, steps=1)
    obs = np.zeros((20000, 2), np.float32)
    loc, scale = (x.detach().numpy()[0] for x in call(policy.policy, policy.params, torch.zeros(1, 2)))
    scale = scale * 0.2  # few samples are clipped
    narrow = dataclasses.replace(learner.source)  # type: ignore[type-var]
    params = {k: v + np.log(0.2) if k.endswith("log_std") else v for k, v in policy.params.items()}
    narrow_policy = AdaptedPolicy(narrow, params)  # type: ignore[arg-type]
    found = narrow_policy.predict(obs)[0]
    error = scale / np.sqrt(len(obs))
    assert (np.abs(found.mean(0) - loc) < 4 * error).all()
    assert (np.abs(found.std(0) / scale - 1) < 4 / np.sqrt(2 * len(obs))).all()
    assert not np.array_equal(found, narrow_policy.predict(obs)[0])
    again = AdaptedPolicy(narrow, params)  # type: ignore[arg-type]
    again.predict(obs, deterministic=True)  # draws nothing
    assert np.array_equal(again.predict(obs)[0], found)


def test_discrete_actions() -> None:
    learner = make_learner(GymDistribution("CartPole-v1", LENGTH, set_task=set_length))
    policy = learner.adapt({"length": 0.5}, episodes=2)
    (single, _), (batch, _) = policy.predict(np.zeros(4), deterministic=True), policy.predict(np.zeros((3, 4)))
    assert (single.dtype, single.shape) == (np.int64, ())
    assert (batch.dtype, batch.shape) == (np.int64, (3,))
    logits = call(policy.policy, policy.params, torch.zeros(1, 4))[0]
    assert int(single) == int(logits.argmax())
    assert isinstance(policy.action_space, Discrete)
    assert policy.action_space.contains(single)


def test_stable_baselines_evaluates_it() -> None:
    learner = make_learner(Navigation(horizon=5))
    env = Monitor(Navigation(horizon=5).make(GOAL))
    mean, _ = evaluate_policy(learner.adapt(env), env, n_eval_episodes=2)  # type: ignore[arg-type]
    assert -10 < float(np.asarray(mean)) < 0


# Bad input


def other_spaces() -> dict[str, gymnasium.Env[Any, Any]]:
    return {
        "observation_space": gymnasium.make("Pendulum-v1"),
        "action_space": gymnasium.wrappers.RescaleAction(Navigation().make(GOAL), np.float32(-2), np.float32(2)),
    }


@pytest.mark.parametrize("space", other_spaces())
def test_other_spaces_are_refused(space: str) -> None:
    with pytest.raises(ValueError, match=f"tasks must be an environment with the {space} of training"):
        make_learner(Navigation(horizon=5)).adapt(other_spaces()[space])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"gaol": [0.0, 0.0]}, "keys"),
        ({"goal": [[0.0, 0.0]]}, "shape"),
        ({"goal": [0.0, np.nan]}, "finite"),
        (gymnasium.make_vec("CartPole-v1", 2), "tasks must be an environment"),
        (3, "tasks must be an environment"),
    ],
)
def test_other_tasks_are_refused(task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_learner(Navigation(horizon=5)).adapt(task)


def test_settings_that_do_not_apply_are_refused() -> None:
    learner = make_learner(Navigation(horizon=5))
    batch = learner.source.sample(2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="episodes does not apply to a batch"):
        learner.adapt(batch, episodes=3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="step_sizes must have one entry for each of the 2 steps, got 1"):
        learner.adapt(GOAL, 2, step_sizes=[0.1])
    for name, value in [("episodes", 0), ("seed", -1), ("steps", -1)]:
        with pytest.raises(ValueError, match=name):
            learner.adapt(GOAL, **{name: value})  # type: ignore[call-overload]
    supervised = MetaLearner(Sinusoids(mlp(1, 1, hidden=(4,))), meta_batch_size=2)
    with pytest.raises(ValueError, match="Sinusoids has no policy"):
        supervised.adapt(GOAL)
    policy = learner.adapt(GOAL)
    for obs in (np.zeros(3), np.zeros((2, 3)), np.zeros((0, 2)), np.array(["a", "b"]), 0.5):
        with pytest.raises(ValueError, match="observation must be one of Box"):
            policy.predict(obs)
