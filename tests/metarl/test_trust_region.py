"""The trust region against dense matrices by autograd, `torch.distributions` and closed forms.

Each check is also given wrong formulas, which it must reject.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarl import Inner, MetaLearner, Method, make_method
from metarl.envs import GaussianBandit
from metarl.errors import NonFiniteError
from metarl.inner import sgd
from metarl.outer import OUTER, outer_gradient
from metarl.rl import ReinforcementLearning
from metarl.step import MeanGrad, Stepped, TrustRegionStep, average
from metarl.step.replay import Replay
from metarl.step.trust_region import conjugate_gradients
from metarl.supervised.sinusoid import Sinusoids
from metarl.tree import add_scaled, norm, subtract, tree_map
from metarl.types import Params, TaskBatch
from metarl.wrappers import RecordDraws, RecordedDraw, ReplayDraws, TaskWrapper
from tests.reference.problems import reinforcement_learning, source
from tests.reference.replays import ALPHA, UPDATES, Recorded, close

# The step.


def take_step(recorded: Recorded, params: Params | None = None, **options: Any) -> Stepped:
    step = TrustRegionStep(recorded.params, recorded.method, **options)
    tasks = ReplayDraws(recorded.tasks, recorded.draws)
    return step(recorded.params if params is None else params, tasks, recorded.update)


def check_full_step(recorded: Recorded, jacobian: Any = None) -> None:
    """A small step has the wanted divergence, whatever its direction, as long as that is not nearly flat."""
    stepped = take_step(recorded, max_kl=1e-9, cg_iterations=3, damping=0.0, jacobian=jacobian)
    assert stepped.info["kl_full_step"] == pytest.approx(1e-9, rel=0.02)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", ["navigation", "discrete"])
def test_a_full_step_has_the_wanted_divergence(kind: str, steps: int) -> None:
    check_full_step(Recorded(make_method("maml", ALPHA, steps, hessian_data="reuse"), kind))


def test_wrong_steps_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(make_method("maml", ALPHA, hessian_data="reuse"))
    with pytest.raises(AssertionError):
        check_full_step(recorded, "identity")
    for wrong in (
        lambda step, curvature: 2 * step.max_kl / curvature,  # without the root
        lambda step, curvature: math.sqrt(step.max_kl / curvature),  # without the two
    ):
        monkeypatch.setattr(TrustRegionStep, "_length", wrong)
        with pytest.raises(AssertionError):
            check_full_step(recorded)


class TwoScales(nn.Module):
    """Actions with a learned mean and fixed standard deviations, 1/2 and 2: the Fisher matrix is diag(4, 1/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.5, -0.5], dtype=torch.float64))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.mean.expand(len(obs), -1)
        return loc, torch.tensor([0.5, 2.0], dtype=torch.float64).expand_as(loc)


def test_the_direction_in_closed_form() -> None:
    tasks = ReinforcementLearning(GaussianBandit(2), TwoScales(), episodes=20).sample(4, np.random.default_rng(0))
    method, params = make_method("fo_maml", 0.1), {"mean": torch.tensor([0.5, -0.5], dtype=torch.float64)}
    recorder = RecordDraws(tasks)
    meta_grad = average(method.update(params, recorder, method.inner))
    G = meta_grad.grads["mean"]
    x = G / torch.tensor([4.0, 0.25])
    step = TrustRegionStep(params, method, damping=0.0, max_kl=1e-4, cg_tolerance=1e-9)
    found = step(
        params, ReplayDraws(tasks, recorder.draws), lambda w, tasks: average(method.update(w, tasks, method.inner))
    )
    close(found.params["mean"], params["mean"] - math.sqrt(2e-4 / (G @ x)) * x)
    assert found.info["accepted"] == 1
    assert found.info["cg_iterations"] == 2
    assert found.info["expected_improvement"] == pytest.approx(math.sqrt(2e-4 * (G @ x)))


@pytest.mark.parametrize("outer", UPDATES)
@pytest.mark.parametrize("kind", ["navigation", "discrete"])
def test_an_accepted_step_is_within_the_bound_and_better(outer: str, kind: str) -> None:
    recorded = Recorded(make_method(outer, inner_steps=2), kind)
    found = take_step(recorded, max_kl=0.01)
    before, after = (recorded.measure(w) for w in (recorded.params, found.params))
    assert found.info["improvement"] == before.loss - after.loss
    assert found.info["kl"] == after.kl <= 0.01
    if found.info["accepted"]:
        assert after.loss < before.loss
        assert after.kl > 0
    else:
        assert outer in ("e_maml", "ggs_maml")  # a score term that is not in the replayed loss, and random directions


def test_backtracking_by_hand() -> None:
    """The bound on the divergence is passed by a step that is too long; each try is a factor shorter."""
    recorded = Recorded(make_method("maml", ALPHA))
    found = take_step(recorded, max_kl=2.0, backtrack_factor=0.5)
    direction = subtract(recorded.params, found.params)
    k = int(found.info["backtracks"])
    assert k >= 1
    for j, good in ((k, True), (k - 1, False)):
        there = recorded.measure(add_scaled(recorded.params, -(0.5 ** (j - k)), direction))
        assert (there.kl <= 2.0 and there.loss < recorded.measure(recorded.params).loss) == good
    full = recorded.measure(add_scaled(recorded.params, -(2.0**k), direction))
    assert found.info["kl_full_step"] == pytest.approx(full.kl, rel=1e-6)


def check_rejected(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], ascend: bool = False) -> None:
    recorded = Recorded(make_method("maml", ALPHA))
    before = {name: leaf.clone() for name, leaf in recorded.params.items()}
    if ascend:
        update = Recorded.update

        def uphill(self: Recorded, params: Params, tasks: TaskBatch) -> MeanGrad:
            found = update(self, params, tasks)
            return found._replace(grads=tree_map(torch.neg, found.grads))

        monkeypatch.setattr(Recorded, "update", uphill)
    found = take_step(recorded, **options)
    assert (found.info["accepted"], found.info["kl"], found.info["improvement"]) == (0, 0, 0)
    assert all(torch.equal(found.params[name], leaf) for name, leaf in before.items())
    assert all(torch.equal(recorded.params[name], leaf) for name, leaf in before.items())


REJECTED: list[Any] = [({}, True), ({"max_kl": 1e6, "backtracks": 1}, False)]


@pytest.mark.parametrize(("options", "ascend"), REJECTED)
def test_a_rejected_step_leaves_everything(monkeypatch: pytest.MonkeyPatch, options: Any, ascend: bool) -> None:
    check_rejected(monkeypatch, options, ascend)


@pytest.mark.parametrize(("options", "ascend"), REJECTED)
def test_a_step_that_is_not_undone_is_rejected(monkeypatch: pytest.MonkeyPatch, options: Any, ascend: bool) -> None:
    search = TrustRegionStep._search

    def keeps(self: Any, params: Params, step: Params, *rest: Any) -> Any:
        return subtract(params, step), search(self, params, step, *rest)[1]

    monkeypatch.setattr(TrustRegionStep, "_search", keeps)
    with pytest.raises(AssertionError):
        check_rejected(monkeypatch, options, ascend)


class Overflows(TaskWrapper):
    """Gradients overflow after the first `limit` derivatives."""

    def __init__(self, tasks: TaskBatch, limit: float = math.inf) -> None:
        super().__init__(tasks)
        self.limit, self.calls = limit, 0

    def on_derivative(self, kind: Any, result: Params, losses: Tensor | None) -> None:
        self.calls += 1
        if kind == "gradients" and self.calls > self.limit:
            raise NonFiniteError("gradient")


def test_a_step_that_overflows_is_rejected() -> None:
    recorded = Recorded(make_method("maml", ALPHA))
    step = TrustRegionStep(recorded.params, recorded.method)
    tasks = Overflows(ReplayDraws(recorded.tasks, recorded.draws))
    found = step(recorded.params, tasks, recorded.update)
    assert found.info["accepted"] == 1
    searched = found.info["backtracks"] + 1  # each point takes one gradient
    tasks = Overflows(ReplayDraws(recorded.tasks, recorded.draws), tasks.calls - searched)
    found = step(recorded.params, tasks, recorded.update)
    assert found.info["accepted"] == 0
    assert math.isnan(found.info["kl_full_step"])


def test_a_zero_gradient_moves_nothing() -> None:
    recorded = Recorded(make_method("maml", ALPHA))
    step = TrustRegionStep(recorded.params, recorded.method)

    def nothing(params: Params, tasks: TaskBatch) -> MeanGrad:
        found = recorded.update(params, tasks)
        return found._replace(grads=tree_map(torch.zeros_like, found.grads))

    found = step(recorded.params, ReplayDraws(recorded.tasks, recorded.draws), nothing)
    assert all(torch.equal(found.params[name], leaf) for name, leaf in recorded.params.items())
    assert found.info["accepted"] == found.info["cg_residual"] == found.info["cg_iterations"] == 0


def test_conjugate_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    A, b = root @ root.mT + torch.eye(6, dtype=torch.float64), torch.randn(6, generator=generator, dtype=torch.float64)
    sizes = []
    for iterations in range(1, 8):
        found = conjugate_gradients(lambda v: {"x": A @ v["x"]}, {"x": b}, iterations, 1e-12)
        x = found.x["x"]
        assert found.residual == pytest.approx(float((b - A @ x).norm() / b.norm()), abs=1e-10)
        assert found.curvature == pytest.approx(float(x @ A @ x), rel=1e-9)
        sizes.append(found.iterations)
    close(x, torch.linalg.solve(A, b))
    assert sizes == [1, 2, 3, 4, 5, 6, 6]
    early = conjugate_gradients(lambda v: {"x": A @ v["x"]}, {"x": b}, 6, 0.5)
    assert early.iterations < 6
    assert early.residual <= 0.5
    assert float(norm(conjugate_gradients(lambda v: tree_map(torch.neg, v), {"x": b}, 3, 0.0).x)) == 0


# Learners.


def learner(outer: str = "maml", **options: Any) -> MetaLearner:
    method, tasks = make_method(outer), source("navigation")
    step = TrustRegionStep(method.initial_params(tasks), method, **options)
    return MetaLearner.from_parts(tasks, method, step, meta_batch_size=3)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return bool(one == other)


def test_saved_and_loaded_it_goes_on_exactly(tmp_path: Path) -> None:
    options = {"every": 2, "jacobian": "identity", "max_kl": 0.02}
    whole, half = learner(**options).learn(5), learner(**options).learn(2)
    half.save(tmp_path / "checkpoint.pt")
    resumed = MetaLearner.load(tmp_path / "checkpoint.pt", source("navigation"))
    assert isinstance(resumed.outer_step, TrustRegionStep)
    assert equal(resumed.learn(3).state_dict(), whole.state_dict())
    other = MetaLearner.load(tmp_path / "checkpoint.pt", source("navigation"))
    other.outer_step.load_state_dict({"steps": 3})  # other episodes
    assert not equal(other.learn(3).state_dict(), whole.state_dict())


def test_replays_cost_gradients_and_no_samples() -> None:
    counts = learner(cg_iterations=4).learn(1).counts
    assert counts["samples"] == 3 * 3 * 3  # D_in, D_o, D_h: three tasks of three episodes
    assert counts["hessian_vector_products"] == 3 * (1 + 2 * 4)
    assert counts["gradients"] >= 3 * (2 + 1 + 2)


@pytest.mark.parametrize("outer", [name for name in OUTER if name not in UPDATES])
def test_refused_updates(outer: str) -> None:
    with pytest.raises(ValueError, match=f"trust_region needs .* loss after adaptation; {outer} follows another"):
        TrustRegionStep({}, make_method(outer))


def test_refused_sources_and_own_methods() -> None:
    method = Method(lambda w, tasks, inner: outer_gradient(tasks, tree_map(lambda x: x[None], w)), Inner(sgd(0.1)))
    step = TrustRegionStep({}, method)  # allowed: nobody knows what it follows
    with pytest.raises(ValueError, match="needs the policies of reinforcement learning; got"):
        MetaLearner.from_parts(Sinusoids(), make_method("maml"), step)
    with pytest.raises(ValueError, match="every must be at most 3, the number of episodes, got 4"):
        learner(every=4)
    tasks, params = reinforcement_learning("navigation")
    with pytest.raises(ValueError, match=r"must draw an inner batch for each of its 1 steps.*'inner': 0, 'outer': 1"):
        Replay(tasks, [RecordedDraw("outer", params, {})], method.inner)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_kl": 0.0}, "max_kl must .* got 0"),
        ({"cg_iterations": 0}, "cg_iterations must .* got 0"),
        ({"cg_tolerance": -1.0}, "cg_tolerance must .* got -1"),
        ({"damping": math.nan}, "damping must"),
        ({"backtrack_factor": 1.5}, "backtrack_factor must .* got 1.5"),
        ({"backtracks": 0}, "backtracks must .* got 0"),
        ({"jacobian": "exakt"}, "jacobian must .* did you mean 'exact'"),
        ({"every": 0}, "every must .* got 0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrustRegionStep({}, make_method("maml"), **options)
