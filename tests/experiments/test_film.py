"""`metarl film`: pictures of the policy before adaptation and after, and nothing else changes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from metarl.experiments import film
from metarl.experiments.film import actor
from metarl.random import Stream, stream_generator
from metarl.tree import take
from tests.experiments import runs


@pytest.fixture
def run(trained: Callable[[str], Path]) -> Path:
    return trained("navigation")


def pictures(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


@pytest.mark.usefixtures("no_pictures")
def test_strip_and_film(run: Path, tmp_path: Path) -> None:
    before, out = runs.files(run), tmp_path / "out"
    outcome = runs.call("film", run, "--steps", 0, 2, "--tasks", 2, "--frames", 3, "--every", 1, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    assert runs.files(run) == before
    assert sorted(path.name for path in out.iterdir()) == ["film.gif", "film.png"]
    titles = outcome.out.split(": ", 1)[1].split("; ")
    assert [title.split(", ")[-1].split(":")[0] for title in titles] == ["step 0", "step 2"] * 2
    assert titles[0].split(",")[0] == titles[1].split(",")[0] != titles[2].split(",")[0]  # the goals
    moving = pictures(out / "film.gif")
    assert len(moving) == 6  # 5 steps, and before the first
    assert moving[0].shape == (240, 4 * 240, 3)
    assert (moving[0] != moving[-1]).any()
    assert len(pictures(out / "film.png")) == 1


@pytest.mark.usefixtures("no_pictures")
def test_the_same_call_writes_the_same(run: Path, tmp_path: Path) -> None:
    for name in "ab":
        runs.call("film", run, "--steps", 1, "--tasks", 1, "--frames", 2, "--out", tmp_path / name)
    assert runs.files(tmp_path / "a")["film.gif"] == runs.files(tmp_path / "b")["film.gif"]


def test_the_policy_on_film_is_the_adapted_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does in a task after its steps is the mean action at the parameters that `adapt` gives."""
    given = film.Arguments(run, steps=(0, 1), tasks=2, episodes=4)
    learner, source = film.prepare(given)
    oracle = source.sample(2, stream_generator(given.seed, Stream.FILM))
    adapted = learner.adapt(oracle, steps=1)
    observation = np.array([0.1, -0.2], np.float32)
    seen = []
    original = film.episode

    def watched(tasks, task, act, *rest):  # type: ignore[no-untyped-def]
        seen.append(act(observation))
        return original(tasks, task, act, *rest)

    monkeypatch.setattr(film, "episode", watched)
    film.shoot(learner, source, given)
    expected = [
        actor(source.policy, params, source.distribution.action_space)(observation)
        for t in range(2)
        for params in (learner.params, take(adapted, t))
    ]
    np.testing.assert_array_equal(seen, expected)
    assert not np.array_equal(seen[0], seen[1])


def test_likeliest_of_discrete_actions() -> None:
    from gymnasium.spaces import Discrete

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(3))

        def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (obs + self.bias,)

    act = actor(Logits(), {"bias": torch.tensor([0.0, 0.5, 0.0])}, Discrete(3))
    assert [act(np.zeros(3, np.float32)), act(np.eye(3, dtype=np.float32)[2])] == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", -1), "steps must be an integer of at least 0, got -1"),
        (("--tasks", 0), "tasks must be an integer of at least 1, got 0"),
        (("--frames", 0), "frames must be an integer of at least 1, got 0"),
        (("--every", 0), "every must be an integer of at least 1, got 0"),
        (("--out", Path(__file__)), "out must be a folder"),
    ],
)
def test_bad_input(run: Path, options: tuple[object, ...], message: str) -> None:
    before = runs.files(run)
    outcome = runs.call("film", run, *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert runs.files(run) == before


def test_missing_run(tmp_path: Path) -> None:
    outcome = runs.call("film", tmp_path / "none")
    assert outcome.code == 2
    assert "none/config.json" in outcome.err


@pytest.mark.parametrize("frame", [None, "text", RuntimeError("no display")])
def test_an_environment_without_pictures_is_refused_before_the_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame: object
) -> None:
    def render(self: object) -> object:
        if isinstance(frame, Exception):
            raise frame
        return frame

    def must_not_start(*_: object) -> None:
        raise AssertionError("it starts")

    monkeypatch.setattr("metarl.envs.functional.FunctionalGymEnv.render", render)
    monkeypatch.setattr(film, "shoot", must_not_start)
    outcome = runs.call("film", run, "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: run must have an environment with render_mode='rgb_array'")
    assert not (tmp_path / "out").exists()
