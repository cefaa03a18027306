"""The engine computes derivatives of all tasks in chunks, recorded, or plainly; the results are the same."""

import dataclasses
import logging
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from metarl import OUTER, MetaLearner, make_method
from metarl.agents import make_policy
from metarl.engine import Engine, current_engine
from metarl.engine.records import StepRecord, TaskRecord
from metarl.envs import Navigation
from metarl.rl import ReinforcementLearning
from metarl.supervised.digits import digits
from metarl.supervised.few_shot import FewShot
from metarl.supervised.networks import mlp
from metarl.supervised.sinusoid import Sinusoids
from metarl.theory.quadratics import FreshQuadratics
from metarl.types import Batch, MetaGrad, Params, TaskSource
from metarl.wrappers import TaskWrapper
from tests.reference import checks, problems

KINDS = {
    "chunks_of_1": Engine(record=False, chunk_size=1),
    "chunks_of_2": Engine(record=False, chunk_size=2),
    "one_chunk": Engine(record=False, chunk_size=9),
    "recorded": Engine(),
    "recorded_chunks": Engine(chunk_size=2),
}


def run(name: str, engine: Engine) -> MetaGrad:
    with engine.current():
        method = make_method(name, 0.1, 2)
        return checks.run(method, problems.with_particles(problems.regression, 3 * method.needs_particles)())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(OUTER))
def test_every_method_gives_the_same(name: str, kind: str) -> None:
    plain, other, again = (run(name, engine) for engine in (Engine(record=False), KINDS[kind], KINDS[kind]))
    for key in plain.grads:
        torch.testing.assert_close(other.grads[key], plain.grads[key], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(other.score, plain.score, rtol=1e-12, atol=0)
    checks.assert_same(other, again)  # the record says the same the second time


def test_a_record_is_made_once_for_every_shape_and_type() -> None:
    calls = []

    def loss(params: Params, batch: Batch) -> torch.Tensor:
        calls.append(1)
        return (params["w"] * batch["x"]).square().mean()

    engine = Engine()

    def run(number: int, dtype: torch.dtype) -> None:
        x, w = torch.ones(number, 3, dtype=dtype), torch.ones(number, dtype=dtype)
        got = engine.over_tasks("loss", loss, {"w": w}, {"x": x})
        assert torch.equal(got, torch.ones(number, dtype=dtype))

    for _ in range(7):
        run(2, torch.float32)
    assert len(calls) == 4  # the record, and what it is compared with at uses 1, 2 and 4
    run(4, torch.float32)
    run(4, torch.float64)
    assert len(calls) == 8


def test_what_cannot_be_recorded_runs_plainly_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def loss(params: Params, batch: Batch) -> torch.Tensor:
        calls.append(1)
        return params["w"] * batch["x"].sum() * len(calls)  # a record would freeze the number

    engine = Engine()

    def run() -> torch.Tensor:
        result: torch.Tensor = engine.over_tasks("losses", loss, {"w": torch.ones(2)}, {"x": torch.ones(2, 2)})
        return result

    with caplog.at_level(logging.WARNING, "metarl.engine"):
        assert torch.equal(run(), torch.full((2,), 8.0))  # the record, the comparison, and whether it repeats itself
        assert torch.equal(run(), torch.full((2,), 10.0))
    assert [r.message.startswith("losses cannot be recorded, which is slower") for r in caplog.records] == [True]


def test_tensors_a_function_refers_to_keep_their_current_values() -> None:
    factor, engine = torch.tensor([3.0, 3.0]), Engine()

    def loss(params: Params, batch: Batch) -> torch.Tensor:
        return params["w"] * (batch["x"] * factor).sum()

    for value in (3.0, 5.0):
        factor.fill_(value)
        got = engine.over_tasks("losses", loss, {"w": torch.ones(2)}, {"x": torch.ones(2, 2)})
        assert torch.equal(got, torch.full((2,), 2 * value))


def test_bad_chunks() -> None:
    with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1, got 0"):
        Engine(chunk_size=0)


def test_the_current_engine_is_that_of_the_innermost_block_and_of_this_thread() -> None:
    outer, inner, seen = Engine(), Engine(), []
    assert not current_engine().record
    with outer.current():
        with inner.current():
            assert current_engine() is inner
            thread = threading.Thread(target=lambda: seen.append(current_engine()))
            thread.start()
            thread.join()
        assert current_engine() is outer
    assert not current_engine().record
    assert not seen[0].record
    assert current_engine(default=outer) is outer


def test_a_learner_takes_the_current_engine_and_else_has_one_of_its_own() -> None:
    source, engine = Sinusoids(), Engine()
    with engine.current():
        assert MetaLearner(source).engine is engine
    assert MetaLearner(source).engine.record
    assert MetaLearner(source).engine is not MetaLearner(source).engine
    assert MetaLearner(source, engine=engine).engine is engine
    with pytest.raises(ValueError, match=r"engine must be a metarl.engine.Engine or None, got 'fast'"):
        MetaLearner(source, engine="fast")  # type: ignore[arg-type]


def navigation() -> ReinforcementLearning:
    tasks = Navigation(horizon=5)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [8]})
    return ReinforcementLearning(tasks, policy, episodes=3)


SOURCES: dict[str, Callable[[], TaskSource]] = {
    "navigation": navigation,
    "normalised navigation": lambda: dataclasses.replace(navigation(), normalize_observations=True),
    "sinusoids": Sinusoids,
    "fresh sinusoids": lambda: Sinusoids(setting="resampling"),
    "few-shot": lambda: FewShot(digits().train, mlp(128, ways=5, hidden=(12,)), queries=3),
    "quadratics": FreshQuadratics,
}


@pytest.mark.parametrize("outer", ["maml", "e_maml"])
@pytest.mark.parametrize("name", SOURCES)
def test_only_the_first_iteration_makes_records(name: str, outer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each iteration makes its batch of tasks anew; the functions it computes are those of the source."""
    learner = MetaLearner(SOURCES[name](), outer, meta_batch_size=2).learn(1)
    number = len(learner.engine._cache)
    made = []
    for kind in (TaskRecord, StepRecord):
        monkeypatch.setattr(kind, "__init__", lambda *_: made.append(1))
    learner.learn(4)
    assert number > 1
    assert len(learner.engine._cache) == number
    assert made == []


class Doubled(TaskWrapper):
    """A user's wrapper, which is made anew in every iteration."""

    def loss(self, params: Params, batch: Batch) -> torch.Tensor:  # type: ignore[override]
        return 2 * super().loss(params, batch)


@pytest.mark.parametrize("name", ["navigation", "sinusoids"])
def test_a_users_wrapper_needs_no_new_records(name: str) -> None:
    class Source:
        def __init__(self) -> None:
            self.inner = SOURCES[name]()
            self.score_name = self.inner.score_name

        def initial_params(self) -> Params:
            return self.inner.initial_params()

        def sample(self, num_tasks: int, rng: np.random.Generator) -> Doubled:
            return Doubled(self.inner.sample(num_tasks, rng))

    learner = MetaLearner(Source(), "maml", meta_batch_size=2).learn(1)
    number = len(learner.engine._cache)
    assert len(learner.learn(4).engine._cache) == number
