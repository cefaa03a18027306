"""Every layer of torch works in a meta-trained network, or is refused with the way out, before anything is trained."""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.utils import parametrizations

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.envs import Navigation
from metarl.functional_call import call
from metarl.network_check import NetworkError, check_network, check_second_derivatives
from metarl.rl import ReinforcementLearning
from metarl.supervised.sinusoid import Sinusoids

pytestmark = pytest.mark.usefixtures("unrecorded")

ROWS = torch.linspace(-2, 2, 12).reshape(3, 4)


class Around(nn.Module):
    """A layer with what its input needs before it and what its output needs after it."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...] = (), use: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.layer, self.shape, self.use = layer, shape, use

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, *self.shape) if self.shape else x
        y = self.layer(x) if self.use is None else self.use(self.layer, x)
        return y[0] if isinstance(y, tuple) else y


def numbers(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.abs().long().clamp(0, 3))


def attend(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, x)[0]


def attend_fast(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, x, need_weights=False)[0]


def twice(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x)


def own_dropout(layer: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.dropout(layer(x), 0.5)


PIXELS, PAIRS, SEQUENCE = (1, 2, 2), (2, 2), (4, 1)
WORKS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(4, 3),
    "Bilinear": lambda: Around(nn.Bilinear(4, 4, 2), use=twice),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "BatchNorm1d, eval": lambda: nn.BatchNorm1d(4).eval(),
    "BatchNorm2d, eval": lambda: Around(nn.BatchNorm2d(1), PIXELS).eval(),
    "InstanceNorm1d": lambda: Around(nn.InstanceNorm1d(2, affine=True), PAIRS),
    "Dropout, eval": lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout()).eval(),
    "Dropout, p=0": lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0)),
    "PReLU": nn.PReLU,
    "Embedding": lambda: Around(nn.Embedding(4, 3), use=numbers),
    "GRU": lambda: Around(nn.GRU(1, 3, batch_first=True), SEQUENCE),
    "LSTM": lambda: Around(nn.LSTM(1, 3, batch_first=True), SEQUENCE),
    "RNN": lambda: Around(nn.RNN(1, 3, batch_first=True), SEQUENCE),
    "GRUCell": lambda: nn.GRUCell(4, 3),
    "LSTMCell": lambda: Around(nn.LSTMCell(4, 3)),
    "RNNCell": lambda: nn.RNNCell(4, 3),
    "Conv1d": lambda: Around(nn.Conv1d(1, 2, 2), (1, 4)),
    "Conv2d": lambda: Around(nn.Conv2d(1, 2, 2), PIXELS),
    "ConvTranspose2d": lambda: Around(nn.ConvTranspose2d(1, 2, 2), PIXELS),
    "MaxPool2d": lambda: Around(nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2)), PIXELS),
    "AdaptiveAvgPool2d": lambda: Around(nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1)), PIXELS),
    "Upsample": lambda: Around(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Upsample(scale_factor=2)), PIXELS),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 3)),
    "spectral_norm, eval": lambda: parametrizations.spectral_norm(nn.Linear(4, 3)).eval(),
    "old spectral_norm, eval": lambda: nn.utils.spectral_norm(nn.Linear(4, 3)).eval(),
    "MultiheadAttention": lambda: Around(nn.MultiheadAttention(2, 1, batch_first=True), PAIRS, attend),
}
FIRST_ORDER: dict[str, Callable[[], nn.Module]] = {  # their second derivatives are not implemented in torch
    "MultiheadAttention, fast": lambda: Around(nn.MultiheadAttention(2, 1, batch_first=True), PAIRS, attend_fast),
    "TransformerEncoderLayer": lambda: Around(nn.TransformerEncoderLayer(2, 1, 4, 0.0, batch_first=True), PAIRS),
    "EmbeddingBag": lambda: Around(nn.EmbeddingBag(4, 3), use=numbers),
}
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), "BatchNorm1d keeps running statistics.*LayerNorm"),
    "BatchNorm2d": (lambda: Around(nn.BatchNorm2d(1), PIXELS), "BatchNorm2d .*keeps running statistics"),
    "BatchNorm1d, none kept": (
        lambda: nn.BatchNorm1d(4, track_running_stats=False),
        "depends on the other rows.*LayerNorm",
    ),
    "InstanceNorm1d, kept": (
        lambda: Around(nn.InstanceNorm1d(2, affine=True, track_running_stats=True), PAIRS),
        "InstanceNorm1d .*track_running_stats=False",
    ),
    "Dropout": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout()), "Dropout .*random numbers.*p=0"),
    "AlphaDropout": (lambda: nn.Sequential(nn.Linear(4, 3), nn.AlphaDropout()), "AlphaDropout .*random"),
    "F.dropout": (lambda: Around(nn.Linear(4, 3), use=own_dropout), "its forward draws random numbers"),
    "RReLU": (lambda: nn.Sequential(nn.Linear(4, 3), nn.RReLU()), "RReLU .*nn.LeakyReLU"),
    "GRU with dropout": (
        lambda: Around(nn.GRU(1, 3, 2, batch_first=True, dropout=0.5), SEQUENCE),
        "GRU .*dropout=0",
    ),
    "TransformerEncoderLayer with dropout": (
        lambda: Around(nn.TransformerEncoderLayer(2, 1, 4, batch_first=True), PAIRS),
        "random numbers",
    ),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), "SpectralNorm .*network.eval()"),
    "old spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(4, 3)), "estimate of the norm.*network.eval()"),
    "LazyLinear": (lambda: nn.LazyLinear(3), "LazyLinear has no parameters before.*call the network once"),
    "Embedding, sparse": (lambda: Around(nn.Embedding(4, 3, sparse=True), use=numbers), "sparse=False"),
    "Embedding, max_norm": (lambda: Around(nn.Embedding(4, 3, max_norm=1.0), use=numbers), "max_norm=None"),
    "attention over the batch": (
        lambda: Around(nn.MultiheadAttention(4, 1), use=attend),
        "depends on the other rows",
    ),
    "wrong width": (lambda: nn.Linear(5, 3), "must take rows, but: in nn.Linear|must take rows, but: in Linear"),
    "nothing to train": (nn.Identity, "parameters"),
}


def check(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of deprecated and of slow operations
        network = make()
        check_network("network", network, ROWS, "rows", rows_apart=True)
    return network


@pytest.mark.parametrize("name", [*WORKS, *FIRST_ORDER])
@pytest.mark.filterwarnings("ignore")
def test_works(name: str) -> None:
    """The gradients of three tasks at once are those of plain autograd, one task after the other."""
    before = torch.get_rng_state()
    network = check((WORKS | FIRST_ORDER)[name])
    torch.set_rng_state(before)
    params = {key: torch.stack([p.detach() + 0.1 * i for i in range(3)]) for key, p in network.named_parameters()}
    found = vmap(grad(lambda w: call(network, w, ROWS).sin().sum()))(params)
    for i in range(3):
        with torch.no_grad():
            for key, leaf in network.named_parameters():
                leaf.copy_(params[key][i])
        wanted = torch.autograd.grad(network(ROWS).sin().sum(), list(network.parameters()))
        for key, value in zip(params, wanted, strict=True):
            torch.testing.assert_close(found[key][i], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", WORKS)
def test_has_second_derivatives(name: str) -> None:
    check_second_derivatives("network", check(WORKS[name]), ROWS)


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_second_derivatives_are_refused_only_where_they_are_needed(name: str) -> None:
    with pytest.raises(NetworkError, match=r"second derivatives.*first-order"):
        check_second_derivatives("network", check(FIRST_ORDER[name]), ROWS)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence_and_without_a_trace(name: str) -> None:
    make, message = REFUSED[name]
    check(lambda: nn.Linear(4, 1))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = make()
    state, numbers_drawn = repr(network.state_dict()), torch.get_rng_state()
    with pytest.raises(NetworkError, match=message) as error:
        check_network("network", network, ROWS, "rows", rows_apart=True)
    assert "\n" not in str(error.value)
    assert torch.equal(torch.get_rng_state(), numbers_drawn)
    if "spectral" not in name and "BatchNorm" not in name and "kept" not in name and "max_norm" not in name:
        assert repr(network.state_dict()) == state


class Extractor(BaseFeaturesExtractor):
    def __init__(self, observation_space: gymnasium.Space[Any], layer: nn.Module) -> None:
        super().__init__(observation_space, 8)
        self.layers = nn.Sequential(nn.Linear(int(np.prod(observation_space.shape)), 8), layer)

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), nn.BatchNorm1d(8, track_running_stats=False), nn.Dropout()])
def test_a_policy_is_refused_before_training(layer: nn.Module) -> None:
    tasks = Navigation(horizon=3)
    extractor = {"features_extractor_class": Extractor, "features_extractor_kwargs": {"layer": layer}}
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs=extractor)
    with pytest.raises(ValueError, match=r"^policy "):
        ReinforcementLearning(tasks, policy)
    if getattr(layer, "track_running_stats", None) is False:  # there are no statistics to freeze
        return
    learner = MetaLearner(ReinforcementLearning(tasks, policy.eval(), episodes=2), meta_batch_size=2)
    assert learner.learn(1).iterations == 1  # the way out


class Bare(nn.Module):
    def __init__(self, width: int, outputs: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.outputs = nn.Linear(2, width), outputs

    def forward(self, obs: Tensor) -> Any:
        return self.outputs(self.layer(obs))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Bare(2, lambda x: x), r"must return \(loc, scale\)"),
        (Bare(3, lambda x: (x, x.exp())), r"\(3, 2\).*got \[\(3, 3\)"),
        (Bare(2, lambda x: (x, -x.exp())), "positive scale"),
        (Bare(2, lambda x: {"loc": x}), "tensor"),
        (Bare(2, lambda x: (x, torch.ones_like(x) * torch.rand(2).exp())), "random numbers"),
        ("policy", "policy must be a torch.nn.Module"),
    ],
)
def test_other_outputs_of_a_policy(policy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReinforcementLearning(Navigation(horizon=3), policy)


def test_an_integer_before_the_weights() -> None:
    """The observations' type was that of the first parameter, whatever it is."""

    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.order = nn.Parameter(torch.tensor([1, 0]), requires_grad=False)
            self.layer = nn.Linear(2, 2)

        def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
            loc = self.layer(obs)
            return loc, torch.ones_like(loc)

    source = ReinforcementLearning(Navigation(horizon=3), Indexed(), episodes=2)
    assert MetaLearner(source, meta_batch_size=2).learn(1).iterations == 1


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout(), parametrizations.spectral_norm(nn.Linear(4, 4))])
def test_a_supervised_network_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^network cannot be meta-trained"):
        Sinusoids(nn.Sequential(nn.Linear(1, 4), layer, nn.Linear(4, 1)))


def test_batch_statistics_of_the_data_at_hand_are_allowed_there() -> None:
    network = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1))
    assert MetaLearner(Sinusoids(network), meta_batch_size=2).learn(1).iterations == 1


def test_maml_refuses_attention_without_second_derivatives_and_fo_maml_takes_it() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(2, 1, batch_first=True)

        def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
            tokens = torch.stack([obs, obs.flip(-1)], 1)
            loc = attend_fast(self.attention, tokens)[:, 0]
            return loc, torch.ones_like(loc)

    source = ReinforcementLearning(Navigation(horizon=3), Attention(), episodes=2)
    with pytest.raises(ValueError, match="policy must have second derivatives"):
        MetaLearner(source, "maml")
    MetaLearner(source, "fo_maml", meta_batch_size=2)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_scalar_box_is_observed(shape: tuple[int, ...]) -> None:
    policy = make_policy(Box(-1.0, 1.0, shape), Box(-1.0, 1.0, (2,)))
    assert policy(torch.zeros(5, *shape))[0].shape == (5, 2)


def test_a_scalar_box_is_no_action() -> None:
    with pytest.raises(ValueError, match=r"action_space must be a Box of one dimension.*TransformAction"):
        make_policy(Box(-1.0, 1.0, (2,)), Box(-1.0, 1.0, ()))
