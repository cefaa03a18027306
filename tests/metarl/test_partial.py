"""Partial adaptation, against dense matrices and autograd through masked steps; wrong formulas are rejected."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarl import MetaLearner, Method, make_method
from metarl.agents import make_context_policy, make_policy
from metarl.context import WithContext
from metarl.derivatives import gradients
from metarl.engine import Engine
from metarl.envs import Navigation
from metarl.inner import adapt, restart_sgd, rule_pull_back
from metarl.learned_rules import META, STEP_SIZES, hide_meta
from metarl.outer import OUTER, outer_gradient
from metarl.partial import Partial, matching
from metarl.rl import ReinforcementLearning
from metarl.supervised import FiniteSumTaskBatch
from metarl.supervised.networks import TransductiveBatchNorm, mlp
from metarl.supervised.sinusoid import Sinusoids
from metarl.tree import broadcast
from metarl.types import Inner, MetaGrad, Params, TaskBatch
from tests.metarl.test_learned_rules import LEARNING, alpha_of, assert_equal
from tests.reference import checks, updates
from tests.reference.checks import one, ravel
from tests.reference.problems import PROBLEMS, ReferenceProblem, with_particles
from tests.reference.updates import Answer, Data, Step, gradient, hessian, kernel_step, path

ALPHA, N, LAM = 0.1, 3, 5.0
HEADS = {"regression": ("*_2",), "navigation": ("head", "*log_std"), "discrete": ("head",)}
"""The patterns of each problem."""


def mask_of(problem: ReferenceProblem, patterns: tuple[str, ...]) -> Tensor:
    """1 for the numbers that are adapted, found without the library's patterns."""
    ends = {"*_2": "_2", "head": ("action_net.weight", "action_net.bias"), "*log_std": "log_std"}
    chosen = {k for k in problem.params if any(k.endswith(ends[pattern]) for pattern in patterns)}
    return ravel({k: torch.full_like(v, float(k in chosen)) for k, v in problem.params.items()})


def particles(name: str) -> int:
    return 3 if name == "bmaml" else 0


# The references: a mask on flat vectors, and whole dense matrices.


def masked(step: Step, mask: Tensor) -> Step:
    return lambda w, g, anchor: w + mask * (step(w, g, anchor) - w)


def product(w: Tensor, data: Data, mask: Tensor, fresh: bool = True) -> Answer:
    points = path(masked(updates.sgd_step(ALPHA), mask), w, data)
    identity = torch.eye(len(w), dtype=w.dtype)
    v = gradient(data.outer, points[-1])
    for z, f in reversed(list(zip(points[:-1], data.hessian if fresh else data.inner, strict=True))):
        v = (identity - ALPHA * hessian(f, z) @ torch.diag(mask)) @ v
    return Answer(v, points, points[-2::-1] if fresh else [])


def at_the_end(w: Tensor, data: Data, mask: Tensor, step: Step) -> Answer:
    points = path(masked(step, mask), w, data)
    return Answer(gradient(data.outer, points[-1]), points, [])


def implicit(w: Tensor, data: Data, mask: Tensor) -> Answer:
    """phi = w - M grad f(phi) / lam, so d phi / d w = (I + M H / lam)^-1 as a whole matrix."""
    points = path(masked(updates.prox_step(ALPHA, LAM), mask), w, data)
    matrix = torch.eye(len(w), dtype=w.dtype) + torch.diag(mask) @ hessian(data.hessian[-1], points[-1]) / LAM
    return Answer(torch.linalg.solve(matrix.T, gradient(data.outer, points[-1])), points, [points[-1]])


def sampled(w: Tensor, data: Data, mask: Tensor) -> Answer:
    """Autograd through the masked steps, and through the log-likelihoods of all parameters."""
    s = data.sampled
    assert s is not None
    leaf = w.clone().requires_grad_()
    points, total = [leaf], torch.zeros((), dtype=w.dtype)
    for f, log_likelihood in zip(s.frozen, s.log_likelihood, strict=True):
        total = total + s.outcome * log_likelihood(points[-1]).sum()
        g = torch.autograd.grad(f(points[-1]), points[-1], create_graph=True)[0]
        points.append(points[-1] - ALPHA * mask * g)
    g = torch.autograd.grad(data.outer(points[-1]) + total, leaf)[0]
    return Answer(g, [p.detach() for p in points], [])


def linearised(w: Tensor, data: Data, mask: Tensor) -> Answer:
    """A dense Hessian of the frozen loss, and each trajectory credited with what it moves of the adapted numbers."""
    s, points = data.sampled, path(masked(updates.sgd_step(ALPHA), mask), w, data)
    assert s is not None
    v = gradient(data.outer, points[-1])
    for j in reversed(range(len(s.frozen))):
        z, n = points[j], len(s.parts[j])
        credits = [-ALPHA / n * (gradient(part, z) @ (mask * v)) for part in s.parts[j]]
        v = v - ALPHA * hessian(s.frozen[j], z) @ (mask * v)
        for i, credit in enumerate(credits):
            v = v + credit * gradient(lambda x, i=i, f=s.log_likelihood[j]: f(x)[i], z)
    return Answer(v, points, [])


def smoothed(w: Tensor, data: Data, mask: Tensor) -> Answer:
    """Directions of the adapted numbers alone."""
    points = path(masked(updates.sgd_step(ALPHA), mask), w, data)
    v, chosen = gradient(data.outer, points[-1]), mask.bool()
    for number, (z, f) in enumerate(reversed(list(zip(points[:-1], data.hessian, strict=True)))):
        u = torch.zeros_like(z)
        u[chosen] = data.normal(number, 0, like=int(mask.sum()))
        difference = (gradient(f, z + 0.1 * u) - gradient(f, z - 0.1 * u)) / 0.2
        v = v - ALPHA * difference * (u @ v)
    return Answer(v, points, points[-2::-1])


def bayesian(w: Tensor, data: Data, mask: Tensor) -> Answer:
    """The chaser loss; the kernel compares the adapted numbers of the particles."""
    assert data.particles is not None
    where = data.particles[:, mask[data.particles[0]].bool()]

    def step(flat: Tensor, g: Tensor, temperature: float) -> Tensor:
        moved = kernel_step(flat[where], g[where], ALPHA * temperature, temperature, 0.0)
        return flat.index_put((where.flatten(),), moved.flatten())

    def slope(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
        return torch.autograd.grad(f(at), at, create_graph=True)[0]

    leaf = w.clone().requires_grad_()
    points = [leaf]
    for f in data.inner:
        points.append(step(points[-1], slope(f, points[-1]), 0.3))
    (n, o), end = data.sizes, points[-1]
    both = slope(lambda x: (n * data.inner[-1](x) + o * data.outer(x)) / (n + o), end)
    loss = (end - step(end, both, 0.3 * n / (n + o)).detach()).square().sum()
    return Answer(torch.autograd.grad(loss, leaf)[0], [p.detach() for p in points], [])


Reference = Callable[[Tensor, Data, Tensor], Answer]

PLAIN: dict[str, Any] = {"learn_inner_lr": None, "per_step_norm": False}

ROWS: list[tuple[str, Reference, dict[str, Any]]] = [
    ("maml", product, {}),
    ("maml", functools.partial(product, fresh=False), {"hessian_data": "reuse"}),
    ("multi_step_maml", product, {}),
    ("maml_plus_plus", product, PLAIN),
    ("binom_maml", product, {"order": N}),
    ("hf_maml", product, {}),
    ("ggs_maml", smoothed, {"directions": 1, "smoothing": 0.1}),
    ("lsf", linearised, {}),
    ("fo_maml", functools.partial(at_the_end, step=updates.sgd_step(ALPHA)), {}),
    ("sign_maml", functools.partial(at_the_end, step=updates.sign_step(ALPHA)), {}),
    ("moreau", functools.partial(at_the_end, step=updates.restart_step(ALPHA)), {}),
    ("imaml", implicit, {"lam": LAM, "cg_steps": 30}),
    ("e_maml", sampled, {"baseline": "none"}),
    ("bmaml", bayesian, {"temperature": 0.3}),
]
rows = pytest.mark.parametrize(("name", "reference", "options"), ROWS, ids=lambda x: x if isinstance(x, str) else "")


def check(method: Method, reference: Reference, problem: str = "regression", rtol: float = 1e-9) -> None:
    """Every meta-gradient is the reference's."""
    new = with_particles(PROBLEMS[problem], 3 if method.needs_particles else 0)
    mask = mask_of(new(), HEADS[problem])
    checks.equals_reference(method, lambda w, data: reference(w, data, mask), new, rtol)


def make(name: str, options: dict[str, Any], problem: str = "regression") -> Method:
    return make_method(name, ALPHA, N, adapt=HEADS[problem], **options)


@pytest.mark.parametrize("name", sorted(OUTER))
def test_every_update_has_a_row_or_refuses(name: str) -> None:
    if name in {row[0] for row in ROWS} | {"multitask", "es_maml"}:  # these two have tests in test_estimators.py
        return
    with pytest.raises(ValueError, match=rf"adapt does not apply to '{name}': its meta-gradient is zero for"):
        make_method(name, adapt="head")


@rows
def test_on_finite_sums(name: str, reference: Reference, options: dict[str, Any]) -> None:
    check(make(name, options), reference, rtol=1e-6 if name == "hf_maml" else 1e-9)


@pytest.mark.parametrize("problem", ["navigation", "discrete"])
@pytest.mark.parametrize(
    ("name", "reference", "options"),
    [row for row in ROWS if not particles(row[0])],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_on_recorded_draws(name: str, reference: Reference, options: dict[str, Any], problem: str) -> None:
    new = PROBLEMS[problem]
    mask = mask_of(new(), HEADS[problem])
    rtol = 1e-6 if name == "hf_maml" else 1e-9
    method = make(name, options, problem)
    checks.equals_reference_on_its_draws(method, lambda w, data: reference(w, data, mask), new, rtol)


@rows
def test_shared_properties(name: str, reference: Reference, options: dict[str, Any]) -> None:
    method, new = make(name, options), with_particles(PROBLEMS["regression"], particles(name))
    checks.replays_bit_for_bit(method, new)
    if name != "ggs_maml":  # directions by the task's number
        checks.stacked_equals_loop(method, new)
    checks.leaves_parameters_alone(method, new)
    checks.close_in_float32(method, new, {"hf_maml": 1e-2, "ggs_maml": 1e-4}.get(name, 1e-5))
    with Engine(record=True).current():
        recorded = checks.run(method, new())
    checks.assert_same(recorded, checks.run(method, new()))


@pytest.mark.parametrize("kind", STEP_SIZES)
@pytest.mark.parametrize("name", LEARNING)
def test_learned_step_sizes_of_the_adapted_parameters(name: str, kind: Any) -> None:
    """Autograd through the masked steps, with respect to parameters and step sizes."""
    problem, options = PROBLEMS["regression"](), {"per_step_norm": False} if name == "maml_plus_plus" else {}
    method = make_method(name, 0.1, N, adapt="*_2", learn_inner_lr=kind, **options)
    assert method.learned_rule is not None
    meta = method.learned_rule.initial_meta(problem.params)
    assert kind == "scalar" or len(meta) == 2, "no step size for a frozen parameter"
    generator = torch.Generator().manual_seed(0)
    meta = {k: 0.05 + 0.2 * torch.rand(v.shape, generator=generator, dtype=v.dtype) for k, v in meta.items()}
    params = {**problem.params, **meta}
    found = method.update(params, hide_meta(problem.tasks, params), method.inner).grads
    tasks = problem.tasks
    assert isinstance(tasks, FiniteSumTaskBatch)
    for task in range(tasks.num_tasks):
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        w = {k: leaves[k] for k in problem.params}
        for step in range(N):
            own = {k: v for k, v in w.items() if k.endswith("_2")}
            loss = tasks.loss(w, one(tasks.support, task))
            grads = torch.autograd.grad(loss, list(own.values()), create_graph=name != "fo_maml")
            moved = {k: own[k] - alpha_of(leaves, kind, k, step) * g for k, g in zip(own, grads, strict=True)}
            w = {**w, **moved}
        wanted = torch.autograd.grad(tasks.loss(w, one(tasks.query, task)), list(leaves.values()))
        answer = dict(zip(leaves, wanted, strict=True))
        assert_equal(one(found, task), answer, 1e-6 if name == "hf_maml" else 1e-11)


def test_per_step_norm_with_a_head() -> None:
    """The rows of batch normalisation stay meta-parameters; frozen weights stay where they are."""
    network = nn.Sequential(nn.Linear(1, 4), TransductiveBatchNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
    source = Sinusoids(network)
    learner = MetaLearner(source, "maml_plus_plus", inner_steps=2, inner_lr=0.01, adapt="head", meta_batch_size=2)
    assert {k for k in learner.params if k.startswith(META)} == {
        *("meta/inner_lr/3", "meta/per_step/1.weight", "meta/per_step/1.bias")
    }
    before = learner.learn(2).params
    end = learner.adapt(source.sample(2, np.random.default_rng(0)))
    assert torch.equal(end["0.weight"], before["0.weight"].expand(2, -1, -1))
    assert not torch.equal(end["3.weight"], before["3.weight"].expand(2, -1, -1))
    assert torch.equal(end["1.weight"][0], before["meta/per_step/1.weight"][1])
    fixed = learner.evaluate(num_tasks=2, steps=2, step_sizes=[0.1, 0.1], warn=False)
    assert np.isfinite(fixed.scores).all()


def test_the_inner_loop_takes_gradients_of_the_adapted_parameters_alone() -> None:
    problem = PROBLEMS["regression"]()
    w = broadcast(problem.params, problem.tasks.num_tasks)
    batch = problem.tasks.draw(w, "inner")
    own = gradients(problem.tasks, w, batch, ("weight_2", "bias_2"))
    assert list(own) == ["weight_2", "bias_2"]
    everything = gradients(problem.tasks, w, batch)
    assert all(torch.equal(own[k], everything[k]) for k in own)


def test_through_the_anchor() -> None:
    """A rule that starts again at the anchor: frozen parameters have no share in it."""
    rule = Partial(restart_sgd(0.1), ("b",))
    tree = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}
    through_w, through_g, to_anchor = rule_pull_back(rule, tree, tree, tree, tree)
    assert_equal(through_w, {"a": torch.ones(2, 3), "b": torch.zeros(2, 3)}, 0.0)
    assert_equal(through_g, {"b": torch.full((2, 3), -0.1)}, 1e-7)
    assert to_anchor is not None
    assert_equal(to_anchor, {"a": torch.zeros(2, 3), "b": torch.ones(2, 3)}, 0.0)


# Wrong formulas.


def changed(method: Method, change: Callable[[Params, MetaGrad], Params]) -> Method:
    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        found = method.update(params, tasks, inner)
        end = outer_gradient(tasks, adapt(params, tasks, inner))
        return found._replace(grads={**found.grads, **change(found.grads, end)})

    return dataclasses.replace(method, update=update)


def frozen(tree: Params) -> Params:
    return {k: v for k, v in tree.items() if not k.endswith("_2")}


def cross_terms_dropped(grads: Params, end: MetaGrad) -> Params:
    return frozen(end.grads)


def masked_meta_gradient(grads: Params, end: MetaGrad) -> Params:
    return {k: torch.zeros_like(v) for k, v in frozen(grads).items()}


@pytest.mark.parametrize("change", [cross_terms_dropped, masked_meta_gradient])
@pytest.mark.parametrize("row", [row for row in ROWS if row[0] in ("maml", "imaml", "e_maml")], ids=lambda row: row[0])
def test_wrong_meta_gradients_are_rejected(row: tuple[str, Reference, dict[str, Any]], change: Any) -> None:
    name, reference, options = row
    check(make(name, options), reference)
    with pytest.raises(AssertionError):
        check(changed(make(name, options), change), reference)


@rows
def test_moving_the_frozen_ones_is_rejected(name: str, reference: Reference, options: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check(make_method(name, ALPHA, N, **options), reference, rtol=1e-3)


# The learner, and bad input.


@pytest.mark.parametrize("patterns", ["head", ("head", "linear1.bias")])
def test_training_freezes_saves_and_resumes(patterns: Any, tmp_path: Path) -> None:
    def learner() -> MetaLearner:
        options = {"learn_inner_lr": "layer"}
        return MetaLearner(Sinusoids(), "maml", inner_lr=0.01, adapt=patterns, outer_options=options, meta_batch_size=4)

    whole, half = learner().learn(4), learner().learn(2)
    half.save(tmp_path / "checkpoint.pt")
    resumed = MetaLearner.load(tmp_path / "checkpoint.pt", Sinusoids()).learn(2)
    assert all(torch.equal(resumed.params[k], v) for k, v in whole.params.items())
    assert resumed.method.recipe == whole.method.recipe
    tasks = Sinusoids().sample(3, np.random.default_rng(0))
    end = whole.adapt(tasks)
    still = {k for k, v in end.items() if torch.equal(v, whole.params[k].expand_as(v))}
    adapted = {"head.weight", "head.bias"} | ({"linear1.bias"} if patterns != "head" else set())
    assert still == set(end) - adapted
    assert np.isfinite(whole.evaluate(num_tasks=2, steps=2, step_sizes=[0.01, None]).scores).all()


def test_a_checkpoint_without_the_setting_adapts_everything() -> None:
    learner = MetaLearner(Sinusoids(), "maml", meta_batch_size=2)
    state = learner.state_dict()
    assert state["config"].pop("adapt") is None
    learner.load_state_dict(state)
    partial = MetaLearner(Sinusoids(), "maml", adapt="head", meta_batch_size=2)
    with pytest.raises(ValueError, match="adapt is"):
        partial.load_state_dict(state)


def test_the_head_of_a_policy_is_its_last_layer() -> None:
    tasks = Navigation(horizon=5)
    source = ReinforcementLearning(tasks, make_policy(tasks.observation_space, tasks.action_space), episodes=2)
    names = tuple(source.initial_params())
    head = ("policy.action_net.weight", "policy.action_net.bias")
    assert matching(("head",), names) == head
    assert matching(("head", "*log_std"), names) == ("policy.log_std", *head)
    assert matching(("policy.action_net",), names) == head


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("heads", r"adapt must match parameters, but 'heads' matches none of .*; did you mean 'head"),
        (("head", "linear9.*"), r"'linear9.\*' matches none"),
        ("context", r"adapt 'context' needs a network with context inputs, .*WithContext"),
        ((), "adapt must be 'head', 'context', or different patterns"),
        (("head", "head"), "adapt must be 'head', 'context', or different patterns"),
        (("head", 3), "adapt must be 'head', 'context', or different patterns"),
        (7, "adapt must be 'head', 'context' or patterns"),
    ],
)
def test_bad_patterns(patterns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaLearner(Sinusoids(), "maml", adapt=patterns)


def test_other_bad_input() -> None:
    with pytest.raises(ValueError, match="adapt 'head' needs a network with layers"):
        matching(("head",), ("w",))
    network = WithContext(mlp(3, 1), 2)
    nn.init.ones_(network.context)
    with pytest.raises(ValueError, match="context must be zero before training"):
        MetaLearner(Sinusoids(network), "maml", adapt="context")
    with pytest.raises(ValueError, match="size must be"):
        WithContext(mlp(3, 1), 0)
    grid = Navigation(horizon=5)
    with pytest.raises(ValueError, match="context_size needs observations of a Box"):
        make_context_policy(grid.action_space.__class__(0, 1, (2, 2)), grid.action_space, 2)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="outer_options must be options of 'maml', got 'adapt'"):
        MetaLearner(Sinusoids(), "maml", outer_options={"adapt": "head"})
