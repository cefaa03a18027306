"""`metarl evaluate`: one JSON object, the settings do what they say, the run stays as it was."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarl import AdaptationCurve
from metarl.engine import Engine
from tests.experiments import runs

pytestmark = pytest.mark.usefixtures("unrecorded")
SMALL = ("--tasks", 6, "--episodes", 3)


@pytest.fixture
def run(trained: Callable[[str], Path]) -> Path:
    return trained("navigation")


def curve(run: Path, *arguments: object) -> dict[str, Any]:
    """All of stdout as JSON."""
    small = SMALL[2:] if "--tasks-from" in arguments else SMALL
    outcome = runs.call("evaluate", run, *small, "--json", *arguments)
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
    assert found["costs"]["env_steps"] == [[90 * k for k in range(steps + 1)]]


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
        assert row.split()[-2] == str(found["costs"]["env_steps"][0][step])


def goals(folder: Path, lines: str) -> Path:
    (folder / "goals.csv").write_text(f"goal[0],goal[1]\n{lines}")
    return folder / "goals.csv"


def test_tasks_from_a_file_and_the_table(run: Path, tmp_path: Path) -> None:
    found = curve(run, "--tasks-from", goals(tmp_path, "0.1,0.2\n-0.5,3\n"), "--csv", tmp_path / "out" / "scores.csv")
    assert found["tasks"]["goal"] == pytest.approx(np.array([[0.1, 0.2], [-0.5, 3.0]], np.float32))
    assert found["random_init"]["tasks"] == found["tasks"]
    table = AdaptationCurve.from_csv(tmp_path / "out" / "scores.csv")
    assert table.scores.tolist() == found["scores"]
    assert table.tasks["goal"].tolist() == found["tasks"]["goal"]
    assert (table.score_name, table.scores.shape) == ("return", (1, 2, 4))


def test_the_tasks_of_a_run_can_be_evaluated_again(run: Path, tmp_path: Path) -> None:
    """Every evaluation stores its tasks; chosen again they are the same, with other random numbers."""
    recorded = json.loads((run / "evaluation.json").read_text())
    assert len(recorded["tasks"]["goal"]) == recorded["num_tasks"]
    latest = json.loads((run / "held_out.json").read_text())
    assert len(latest["tasks"]["goal"]) == latest["num_tasks"] == len(latest["scores"][0])
    lines = "".join(f"{x!r},{y!r}\n" for x, y in recorded["tasks"]["goal"])
    found = curve(run, "--tasks-from", goals(tmp_path, lines), "--steps", 0)
    assert found["tasks"] == recorded["tasks"]
    assert found["scores"] != recorded["scores"]


def test_deterministic_scores(run: Path) -> None:
    """Navigation has a fixed start and no noise, so all episodes of the most likely actions are the same."""
    one, three = (curve(run, "--deterministic", "--episodes", n, "--steps", 0)["scores"] for n in (1, 3))
    np.testing.assert_allclose(one, three, rtol=1e-6)
    assert curve(run, "--steps", 0)["scores"] != three


def test_heat_map(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    found = curve(run, "--heat-map", path, "--heat-map-size", 3, "--steps", 1)
    assert found == curve(run, "--steps", 1)  # a picture, and nothing else changes
    with Image.open(path) as image:
        colours = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
    assert colours is not None
    assert len(colours) > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks-from", "nowhere.csv"), r"nowhere\.csv"),
        (("--tasks-from", "goals.csv", "--tasks", 3), "tasks does not apply to the tasks of tasks_from; remove it"),
        (("--tasks-from", "goals.csv", "--ood"), "ood does not apply to the tasks of tasks_from; remove it"),
        (("--tasks-from", "goals.csv"), r"goals\.csv, line 2, column 'goal\[1\]': must be a finite number, got 'x'"),
        (("--heat-map-size", 3), "heat_map_size does not apply without heat_map; remove it"),
        (("--heat-map", "map.xyz"), r"heat_map must end in one of .*'png'.*, got 'map\.xyz'"),
        (("--heat-map", "map.png", "--heat-map-size", 0), "heat_map_size must be an integer of at least 1"),
    ],
)
def test_wrong_arguments_are_one_line(
    run: Path, arguments: tuple[object, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    goals(tmp_path, "1,x\n")
    outcome = runs.call("evaluate", run.absolute(), *arguments)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert re.search(message, outcome.err)
