"""The README's Python is run as it stands, with fewer iterations, and the README is as short as it claims."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import metarl
from metarl.experiments import train
from tests.experiments import runs
from tests.pages import README, ROOT, python_blocks, run_blocks


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the README's blocks define, run beside a folder with a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        sizes = ["--iterations", "1", "--meta-batch-size", "2", "--episodes", "2", "--eval-tasks", "2", "--hidden", "8"]
        train.main([*sizes, "--name", "nav"])
        yield from run_blocks(README)


def test_the_program_trains(names: dict[str, Any]) -> None:
    assert isinstance(names["learner"], metarl.MetaLearner)
    assert names["learner"].iterations == 2


def test_the_program_does_what_make_train_does(names: dict[str, Any], tmp_path: Path) -> None:
    """The same parameters to the bit, with the defaults of the command."""
    shorter = ("--iterations", 2, "--anneal-iterations", 150, "--episodes", 3, "--eval-tasks", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "report", lambda run: None)
        outcome = runs.call(
            "train", "--env", "navigation", "--outer", "maml", *shorter, "--log-dir", tmp_path, "--name", "run"
        )
    assert outcome.code == 0, outcome.err
    same = metarl.load(tmp_path / "run").params
    assert names["learner"].iterations == 2
    assert same.keys() == names["learner"].params.keys()
    assert all(torch.equal(leaf, names["learner"].params[k]) for k, leaf in same.items())


def test_the_adapted_policy_acts(names: dict[str, Any]) -> None:
    assert 0 < names["policy"].env_steps <= 3 * 100
    assert names["env"].action_space.contains(names["action"])
    (program,) = (block for block in python_blocks(README) if ".adapt(env" in block)
    assert len([line for line in program.splitlines() if line and not line.startswith("import")]) == 3


def test_the_update_trains(names: dict[str, Any]) -> None:
    for options in ({}, {"power": 1.0}):
        learner = metarl.MetaLearner(names["source"], "normalized_fo_maml", outer_options=options, meta_batch_size=2)
        assert learner.learn(1).iterations == 1


def test_lengths() -> None:
    program, _, update = python_blocks(README)
    assert len(program.splitlines()) <= 13
    assert len(update.splitlines()) <= 18
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_the_results_are_those_of_the_page_of_results() -> None:
    """The README leaves out intervals and some updates; every other number of its table stands in docs/results.md."""
    results = rows(ROOT / "docs" / "results.md")
    table = rows(README)
    ours = {
        name
        for name, make in metarl.OUTER.items()
        if make().needs_particles is False and make.__module__.startswith("metarl.outer.")
    }
    assert table.keys() < results.keys()
    assert {name.split("`")[1] for name in results} == ours
    for name, numbers in table.items():
        assert numbers == [cell.split(" [")[0] for cell in results[name]]


def rows(page: Path) -> dict[str, list[str]]:
    """The rows of a page's table of all updates, by the update's cell."""
    _, table = page.read_text(encoding="utf-8").split("| update | step 0 |")
    lines = table.split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: numbers for name, *numbers in cells}
