"""Bayesian MAML: the SVGD step, the chaser's meta-gradient with mutants, particles as a source."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import Inner, MetaGrad, MetaLearner, Method, make_method
from metarl.agents import make_policy
from metarl.derivatives import gradients, hessian_vector_products, scores
from metarl.engine import Engine
from metarl.envs import Navigation
from metarl.inner import adaptation_path, inner_step, sgd
from metarl.outer import bmaml as module
from metarl.outer.bmaml import Svgd, lead, particle_distance, rbf_kernel
from metarl.outer.pull_back import pull_back
from metarl.rl import ReinforcementLearning
from metarl.supervised.digits import digits
from metarl.supervised.few_shot import FewShot
from metarl.supervised.networks import mlp
from metarl.supervised.particles import Particles
from metarl.supervised.sinusoid import Sinusoids
from metarl.theory.quadratics import quadratic_source, quadratics_1d
from metarl.tree import subtract, take, tree_map
from metarl.types import Params, TaskBatch
from tests.reference import checks, problems, updates
from tests.reference.problems import DOUBLE, with_particles

pytestmark = pytest.mark.usefixtures("unrecorded")

ALPHA, N, M = 0.2, 3, 3
OPTIONS: dict[str, Any] = {"temperature": 0.3, "prior_precision": 0.5, "leader_steps": 2}
NEW = with_particles(problems.regression, M)


def sinusoids(particles: int = 3, **settings: Any) -> Particles:
    starts = [Sinusoids(seed=seed).initial_params() for seed in range(particles)]
    return Particles(Sinusoids(**settings), starts)


# The step.


def random_particles(number: int, seed: int = 0) -> tuple[Params, Params]:
    rng = np.random.default_rng(seed)
    shapes = {"a": (number, 2, 3), "b": (number,)}
    theta, grads = ({k: torch.as_tensor(rng.normal(size=shape)) for k, shape in shapes.items()} for _ in range(2))
    return theta, grads


@pytest.mark.parametrize("number", [1, 2, 3, 6])
@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_a_step_is_the_papers_sum(number: int, prior: float) -> None:
    theta, grads = random_particles(number)
    flat, flat_grads = (torch.cat([x["a"].flatten(1), x["b"][:, None]], 1) for x in (theta, grads))
    moved = Svgd(0.2, 0.4, prior)(theta, grads, theta)
    wanted = updates.kernel_step(flat.requires_grad_(), flat_grads, 0.2 * 0.4, 0.4, prior)
    torch.testing.assert_close(torch.cat([moved["a"].flatten(1), moved["b"][:, None]], 1), wanted, rtol=1e-12, atol=0)


def test_the_median_and_the_kernel_by_hand() -> None:
    theta = torch.tensor([[0.0], [1.0], [3.0]], dtype=DOUBLE)  # squared distances 1, 4, 9
    kernel, bandwidth = rbf_kernel(theta)
    assert bandwidth.item() == pytest.approx(4 / math.log(3))
    assert kernel[0, 1].item() == kernel[1, 0].item() == pytest.approx(3 ** (-1 / 4))
    assert kernel[0, 2].item() == pytest.approx(3 ** (-9 / 4))
    assert kernel.diag().tolist() == [1, 1, 1]
    assert particle_distance({"x": theta[None, :, 0]}).tolist() == [2]


@pytest.mark.parametrize("equal", [2, 3])
def test_particles_at_one_point_move_together(equal: int) -> None:
    theta, grads = random_particles(3)
    together = tree_map(lambda x: torch.cat([x[:1].expand(equal, *x.shape[1:]), x[equal:]]), theta)
    stacked = [tree_map(lambda x: x[None], tree) for tree in (together, grads)]
    moved = inner_step(Svgd(0.1, 0.5), *stacked, stacked[0])
    assert all(leaf.isfinite().all() for leaf in moved.values())
    if equal == 3:  # k is 1 everywhere: all take the mean gradient's step
        for key, leaf in moved.items():
            wanted = together[key] - 0.1 * grads[key].mean(0)
            torch.testing.assert_close(leaf[0], wanted)


def test_many_steps_end_in_the_posterior() -> None:
    """Mean loss a (x - c)^2 / 2 and a prior: a Gaussian whose mean and precision are known."""
    a, c, temperature, prior = 2.0, 1.5, 0.4, 1.0
    precision = a / temperature + prior
    theta = {"x": torch.as_tensor(np.random.default_rng(0).normal(size=60))}
    rule = Svgd(0.2, temperature, prior)
    for _ in range(500):
        theta = rule(theta, {"x": a * (theta["x"] - c)}, theta)
    assert theta["x"].mean().item() == pytest.approx(a / temperature * c / precision, abs=1e-3)
    assert theta["x"].var().item() == pytest.approx(1 / precision, rel=0.1)


# The meta-gradient: mutants, each of which turns one screw of `update`.


def written_out(
    *,
    objective: str = "chaser",
    factor: float = 2.0,
    hessian: bool = True,
    lead_with: str = "both",
) -> Any:
    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        assert isinstance(inner.rule, Svgd)
        path = adaptation_path(params, tasks, inner)
        end = path.params[-1]
        batch = tasks.draw(end, "outer")
        batches = {"both": (path.batches[-1], batch), "support": (path.batches[-1],) * 2, "query": (batch,) * 2}
        gap = subtract(end, lead(tasks, end, batches[lead_with], inner.rule, OPTIONS["leader_steps"]))
        cotangent = tree_map(lambda x: factor * x, gap)
        if objective == "loss":
            cotangent = gradients(tasks, end, batch)
        multiply = hessian_vector_products if hessian else None
        return MetaGrad(pull_back(tasks, path, inner, cotangent, multiply, "reuse"), scores(tasks, end, batch))

    return update


class Mutant(Svgd):
    """A step with another repulsion or kernel."""

    def __init__(self, repulsion: float = 1.0, smoothing: bool = True, fixed: bool = False, mean: bool = True) -> None:
        super().__init__(ALPHA, OPTIONS["temperature"], OPTIONS["prior_precision"])
        self.__dict__.update(repulsion=repulsion, smoothing=smoothing, fixed=fixed, mean=mean)

    def __call__(self, params: Params, grads: Params, anchor: Params) -> Params:
        theta, g = module.flatten(params), module.flatten(grads)
        g = g + self.temperature * self.prior_precision * theta
        kernel, h = rbf_kernel(theta)
        if self.__dict__["fixed"]:
            h = h.detach()
            kernel = torch.exp(-(theta[:, None] - theta[None]).square().sum(-1) / h)
        away = (kernel.sum(1, keepdim=True) * theta - kernel @ theta) * (2 / h) * self.__dict__["repulsion"]
        direction = self.temperature * away - (kernel @ g if self.__dict__["smoothing"] else g)
        direction = direction / (len(theta) if self.__dict__["mean"] else 1)
        return module.unflatten(theta + self.learning_rate * direction, params)

    def __deepcopy__(self, memo: Any) -> Any:
        return self


@contextmanager
def replacing(rule: Mutant) -> Iterator[None]:
    """The leader takes the mutant's steps, too, at its own temperature."""

    def other(old: Mutant, temperature: float) -> Mutant:
        new = Mutant(**{k: v for k, v in old.__dict__.items() if k in ("repulsion", "smoothing", "fixed", "mean")})
        new.__dict__["temperature"] = temperature
        return new

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "replace", other)
        yield


def method(update: Any = None, rule: Svgd | None = None) -> Method:
    own = make_method("bmaml", ALPHA, N, **OPTIONS)
    return Method(update or own.update, Inner(rule or own.inner.rule, N))


def check(mutant: Method) -> None:
    reference = functools.partial(updates.bayesian, alpha=ALPHA, **OPTIONS)
    checks.equals_reference(mutant, reference, NEW)


WRONG_RULES = {
    "no repulsion": Mutant(repulsion=0.0),
    "attraction": Mutant(repulsion=-1.0),
    "repulsion without the 2": Mutant(repulsion=0.5),
    "gradients are not shared": Mutant(smoothing=False),
    "no 1/M": Mutant(mean=False),
    "h held fixed in the meta-gradient": Mutant(fixed=True),
}
WRONG_UPDATES = {
    "without the 2": written_out(factor=1.0),
    "leader on D_in alone": written_out(lead_with="support"),
    "leader on D_o alone": written_out(lead_with="query"),
    "no Hessians": written_out(hessian=False),
    "outer loss": written_out(objective="loss"),
}


@pytest.mark.parametrize("rule", WRONG_RULES.values(), ids=WRONG_RULES)
def test_wrong_steps_are_rejected(rule: Mutant) -> None:
    with replacing(rule), pytest.raises(AssertionError):
        check(method(rule=rule))


@pytest.mark.parametrize("update", WRONG_UPDATES.values(), ids=WRONG_UPDATES)
def test_wrong_updates_are_rejected(update: Any) -> None:
    with pytest.raises(AssertionError):
        check(method(update))


@pytest.mark.parametrize("wrong", [{"attached": True}, {"fixed_bandwidth": True}], ids=str)
def test_other_derivatives_are_told_apart(wrong: dict[str, bool]) -> None:
    """The leader moves with the chaser; h does not move with the particles."""
    reference = functools.partial(updates.bayesian, alpha=ALPHA, **OPTIONS, **wrong)
    with pytest.raises(AssertionError):
        checks.equals_reference(method(), reference, NEW)


def test_the_mutants_are_right_but_for_the_mutation() -> None:
    check(method(written_out()))
    with replacing(Mutant()):
        check(method(rule=Mutant()))
    with replacing(Mutant(fixed=True)):  # what it computes is the derivative with h held fixed
        rule = method(rule=Mutant(fixed=True))
        reference = functools.partial(updates.bayesian, alpha=ALPHA, fixed_bandwidth=True, **OPTIONS)
        checks.equals_reference(rule, reference, NEW)


def chaser_loss(w: Tensor, data: updates.Data, leader: Tensor) -> Tensor:
    points = updates.bayesian(w, data, ALPHA, **OPTIONS).points
    return (points[-1] - leader).square().sum()


def test_is_the_gradient_of_the_distance_to_a_fixed_leader() -> None:
    """By finite differences, which know nothing of h, kernels or Hessians."""
    problem = NEW()
    own = method()
    result = checks.run(own, problem)
    for i in range(problem.tasks.num_tasks):
        data, w = checks.finite_sum_data(problem, N, i), checks.ravel(problem.params)
        start = updates.bayesian(w, data, ALPHA, **OPTIONS).points[-1]
        assert data.particles is not None
        where, back, (n, o) = data.particles, data.particles.flatten().argsort(), data.sizes
        leader = start
        for _ in range(OPTIONS["leader_steps"]):
            g = (n * updates.gradient(data.inner[0], leader) + o * updates.gradient(data.outer, leader)) / (n + o)
            at = OPTIONS["temperature"] * n / (n + o)
            theta = leader[where].requires_grad_()
            moved = updates.kernel_step(theta, g[where], ALPHA * at, at, OPTIONS["prior_precision"])
            leader = moved.detach().flatten()[back]
        wanted = checks.finite_difference(lambda v, d=data, to=leader: chaser_loss(v, d, to), w)
        checks.assert_near(checks.ravel(checks.one(result.grads, i)), wanted, 1e-6)
        loss = result.info["chaser_loss"][i].item()
        assert loss == pytest.approx((start - leader).square().sum().item(), rel=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
def test_one_particle_without_a_prior_takes_mamls_path(steps: int) -> None:
    one = with_particles(problems.regression, 1)
    bmaml = checks.run(make_method("bmaml", ALPHA, steps, objective="loss", temperature=0.3), one())
    maml = checks.run(make_method("maml", ALPHA, steps, hessian_data="reuse"), one())
    checks.assert_near(checks.ravel(bmaml.grads), checks.ravel(maml.grads), 1e-13)
    checks.assert_near(bmaml.score, maml.score, 1e-13)
    problem = one()
    paths = [
        adaptation_path(problem.params, problem.tasks, Inner(rule, steps)).params[-1]
        for rule in (Svgd(ALPHA, 0.3), sgd(ALPHA))
    ]
    for key, leaf in paths[1].items():
        torch.testing.assert_close(paths[0][key], leaf, rtol=1e-13, atol=0)
    assert bmaml.info["particle_distance"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("steps", [1, 2])
def test_draws(steps: int) -> None:
    """The data are drawn where the particles are; one draw for all of them."""
    reference = functools.partial(updates.bayesian, alpha=ALPHA, **OPTIONS)
    checks.equals_reference_on_its_draws(make_method("bmaml", ALPHA, steps, **OPTIONS), reference, NEW)
    leader = OPTIONS["leader_steps"]
    counts = {"gradients": 3 * M * (steps + 2 * leader), "hessian_vector_products": 3 * M * steps}
    samples = {"samples": 3 * (5 * steps + 7)}
    checks.counts(make_method("bmaml", ALPHA, steps, **OPTIONS), NEW, counts | samples)


# Particles as a source.


@pytest.mark.parametrize("outer", ["maml", "fo_maml", "reptile"])
def test_other_updates_train_independent_networks(outer: str) -> None:
    """A deep ensemble: each member is what it would be alone."""
    settings: dict[str, Any] = {"inner_lr": 0.01, "inner_steps": 2, "meta_batch_size": 3}
    together = MetaLearner(sinusoids(), outer, **settings).learn(3)
    for m in range(3):
        alone = MetaLearner(Sinusoids(seed=m), outer, **settings).learn(3)
        for key, leaf in alone.params.items():
            torch.testing.assert_close(together.params[key][m], leaf, rtol=1e-4, atol=1e-6)


def test_the_score_is_that_of_the_averaged_prediction() -> None:
    source = sinusoids()
    tasks = source.sample(1, np.random.default_rng(0))
    params = source.initial_params()
    batch = take(tasks.draw({}, "outer"), 0)
    network = Sinusoids().network
    each = [torch.func.functional_call(network, take(params, m), batch["x"])[:, 0] for m in range(3)]
    mean = sum(each) / 3
    assert tasks.score(params, batch).item() == pytest.approx(-(mean - batch["y"]).square().mean().item(), rel=1e-5)
    losses = [(one - batch["y"]).square().mean().item() for one in each]
    assert tasks.loss(params, batch).item() == pytest.approx(sum(losses), rel=1e-5)


def test_accuracy_of_averaged_probabilities() -> None:
    networks = [mlp(128, 5, hidden=(8,), seed=seed) for seed in range(2)]
    few = FewShot(digits().train, networks[0])
    source = Particles(few, [dict(network.named_parameters()) for network in networks])
    tasks = source.sample(20, np.random.default_rng(0))
    batch = tasks.draw({}, "outer")
    differ = 0
    for i in range(20):
        x, y = batch["x"][i], batch["y"][i]
        logits = [network(x) for network in networks]
        right = (sum(one.softmax(1) for one in logits).argmax(1) == y).float().mean().item()  # type: ignore[union-attr]
        assert tasks.score(source.initial_params(), take(batch, i)).item() == pytest.approx(right)
        differ += right != (sum(logits).argmax(1) == y).float().mean().item()  # type: ignore[attr-defined]
    assert differ  # averaged logits are another prediction


def test_learning_from_a_copy_and_every_engine() -> None:
    plain = Engine(record=False)
    wanted, found, chunks = (
        MetaLearner(sinusoids(), "bmaml", inner_lr=0.01, meta_batch_size=4, engine=engine).learn(3)
        for engine in (plain, Engine(), Engine(chunk_size=1))
    )
    for key, leaf in wanted.params.items():
        assert not torch.equal(leaf, sinusoids().initial_params()[key])
        torch.testing.assert_close(found.params[key], leaf, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(chunks.params[key], leaf, rtol=1e-4, atol=1e-5)


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    learner = MetaLearner(sinusoids(setting="resampling"), "bmaml", inner_lr=0.01, inner_steps=2, meta_batch_size=2)
    learner.learn(2).save(tmp_path / "half")
    other = MetaLearner.load(tmp_path / "half", sinusoids(setting="resampling")).learn(2)
    learner.learn(2)
    assert all(torch.equal(other.params[key], leaf) for key, leaf in learner.params.items())
    with pytest.raises(ValueError, match="params"):
        MetaLearner.load(tmp_path / "half", sinusoids(4, setting="resampling"))


def test_shards_have_the_whole_batchs_rows() -> None:
    source, own = sinusoids(), make_method("bmaml", 0.01, 2)
    params = source.initial_params()
    whole = own.update(params, source.sample(4, np.random.default_rng(0)), own.inner)
    for first, last in ((0, 2), (2, 4)):
        part = own.update(params, source.sample(4, np.random.default_rng(0)).shard(first, last), own.inner)
        for key, leaf in part.grads.items():
            torch.testing.assert_close(leaf, whole.grads[key][first:last], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(part.info["chaser_loss"], whole.info["chaser_loss"][first:last], rtol=1e-4, atol=0)


# What is refused.


def rl() -> ReinforcementLearning:
    tasks = Navigation(horizon=3)
    return ReinforcementLearning(tasks, make_policy(tasks.observation_space, tasks.action_space), episodes=2)


SOURCES: dict[str, Callable[[], Any]] = {
    "rl": rl,
    "quadratics": lambda: quadratic_source(quadratics_1d()),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_sources_without_predictions(make: Callable[[], Any]) -> None:
    source = make()
    with pytest.raises(ValueError, match=r"source must be a supervised source with predictions.* without predict"):
        Particles(source, [source.initial_params()])
    with pytest.raises(ValueError, match=r"source must have particles for this outer update.*Particles, got"):
        MetaLearner(source, "bmaml", meta_batch_size=2)


def test_sources_of_one_network() -> None:
    with pytest.raises(ValueError, match="source must have particles"):
        MetaLearner(Sinusoids(), "bmaml")
    own = make_method("bmaml")
    with pytest.raises(ValueError, match="this update needs tasks of particles"):
        own.update(Sinusoids().initial_params(), Sinusoids().sample(2, np.random.default_rng(0)), own.inner)
    tasks = sinusoids(3).sample(2, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"linear1.weight must be \[3, ...\], one for each particle, got \[2, 40, 1\]"):
        own.update(sinusoids(2).initial_params(), tasks, own.inner)
    with pytest.raises(ValueError, match=r"the inner rule of bmaml must be .*Svgd"):
        own.update(sinusoids(3).initial_params(), tasks, Inner(sgd(0.1)))


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([], "starts must have the parameters of at least one particle"),
        (3, "starts must be a sequence"),
        ([{}], r"starts\[0\] must be a dictionary"),
        ([{"w": torch.zeros(1)}], r"starts\[0\] must have the source's shapes"),
    ],
)
def test_bad_starts(starts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Particles(Sinusoids(), starts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be a finite number at least 0"),
        ({"prior_precision": -1}, "prior_precision must be"),
        ({"leader_steps": 0}, "leader_steps must be an integer of at least 1"),
        ({"objective": "leader"}, "objective must be one of"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method("bmaml", **options)
