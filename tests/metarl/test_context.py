"""Context inputs (CAVIA), against autograd; and partial adaptation under outer steps that replay draws."""

import functools
from typing import Any

import numpy as np
import pytest
import torch

from metarl import MetaLearner, Method, make_method
from metarl.agents import make_context_policy, to_sb3
from metarl.context import WithContext
from metarl.envs import Navigation
from metarl.rl import ReinforcementLearning
from metarl.step import ProximalStep, TrustRegionStep
from metarl.step.replay import Replay
from metarl.supervised import FiniteSumTaskBatch
from metarl.supervised.networks import mlp
from metarl.supervised.sinusoid import Sinusoids
from metarl.tree import dot
from metarl.types import OuterUpdate
from metarl.wrappers import RecordDraws
from tests.metarl.test_learned_rules import assert_equal
from tests.metarl.test_partial import PLAIN, ROWS
from tests.reference import checks
from tests.reference.checks import one

ALPHA, N = 0.1, 3


def context_source(size: int = 3) -> Sinusoids:
    return Sinusoids(WithContext(mlp(1 + size, 1, hidden=(8,)), size).double())


def starts_at_zero(update: OuterUpdate, method: Method) -> None:
    """The meta-gradient does not depend on the value of the context, and is zero for it."""
    source = context_source()
    tasks, params = source.sample(3, np.random.default_rng(0)), source.initial_params()
    moved = {**params, "context": torch.ones(3, dtype=torch.float64)}
    found, other = (update(at, tasks, method.inner) for at in (params, moved))
    checks.assert_same(found, other)
    assert not found.grads["context"].any()
    assert found.grads["network.head.weight"].any()


@pytest.mark.parametrize("name", sorted(({row[0] for row in ROWS} | {"multitask", "es_maml"}) - {"bmaml"}))
def test_contexts_start_at_zero(name: str) -> None:
    method = make_method(name, ALPHA, 2, adapt="context", **(PLAIN if name == "maml_plus_plus" else {}))
    starts_at_zero(method.update, method)
    if method.annealing is not None:
        starts_at_zero(method.at(0), method)


def test_a_context_that_is_not_reset_is_rejected() -> None:
    method = make_method("maml", ALPHA, 2, adapt="context")
    wrong = make_method("maml", ALPHA, 2, adapt="conte*")  # the same parameter, without its special start
    starts_at_zero(method.update, method)
    with pytest.raises(AssertionError):
        starts_at_zero(wrong.update, wrong)


def test_cavia_is_a_full_adaptation_of_the_context() -> None:
    """Autograd through steps of the context from zero."""
    source, method = context_source(), make_method("maml", ALPHA, N, adapt="context")
    tasks, params = source.sample(3, np.random.default_rng(0)), source.initial_params()
    assert isinstance(tasks, FiniteSumTaskBatch)
    found = method.update(params, tasks, method.inner).grads
    for task in range(3):
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        context = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for _ in range(N):
            loss = tasks.loss({**leaves, "context": context}, one(tasks.support, task))
            context = context - ALPHA * torch.autograd.grad(loss, context, create_graph=True)[0]
        outer = tasks.loss({**leaves, "context": context}, one(tasks.query, task))
        rest = {k: v for k, v in leaves.items() if k != "context"}
        wanted = torch.autograd.grad(outer, list(rest.values()))
        assert_equal({k: found[k][task] for k in rest}, dict(zip(rest, wanted, strict=True)), 1e-11)


OPTIMIZERS = {
    "adamw": functools.partial(torch.optim.AdamW, weight_decay=0.1),
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
    "rmsprop": torch.optim.RMSprop,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_optimiser_moves_the_context(optimizer: str) -> None:
    learner = MetaLearner(
        context_source(), "maml", inner_lr=ALPHA, adapt="context", optimizer=OPTIMIZERS[optimizer], meta_batch_size=2
    )
    before = learner.params["network.head.weight"]
    learner.learn(3)
    assert not learner.params["context"].any()
    assert not torch.equal(learner.params["network.head.weight"], before)
    tasks = learner.source.sample(2, np.random.default_rng(0))
    adapted = learner.adapt(tasks)
    assert adapted["context"].any()
    learner.params = {**learner.params, "context": torch.full((3,), 7.0, dtype=torch.float64)}
    assert torch.equal(learner.adapt(tasks)["context"], adapted["context"])


def test_without_patternsa_context_is_a_parameter_like_others() -> None:
    learner = MetaLearner(context_source(), "maml", inner_lr=ALPHA, meta_batch_size=2).learn(2)
    assert learner.params["context"].any()


def test_a_context_policy() -> None:
    tasks = Navigation(horizon=5)
    policy = make_context_policy(tasks.observation_space, tasks.action_space, 4, policy_kwargs={"net_arch": [8]})
    for normalize in (False, True):
        source = ReinforcementLearning(tasks, policy, episodes=3, normalize_observations=normalize)
        learner = MetaLearner(source, "maml", inner_lr=1.0, adapt=("context", "head"), meta_batch_size=2).learn(2)
        name = "network.context" if normalize else "context"
        assert not learner.params[name].any()
        end = learner.adapt(source.sample(2, np.random.default_rng(0)))
        still = {k for k, v in end.items() if torch.equal(v, learner.params[k].expand_as(v))}
        moved = {k.replace("network.", "") for k in end.keys() - still}
        assert moved == {"context", "policy.action_net.weight", "policy.action_net.bias"}
    env = tasks.make({"goal": np.zeros(2)})
    with pytest.raises(ValueError, match="policy must be without context inputs"):
        to_sb3(policy, None, env)  # type: ignore[arg-type]


# Outer steps that replay draws.


@pytest.mark.parametrize("patterns", [("head",), ("context",), ("context", "head")])
def test_the_fisher_matrix_of_the_trust_region(patterns: tuple[str, ...]) -> None:
    """J^T F J by forward and backward products, against finite differences of the adapted policies' divergence."""
    tasks = Navigation(horizon=5)
    policy = make_context_policy(tasks.observation_space, tasks.action_space, 2, policy_kwargs={"net_arch": [3]})
    source = ReinforcementLearning(tasks, policy.double(), episodes=3)
    method = make_method("maml", 0.3, 2, adapt=patterns, hessian_data="reuse")
    rng = np.random.default_rng(0)
    start = source.initial_params()
    params = {k: v if k == "context" else v + 0.3 * torch.as_tensor(rng.normal(size=v.shape)) for k, v in start.items()}
    recording = RecordDraws(source.sample(2, rng))
    method.update(params, recording, method.inner)
    replay = Replay(recording.tasks, recording.draws, method.inner)
    old = replay.at(params)
    v = {k: torch.as_tensor(rng.normal(size=leaf.shape)) for k, leaf in params.items()}
    product = old.fisher(first_order=False)(v)
    if "context" in patterns:
        assert not product["context"].any()
    size = 1e-3
    moved = [replay.at({k: params[k] + s * size * v[k] for k in params}).measure(old) for s in (1, -1)]
    curvature = sum(found.kl for found in moved) / size**2
    assert curvature == pytest.approx(float(dot(v, product)), rel=1e-3)


@pytest.mark.parametrize("patterns", ["head", "context"])
@pytest.mark.parametrize("kind", [TrustRegionStep, ProximalStep])
def test_steps_on_replayed_draws(kind: Any, patterns: str) -> None:
    tasks = Navigation(horizon=5)
    policy = make_context_policy(tasks.observation_space, tasks.action_space, 2, policy_kwargs={"net_arch": [16]})
    source = ReinforcementLearning(tasks, policy, episodes=4)
    method = make_method("maml", 0.3, 1, adapt=patterns, hessian_data="reuse")
    params = method.initial_params(source)
    learner = MetaLearner.from_parts(source, method, kind(params, method), meta_batch_size=3).learn(2)
    moved = {k for k, v in learner.params.items() if not torch.equal(v, params[k])}
    assert "network.policy.action_net.weight" in moved
    assert ("context" in moved) == (patterns == "head")
