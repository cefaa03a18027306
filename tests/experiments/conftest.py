"""Runs that several tests look at, and reports that cost nothing."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from metarl.engine import Engine
from metarl.experiments import train
from metarl.experiments.train import TrainConfig
from metarl.files import write_json
from tests.experiments import runs

PICTURES = {name: getattr(train, name) for name in ("adaptation_figure", "trajectory_figure")}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From an environment's name to a finished run of three iterations; to be looked at, not changed."""

    @cache
    def run(env: str) -> Path:
        # the first test that asks may do without pictures and records
        with Engine().current(), pytest.MonkeyPatch.context() as patch:
            for name, picture in PICTURES.items():
                patch.setattr(train, name, picture)
            return runs.train(tmp_path_factory.mktemp("trained") / env, "--env", env, "--iterations", 3)

    return run


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the seconds of the held-out evaluation and the pictures at the end of a run."""

    def report(run: train.Run[TrainConfig]) -> None:
        write_json(run.folder / "evaluation.json", {"iterations": run.learner.iterations})

    monkeypatch.setattr(train, "report", report)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the seconds of a run's own pictures; the numbers are made."""
    for name in PICTURES:
        monkeypatch.setattr(train, name, lambda *_, **__: Figure())
