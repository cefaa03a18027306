"""Proximal epochs against plain autograd of the whole objective, written down on its own; and mutants of every part."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Normal
from torch.distributions import kl_divergence as torch_kl
from torch.func import functional_call

from metarl import make_method
from metarl.agents import make_policy
from metarl.envs import GridWorld, Navigation
from metarl.learned_rules import META, hide_meta, visible
from metarl.outer import Method
from metarl.rl import ReinforcementLearning, surrogates
from metarl.step import MeanGrad, ProximalStep, average, proximal, replay
from metarl.types import Batch, OuterUpdate, Params, Role, TaskBatch
from metarl.wrappers import RecordDraws, RecordedDraw, ReplayDraws
from tests.metarl.test_learned_rules import alpha_of

ALPHA, CLIP, ETA = 0.5, 0.1, 0.3
DEFINED = ("maml", "multi_step_maml", "fo_maml", "hf_maml", "sign_maml", "maml_plus_plus")
DEFINED += ("binom_maml", "ggs_maml", "multitask")
NAVIGATION = Navigation(horizon=6)


def source(kind: str = "box", **options: Any) -> ReinforcementLearning:
    tasks: Any = NAVIGATION if kind == "box" else GridWorld(horizon=6)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]}).double()
    with torch.no_grad():  # away from zero, where actions hardly depend on the first layer
        for leaf in policy.parameters():
            leaf.add_(0.3 * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(leaf.numel())))
    return ReinforcementLearning(tasks, policy, **{"episodes": 4, **options})


class Moves:
    """Two epochs from random parameters; SGD shows the gradient of the second one, at the moved point."""

    def __init__(
        self,
        method: Method,
        made: ReinforcementLearning,
        rate: float = 0.3,
        update: OuterUpdate | None = None,
        again: OuterUpdate | None = None,
        **options: Any,
    ) -> None:
        self.source = made
        updates = [update or method.update, again or update or method.update]
        self.start = method.initial_params(made)
        step = ProximalStep(
            self.start,
            method,
            epochs=2,
            learning_rate=rate,
            optimizer=torch.optim.SGD,
            **{"clip": CLIP, "kl_coefficient": ETA, **options},
        )
        self.recording = RecordDraws(made.sample(3, np.random.default_rng(0)))
        self.points: list[Params] = []

        def update(params: Params, tasks: TaskBatch) -> MeanGrad:
            self.points.append(params)
            return average(updates[len(self.points) - 1](params, hide_meta(tasks, params), method.inner))

        self.stepped = step(self.start, self.recording, update)
        rates = {k: rate * (ALPHA if k.startswith(META) else 1) for k in self.start}  # see `OptimizerStep`
        self.moved = self.points[1]
        self.found = {k: (self.moved[k] - self.stepped.params[k]) / rates[k] for k in self.start}

    def draws(self, role: str) -> list[RecordedDraw]:
        return [draw for draw in self.recording.draws if draw.role == role]


# The objective of one task, in plain torch.


def policy_of(made: ReinforcementLearning, w: Params, batch: Batch) -> Distribution:
    outputs = functional_call(made.policy, w, batch["obs"].flatten(0, 1))  # type: ignore[arg-type]
    shape = batch["mask"].shape
    if len(outputs) == 1:
        return Categorical(logits=outputs[0].view(*shape, -1))
    return Normal(*(x.view(*shape, -1) for x in outputs))


def log_probs(made: ReinforcementLearning, w: Params, batch: Batch) -> Tensor:
    found = policy_of(made, w, batch).log_prob(batch["actions"])
    return found.sum(-1) if found.dim() > batch["mask"].dim() else found


def surrogate(made: ReinforcementLearning, w: Params, batch: Batch, clip: float = math.inf) -> Tensor:
    r = torch.exp(log_probs(made, w, batch) - batch["log_probs"])
    gain = torch.where(batch["advantages"] > 0, r.clamp(max=1 + clip), r.clamp(min=1 - clip))
    return (gain * batch["advantages"] * batch["mask"]).sum() / batch["mask"].numel()


def divergence(made: ReinforcementLearning, old: Params, new: Params, batch: Batch) -> Tensor:
    found = torch_kl(policy_of(made, old, batch), policy_of(made, new, batch))
    found = found.sum(-1) if found.dim() > batch["mask"].dim() else found
    return (found * batch["mask"]).sum() / batch["mask"].sum()


def gradient(value: Tensor, w: Params, second: bool) -> Params:
    return dict(zip(w, torch.autograd.grad(value, list(w.values()), create_graph=second), strict=True))


def minus_objective(
    moves: Moves, leaves: Params, task: int, *, kind: str | None = None, second: bool = True, sign: bool = False
) -> Tensor:
    """-J(w) of one task: adaptation with a graph, the clipped surrogates and the penalty."""
    made, inner, outer = moves.source, moves.draws("inner"), moves.draws("outer")
    w = visible(leaves)
    total = torch.zeros((), dtype=torch.float64)
    for step, draw in enumerate(inner):
        batch, old = of(draw.batch, task), of(draw.params, task)
        total = total + ETA / len(inner) * divergence(made, old, w, batch)
        grads = gradient(surrogate(made, w, batch), w, second)
        alpha = {k: ALPHA if kind is None else alpha_of(leaves, kind, k, step) for k in w}
        w = {k: w[k] + alpha[k] * (grads[k].sign() if sign else grads[k]) for k in w}
        if len(outer) > 1 or step == len(inner) - 1:  # several losses have equal weights at first
            end = outer[step if len(outer) > 1 else 0]
            total = total - surrogate(made, w, of(end.batch, task), CLIP) / len(outer)
    return total


def of(stacked: Batch, task: int) -> Batch:
    return {k: leaf[task] for k, leaf in stacked.items()}


def by_autograd(moves: Moves, **options: Any) -> Params:
    leaves = {k: v.clone().requires_grad_() for k, v in moves.moved.items()}
    values = [minus_objective(moves, leaves, task, **options) for task in range(3)]
    return gradient(torch.stack(values).mean(), leaves, False)


def by_hand(moves: Moves) -> Params:
    """The same with Hessians on D_h: the gradients at every point, pulled back by dense products."""
    made, inner = moves.source, moves.draws("inner")
    hessian, (end,) = moves.draws("hessian")[::-1], moves.draws("outer")
    found = []
    for task in range(3):
        points = [{k: v.clone().requires_grad_() for k, v in moves.moved.items()}]
        for draw in inner:
            grads = gradient(surrogate(made, points[-1], of(draw.batch, task)), points[-1], False)
            points.append({k: (v + ALPHA * grads[k]).detach().requires_grad_() for k, v in points[-1].items()})
        v = gradient(-surrogate(made, points[-1], of(end.batch, task), CLIP), points[-1], False)
        for j in reversed(range(len(inner))):
            w, old = points[j], of(inner[j].params, task)
            slope = gradient(surrogate(made, w, of(hessian[j].batch, task)), w, True)
            dot = torch.stack([(slope[k] * v[k]).sum() for k in w]).sum()
            kl = gradient(divergence(made, old, w, of(inner[j].batch, task)), w, False)
            through = gradient(dot, w, False)
            v = {k: v[k] + ALPHA * through[k] + ETA / len(inner) * kl[k] for k in w}
        found.append(v)
    return {k: torch.stack([v[k] for v in found]).mean(0) for k in moves.moved}


def assert_close(found: Params, wanted: Params, tolerance: float = 1e-8) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=tolerance, atol=tolerance, msg=name)


def check_moved(steps: int, kind: str = "box", data: str = "reuse") -> None:
    rate = 0.3 if kind == "box" else 3.0  # so that clipping binds for some of the actions
    moves = Moves(make_method("maml", ALPHA, steps, hessian_data=data), source(kind), rate)
    assert 0.05 < moves.stepped.info["clip_fraction"] < 0.95
    assert moves.stepped.info["kl_before"] > 1e-3
    assert_close(moves.found, by_autograd(moves) if data == "reuse" else by_hand(moves))


@pytest.mark.parametrize("kind", ["box", "discrete"])
@pytest.mark.parametrize("data", ["reuse", "fresh"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_gradient_at_a_moved_point(steps: int, data: str, kind: str) -> None:
    check_moved(steps, kind, data)


PLAIN = {"maml_plus_plus": {"multi_step_iterations": 0, "second_order_from": 0}}  # MAML++ after its annealing


@pytest.mark.parametrize("kind", ["scalar", "layer-step"])
@pytest.mark.parametrize("name", ["maml", "maml_plus_plus", "fo_maml"])
def test_with_learned_step_sizes(name: str, kind: Any) -> None:
    data = {} if name == "fo_maml" else {"hessian_data": "reuse"}
    method = make_method(name, ALPHA, 2, learn_inner_lr=kind, **data, **PLAIN.get(name, {}))
    moves = Moves(method, source())
    assert any(k.startswith(META) and moves.found[k].abs().max() > 1e-4 for k in moves.found)
    assert_close(moves.found, by_autograd(moves, kind=kind, second=name != "fo_maml"))


@pytest.mark.parametrize("second", [True, False])
def test_several_losses_are_all_clipped(second: bool) -> None:
    """MAML++ in its first iteration; while it counts Hessians as zero, so does the penalty."""
    options = {"multi_step_iterations": 50, "second_order_from": 0 if second else 25, "hessian_data": "reuse"}
    method = make_method("maml_plus_plus", ALPHA, 2, learn_inner_lr=None, **options)
    moves = Moves(method, source(), update=method.at(0))
    assert len(moves.draws("outer")) == 2
    assert_close(moves.found, by_autograd(moves, second=second))


@pytest.mark.parametrize("steps", [1, 2])
def test_first_order_hessian_free_and_sign(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fo = Moves(make_method("fo_maml", ALPHA, steps), source())
    assert_close(fo.found, by_autograd(fo, second=False))
    hf = Moves(make_method("hf_maml", ALPHA, steps), source())
    assert_close(hf.found, by_hand(hf), 1e-5)
    monkeypatch.setitem(globals(), "ALPHA", 0.05)  # of every number
    signs = Moves(make_method("sign_maml", ALPHA, steps), source())
    assert_close(signs.found, by_autograd(signs, sign=True))


@pytest.mark.parametrize(
    ("option", "value", "name", "without"), [("kl_coefficient", 0.0, "ETA", 0.0), ("clip", None, "CLIP", math.inf)]
)
def test_without_penalty_or_clipping(
    option: str, value: float | None, name: str, without: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is told from both, and neither changes the first epoch."""
    method = make_method("maml", ALPHA, hessian_data="reuse")
    whole, part = Moves(method, source()), Moves(method, source(), **{option: value})
    for key, leaf in whole.moved.items():
        assert torch.equal(leaf, part.moved[key])
    with pytest.raises(AssertionError):
        assert_close(part.found, by_autograd(part))
    monkeypatch.setitem(globals(), name, without)
    assert_close(part.found, by_autograd(part))


# Deliberately wrong parts, each of which the gradient at a moved point must reject.


def own_ratio(log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: Tensor) -> Tensor:
    return RIGHT_RATIO(log_probs, log_probs.detach(), advantages, mask, clip)


def wrong_side(log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: Tensor) -> Tensor:
    r = torch.exp(log_probs - old)
    return -(torch.maximum(r * advantages, r.clamp(1 - clip, 1 + clip) * advantages) * mask).mean()


def clamped(log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: Tensor) -> Tensor:
    return -(torch.exp(log_probs - old).clamp(1 - clip, 1 + clip) * advantages * mask).mean()


def of_the_inner_draw(self: ReplayDraws, params: Params, role: Role) -> Batch:
    batch = RIGHT_DRAW(self, params, role)
    if role == "inner":
        self.inner = batch  # type: ignore[attr-defined]
    return {**batch, "log_probs": self.inner["log_probs"]} if role == "outer" else batch  # type: ignore[attr-defined]


def new_hessian_draw(self: ReplayDraws, params: Params, role: Role) -> Batch:
    batch = RIGHT_DRAW(self, params, role)
    return self.tasks.tasks.draw(params, role) if role == "hessian" else batch  # type: ignore[attr-defined]


def swapped(self: surrogates.Losses, old: Params, new: Params, batch: Batch) -> Tensor:
    return RIGHT_KL(self, new, old, batch)


def of_the_adapted(self: replay.Point, multiply: object) -> Params:
    end = self._replay.end
    return replay.divergence_gradients(self._replay.tasks, end.params, self.adapted, end.batch)


def scaled(factor: float) -> Callable[[replay.Point, Any], Params]:
    return lambda self, multiply: {k: factor * v for k, v in RIGHT_GRADIENT(self, multiply).items()}


def with_the_last_hessian(self: replay.Replay, *arguments: Any) -> None:
    RIGHT_REPLAY(self, *arguments)
    self.hessian = [self.hessian[-1], *self.hessian[1:]]


RIGHT_REPLAY = replay.Replay.__init__
RIGHT_RATIO, RIGHT_DRAW, RIGHT_KL = surrogates.clipped_ratio, ReplayDraws.draw, surrogates.Losses.kl
RIGHT_GRADIENT = replay.Point.kl_gradient
MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "ratio against the policy itself": (surrogates, "clipped_ratio", own_ratio),
    "clip on the wrong side": (surrogates, "clipped_ratio", wrong_side),
    "clip on both sides": (surrogates, "clipped_ratio", clamped),
    "ratio against the policy of the inner draw": (ReplayDraws, "draw", of_the_inner_draw),
    "D_h drawn again": (ReplayDraws, "draw", new_hessian_draw),
    "divergence the wrong way round": (surrogates.Losses, "kl", swapped),
    "penalty of the adapted policies": (replay.Point, "kl_gradient", of_the_adapted),
    "wrong sign of the penalty": (replay.Point, "kl_gradient", scaled(-1.0)),
    "sum over inner steps": (replay.Point, "kl_gradient", scaled(2.0)),
    "penalty not pulled back": (proximal.RecordUpdate, "multiply", lambda *_: None),
    "another step's D_h in the penalty": (replay.Replay, "__init__", with_the_last_hessian),
}


@pytest.mark.parametrize(("where", "name", "wrong"), MUTANTS.values(), ids=MUTANTS)
def test_a_wrong_part_is_rejected(where: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError):
        check_moved(2, data="fresh")


def test_an_inner_step_that_is_not_differentiated_again_is_rejected() -> None:
    method, first = make_method("maml", ALPHA, hessian_data="reuse"), make_method("fo_maml", ALPHA)
    moves = Moves(method, source(), again=first.update)
    with pytest.raises(AssertionError):
        assert_close(moves.found, by_autograd(moves))


# Clipped ratios by hand.


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.0, 2, 1), (1.29, 2, 1), (1.31, 2, 0), (0.5, 2, 1), (1.29, -2, 1), (0.71, -2, 1), (0.69, -2, 0), (1.5, -2, 1)],
)
def test_a_ratio_outside_the_range_has_no_gradient_where_clipping_binds(
    ratio: float, advantage: float, slope: float
) -> None:
    log_prob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old, mask, clip = torch.zeros(1, dtype=torch.float64), torch.ones(1), torch.tensor(0.3, dtype=torch.float64)
    credit = torch.tensor([advantage], dtype=torch.float64)
    loss = surrogates.clipped_ratio(log_prob, old, credit, mask, clip)
    (found,) = torch.autograd.grad(loss, log_prob)
    assert found.item() == pytest.approx(-slope * ratio * advantage)
    assert loss.item() == pytest.approx(-advantage * (ratio if slope else (1.3 if advantage > 0 else 0.7)))


def test_the_share_of_clipped_ratios() -> None:
    made = source()
    stacked = {k: v[None] for k, v in made.initial_params().items()}
    tasks = made.sample(1, np.random.default_rng(0))
    batch = of(tasks.draw(stacked, "outer"), 0)
    moved = {k: v[0] + 0.2 for k, v in stacked.items()}
    batch["mask"] = batch["mask"].clone()
    batch["mask"][0, 3:] = 0
    r = torch.exp(log_probs(made, moved, batch) - batch["log_probs"])[batch["mask"] > 0]
    wanted = (((r < 0.9) | (r > 1.1)).sum() / r.numel()).item()
    assert 0.1 < wanted < 0.9
    assert tasks.clipped_share(moved, batch, torch.tensor(0.1)).item() == pytest.approx(wanted)
