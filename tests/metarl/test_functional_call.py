"""Calling a module at given parameters, also where it holds one module, or one parameter, under several names."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.envs import GridWorld
from metarl.functional_call import call
from metarl.rl import ReinforcementLearning
from metarl.tree import broadcast

X = torch.linspace(-1, 1, 6).reshape(2, 3)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.b(self.a(x).tanh()))


class SameModule(Plain):
    """As SB3's policies: one module, three names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.a
        self.inner = nn.ModuleList([self.a])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.b(self.inner[0](self.again(x).tanh())))


class SameParameter(Plain):
    """Tied weights: two modules, one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.b.weight = self.a.weight


@pytest.mark.parametrize("module_class", [Plain, SameModule, SameParameter])
def test_the_same_as_a_module_that_has_these_parameters(module_class: type[Plain]) -> None:
    module = module_class()
    params = {name: torch.randn_like(leaf) for name, leaf in module.named_parameters()}
    other = copy.deepcopy(module)
    with torch.no_grad():
        for name, leaf in other.named_parameters():
            leaf.copy_(params[name])
    torch.testing.assert_close(call(module, params, X), other(X), rtol=0, atol=0)
    buffers = {"norm.running_mean": torch.ones(3)}
    other.norm.running_mean.fill_(1.0)
    torch.testing.assert_close(call(module, {**params, **buffers}, X), other(X), rtol=0, atol=0)


@pytest.mark.parametrize("module_class", [Plain, SameModule, SameParameter])
def test_the_module_is_as_before_also_after_vmap_and_grad(module_class: type[Plain]) -> None:
    module = module_class()
    before = [(name, leaf, leaf.detach().clone()) for name, leaf in module.named_parameters(remove_duplicate=False)]
    params = broadcast({name: leaf.detach() for name, leaf in module.named_parameters()}, 4)
    vmap(grad(lambda w: call(module, w, X).square().sum()))(params)
    now = dict(module.named_parameters(remove_duplicate=False))
    assert all(now[name] is leaf for name, leaf, _ in before)
    assert all(torch.equal(now[name], value) for name, _, value in before)


def test_torch_s_own_leaves_a_tensor_of_the_vmap_behind() -> None:
    """Why there is one of ours; when this fails, torch has mended it."""
    module = SameModule()
    params = broadcast({name: leaf.detach() for name, leaf in module.named_parameters()}, 4)
    original = module.a.weight
    vmap(lambda w: functional_call(module, w, (X,)))(params)
    assert module.a.weight is not original


def test_a_policy_for_images_can_be_used_again_after_a_rollout() -> None:
    tasks = GridWorld(horizon=3, image=True)
    policy = make_policy(tasks.observation_space, tasks.action_space)
    source = ReinforcementLearning(tasks, policy, episodes=2, baseline="time")
    first = source.initial_params()
    learner = MetaLearner(source, meta_batch_size=2, seed=0).learn(1)
    again = source.initial_params()
    assert all(torch.equal(first[name], again[name]) for name in first)
    twin = MetaLearner(source, meta_batch_size=2, seed=0).learn(1)
    assert all(torch.equal(learner.params[name], twin.params[name]) for name in learner.params)
    loc = policy(torch.from_numpy(np.zeros((1, *tasks.observation_space.shape), np.uint8)))[0]
    assert loc.shape == (1, 5)


def test_weights_that_are_tied_later() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    x = torch.ones(1, 2)
    call(net, dict(net.named_parameters()), x)
    net[1].weight = net[0].weight
    doubled = {"0.weight": 2 * torch.eye(2)}
    assert torch.equal(call(net, doubled, x), 4 * x)


def test_threads_that_call_one_module() -> None:
    """Each gets what its parameters give, whatever the other puts into the module meanwhile."""
    net = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(8)])
    x, wrong = torch.ones(1, 4), list[float]()

    def work(factor: float) -> None:
        params = {name: factor * torch.eye(4) for name, _ in net.named_parameters()}
        wrong.extend(factor for _ in range(300) if not torch.equal(call(net, params, x), factor**8 * x))

    threads = [threading.Thread(target=work, args=(factor,)) for factor in (1.0, 2.0, 3.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
