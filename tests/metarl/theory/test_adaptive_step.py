"""The adaptive step against numbers worked out by hand, with its independence, its counts and its state."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from metarl import MetaLearner, NonFiniteError, make_method
from metarl.step import MeanGrad, average
from metarl.supervised import BatchSizes, FiniteSumSource, FiniteSumTaskBatch
from metarl.theory import AdaptiveStep, StepSizeRule, fallah_rule, ji_rule
from metarl.theory.logistic import (
    hessian_smoothness,
    logistic_source,
    logistic_tasks,
    six_logistic_tasks,
    smoothness,
)
from metarl.theory.quadratics import quadratic_source, quadratic_tasks, quadratics_1d
from metarl.types import MetaGrad, Params, TaskBatch
from metarl.wrappers import CheckFinite, CountCost, RecordDraws, TaskWrapper, wrap_like
from tests.keep import Keep

pytestmark = pytest.mark.usefixtures("unrecorded")

PAIR = quadratics_1d()  # curvatures 1 and 2, centres 1 and -1
RULE = StepSizeRule(c=0.5, constant=4.0, slope=2.0)


def at(w: float) -> Params:
    return {"w": torch.tensor([w], dtype=torch.float64)}


def constant_update(params: Params, tasks: TaskBatch) -> MeanGrad:
    """Two tasks' meta-gradients 1 and 5, of mean 3."""
    return average(MetaGrad({"w": torch.tensor([[1.0], [5.0]], dtype=torch.float64)}, torch.zeros(2)))


def no_update() -> MeanGrad:
    return average(MetaGrad({"w": torch.zeros(6, 5, dtype=torch.float64)}, torch.zeros(6)))


def test_by_hand() -> None:
    """At w = 3 the gradients are 2 and 8, of mean 5: the smoothness is 14 and beta 1/28."""
    step = AdaptiveStep(RULE, quadratic_source(PAIR), num_tasks=2)
    params, meta_grad, info = step(at(3.0), quadratic_tasks(PAIR), constant_update)
    assert params["w"].item() == pytest.approx(3 - 3 / 28, rel=1e-12)
    assert info == {"outer_lr": pytest.approx(1 / 28), "smoothness": pytest.approx(14.0)}
    assert meta_grad.grads["w"].tolist() == [3.0]


def test_beta_shrinks_where_gradients_are_large() -> None:
    step = AdaptiveStep(RULE, quadratic_source(PAIR), num_tasks=2)
    betas = [step(at(w), quadratic_tasks(PAIR), constant_update).info["outer_lr"] for w in (1.0, 10.0, 100.0)]
    assert betas == pytest.approx([0.5 / 8, 0.5 / 35, 0.5 / 305])  # means 2, 15.5, 150.5


def test_a_batch_of_tasks_and_samples() -> None:
    """One of the two tasks, one of its points: the denominators are those of single points."""
    tasks = quadratic_tasks(
        PAIR,
        points=3,
        noise=0.5,
        rng=np.random.default_rng(0),
        batch_sizes=BatchSizes(inner=1),
        generator=torch.Generator(),
    )
    step = AdaptiveStep(RULE, FiniteSumSource(tasks, at(0.0)), num_tasks=1)
    seen = Counter(round(step(at(3.0), tasks, constant_update).info["smoothness"], 9) for _ in range(300))
    norms = tasks.support["A"].flatten() * (3 - tasks.support["c"].flatten()).abs()
    assert set(seen) == {round(4 + 2 * norm, 9) for norm in norms.tolist()}
    assert min(seen.values()) > 25  # 50 each on average


def test_its_draws_are_independent_of_those_of_the_direction() -> None:
    """Neither disturbs the other: with and without, the update draws the same; whatever is drawn, beta is the same."""

    def outer_batches(with_step: bool) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        problem = six_logistic_tasks()
        tasks = logistic_tasks(problem, batch_sizes=BatchSizes(4, 4, 4), generator=generator)
        step, recording = AdaptiveStep(RULE, FiniteSumSource(tasks, ORIGIN), 3), RecordDraws(tasks)

        def update(params: Params, tasks: TaskBatch) -> MeanGrad:
            recording.draw(params, "outer")
            return no_update()

        for _ in range(2):
            step(ORIGIN, recording, update) if with_step else update(ORIGIN, recording)
        return [draw.batch["X"] for draw in recording.draws]

    for ours, theirs in zip(outer_batches(True), outer_batches(False), strict=True):
        assert torch.equal(ours, theirs)

    def betas(draws: int) -> list[float]:
        source = minibatch_source()
        step, tasks = AdaptiveStep(RULE, source, 3), source.sample(6, np.random.default_rng(0))

        def update(params: Params, tasks: TaskBatch) -> MeanGrad:
            for _ in range(draws):
                tasks.draw(params, "inner")
            return no_update()

        return [step(ORIGIN, tasks, update).info["outer_lr"] for _ in range(3)]

    assert betas(0) == betas(7)
    assert len(set(betas(0))) == 3


ORIGIN = {"w": torch.zeros(5, dtype=torch.float64)}


def minibatch_source() -> FiniteSumSource:
    tasks = logistic_tasks(six_logistic_tasks(), batch_sizes=BatchSizes(4, 4, 4), generator=torch.Generator())
    return FiniteSumSource(tasks, ORIGIN)


def make_learner(seed: int = 0) -> MetaLearner:
    L, rho = smoothness(six_logistic_tasks()), hessian_smoothness(six_logistic_tasks())
    source = minibatch_source()
    step = AdaptiveStep(fallah_rule("maml", L, rho, 0.5), source, 3, seed=seed)
    return MetaLearner.from_parts(source, make_method("maml", 0.5), step, meta_batch_size=4)


def test_everything_is_counted_and_logged() -> None:
    keep = Keep()
    learner = make_learner().learn(2, [keep])
    # an iteration: MAML takes two gradients and a product of 4 tasks on 3 draws, the step one of 3 tasks on one draw
    assert learner.counts == {"gradients": 2 * (8 + 3), "hessian_vector_products": 8, "samples": 2 * 4 * (12 + 3)}
    assert keep.metrics[-1]["oracle/samples"] == 120
    for metrics in keep.metrics:
        assert metrics["train/outer_lr"] == pytest.approx(1 / 12 / metrics["train/smoothness"])
        assert metrics["train/smoothness"] > 4 * smoothness(six_logistic_tasks())


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    straight = make_learner().learn(6)
    make_learner().learn(3).save(tmp_path / "half")
    fresh = make_learner()
    resumed = MetaLearner.load(tmp_path / "half", fresh.source, outer_step=fresh.outer_step).learn(3)
    assert torch.equal(straight.params["w"], resumed.params["w"])
    assert straight.state_dict()["outer_step"] == resumed.state_dict()["outer_step"]
    assert straight.counts == resumed.counts


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (AdaptiveStep(RULE._replace(slope=3.0), quadratic_source(PAIR), 2), "slope of the adaptive step is 3.0"),
        (AdaptiveStep(RULE, quadratic_source(PAIR), 1), "num_tasks of the adaptive step is 1"),
    ],
)
def test_a_checkpoint_of_another_rule(other: AdaptiveStep, message: str) -> None:
    before = other.state_dict()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(AdaptiveStep(RULE, quadratic_source(PAIR), 2).state_dict())
    assert other.state_dict() == before


def test_the_seed_is_its_own() -> None:
    """Another one changes the step sizes, and with them the parameters, but not what the direction draws."""
    first, again, other = (make_learner(seed).learn(1) for seed in (0, 0, 1))
    assert torch.equal(first.params["w"], again.params["w"])
    assert not torch.equal(first.params["w"], other.params["w"])
    ratio = first.params["w"] / other.params["w"]
    torch.testing.assert_close(ratio, ratio[0].expand(5))  # the same direction from the origin


def descent(rule: StepSizeRule, alpha: float, w: float, steps: int) -> list[float]:
    """MAML on the pair with the rule's step size, in plain numbers."""
    path = [w]
    for _ in range(steps):
        first, second = w - 1, 2 * (w + 1)
        mean = ((1 - alpha) ** 2 * first + (1 - 2 * alpha) ** 2 * second) / 2
        w -= rule.c / (rule.constant + rule.slope * (abs(first) + abs(second)) / 2) * mean
        path.append(w)
    return path


@pytest.mark.filterwarnings("ignore::metarl.theory.TheoryWarning")  # the formula, beyond the theorem's range
@pytest.mark.parametrize("name", ["fallah", "ji"])
def test_training_follows_the_rule_to_the_stationary_point(name: str) -> None:
    """Both rules, as if rho were 0.3: the path from far away is that of plain numbers, which ends at 1/17."""
    alpha, L, rho = 0.25, 2.0, 0.3
    rule = fallah_rule("maml", L, rho, alpha) if name == "fallah" else ji_rule(L, rho, alpha, 1)
    wanted = descent(rule, alpha, 30.0, 60_000)
    assert wanted[-1] == pytest.approx(1 / 17, abs=1e-8)
    source = quadratic_source(PAIR, torch.tensor([30.0], dtype=torch.float64))
    learner = MetaLearner.from_parts(
        source, make_method("maml", alpha), AdaptiveStep(rule, source, 2), meta_batch_size=2
    )
    for steps in (20, 60):
        learner.learn(steps - learner.iterations)
        assert learner.params["w"].item() == pytest.approx(wanted[steps], rel=1e-12)


def test_a_nan_in_its_own_gradients_is_found() -> None:
    """And the learner is as it was before the iteration."""
    good, bad = quadratic_source(PAIR), {"A": torch.full((2, 1, 1, 1), torch.nan), "c": torch.zeros(2, 1, 1)}
    own = FiniteSumSource(FiniteSumTaskBatch(good.tasks.loss, bad), at(0.0))
    learner = MetaLearner.from_parts(good, make_method("maml"), AdaptiveStep(RULE, own, 1), meta_batch_size=2)
    before = learner.state_dict()["outer_step"]
    with pytest.raises(NonFiniteError, match="iteration 1"):
        learner.learn(1)
    assert learner.state_dict()["outer_step"] == before
    assert torch.equal(learner.params["w"], good.initial_params()["w"])


def test_wrapped_like() -> None:
    counts: Counter[str] = Counter()
    new, old = quadratic_tasks(PAIR), quadratic_tasks(PAIR)
    assert wrap_like(new, old) is new
    wrapped = wrap_like(new, RecordDraws(CheckFinite(RecordDraws(CountCost(old, counts)))))
    assert isinstance(wrapped, CheckFinite)
    assert isinstance(wrapped.tasks, CountCost)
    assert wrapped.tasks.counts is counts
    assert wrapped.tasks.tasks is new
    assert not isinstance(wrap_like(new, RecordDraws(old)), TaskWrapper)


@pytest.mark.parametrize(("num_tasks", "seed", "named"), [(0, 0, "num_tasks"), (1.5, 0, "num_tasks"), (1, -1, "seed")])
def test_bad_arguments(num_tasks: int, seed: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AdaptiveStep(RULE, logistic_source(six_logistic_tasks()), num_tasks, seed)
