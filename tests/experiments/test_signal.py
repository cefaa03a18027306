"""`metarl signal`: its numbers on a bandit with known moments, and what it refuses."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metarl.envs.exact.gaussian_bandit import GaussianBandit
from metarl.envs.exact.policies import GaussianMean
from metarl.experiments.reports import signal
from metarl.experiments.reports.signal import cosine, measure
from metarl.rl import ReinforcementLearning
from tests.experiments import runs

CENTRES = np.array([[1.5], [-0.5], [0.9]], np.float32)


def bandit(episodes: int) -> ReinforcementLearning:
    return ReinforcementLearning(
        GaussianBandit(), GaussianMean().double(), episodes=episodes, baseline="none", normalize_advantages=False
    )


@pytest.mark.parametrize("episodes", [4, 40])
def test_the_ratio_is_that_of_the_moments(episodes: int) -> None:
    """One pull has the gradient e (e - d)^2, with mean -2 d and variance 15 + 14 d^2 + d^4."""
    source = bandit(episodes)
    params = source.initial_params()
    found = measure(source, params, {"centre": CENTRES}, 1000, seed=0)
    d = CENTRES.astype(np.float64)
    square, variance = (4 * d**2).mean(), ((15 + 14 * d**2 + d**4) / episodes).mean()
    assert found.ratio == pytest.approx(square / variance, rel=0.15)
    assert found.length == pytest.approx(np.sqrt(square), rel=0.07)


def test_few_draws_do_not_count_their_noise_as_signal() -> None:
    """The mean of few noisy draws is long; corrected, its square is right in expectation."""
    source = bandit(4)
    found = [measure(source, source.initial_params(), {"centre": CENTRES}, 4, seed).ratio for seed in range(150)]
    d = CENTRES.astype(np.float64)
    wanted = (4 * d**2).mean() / ((15 + 14 * d**2 + d**4) / 4).mean()
    assert np.median(found) == pytest.approx(wanted, abs=0.12)
    assert wanted + 1 / 4 > np.median(found) + 0.1  # the mean's own variance would add 1 / draws


def test_directions_are_those_of_the_means() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.6, 0.8, 0.0])

    def halves(mean: torch.Tensor) -> torch.Tensor:
        return mean + torch.randn(2, 20_000, 3, generator=generator)

    assert cosine(halves(one), halves(other)) == pytest.approx(0.6, abs=0.04)
    assert cosine(halves(one), halves(one)) == pytest.approx(1.0, abs=0.04)
    # with the noise of both halves in it the cosine would be 0.24
    assert 0.6 / (1 + 3 / 2) < 0.25


def test_a_direction_that_draws_do_not_show_is_not_a_number() -> None:
    """Halves that point in opposite directions: two negative squares would give a cosine of 1."""
    noise = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])
    assert math.isnan(cosine(noise, noise))
    assert math.isnan(cosine(torch.ones(2, 1, 2), noise))
    assert signal.known(cosine(noise, noise)) is None
    assert cosine(torch.ones(2, 1, 2), torch.ones(2, 1, 2)) == pytest.approx(1.0)


def test_the_table(trained: Callable[[str], Path]) -> None:
    run = trained("navigation")
    before = runs.files(run)
    arguments = [run, "--tasks", 2, "--draws", 4, "--tries", "gae_lambda=0.5,discount=0.9", "episodes=8"]
    outcome = runs.call("reports.signal", *arguments)
    assert (outcome.code, outcome.err) == (0, "")
    names = [line.split("|")[1].strip() for line in outcome.out.splitlines() if line.startswith("|")]
    assert names[0] == "credit"
    assert names[2:] == ["the run's own", "gae_lambda=0.5,discount=0.9", "episodes=8"]
    found = json.loads(runs.call("reports.signal", *arguments, "--json").out)
    assert found["tries"]["the run's own"]["direction"] == 1.0
    assert set(found["tries"]["episodes=8"]) == {"ratio", "length", "direction"}
    assert runs.files(run) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", 0], "tasks must be an integer of at least 1, got 0"),
        (["--draws", 3], "draws must be an integer of at least 4, got 3"),
        (["--tries", "gae_lambda=2"], "gae_lambda must be"),
        (["--tries", "surrogate=dice"], "tries must change some of episodes, discount"),
        (["--tries", "gae_lamda=0.9"], "tries must change some of episodes, discount"),
        (["--tries", "episodes=4", "episodes=4"], "tries must name at least one, and none twice"),
    ],
)
def test_bad_input(trained: Callable[[str], Path], options: list[object], message: str) -> None:
    outcome = runs.call("reports.signal", trained("navigation"), *options)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err


def test_every_default_try_can_be_measured(trained: Callable[[str], Path]) -> None:
    _, sources = signal.prepare(signal.Arguments(trained("navigation")))
    assert len(sources) == 10
    own = sources.pop("the run's own")
    for text, source in sources.items():  # each changes the gradient: `none` is a baseline, not the default one
        name = text.partition("=")[0]
        assert getattr(source, name) != getattr(own, name), text
    assert [sources[f"baseline={name}"].chosen_baseline for name in ("time", "none")] == ["time", "none"]
    _, sources = signal.prepare(signal.Arguments(trained("navigation"), tries=("baseline=None", "baseline=null")))
    assert [source.chosen_baseline for source in sources.values()] == ["linear", "none", "linear"]
