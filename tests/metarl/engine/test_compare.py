"""A wrong record is found on live data, whatever made it wrong; a right one passes."""

import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import OUTER, MetaLearner
from metarl.derivatives import gradients, hessian_vector_products
from metarl.engine import Engine, RecordWarning, RepeatedFunction, records
from metarl.engine.compare import Uses, difference
from metarl.engine.walk import Walk
from metarl.supervised import FiniteSumTaskBatch
from metarl.supervised.sinusoid import Sinusoids
from metarl.types import Batch, Params
from metarl.wrappers import TaskWrapper
from tests.reference.problems import suit


class Faulty:
    """A runner that spoils what another one gives."""

    def __init__(self, runner: Any, spoil: Callable[[list[Tensor]], list[Tensor]]) -> None:
        self._runner, self._spoil = runner, spoil

    def bind(self, constants: Sequence[Tensor]) -> None:
        self._runner.bind(constants)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return self._spoil([x.clone() for x in self._runner.run(inputs)])


def large(x: Tensor) -> bool:
    return x.is_floating_point() and bool((x.abs() > 1).any())


FAULTS: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "a factor": lambda out: [x * 1.001 for x in out],
    "one task": lambda out: [torch.cat([x[:-1], x[-1:] * 1.01]) for x in out],
    "zeros": lambda out: [torch.zeros_like(x) for x in out],
    "no error where there should be NaN": lambda out: [x.nan_to_num(1.0) + 0.1 for x in out],
    "another task's": lambda out: [x.roll(1, 0) for x in out],
    "no relative accuracy": lambda out: [torch.where(x.abs() < 5e-1, torch.zeros_like(x), x) for x in out],
}


def cubes(params: Params, batch: Batch) -> Tensor:
    return (params["w"].tanh() * batch["x"]).pow(3).sum()


def data(tasks: int = 3) -> tuple[Params, Batch]:
    generator = torch.Generator().manual_seed(0)
    return {"w": torch.randn(tasks, 4, generator=generator)}, {"x": torch.randn(tasks, 4, generator=generator)}


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_record_that_goes_wrong_is_given_up(
    fault: str, chunk_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk_size == 1 and fault in ("one task", "another task's"):
        pytest.skip("a chunk is one task")
    make, faulty, engine = records.make_runner, threading.Event(), Engine(chunk_size=chunk_size)

    def spoiled(*arguments: Any) -> Faulty:
        return Faulty(make(*arguments), lambda out: FAULTS[fault](out) if faulty.is_set() else out)

    monkeypatch.setattr(records, "make_runner", spoiled)
    params, batch = data()
    tasks = FiniteSumTaskBatch(cubes, batch)
    with engine.current():
        wanted = gradients(tasks, params, batch)["w"]
        faulty.set()  # after the first comparison
        with pytest.warns(RecordWarning, match="record of gradients is wrong at use 2 .* off by"):
            found = gradients(tasks, params, batch)["w"]
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(gradients(tasks, params, batch)["w"], wanted)  # plain from now on, without a word


def test_steps_of_a_rollout_that_go_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    make, faulty = records.make_runner, threading.Event()

    def spoiled(*arguments: Any) -> Faulty:
        return Faulty(make(*arguments), lambda out: [out[0] * 1.01, *out[1:]] if faulty.is_set() else out)

    def step(state: Tensor, runs: Tensor, noise: Tensor) -> list[Tensor]:
        return [state.sin() + noise, runs, state]

    monkeypatch.setattr(records, "make_runner", spoiled)
    engine, noise = Engine(), torch.linspace(0, 1, 12).view(4, 3)
    carried = [torch.ones(3), torch.ones(3, dtype=torch.bool)]

    def run() -> Tensor:
        return engine.repeat(RepeatedFunction("steps", step, [], (step,), None), carried, [noise])[1][0]

    wanted = run()
    faulty.set()
    with pytest.warns(RecordWarning, match="record of steps is wrong at use 2"):
        torch.testing.assert_close(run(), wanted)
    torch.testing.assert_close(run(), wanted)


def test_uses_that_are_compared() -> None:
    assert [use for use in range(1, 70) if Uses.is_due(use)] == [1, 2, 4, 8, 16, 32, 64]


def fresh(name: str) -> tuple[Callable[[Sequence[Tensor]], list[Tensor]], list[Tensor]]:
    """Functions on which rounding reaches far, and inputs."""
    x = torch.linspace(-2, 2, 60).view(3, 20)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "cancellation": lambda x: (x + 1e5) - 1e5,
        "zero but for rounding": lambda x: (x - x.mean(1, keepdim=True)).sum(1),
        "kinks": lambda x: (x > x.median(1, keepdim=True).values).float() * 3,
    }
    return (lambda inputs: [functions[name](inputs[0])]), [x]


@pytest.mark.parametrize("name", ["cancellation", "zero but for rounding"])
def test_rounding_is_not_suspected(name: str) -> None:
    function, inputs = fresh(name)
    near = function([inputs[0] * (1 + 2 * torch.finfo(torch.float32).eps)])
    assert difference(near, function, inputs) is None
    assert difference([x + 1 for x in near], function, inputs) is not None


def test_another_nan_is_a_difference() -> None:
    x = torch.tensor([[1.0, -1.0], [2.0, 3.0]])
    assert difference([x.log()], lambda inputs: [inputs[0].log()], [x]) is None
    assert "inf in row 0" in str(difference([x.abs().log()], lambda inputs: [inputs[0].log()], [x]))


def test_random_numbers_are_not_disturbed() -> None:
    state = torch.get_rng_state()
    x = torch.randn(2, 2)
    after = torch.get_rng_state()
    difference([x + 1], lambda inputs: [inputs[0] * 1], [x])
    assert torch.equal(torch.get_rng_state(), after)
    torch.set_rng_state(state)


def test_products_of_two_other_losses() -> None:
    params, batch = data()
    tasks, engine = FiniteSumTaskBatch(cubes, batch), Engine()
    for power in (2, 3, 4):

        def loss(params: Params, batch: Batch, power: int = power) -> Tensor:
            return params["w"].pow(power).sum()

        with engine.current():
            found = hessian_vector_products(tasks, params, batch, {"w": torch.ones(3, 4)}, loss)["w"]
        torch.testing.assert_close(found, power * (power - 1) * params["w"].pow(power - 2))


class Weighted(TaskWrapper):
    """A user's wrapper with a loss of its own."""

    weight = 1.0

    def loss(self, params: Params, batch: Batch) -> Tensor:  # type: ignore[override]
        return self.weight * super().loss(params, batch)


def test_a_wrapper_with_another_loss_has_its_own_record() -> None:
    params, batch = data()
    tasks = FiniteSumTaskBatch(cubes, batch)
    weighted = Weighted(tasks)
    with Engine().current():
        plain = gradients(tasks, params, batch)["w"]
        for weight in (2.0, 3.0):
            weighted.weight = weight
            torch.testing.assert_close(gradients(weighted, params, batch)["w"], weight * plain)


def test_threads_that_share_an_engine() -> None:
    params, batch = data()
    engine, wrong = Engine(), []
    losses = [lambda p, b, k=k: (p["w"] * b["x"] * k).sin().sum() for k in (1.0, 2.0, 3.0)]
    tasks = [FiniteSumTaskBatch(loss, batch) for loss in losses]
    wanted = [gradients(t, params, batch)["w"] for t in tasks]

    def work(number: int) -> None:
        with engine.current():
            for _ in range(100):
                found = gradients(tasks[number], params, batch)["w"]
                if not torch.allclose(found, wanted[number], rtol=1e-5, atol=1e-6):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_records_are_bounded_and_making_them_again_and_again_is_told() -> None:
    params, batch = data()
    engine = Engine()
    with warnings.catch_warnings(record=True) as caught, engine.current():
        warnings.simplefilter("always")
        for number in range(70):
            tasks = FiniteSumTaskBatch(lambda p, b, k=float(number): (p["w"] * k).pow(2).sum(), batch)
            torch.testing.assert_close(gradients(tasks, params, batch)["w"], 2 * number**2 * params["w"])
    assert len(engine._cache) == 64
    assert ["recorded 8 times" in str(w.message) for w in caught].count(True) == 1


class Noting(Sinusoids):
    """Remembers, weakly, what it has sampled."""

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
        tasks = super().sample(num_tasks, rng)
        self.__dict__.setdefault("sampled", []).append(weakref.ref(tasks))
        return tasks


@pytest.mark.parametrize("outer", sorted(OUTER))
def test_tasks_are_not_kept_by_records(outer: str) -> None:
    gc.disable()  # what lives in a cycle would be found by chance
    try:
        source = Noting()
        MetaLearner(suit(outer, source), outer, meta_batch_size=2).learn(3)
        assert [tasks() for tasks in source.__dict__["sampled"]] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("outer", sorted(OUTER))
def test_what_stays_the_same_is_not_described_again(outer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each iteration makes its tasks and functions anew; looking through them is fast, describing them is not."""
    walks, run = [], Walk.run

    def counted(self: Walk, roots: tuple[Any, ...]) -> None:
        walks.append(roots)
        run(self, roots)

    monkeypatch.setattr(Walk, "run", counted)
    learner = MetaLearner(suit(outer, Sinusoids()), outer, meta_batch_size=2).learn(2)
    before = len(walks)
    learner.learn(3)
    assert len(walks) == before > 0
