"""`make_policy`: the network is SB3's, and `torch.func` can do to it what metarl needs."""

import copy
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal
from torch.func import functional_call, grad, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.agents import PolicyModule, make_policy

T, B = 3, 5  # tasks, observations
VECTOR, IMAGE = Box(-1.0, 1.0, (4,)), Box(0, 255, (1, 8, 8), np.uint8)
REACH, CHOICE = Box(-2.0, 2.0, (2,)), Discrete(3)


class TinyCnn(BaseFeaturesExtractor):
    """Small enough for an 8 x 8 image."""

    def __init__(self, observation_space: gymnasium.Space[Any]) -> None:
        super().__init__(observation_space, features_dim=18)
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Tanh(), nn.Flatten())

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs)


SMALL = {"net_arch": [8, 8]}
CNN = {"features_extractor_class": TinyCnn, "net_arch": []}
CASES = {
    "box": (VECTOR, REACH, SMALL),
    "discrete": (VECTOR, CHOICE, SMALL),
    "matrix": (Box(-1.0, 1.0, (2, 3)), REACH, SMALL),
    "one_hot": (Discrete(6), CHOICE, SMALL),
    "image": (IMAGE, REACH, CNN),
    "image_last": (Box(0, 255, (8, 8, 1), np.uint8), CHOICE, CNN),
    "two_extractors": (IMAGE, CHOICE, CNN | {"share_features_extractor": False}),
}


@pytest.fixture(params=CASES)
def policy(request: pytest.FixtureRequest) -> PolicyModule:
    observation_space, action_space, kwargs = CASES[request.param]
    policy = make_policy(observation_space, action_space, policy_kwargs=kwargs, seed=1)
    policy.spaces = observation_space, action_space
    return policy


def stacked_params(policy: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: p.detach() + 0.3 * torch.randn((T, *p.shape), generator=generator) for k, p in policy.named_parameters()}


def observations(policy: PolicyModule) -> Tensor:
    space = copy.deepcopy(policy.spaces[0])
    space.seed(0)
    return torch.as_tensor(np.stack([[space.sample() for _ in range(B)] for _ in range(T)]))  # [T, B, *obs_shape]


def take(params: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    return {k: v[index] for k, v in params.items()}


def loss(policy: nn.Module, params: dict[str, Tensor], obs: Tensor) -> Tensor:
    """Something curved in every output."""
    outputs = functional_call(policy, params, (obs,))
    return sum(((out + 0.1) ** 2).sin().sum() for out in outputs)


def meta_loss_pullback(policy: nn.Module, params: dict[str, Tensor], obs: Tensor) -> dict[str, Tensor]:
    """A Hessian-vector product, as an adjoint computes it."""
    gradient, pull_back = vjp(lambda p: grad(lambda q: loss(policy, q, obs))(p), params)
    return pull_back(gradient)[0]


def test_shapes(policy: PolicyModule) -> None:
    outputs = policy(observations(policy)[0])
    if isinstance(policy.action_space, Discrete):
        assert [out.shape for out in outputs] == [(B, 3)]
    else:
        assert [out.shape for out in outputs] == [(B, 2), (B, 2)]
        assert (outputs[1] > 0).all()


def test_same_distribution_as_sb3(policy: PolicyModule) -> None:
    """Log-probabilities and modes from our outputs are those of SB3's own `evaluate_actions` and `_predict`."""
    obs = observations(policy)[0]
    policy.load_state_dict({**policy.state_dict(), **take(stacked_params(policy), 0)})
    outputs = policy(obs)
    discrete = isinstance(policy.action_space, Discrete)
    ours = Categorical(logits=outputs[0]) if discrete else Independent(Normal(*outputs), 1)
    actions = torch.arange(B) % 3 if discrete else torch.linspace(-2, 2, 2 * B).reshape(B, 2)
    sb3_obs = obs.permute(0, 3, 1, 2) if policy.channels_last else obs
    _, log_prob, entropy = policy.policy.evaluate_actions(sb3_obs, actions)
    torch.testing.assert_close(ours.log_prob(actions), log_prob)
    torch.testing.assert_close(ours.entropy(), entropy)
    torch.testing.assert_close(ours.mode, policy.policy._predict(sb3_obs, deterministic=True))


def test_vmap_equals_loop(policy: PolicyModule) -> None:
    params, obs = stacked_params(policy), observations(policy)
    batched = vmap(lambda p, o: functional_call(policy, p, (o,)))(params, obs)
    for i in range(T):
        torch.testing.assert_close(tuple(out[i] for out in batched), functional_call(policy, take(params, i), obs[i]))


def test_vmap_of_vjp_of_grad_equals_loop_and_autograd(policy: PolicyModule) -> None:
    params, obs = stacked_params(policy), observations(policy)
    batched = vmap(lambda p, o: meta_loss_pullback(policy, p, o))(params, obs)
    for i in range(T):
        p = {k: v.requires_grad_() for k, v in take(params, i).items()}
        gradient = torch.autograd.grad(loss(policy, p, obs[i]), list(p.values()), create_graph=True, allow_unused=True)
        half_norm = sum((g**2).sum() for g in gradient if g is not None) / 2  # its gradient is H g
        expected = torch.autograd.grad(half_norm, list(p.values()), allow_unused=True)
        for k, want in zip(p, expected, strict=True):
            found = batched[k][i]
            torch.testing.assert_close(found, torch.zeros_like(found) if want is None else want, rtol=1e-3, atol=1e-4)


def test_traced_equals_untraced(policy: PolicyModule) -> None:
    params, obs = stacked_params(policy), observations(policy)

    def batched(p: dict[str, Tensor], o: Tensor) -> tuple[Tensor, ...]:
        return vmap(lambda p, o: functional_call(policy, p, (o,)))(p, o)

    traced = make_fx(batched)(params, obs)
    other = {k: 0.5 * v for k, v in params.items()}
    torch.testing.assert_close(traced(other, obs.flip(0)), batched(other, obs.flip(0)))


def test_traced_second_derivative_equals_untraced() -> None:
    policy = make_policy(VECTOR, REACH, policy_kwargs=SMALL)
    params, obs = stacked_params(policy), torch.rand(T, B, 4)
    batched = vmap(lambda p, o: meta_loss_pullback(policy, p, o))
    torch.testing.assert_close(make_fx(batched)(params, obs)(params, obs), batched(params, obs))


def test_double_is_double_all_the_way() -> None:
    """A finite difference that float32 anywhere in `forward` would spoil."""
    policy = make_policy(VECTOR, REACH, policy_kwargs=SMALL).double()
    p = dict(policy.named_parameters())
    obs = torch.rand(B, 4, dtype=torch.float64)
    gradient = grad(lambda q: loss(policy, q, obs))(p)
    direction = {k: torch.ones_like(v) for k, v in p.items()}
    up, down = ({k: p[k] + s * direction[k] for k in p} for s in (1e-6, -1e-6))
    slope = (loss(policy, up, obs) - loss(policy, down, obs)) / 2e-6
    torch.testing.assert_close(sum(g.sum() for g in gradient.values()), slope, rtol=1e-7, atol=1e-7)


def test_only_the_seed_decides() -> None:
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, same, other = (make_policy(VECTOR, REACH, policy_kwargs=SMALL, seed=s) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002
    weights = [torch.cat([p.flatten() for p in policy.parameters()]) for policy in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_same_initialisation_as_sb3() -> None:
    policy = make_policy(VECTOR, REACH, seed=7)
    torch.manual_seed(7)
    theirs = ActorCriticPolicy(VECTOR, REACH, lambda _: 0.0)
    torch.testing.assert_close(policy.policy.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_users_arguments_are_left_alone() -> None:
    """SB3 writes into the dictionaries it is given, and its CNN draws from the space."""
    kwargs = {"net_arch": [8], "optimizer_kwargs": {}, "features_extractor_kwargs": {"features_dim": 4}}
    space = Box(0, 255, (1, 36, 36), np.uint8, seed=0)
    untouched = copy.deepcopy((kwargs, space))
    assert isinstance(make_policy(space, CHOICE, policy_kwargs=kwargs).policy, ActorCriticCnnPolicy)
    assert kwargs == untouched[0]
    assert np.array_equal(space.sample(), untouched[1].sample())


@pytest.mark.parametrize(
    ("net_arch", "actor", "critic"),
    [
        ([9, 7], [9, 7], [32, 32]),
        ({"pi": [9]}, [9], [32, 32]),
        ({"pi": [9], "vf": [5]}, [9], [5]),
        (None, [64, 64], [64, 64]),
    ],
)
def test_net_arch(net_arch: Any, actor: list[int], critic: list[int]) -> None:
    extractor = make_policy(VECTOR, REACH, policy_kwargs={"net_arch": net_arch}).policy.mlp_extractor
    for net, sizes in [(extractor.policy_net, actor), (extractor.value_net, critic)]:
        assert [layer.out_features for layer in net if isinstance(layer, nn.Linear)] == sizes


def test_log_std_init_and_activation() -> None:
    kwargs = SMALL | {"log_std_init": -1.0, "activation_fn": nn.ReLU}
    policy = make_policy(VECTOR, REACH, policy_kwargs=kwargs)
    torch.testing.assert_close(policy(torch.rand(B, 4))[1], torch.full((B, 2), -1.0).exp())
    assert any(isinstance(module, nn.ReLU) for module in policy.modules())


def test_pickle_and_deepcopy_after_use() -> None:
    policy = make_policy(VECTOR, REACH, policy_kwargs=SMALL)
    obs = torch.rand(B, 4)
    expected = policy(obs)  # leaves no graph behind that could not be copied
    torch.testing.assert_close(copy.deepcopy(policy)(obs), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(policy))(obs), expected)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (Dict({"x": VECTOR}), REACH, "observation_space must be a Box or a Discrete.*FlattenObservation"),
        (MultiBinary(3), REACH, "observation_space must be a Box or a Discrete"),
        (VECTOR, Dict({"x": REACH}), "action_space must be a Box, a Discrete, a MultiDiscrete or a MultiBinary"),
        (VECTOR, MultiBinary((2, 2)), "action_space must be a MultiBinary of one dimension"),
        (VECTOR, MultiDiscrete([[2, 3]]), "action_space must be a MultiDiscrete of one dimension"),
        (VECTOR, MultiDiscrete([2, 3], start=[0, 1]), "action_space must be a MultiDiscrete that starts at 0"),
        (VECTOR, Discrete(3, start=1), "action_space must be a Discrete that starts at 0"),
        (Discrete(3, start=-1), CHOICE, "observation_space must be a Discrete that starts at 0"),
        (VECTOR, Box(-1, 1, (2, 2)), "action_space must be a Box of one dimension"),
        (IMAGE, CHOICE, "at least 36 x 36 pixels"),
    ],
)
def test_spaces_that_are_refused(observation_space: Any, action_space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(observation_space, action_space)


class Failing(BaseFeaturesExtractor):
    def __init__(self, observation_space: gymnasium.Space[Any]) -> None:
        super().__init__(observation_space, 8)
        raise RuntimeError("no weights at hand")


def test_a_failing_features_extractor_says_what_failed() -> None:
    """Every RuntimeError was an image of fewer than 36 x 36 pixels."""
    for space in (VECTOR, IMAGE):
        with pytest.raises(ValueError, match="Failing raised RuntimeError: no weights at hand") as error:
            make_policy(space, REACH, policy_kwargs={"features_extractor_class": Failing})
        assert "36" not in str(error.value)


def test_the_old_form_of_net_arch_is_today_s_with_a_warning() -> None:
    arch = {"pi": [5], "vf": [6]}
    with pytest.warns(UserWarning, match="write net_arch=") as caught:
        old = make_policy(VECTOR, REACH, policy_kwargs={"net_arch": [arch]}, seed=3)
    assert caught[0].filename == __file__
    new = make_policy(VECTOR, REACH, policy_kwargs={"net_arch": arch}, seed=3)
    assert all(torch.equal(x, new.state_dict()[key]) for key, x in old.state_dict().items())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"net_arc": [8]}, "got 'net_arc'; did you mean 'net_arch'"),
        ({"use_sde": True}, "'use_sde'.* must be False"),
        ({"squash_output": True}, "'squash_output'.* must be False"),
        ({"lr_schedule": None}, "policy_kwargs must have names among"),
        *(({"net_arch": [units]}, f"net_arch.*must be an integer.*{units}") for units in (-1, 0, 2.5, True, "8")),
        ({"net_arch": {"pi": [8], "vf": [-1]}}, "net_arch.*-1"),
        ({"net_arch": {"actor": [8]}}, "net_arch.* must be a list of layers"),
        ({"net_arch": 64}, "net_arch.* must be a list of layers"),
        ({"net_arch": [8, {"pi": [8]}]}, "shared layers"),
        ({"activation_fn": "tanh"}, r"activation_fn.*did you mean torch.nn.Tanh\?"),
        ({"activation_fn": torch.tanh}, "activation_fn.*class derived from Module"),
        ({"features_extractor_class": nn.Linear}, "features_extractor_class.*BaseFeaturesExtractor"),
        ({"optimizer_class": "adam"}, "optimizer_class.*did you mean torch.optim.Adam"),
        ({"log_std_init": "-1"}, "log_std_init.*finite number"),
        ({"features_extractor_kwargs": {"no_such": 1}}, "raised TypeError.*no_such"),
        ("net_arch", "policy_kwargs must be a mapping"),
    ],
)
def test_policy_kwargs_that_are_refused(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(VECTOR, REACH, policy_kwargs=kwargs)
