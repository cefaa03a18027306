"""The same numbers on an accelerator as on the CPU, given the same data. Skips, visibly, where there is none."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from metarl import MetaLearner, Method, make_method
from metarl.agents import make_policy
from metarl.derivatives import gradients
from metarl.engine import Engine, records
from metarl.engine.records import StepRecord
from metarl.engine.runners import CudaGraph
from metarl.envs import FunctionalDistribution, GridWorld, LinearGaussian, Navigation
from metarl.experiments.train import TrainConfig
from metarl.learned_rules import hide_meta
from metarl.outer import without_particles
from metarl.rl import ReinforcementLearning
from metarl.rl.rollout import Noise
from metarl.rl.streams import Streams
from metarl.supervised.class_sets import ClassSet
from metarl.supervised.few_shot import FewShot
from metarl.supervised.networks import conv4
from metarl.supervised.sinusoid import Sinusoids
from metarl.tree import broadcast, tree_map
from metarl.types import Params, TaskSource
from metarl.wrappers import RecordDraws, RecordedDraw, ReplayDraws

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def navigation(device: str) -> ReinforcementLearning:
    tasks = Navigation(horizon=20)
    return ReinforcementLearning(
        tasks, make_policy(tasks.observation_space, tasks.action_space), episodes=4, device=device
    )


def assert_same_meta_gradient(method: Method, make: Callable[[str], TaskSource]) -> None:
    cpu, cuda = make("cpu"), make("cuda")
    params = method.initial_params(cpu)
    recording = RecordDraws(cpu.sample(3, np.random.default_rng(0)))
    expected = method.update(params, hide_meta(recording, params), method.inner).grads
    draws = [RecordedDraw(draw.role, to(draw.params, "cuda"), to(draw.batch, "cuda")) for draw in recording.draws]
    replaying = ReplayDraws(cuda.sample(3, np.random.default_rng(0)), draws)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # torch's default rounds convolutions to 10 bits
        found = method.update(to(params, "cuda"), hide_meta(replaying, params), method.inner).grads
    for key in expected:
        torch.testing.assert_close(found[key].cpu(), expected[key], rtol=1e-2, atol=1e-4)


def to(tree: Params, device: str) -> Params:
    return tree_map(lambda leaf: leaf.to(device), tree)


@pytest.mark.parametrize("outer", sorted(without_particles()))
def test_meta_gradient_on_the_same_data(outer: str) -> None:
    assert_same_meta_gradient(make_method(outer), navigation)


@pytest.mark.parametrize(
    "env",
    [Navigation(horizon=20), LinearGaussian(horizon=20), GridWorld(horizon=20), GridWorld(horizon=20, image=True)],
    ids=["navigation", "linear gaussian", "grid world", "pictures"],
)
def test_rollouts_with_the_same_noise(env: FunctionalDistribution) -> None:
    """One CUDA graph for a whole rollout; the second time it is replayed."""
    policy = make_policy(env.observation_space, env.action_space)
    cpu, cuda = (ReinforcementLearning(env, copy.deepcopy(policy), episodes=4, device=d) for d in ("cpu", "cuda"))
    task = env.sample(3, np.random.default_rng(0))
    params = broadcast(cpu.initial_params(), 3)
    engine, here, there = Engine(), env.make_functional(task, 4), env.make_functional(task, 4, "cuda")
    assert here is not None
    assert there is not None
    for seed in (0, 1, 2):  # single steps are compared at the first two
        noise = cpu.actor.noise(here, Streams(seed, 3), 20, 4, torch.float32)
        wanted = cpu.actor.rollout(here, params, noise)
        moved = Noise(noise.actions.cuda(), noise.initial.cuda(), noise.transitions.cuda(), noise.seed)
        with engine.current():
            found = cuda.actor.rollout(there, to(params, "cuda"), moved)
        for a, b in zip([*found.episodes, *found[1:]], [*wanted.episodes, *wanted[1:]], strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4)
    (record,) = engine._cache
    assert isinstance(record, StepRecord)
    assert len(record.replays) == 1


def test_derivatives_are_cuda_graphs(caplog: pytest.LogCaptureFixture) -> None:
    source = navigation("cuda")
    tasks = source.sample(3, np.random.default_rng(0))
    params = broadcast(source.initial_params(), 3)
    batch, engine = tasks.draw(params, "inner"), Engine()
    with engine.current():
        first, second = (gradients(tasks, params, batch) for _ in range(2))
    for key, leaf in first.items():
        torch.testing.assert_close(leaf, second[key])
    (record,) = engine._cache
    assert isinstance(record, records.TaskRecord)
    assert [type(runner) for runner in record.runners.values()] == [CudaGraph]
    assert "cannot be recorded" not in caplog.text


def test_chunks_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "memory_budget", lambda device: 1)
    source, engine = navigation("cuda"), Engine()
    tasks = source.sample(3, np.random.default_rng(0))
    params = broadcast(source.initial_params(), 3)
    batch = tasks.draw(params, "inner")
    with engine.current():
        found = gradients(tasks, params, batch)
    for key, leaf in gradients(tasks, params, batch).items():
        torch.testing.assert_close(found[key], leaf, rtol=1e-4, atol=1e-5)
    (record,) = engine._cache
    assert isinstance(record, records.TaskRecord)
    assert record.chunk_size == 1


@pytest.mark.parametrize("outer", sorted(without_particles()))
def test_training_and_evaluation(outer: str) -> None:
    learner = MetaLearner(navigation("cuda"), outer, meta_batch_size=3).learn(2)
    assert all(leaf.device.type == "cuda" and leaf.isfinite().all() for leaf in learner.params.values())
    assert np.isfinite(learner.evaluate(num_tasks=3, steps=2, warn=False).mean).all()


@pytest.mark.parametrize("env", ["half_cheetah_velocity", "cart_pole_goal", "grid_world_image"])
def test_environments_on_the_cpu_and_images(env: str) -> None:
    """Environments that speak numpy feed a policy on the accelerator; a CNN runs there."""
    learner = TrainConfig(env=env, horizon=5, episodes=2, meta_batch_size=2, device="cuda").build_learner().learn(1)
    assert all(leaf.device.type == "cuda" and leaf.isfinite().all() for leaf in learner.params.values())
    assert np.isfinite(learner.evaluate(num_tasks=2, steps=1).mean).all()


def test_a_checkpoint_moves_between_devices(tmp_path: object) -> None:
    learner = MetaLearner(navigation("cuda"), meta_batch_size=2).learn(1)
    learner.save(f"{tmp_path}/checkpoint.pt")
    on_cpu = MetaLearner.load(f"{tmp_path}/checkpoint.pt", navigation("cpu"))
    for key, leaf in on_cpu.params.items():
        assert torch.equal(leaf, learner.params[key].cpu())
    on_cpu.learn(1)


SUPERVISED: dict[str, Callable[[str], TaskSource]] = {
    "sinusoid": lambda device: Sinusoids(device=device),
    "conv4": lambda device: FewShot(noise_of(16), conv4(1, 16, 3, filters=4), ways=3, queries=3, device=device),
}


def noise_of(size: int) -> ClassSet:
    """Four classes of noise."""
    generator = torch.Generator().manual_seed(0)
    return ClassSet(tuple("abcd"), tuple(torch.rand(5, 1, size, size, generator=generator) for _ in range(4)))


@pytest.mark.parametrize("name", SUPERVISED)
def test_supervised_meta_gradient_on_the_same_data(name: str) -> None:
    assert_same_meta_gradient(make_method("maml", 0.01), SUPERVISED[name])


@pytest.mark.parametrize("name", SUPERVISED)
def test_supervised_training_and_evaluation(name: str) -> None:
    learner = MetaLearner(SUPERVISED[name]("cuda"), "maml", inner_lr=0.01, meta_batch_size=3).learn(2)
    assert all(leaf.device.type == "cuda" and leaf.isfinite().all() for leaf in learner.params.values())
    assert np.isfinite(learner.evaluate(num_tasks=3, steps=2, warn=False).mean).all()
