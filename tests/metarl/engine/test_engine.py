"""How derivatives of all tasks are computed: in chunks, traced, or plainly; the results are the same."""

import logging

import pytest
import torch

from metarl import OUTER, make_method
from metarl.engine import Execution
from metarl.supervised import FiniteSumTaskBatch
from metarl.types import Batch, Params
from tests.reference import checks, problems
from tests.reference.problems import ReferenceProblem


def regression(execution: Execution | None = None) -> ReferenceProblem:
    tasks, params = problems.regression()
    assert isinstance(tasks, FiniteSumTaskBatch)
    return ReferenceProblem(FiniteSumTaskBatch(tasks.loss, tasks.support, tasks.query, execution=execution), params)


WAYS = {
    "chunks_of_1": Execution(chunk_size=1),
    "chunks_of_2": Execution(chunk_size=2),
    "one_chunk": Execution(chunk_size=9),
    "traced": Execution(trace=True),
    "traced_chunks": Execution(chunk_size=2, trace=True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", sorted(OUTER))
def test_every_method_gives_the_same(name: str, way: str) -> None:
    method = make_method(name, 0.1, 2)
    plain, other = (checks.run(method, regression(e)) for e in (None, WAYS[way]))
    again = checks.run(method, regression(WAYS[way]))
    for key in plain.grads:
        torch.testing.assert_close(other.grads[key], plain.grads[key], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(other.score, plain.score, rtol=1e-12, atol=0)
    checks.assert_same(other, again)  # the record says the same the second time


def test_a_trace_is_made_once_for_every_shape_and_type() -> None:
    calls = []

    def loss(params: Params, batch: Batch) -> torch.Tensor:
        calls.append(1)
        return (params["w"] * batch["x"]).square().mean()

    execution = Execution(trace=True)

    def run(number: int, dtype: torch.dtype) -> None:
        x, w = torch.ones(number, 3, dtype=dtype), torch.ones(number, dtype=dtype)
        got = execution.over_tasks("loss", loss, {"w": w}, {"x": x})
        assert torch.equal(got, torch.ones(number, dtype=dtype))

    for _ in range(7):
        run(2, torch.float32)
    assert len(calls) == 4  # the record, and what it is compared with at uses 1, 2 and 4
    run(4, torch.float32)
    run(4, torch.float64)
    assert len(calls) == 8


def test_what_cannot_be_traced_runs_plainly_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def loss(params: Params, batch: Batch) -> torch.Tensor:
        calls.append(1)
        return params["w"] * batch["x"].sum() * len(calls)  # a record would freeze the number

    execution = Execution(trace=True)

    def run() -> torch.Tensor:
        result: torch.Tensor = execution.over_tasks("losses", loss, {"w": torch.ones(2)}, {"x": torch.ones(2, 2)})
        return result

    with caplog.at_level(logging.WARNING, "metarl.engine"):
        assert torch.equal(run(), torch.full((2,), 8.0))  # the record, the comparison, and whether it repeats itself
        assert torch.equal(run(), torch.full((2,), 10.0))
    assert [r.message.startswith("losses are computed without a trace") for r in caplog.records] == [True]


def test_tensors_a_function_refers_to_keep_their_current_values() -> None:
    factor, execution = torch.tensor([3.0, 3.0]), Execution(trace=True)

    def loss(params: Params, batch: Batch) -> torch.Tensor:
        return params["w"] * (batch["x"] * factor).sum()

    for value in (3.0, 5.0):
        factor.fill_(value)
        got = execution.over_tasks("losses", loss, {"w": torch.ones(2)}, {"x": torch.ones(2, 2)})
        assert torch.equal(got, torch.full((2,), 2 * value))


def test_bad_chunks() -> None:
    with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1, got 0"):
        Execution(chunk_size=0)
