"""The networks of few-shot learning."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarl.derivatives import gradients, hessian_vector_products
from metarl.engine import Engine
from metarl.supervised import FiniteSumTaskBatch
from metarl.supervised.networks import TransductiveBatchNorm, conv4, mlp
from metarl.types import Batch, Params


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 5)])
def test_batch_norm_is_the_formula(shape: tuple[int, ...]) -> None:
    norm = TransductiveBatchNorm(3).double()
    norm.weight.data, norm.bias.data = rand(3, seed=1), rand(3, seed=2)
    x = rand(*shape)
    wanted = torch.empty_like(x)
    for channel in range(3):
        values = x[:, channel]
        spread = (values - values.mean()).square().mean()
        normalised = (values - values.mean()) / (spread + 1e-5).sqrt()
        wanted[:, channel] = normalised * norm.weight[channel] + norm.bias[channel]
    torch.testing.assert_close(norm(x), wanted)
    torch.testing.assert_close(norm.eval()(x), wanted)  # at test time too
    assert not list(norm.buffers())


def test_predictions_are_transductive() -> None:
    network, x = conv4(1, 16, ways=3, filters=4).double().eval(), rand(5, 1, 16, 16)
    together = network(x)
    assert not torch.allclose(network(x[:3]), together[:3], atol=1e-3)
    plain = mlp(256, ways=3).double()
    torch.testing.assert_close(plain(x[:3]), plain(x)[:3])


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (conv4(3, 84, ways=5, filters=32), 896 + 3 * 9248 + 4 * 64 + (32 * 5 * 5 + 1) * 5),  # 32901, mini-ImageNet's
        (conv4(1, 28, ways=20, filters=64), 640 + 3 * 36928 + 4 * 128 + 65 * 20),
        (conv4(1, 28, ways=20, filters=64, downsampling="stride"), 640 + 3 * 36928 + 4 * 128 + (64 * 2 * 2 + 1) * 20),
        (mlp(80, ways=5, hidden=(64, 32)), 81 * 64 + 65 * 32 + 33 * 5),
        (mlp(80, ways=5, hidden=()), 81 * 5),
    ],
)
def test_numbers_of_parameters(network: nn.Module, parameters: int) -> None:
    assert sum(p.numel() for p in network.parameters()) == parameters
    head = network.get_submodule("head")
    assert isinstance(head, nn.Linear)


@pytest.mark.parametrize("size", [16, 17, 28, 31, 32, 84])
@pytest.mark.parametrize("downsampling", ["pool", "stride"])
def test_conv4_takes_images_of_its_size(size: int, downsampling: Any) -> None:
    assert conv4(3, size, ways=4, filters=2, downsampling=downsampling)(torch.rand(2, 3, size, size)).shape == (2, 4)


def loss_of(network: nn.Module) -> Callable[[Params, Batch], Tensor]:
    def loss(params: Params, batch: Batch) -> Tensor:
        logits = functional_call(network, params, (batch["x"],))
        return -logits.log_softmax(1).gather(1, batch["y"][:, None]).mean()

    return loss


NETWORKS = {
    "pool": conv4(2, 16, ways=3, filters=4).double(),
    "stride": conv4(2, 16, ways=3, filters=4, downsampling="stride").double(),
    "mlp": mlp(512, ways=3, hidden=(8,)).double(),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "engine",
    [Engine(record=False), Engine(record=False, chunk_size=1), Engine(record=False, chunk_size=2), Engine()],
    ids=str,
)
def test_derivatives_with_weights_of_each_task(name: str, engine: Engine) -> None:
    """`vmap(grad)` and `vmap(vjp(grad))` against plain autograd, task by task."""
    network, tasks = NETWORKS[name], 3
    start = {k: p.detach() for k, p in network.named_parameters()}
    params = {k: p + 0.1 * rand(tasks, *p.shape, seed=i) for i, (k, p) in enumerate(start.items())}
    vectors = {k: rand(*p.shape, seed=100 + i) for i, (k, p) in enumerate(params.items())}
    batch = {"x": rand(tasks, 6, 2, 16, 16), "y": torch.arange(6).remainder(3).expand(tasks, -1)}
    oracle = FiniteSumTaskBatch(loss_of(network), batch)
    with engine.current():
        grads, products = gradients(oracle, params, batch), hessian_vector_products(oracle, params, batch, vectors)
    for i in range(tasks):
        leaves = {k: p[i].clone().requires_grad_() for k, p in params.items()}
        loss = F.cross_entropy(functional_call(network, leaves, (batch["x"][i],)), batch["y"][i])
        first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        along = sum((g * vectors[k][i]).sum() for k, g in zip(leaves, first, strict=True))
        assert isinstance(along, Tensor)
        second = torch.autograd.grad(along, list(leaves.values()))
        for k, g, h in zip(leaves, first, second, strict=True):
            torch.testing.assert_close(grads[k][i], g.detach())
            torch.testing.assert_close(products[k][i], h)


@pytest.mark.parametrize(
    "make", [lambda seed: conv4(1, 16, 2, filters=2, seed=seed), lambda seed: mlp(4, 2, seed=seed)]
)
def test_weights_follow_from_the_seed_alone(make: Callable[[int], nn.Module]) -> None:
    before = torch.get_rng_state()
    a, b, c = (next(make(seed).parameters()) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conv4(1, 15, 5), "image_size must be an integer of at least 16, got 15"),
        (lambda: conv4(0, 28, 5), "in_channels must be"),
        (lambda: conv4(1, 28, 0), "ways must be"),
        (lambda: conv4(1, 28, 5, filters=2.5), "filters must be"),  # type: ignore[arg-type]
        (lambda: conv4(1, 28, 5, downsampling="pol"), "downsampling must be .* did you mean 'pool'"),  # type: ignore[arg-type]
        (lambda: conv4(1, 28, 5, seed=-1), "seed must be"),
        (lambda: mlp(0, 5), "in_features must be"),
        (lambda: mlp(4, True), "ways must be"),
        (lambda: mlp(4, 5, hidden=(3, 0)), "hidden must be"),
    ],
)
def test_bad_arguments(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
