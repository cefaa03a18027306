"""Sinusoid regression: the published protocol, and derivatives and learning against plain PyTorch."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarl import MetaLearner, evaluate, make_method, tree
from metarl.derivatives import gradients, hessian_vector_products, scores
from metarl.engine import Engine
from metarl.supervised import FiniteSumTaskBatch, ResamplingTaskBatch
from metarl.supervised.networks import mlp
from metarl.supervised.sinusoid import Sinusoids
from metarl.types import Batch, Params, Role

ROLES: tuple[Role, ...] = ("inner", "outer", "hessian")
SMALL = mlp(1, 1, hidden=(4,), seed=1).double()


def sampled(num_tasks: int = 4, seed: int = 0, **arguments: Any) -> FiniteSumTaskBatch:
    tasks = Sinusoids(**arguments).sample(num_tasks, np.random.default_rng(seed))
    assert isinstance(tasks, FiniteSumTaskBatch)
    return tasks


def resampled(num_tasks: int = 4, seed: int = 0, **arguments: Any) -> ResamplingTaskBatch:
    source = Sinusoids(setting="resampling", **arguments)
    tasks = source.sample(num_tasks, np.random.default_rng(seed))
    assert isinstance(tasks, ResamplingTaskBatch)
    return tasks


def fit(data: Batch) -> tuple[Tensor, Tensor]:
    """Amplitudes and phases `[T]` of the sinusoids through the points, by least squares, if there are such."""
    x, y = data["x"][..., 0].double(), data["y"].double()
    basis = torch.stack([x.sin(), x.cos()], 2)  # A sin(x + b) = A cos(b) sin(x) + A sin(b) cos(x)
    weights = torch.linalg.lstsq(basis, y[..., None]).solution
    torch.testing.assert_close((basis @ weights)[..., 0], y, rtol=0, atol=2e-6)
    a_cos, a_sin = weights[:, 0, 0], weights[:, 1, 0]
    return torch.hypot(a_cos, a_sin), torch.atan2(a_sin, a_cos)


# The protocol of Finn et al. (2017).


def test_the_published_network() -> None:
    params = Sinusoids().initial_params()
    assert [tuple(leaf.shape) for leaf in params.values()] == [(40, 1), (40,), (40, 40), (40,), (1, 40), (1,)]
    network = Sinusoids().network
    assert network is not None
    x = torch.linspace(-5, 5, 7)[:, None]
    w = list(params.values())
    by_hand = torch.relu(torch.relu(x @ w[0].T + w[1]) @ w[2].T + w[3]) @ w[4].T + w[5]
    torch.testing.assert_close(network(x), by_hand)


def test_amplitudes_phases_and_inputs_are_uniform_in_their_ranges() -> None:
    support = sampled(4000, shots=20).support
    x = support["x"]
    amplitudes, phases = fit(support)
    for values, low, high in ((amplitudes, 0.1, 5.0), (phases, 0.0, math.pi), (x.double().flatten(), -5.0, 5.0)):
        share = (values.sort().values - low) / (high - low)
        end = 10 / len(share)  # one range in 22 000 leaves that much of an end empty
        assert -1e-5 <= share[0] < end
        assert 1 - end < share[-1] <= 1 + 1e-5
        uniform = (torch.arange(len(share)) + 0.5) / len(share)
        assert (share - uniform).abs().max() < 1.95 / len(share) ** 0.5  # Kolmogorov-Smirnov, one in a thousand
    correlation = torch.corrcoef(torch.stack([amplitudes, phases, x[:, 0, 0].double()]))
    assert (correlation - torch.eye(3)).abs().max() < 4 / 4000**0.5


def test_targets_are_the_given_sinusoids() -> None:
    amplitude, phase = np.array([[0.5], [2.0], [4.0]]), np.array([[0.0], [1.0], [3.0]])
    tasks = Sinusoids(SMALL, shots=6).tasks(amplitude, phase, np.random.default_rng(0))
    for role in ROLES:
        batch = tasks.draw({}, role)
        wanted = amplitude * np.sin(batch["x"][..., 0].numpy() + phase)
        torch.testing.assert_close(batch["y"], torch.as_tensor(wanted), rtol=0, atol=1e-15)


def test_shapes_and_costs() -> None:
    for tasks in (sampled(3, shots=5, queries=7), resampled(3, shots=5, queries=7)):
        assert tasks.num_tasks == 3
        for role, points in (("inner", 5), ("outer", 7), ("hessian", 5)):
            batch = tasks.draw({}, role)  # type: ignore[arg-type]  # one of the roles
            assert {key: tuple(leaf.shape) for key, leaf in batch.items()} == {"x": (3, points, 1), "y": (3, points)}
            assert tasks.cost(batch) == {"samples": 3 * points}


# Randomness.


@pytest.mark.parametrize("make", [sampled, resampled])
def test_tasks_follow_from_the_generator(make: Any) -> None:
    a, b, c = (make(seed=seed).draw({}, "inner") for seed in (0, 0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a)


def test_every_sample_is_new() -> None:
    source, rng = Sinusoids(), np.random.default_rng(0)
    first, second = (source.sample(5, rng).draw({}, "inner") for _ in range(2))
    assert not torch.isin(first["x"], second["x"]).any()
    assert ((fit(first)[0] - fit(second)[0]).abs() > 1e-4).all()


def test_finite_sums_are_drawn_once() -> None:
    tasks = sampled()
    first, again = ({role: tasks.draw({}, role) for role in ROLES} for _ in range(2))
    assert first == again
    assert first["inner"] is first["hessian"]
    assert not torch.isin(first["inner"]["x"], first["outer"]["x"]).any()


def test_resampling_draws_fresh_points_of_the_same_sinusoids() -> None:
    tasks = resampled()
    draws = [tasks.draw({}, role) for role in (*ROLES, *ROLES)]
    x = torch.cat([draw["x"].flatten() for draw in draws])
    assert len(set(x.tolist())) > 0.99 * len(x)  # in float32 two points may be the same
    amplitudes, phases = fit(draws[0])
    for draw in draws[1:]:
        for got, wanted in zip(fit(draw), (amplitudes, phases), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


def test_support_and_query_are_independent() -> None:
    x, y = (sampled(4000, shots=1, queries=1).draw({}, role)["x"].flatten() for role in ROLES[:2])
    assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 4 / 4000**0.5


def test_default_weights_follow_from_the_seed() -> None:
    a, b, c = (Sinusoids(seed=seed).initial_params() for seed in (0, 0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a)


# The network: its precision, its parameters, its derivatives.


def test_precision_is_the_networks() -> None:
    for tasks in (sampled(network=SMALL), resampled(network=SMALL)):
        assert {leaf.dtype for leaf in tasks.draw({}, "inner").values()} == {torch.float64}
    assert {leaf.dtype for leaf in sampled().support.values()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("setting", ["finite_sum", "resampling"])
def test_everything_is_on_the_device(setting: Any) -> None:
    source = Sinusoids(setting=setting, device="cuda")
    tasks = source.sample(2, np.random.default_rng(0))
    drawn = [leaf for role in ROLES for leaf in tasks.draw({}, role).values()]
    learner = MetaLearner(source, meta_batch_size=2).learn(2)
    leaves = [*drawn, *source.initial_params().values(), *learner.params.values()]
    assert {leaf.device.type for leaf in leaves} == {"cuda"}
    assert np.isfinite(learner.evaluate(num_tasks=3, steps=2).mean).all()


def test_device_is_where_the_parameters_go() -> None:
    assert {leaf.device.type for leaf in Sinusoids(device="meta").initial_params().values()} == {"meta"}


def test_the_network_is_never_changed() -> None:
    network = mlp(1, 1, hidden=(4,), seed=3)
    before = {key: leaf.clone() for key, leaf in network.state_dict().items()}
    source = Sinusoids(network)
    for leaf in source.initial_params().values():
        leaf.zero_()
    learner = MetaLearner(source, inner_lr=0.1, meta_batch_size=2, learning_rate=0.1).learn(2)
    assert not any(torch.equal(leaf, before[key]) for key, leaf in learner.params.items())
    assert all(torch.equal(leaf, before[key]) for key, leaf in network.state_dict().items())
    assert all(leaf.grad is None for leaf in network.parameters())


def data_of(batch: Batch, task: int) -> tuple[Tensor, Tensor]:
    return batch["x"][task], batch["y"][task][:, None]


def plain_loss(network: nn.Module, batch: Batch, task: int) -> Tensor:
    """As anyone would write it."""
    x, y = data_of(batch, task)
    return nn.functional.mse_loss(network(x), y)


@pytest.mark.parametrize("engine", [Engine(record=False), Engine()], ids=["plain", "recorded"])
def test_loss_score_and_derivatives_are_those_of_plain_autograd(engine: Engine) -> None:
    source = Sinusoids(SMALL, shots=6)
    tasks = source.sample(3, np.random.default_rng(0))
    batch = tasks.draw({}, "inner")
    w = tree.broadcast(source.initial_params(), 3)
    ones = {key: torch.ones_like(leaf) for key, leaf in w.items()}
    with engine.current():
        found, minus = gradients(tasks, w, batch), scores(tasks, w, batch)
        curvature = hessian_vector_products(tasks, w, batch, ones)
    for task in range(3):
        loss = plain_loss(SMALL, batch, task)
        assert float(minus[task]) == pytest.approx(-loss.item(), rel=1e-12)
        leaves = dict(SMALL.named_parameters())
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        total = sum(grad.sum() for grad in grads)
        assert isinstance(total, Tensor)
        second = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        for key, grad, hessian in zip(leaves, grads, second, strict=True):
            torch.testing.assert_close(found[key][task], grad.detach(), rtol=1e-10, atol=1e-12)
            wanted = torch.zeros_like(grad) if hessian is None else hessian
            torch.testing.assert_close(curvature[key][task], wanted, rtol=1e-10, atol=1e-12)


def test_meta_gradient_is_that_of_an_unrolled_graph() -> None:
    source = Sinusoids(SMALL, shots=6)
    tasks = source.sample(3, np.random.default_rng(0))
    method = make_method("maml", 0.05, 2)
    found = method.update(source.initial_params(), tasks, method.inner).grads
    w = {key: leaf.clone().requires_grad_() for key, leaf in source.initial_params().items()}
    support, query = tasks.draw({}, "inner"), tasks.draw({}, "outer")

    def mse(params: Params, batch: Batch, task: int) -> Tensor:
        x, y = data_of(batch, task)
        return nn.functional.mse_loss(torch.func.functional_call(SMALL, params, (x,)), y)

    for task in range(3):
        adapted: Params = w
        for _ in range(2):
            grads = torch.autograd.grad(mse(adapted, support, task), list(adapted.values()), create_graph=True)
            adapted = {key: adapted[key] - 0.05 * grad for key, grad in zip(adapted, grads, strict=True)}
        wanted = torch.autograd.grad(mse(adapted, query, task), list(w.values()))
        for key, grad in zip(w, wanted, strict=True):
            torch.testing.assert_close(found[key][task], grad, rtol=1e-9, atol=1e-11)


# Learning.


@pytest.mark.parametrize(
    ("setting", "learning_rate", "at_most"),
    [
        ("finite_sum", 0.01, 0.7),  # measured for the seeds 0 to 4: 0.41 to 0.56
        ("resampling", 0.003, 0.8),  # 0.55 to 0.72; with 0.01 the noise of a fresh D_h is too much for it
    ],
)
def test_training_helps_adaptation(setting: Any, learning_rate: float, at_most: float) -> None:
    """One step from the trained weights leaves a fraction of the error that it leaves from random ones."""
    source = Sinusoids(setting=setting)
    learner = MetaLearner(source, "maml", inner_lr=0.01, meta_batch_size=10, learning_rate=learning_rate).learn(150)
    held_out = dataclasses.replace(source, setting="finite_sum", queries=50)

    def error(params: Params) -> float:
        rules = [learner.method.inner.rule]
        return -evaluate(params, held_out.sample(100, np.random.default_rng(1)), rules).mean[1]

    assert error(learner.params) < at_most * error(source.initial_params())


# Bad arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(({"shots": value}, "shots must be an integer of at least 1") for value in (0, -1, 2.0, True, "3")),
        *(({"queries": value}, "queries must be an integer of at least 1") for value in (0, -1, 2.5, None)),
        ({"setting": "finite"}, "setting must be one of .*, got 'finite'; did you mean 'finite_sum'"),
        ({"network": mlp(2, 1, hidden=(4,))}, r"network must take points \[n, 1\], but: "),
        ({"network": mlp(1, 2, hidden=(4,))}, r"network must return \[2, 1\] for two points, got \[2, 2\]"),
        ({"network": nn.Sequential(nn.Linear(1, 1), nn.Flatten(0))}, r"must return \[2, 1\] for two points, got \[2\]"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sinusoids(**arguments)


@pytest.mark.parametrize("number", [0, -1, 2.0, True, "2"])
def test_bad_number_of_tasks(number: Any) -> None:
    with pytest.raises(ValueError, match="num_tasks must be an integer of at least 1"):
        Sinusoids().sample(number, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("amplitude", "phase", "found"),
    [
        (np.ones(10), np.ones(10), r"\[10\] and \[10\]"),  # would be taken for points where there are ten
        (np.ones((2, 1)), np.ones((3, 1)), r"\[2, 1\] and \[3, 1\]"),
        (np.ones((2, 2)), np.ones((2, 2)), r"\[2, 2\] and \[2, 2\]"),
        (1.0, 1.0, r"\[\] and \[\]"),
    ],
)
def test_bad_sinusoids(amplitude: Any, phase: Any, found: str) -> None:
    with pytest.raises(ValueError, match=rf"amplitude and phase must be \[T, 1\], got {found}"):
        Sinusoids().tasks(amplitude, phase, np.random.default_rng(0))
