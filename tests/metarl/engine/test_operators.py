"""PyTorch's own operators through a record: a sample here, all of them in the slow suite."""

import collections
import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from metarl.engine import calls
from tests.metarl.engine.operators import Case, cases, outcome

EXCEPTED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
"""Their results are whatever was in memory."""

EVERY = 90
"""One in so many operators is in the sample; these are, too."""

ALWAYS = {
    "nn.functional.soft_margin_loss",
    "chunk",
    "split",
    "unbind",
    "unbind_copy",
    "unsafe_chunk",
    "isfinite",
    "cholesky",
    "tanh",
    "view_as_complex",
}

OTHER_TYPES = [torch.float64, torch.int64, torch.bool, torch.complex64]


def database() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return list(op_db)


def count(chosen: Iterable[Case]) -> collections.Counter[tuple[str, str]]:
    """How many came out how, by what was computed; raises for what is different."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    different = []
    for case in chosen:
        if case.operator in EXCEPTED:
            found[case.kind, "excepted"] += 1
            continue
        word, reason = outcome(case)
        found[case.kind, word] += 1
        assert reason or word == "equal"
        if word == "different":
            different.append(f"{case.name}, {case.kind}, recorded on {case.data} data: {reason}")
    assert not different, "\n".join([f"{len(different)} runs", *different[:20]])
    return found


def sample() -> list[Any]:
    operators = database()
    return operators[::EVERY] + [x for x in operators if x.name in ALWAYS]


@pytest.mark.parametrize("dtype", [torch.float32, *OTHER_TYPES], ids=str)
def test_a_sample_of_the_operators(dtype: torch.dtype) -> None:
    operators = sample() if dtype == torch.float32 else sample()[::5]
    found = count(case for x in operators if dtype in x.supported_dtypes("cpu") for case in cases(x, dtype, 1))
    assert sum(n for (_, word), n in found.items() if word == "equal") > (3 if dtype == torch.bool else 5)


def test_a_sample_called_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "use_torchscript", False)
    found = count(case for x in sample()[::4] for case in cases(x, torch.float32, 1))
    assert found["values", "equal"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, *OTHER_TYPES], ids=str)
def test_all_operators(dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    """All of PyTorch's operators; two samples of each with float32, one with the other types."""
    number = 2 if dtype == torch.float32 else 1
    operators = [x for x in database() if dtype in x.supported_dtypes("cpu")]
    found = count(case for x in operators for case in cases(x, dtype, number))
    with capsys.disabled():
        print(f"\n{len(operators)} operators, {dtype}")
        for kind in ("values", "gradient", "hvp"):
            words = ("equal", "refused", "excepted", "plain fails")
            print(f"  {kind}: " + ", ".join(f"{found[kind, word]} {word}" for word in words))
    assert found["values", "equal"] > 100
