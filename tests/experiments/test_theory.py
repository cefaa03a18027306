"""`metarl theory`: whether it runs, what it writes, how it ends; and the numerical tools of the claims."""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metarl import make_method
from metarl.experiments.reports import theory
from metarl.experiments.reports.theory import CLAIMS
from metarl.experiments.reports.theory.common import Findings, Row, panels
from metarl.experiments.reports.theory.complexity import first_below
from metarl.experiments.reports.theory.multi_step import jacobians
from metarl.experiments.reports.theory.numerics import (
    TASKS,
    Descent,
    central_differences,
    descend,
    direction,
    find_zero,
    grad_norm,
    objective,
    slope,
)
from metarl.experiments.reports.theory.report import Claim
from metarl.theory.logistic import logistic_source, six_logistic_tasks
from metarl.theory.quadratics import (
    maml_matrix,
    mean_gradient,
    quadratic_source,
    quadratic_tasks,
    quadratics_1d,
    random_quadratics,
)
from tests.experiments import runs
from tests.pages import headings, links

DOUBLE = torch.float64
CHEAP = (4,)


def test_cheap_claims_hold(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "theory.md"
    options = ["--quick", "--claims", *CHEAP, "--out", tmp_path / "pictures", "--write", page]
    outcome = runs.call("reports.theory", *options, "--json")
    assert outcome.code == 0, outcome.out
    found = json.loads(outcome.out)["claims"]
    assert list(found) == [str(number) for number in CHEAP]
    assert all(row["holds"] for claim in found.values() for row in claim["rows"])
    assert [len(claim["rows"]) for claim in found.values()] == [6]

    text = page.read_text()
    for number in CHEAP:
        assert f"## {number}. {CLAIMS[number].title}" in text
        assert f"](../pictures/theory_{CLAIMS[number].name}.png)" in text
        with Image.open(tmp_path / "pictures" / f"theory_{CLAIMS[number].name}.png") as image:
            assert len(image.convert("RGB").getcolors(maxcolors=image.width * image.height) or []) > 50
    sections = text.partition("\n## 4. ")[2]
    rows = [line for line in sections.splitlines() if line.startswith("| ")]
    assert len(rows) == 6 + 2 * len(CHEAP)  # with the two lines above each claim's rows
    assert {len(row.replace("\\|", "").split("|")) for row in rows} == {8}


def fake(*rows: Row) -> Callable[[bool], Findings]:
    """A claim whose findings are given."""
    return lambda quick: Findings(list(rows), panels(1)[0], f"quick: {quick}")


HOLDS = Row("x > |y|", "a paper", "1", "1.0", True)
FAILS = Row("y", "a paper", "2", "3.0", False)
UNSEEN = Row("z", "a paper", "4", "5.0", False, required=False)


@pytest.mark.parametrize(
    ("rows", "code", "verdicts"),
    [((HOLDS,), 0, ["yes"]), ((HOLDS, UNSEEN), 0, ["yes", "not seen"]), ((FAILS, HOLDS), 1, ["**no**", "yes"])],
)
def test_exit_code_and_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: tuple[Row, ...], code: int, verdicts: list[str]
) -> None:
    monkeypatch.setitem(CLAIMS, 1, Claim("fake", "a fake", fake(*rows)))
    outcome = runs.call("reports.theory", "--claims", 1, "--out", tmp_path)
    assert outcome.code == code
    lines = [line for line in outcome.out.splitlines() if line.startswith("| 1 ")]
    assert [line.split(" | ")[-1].removesuffix(" |") for line in lines] == verdicts
    assert ("x > \\|y\\|" in outcome.out) == (HOLDS in rows)


def test_the_list_of_all_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLAIMS, 1, Claim("fake", "O(1/eps^2): a - fake", fake(HOLDS, UNSEEN)))
    monkeypatch.setitem(CLAIMS, 2, Claim("other", "Another", fake(FAILS)))
    page = tmp_path / "report.md"
    assert runs.call("reports.theory", "--claims", 1, 2, "--out", tmp_path, "--write", page).code == 1
    text = page.read_text()
    index = text[text.index("## Every statement") : text.index("## Misprints")]
    assert "3 statements: 1 hold, 1 not seen here, 1 should hold and did not." in index
    assert [line for line in index.splitlines() if line.startswith("| [")] == [
        "| [1](#1-o1eps2-a-fake) | x > \\|y\\| | yes |",
        "| [1](#1-o1eps2-a-fake) | z | not seen |",
        "| [2](#2-another) | y | **no** |",
    ]
    assert {link.removeprefix("#") for link in links(page) if link.startswith("#")} <= headings(page)
    assert text.index("## Misprints") < text.index("## 1. O(1/eps^2): a - fake")
    assert runs.call("reports.theory", "--claims", 1, "--out", tmp_path, "--write", page).code == 0
    assert "2 statements: 1 hold, 1 not seen here. " in page.read_text()


def test_quick_reaches_the_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLAIMS, 1, Claim("fake", "a fake", fake(HOLDS)))
    for options, wanted in ((["--quick"], "quick: True"), ([], "quick: False")):
        path = tmp_path / "report.md"
        assert runs.call("reports.theory", "--claims", 1, "--out", tmp_path, "--write", path, *options).code == 0
        assert wanted in path.read_text()
        assert ("--quick" in path.read_text()) == bool(options)


@pytest.mark.parametrize("claims", [[0], [1, 99], [3, 3]])
def test_unknown_claims(tmp_path: Path, claims: list[int]) -> None:
    outcome = runs.call("reports.theory", "--claims", *claims, "--out", tmp_path / "none")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: claims must be some of {sorted(CLAIMS)}, without repetition, got")
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_every_claim_has_its_file() -> None:
    names = {path.stem for path in Path(theory.__file__).parent.glob("*.py")}
    others = {"__init__", "__main__", "common", "draws", "numerics", "report"}
    assert {claim.name for claim in CLAIMS.values()} == names - others


# Tools.


def test_central_differences_are_of_fourth_order() -> None:
    w = torch.tensor([0.3, -0.7], dtype=DOUBLE)

    def function(x: Tensor) -> Tensor:
        return torch.stack([x[0].exp() * x[1], x[1].sin()])

    exact = torch.func.jacrev(function)(w).T  # coordinate of w first
    coarse, fine = ((central_differences(function, w, h) - exact).abs().max() for h in (0.1, 0.05))
    assert 14 < coarse / fine < 18
    assert fine < 1e-6


def test_find_zero() -> None:
    def field(w: Tensor) -> Tensor:
        return torch.stack([w[0] ** 3 + w[1] - 2, w[1] - w[0]])

    torch.testing.assert_close(find_zero(field, torch.zeros(2, dtype=DOUBLE)), torch.ones(2, dtype=DOUBLE))
    with pytest.raises(ArithmeticError, match="did not find a zero"):
        find_zero(lambda w: 1 + w**2, torch.full((1,), 0.8, dtype=DOUBLE))


def test_slope_is_the_power() -> None:
    assert slope([1, 2, 4, 8], [3 * x**-0.7 for x in (1, 2, 4, 8)]) == pytest.approx(-0.7, abs=1e-12)


def test_first_below() -> None:
    watch = Descent(lambda w: 0.0, 5)
    watch.at, watch.seen = [0, 5, 10, 15], [1.0, 0.1, 0.3, 0.01]
    assert first_below(watch, np.array([1.0, 0.2, 0.05])) == [0, 5, 15]
    with pytest.raises(ArithmeticError, match="must reach"):
        first_below(watch, np.array([1e-3]))


def test_direction_and_grad_norm_against_the_closed_form() -> None:
    problem = random_quadratics(np.random.default_rng(0), 3, 4)
    w = torch.ones(4, dtype=DOUBLE)
    exact = mean_gradient(problem, maml_matrix(problem.curvatures, 0.3, 2), w)
    tasks = quadratic_tasks(problem)
    torch.testing.assert_close(direction(make_method("maml", 0.3, 2), tasks)(w), exact)
    assert grad_norm(tasks, 0.3, 2)(w) == pytest.approx(exact.norm().item())
    numeric = central_differences(objective(tasks, make_method("maml", 0.3, 2).inner), w)
    torch.testing.assert_close(numeric, exact, rtol=1e-9, atol=0)


def test_jacobians_of_adaptation() -> None:
    """Against autograd through two unrolled steps."""
    got = jacobians(make_method("maml", 0.8, 2).inner)
    for task in (0, 5):
        data = {key: leaf[task] for key, leaf in TASKS.support.items()}
        gradient = torch.func.grad(lambda v, data=data: TASKS.loss({"w": v}, data))

        def adapted(w: Tensor, gradient: Any = gradient) -> Tensor:
            w = w - 0.8 * gradient(w)
            return w - 0.8 * gradient(w)

        torch.testing.assert_close(got[task], torch.func.jacrev(adapted)(torch.zeros(5, dtype=DOUBLE)))


def test_descend_is_gradient_descent() -> None:
    source = quadratic_source(quadratics_1d([1.0], [1.0]))
    run = descend(source, make_method("maml", 0.5), 4, 0.1, 1, Tensor.item, 2)
    factor = 1 - 0.1 * 0.25  # F' = (1 - alpha)^2 (w - 1)
    assert run.at == [0, 2, 4]
    assert run.seen == pytest.approx([1 - factor**k for k in (0, 2, 4)])
    assert run.end.item() == run.seen[-1]


def test_a_signal_ends_the_program() -> None:
    """And not only the run it meets: a claim's figures would come from a run cut short."""

    pending = [signal.SIGTERM]

    def interrupt(w: Tensor) -> float:
        if pending:  # a second one would end this process
            signal.raise_signal(pending.pop())
        return math.nan

    source = logistic_source(six_logistic_tasks())
    with pytest.raises(SystemExit) as end:
        descend(source, make_method("fo_maml", 0.1), 50, 0.1, 6, interrupt)
    assert end.value.code == 128 + signal.SIGTERM
