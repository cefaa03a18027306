"""`metarl evaluate`: one JSON object, the settings do what they say, the run stays as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metarl.engine import Engine
from tests.experiments import runs

pytestmark = pytest.mark.usefixtures("unrecorded")
SMALL = ("--tasks", 6, "--episodes", 3)


@pytest.fixture
def run(trained: Callable[[str], Path]) -> Path:
    return trained("navigation")


def curve(run: Path, *arguments: object) -> dict[str, Any]:
    """All of stdout as JSON."""
    outcome = runs.call("evaluate", run, *SMALL, "--json", *arguments)
    assert (outcome.code, outcome.err) == (0, "")
    result: dict[str, Any] = json.loads(outcome.out)
    return result


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_json(run: Path, steps: int) -> None:
    found = curve(run, "--steps", steps)
    for part in (found, found["random_init"]):
        assert part["steps"] == list(range(steps + 1))
        assert part["num_tasks"] == 6
        assert len(part["mean"]) == len(part["ci95"]) == steps + 1
        assert all(low <= mean <= high for mean, (low, high) in zip(part["mean"], part["ci95"], strict=True))
    # 6 tasks x 3 episodes x 5 steps; nobody gets to a goal 0.01 wide in 5 steps of this seed
    assert found["env_steps"] == [90 * k for k in range(steps + 1)]


def test_same_call_same_output_and_nothing_changes(run: Path) -> None:
    before = runs.files(run)
    outcomes = [runs.call("evaluate", run, *SMALL, "--json") for _ in range(2)]
    assert outcomes[0] == outcomes[1]
    assert runs.files(run) == before


def test_default_evaluation_is_that_of_the_run(run: Path) -> None:
    with Engine().current():  # as the run has
        found = json.loads(runs.call("evaluate", run, "--json").out)
    recorded = json.loads((run / "evaluation.json").read_text())
    assert {key: found[key] for key in recorded} == recorded


@pytest.mark.parametrize(("option", "from_step"), [(("--step-schedule", "constant"), 2), (("--ood",), 0)])
def test_differs_from_step(run: Path, option: tuple[str, ...], from_step: int) -> None:
    """One inner step was trained, so the step size is halved from the second on; other tasks differ at once."""
    plain, changed = curve(run)["mean"], curve(run, *option)["mean"]
    assert [a != b for a, b in zip(plain, changed, strict=True)] == [step >= from_step for step in range(4)]


def test_seed_and_episodes_matter(run: Path) -> None:
    means = [curve(run, *extra)["mean"] for extra in ((), ("--seed", 1), ("--episodes", 4))]
    assert len({tuple(mean) for mean in means}) == 3


def test_table_shows_the_same_numbers(run: Path) -> None:
    found, rows = curve(run), runs.call("evaluate", run, *SMALL).out.splitlines()
    assert len(rows) == 3 + 4
    for step, row in enumerate(rows[3:]):
        assert row.split()[1:4] == [str(step), "|", f"{found['mean'][step]:.2f}"]
        assert row.split()[-2] == str(found["env_steps"][step])
