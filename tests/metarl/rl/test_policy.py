"""The recorded forward of all tasks against the plain one and a loop over tasks."""

import logging
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call

from metarl import tree
from metarl.agents import make_policy
from metarl.engine import Engine, records
from metarl.engine.program import Program
from metarl.engine.records import StepRecord
from metarl.rl import Actor, DiagonalGaussian, policy_params
from metarl.rl.policy import shared_state, stacked_forward
from metarl.types import Params

OBSERVATIONS = spaces.Box(-1, 1, (3,))


@pytest.fixture(autouse=True)
def engine() -> Iterator[Engine]:
    torch.manual_seed(0)
    with Engine().current() as engine:
        yield engine


class Own(nn.Module):
    """A user's network: nested modules, a scale that depends on the state, an unused head, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ELU())
        self.heads = nn.ModuleDict({"loc": nn.Linear(8, 2), "scale": nn.Linear(8, 2), "value": nn.Linear(8, 1)})
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(obs)
        loc = self.heads["loc"](hidden) * self.gain.exp() * torch.tensor([1.0, 2.0])
        return loc, nn.functional.softplus(self.heads["scale"](hidden)) + 0.1


class WithBuffer(nn.Module):
    """A network with something beside its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("mean", torch.full((3,), 0.5))

    def forward(self, obs: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(obs - self.mean),)


POLICIES: dict[str, Callable[[], nn.Module]] = {
    "box": lambda: make_policy(OBSERVATIONS, spaces.Box(-1, 1, (2,)), policy_kwargs={"net_arch": [8, 8]}),
    "discrete": lambda: make_policy(OBSERVATIONS, spaces.Discrete(4), policy_kwargs={"net_arch": []}),
    "own": Own,
    "buffer": WithBuffer,
    "linear": lambda: nn.Sequential(nn.Linear(3, 4), Tupled()),
}


class Tupled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,)


def stacked(policy: nn.Module, num_tasks: int = 3, seed: int = 0) -> Params:
    generator = torch.Generator().manual_seed(seed)
    params = policy_params(policy, torch.zeros(1, 3))
    return {k: v + 0.3 * torch.randn(num_tasks, *v.shape, generator=generator) for k, v in params.items()}


def actor(policy: nn.Module) -> Actor:
    return Actor(policy, DiagonalGaussian(2))


def check(policy: nn.Module, forward: Callable[[Tensor], tuple[Tensor, ...]], params: Params, obs: Tensor) -> None:
    """`forward`, the vmapped forward and a loop over tasks agree."""
    looped = [functional_call(policy, tree.take(params, i), (obs[i],)) for i in range(len(obs))]
    wanted = [torch.stack(column) for column in zip(*looped, strict=True)]
    for got in (forward(obs), stacked_forward(policy, params, shared_state(policy, params), obs)):
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", POLICIES)
def test_bind_equals_a_loop_over_tasks(name: str) -> None:
    policy = POLICIES[name]()
    acts, obs = actor(policy), torch.randn(2, 3, 5, 3)
    first, second = stacked(policy, seed=1), stacked(policy, seed=2)
    with acts.bind(first, obs[0]) as one, acts.bind(second, obs[0]) as other:  # before any call: none leaks
        for forward, params in ((one, first), (other, second)):
            check(policy, forward, params, obs[0])
            check(policy, forward, params, obs[1])  # other observations than it was bound with


@pytest.mark.parametrize("name", POLICIES)
def test_tasks_that_share_their_parameters(name: str) -> None:
    policy = POLICIES[name]()
    params, obs = tree.broadcast(tree.take(stacked(policy), 0), 3), torch.randn(3, 5, 3)
    with actor(policy).bind(params, obs) as forward:
        check(policy, forward, params, obs)


@pytest.mark.parametrize("name", ["box", "discrete", "own"])
def test_the_value_network_is_left_out(name: str) -> None:
    params = policy_params(POLICIES[name](), torch.zeros(1, 3))
    assert params
    assert not [key for key in params if "value" in key]
    assert not any(leaf.requires_grad for leaf in params.values())


def test_the_order_is_the_modules_own_and_frozen_parameters_stay_out() -> None:
    policy = Own()
    policy.gain.requires_grad_(False)
    names = [name for name, _ in policy.named_parameters() if "value" not in name and name != "gain"]
    assert list(policy_params(policy, torch.zeros(1, 3))) == names


def test_params_are_copies() -> None:
    policy = WithBuffer()
    policy_params(policy, torch.zeros(1, 3))["layer.bias"].fill_(7.0)
    assert (policy.layer.bias != 7.0).all()


def test_what_depends_on_the_parameters_alone_is_computed_once(engine: Engine) -> None:
    policy, obs = POLICIES["box"](), torch.randn(3, 5, 3)
    acts = actor(policy)
    with acts.bind(stacked(policy), obs):
        pass
    (record,) = engine._cache
    assert isinstance(record, StepRecord)
    (program,) = record.idle
    assert isinstance(program, Program)
    once, always = ([call.name for call in calls] for calls in (program.once, program.always))
    assert "exp" in once  # the scale is exp(log_std)
    assert "exp" not in always
    assert "tanh" in always


def test_recorded_once_per_shape(engine: Engine) -> None:
    policy = POLICIES["box"]()
    acts = actor(policy)
    for num_tasks, episodes, wanted in [(3, 5, 1), (3, 5, 1), (2, 5, 2), (3, 4, 3), (3, 5, 3)]:
        params, obs = stacked(policy, num_tasks), torch.randn(num_tasks, episodes, 3)
        with acts.bind(params, obs) as forward:
            check(policy, forward, params, obs)
        assert len(engine._cache) == wanted
    doubled, obs = {k: v.double() for k, v in stacked(policy).items()}, torch.randn(3, 5, 3).double()
    with acts.bind(doubled, obs) as forward:
        check(policy, forward, doubled, obs)


def test_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no tracing today")

    monkeypatch.setattr(records, "trace", refuse)
    policy, obs = Own(), torch.randn(3, 5, 3)
    params, acts = stacked(policy), actor(policy)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):  # tried once
            with acts.bind(params, obs) as forward:
                check(policy, forward, params, obs)
    assert [r.message for r in caplog.records] == ["the policy cannot be recorded, which is slower: no tracing today"]


def test_falls_back_where_the_record_is_wrong(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(self: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [x + 1 for x in right(self, inputs)]

    right = Program.run
    monkeypatch.setattr(Program, "run", wrong)
    policy, obs = Own(), torch.randn(3, 5, 3)
    params = stacked(policy)
    with actor(policy).bind(params, obs) as forward:
        check(policy, forward, params, obs)
    assert "cannot be recorded" in caplog.text


def test_buffers_and_frozen_parameters_are_as_they_are_now(caplog: pytest.LogCaptureFixture) -> None:
    policy, obs = WithBuffer(), torch.randn(3, 5, 3)
    policy.layer.bias.requires_grad_(False)
    acts = actor(policy)
    for mean in (0.5, -2.0):  # the second time the record is an old one
        policy.mean.fill_(mean)
        with acts.bind(stacked(policy), obs) as forward:
            check(policy, forward, stacked(policy), obs)
    assert "cannot be recorded" not in caplog.text
