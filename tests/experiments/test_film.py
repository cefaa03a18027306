"""`metarl film`: pictures of the policy before adaptation and after, and nothing else changes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.experiments import film
from metarl.experiments.common.videos import CAPTION
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
    assert moving[0].shape == (240 + CAPTION, 4 * 240, 3)
    assert (moving[0][CAPTION:] != moving[-1][CAPTION:]).any()
    assert [(moving[0][:CAPTION, 240 * k : 240 * (k + 1)] < 128).any() for k in range(4)] == [True] * 4  # captions
    assert len(pictures(out / "film.png")) == 1


@pytest.mark.usefixtures("no_pictures")
def test_the_film_in_the_run_is_in_tensorboard_and_as_mp4(run: Path, tmp_path: Path) -> None:
    folder = runs.copy(run, tmp_path / "run")
    outcome = runs.call("film", folder, "--steps", 0, 2, "--tasks", 1, "--every", 1, "--frames", 2, "--mp4")
    assert (outcome.code, outcome.err) == (0, "")
    events = EventAccumulator(str(folder), {"images": 0}).Reload()
    (image,) = events.Images("figures/film")
    assert image.encoded_image_string == (folder / "film.gif").read_bytes()
    assert (image.step, image.height, image.width) == (3, 240 + CAPTION, 480)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decode = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(folder / "film.mp4"), *raw]
    decoded = subprocess.run(decode, check=True, capture_output=True).stdout
    shown = np.frombuffer(decoded, np.uint8).reshape(-1, 288, 480, 3)
    for one, other in zip(shown, pictures(folder / "film.gif"), strict=True):  # codecs change colours a little
        assert np.abs(one[: 240 + CAPTION].astype(int) - other).mean() < 4
    with Image.open(folder / "film.gif") as image:
        assert image.info["duration"] == 50  # navigation has no speed: 20 steps in a second


@pytest.mark.usefixtures("no_pictures")
def test_chosen_tasks(run: Path, tmp_path: Path) -> None:
    goals = tmp_path / "goals.csv"
    goals.write_text("goal[0],goal[1]\n0.5,0.25\n-0.5,0\n")
    outcome = runs.call("film", run, "--tasks-from", goals, "--steps", 0, "--frames", 2, "--out", tmp_path / "out")
    assert (outcome.code, outcome.err) == (0, "")
    titles = outcome.out.split("film.gif: ", 1)[1].split("; ")
    assert [title.split(", step")[0] for title in titles] == ["goal 0.5 0.25", "goal -0.5 0"]
    outcome = runs.call("film", run, "--tasks-from", goals, "--tasks", 3, "--out", tmp_path / "none")
    assert outcome.code == 2
    assert "tasks does not apply to the tasks of tasks_from" in outcome.err
    assert not (tmp_path / "none").exists()


def test_mp4_without_its_package(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    before = runs.files(run)
    outcome = runs.call("film", run, "--mp4")
    assert outcome.code == 2
    assert 'mp4 needs the extra video: pip install "metarl-torch[video]"' in outcome.err
    assert runs.files(run) == before


@pytest.mark.usefixtures("no_pictures")
def test_the_same_call_writes_the_same(run: Path, tmp_path: Path) -> None:
    for name in "ab":
        runs.call("film", run, "--steps", 1, "--tasks", 1, "--frames", 2, "--out", tmp_path / name)
    assert runs.files(tmp_path / "a")["film.gif"] == runs.files(tmp_path / "b")["film.gif"]


def test_the_policy_on_film_is_the_adapted_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does in a task after its steps is the mean action at the parameters that `adapt` gives."""
    given = film.Arguments(run, steps=(0, 1), tasks=2, episodes=4)
    learner, source, tasks = film.prepare(given)
    oracle = source.sample(2, stream_generator(given.seed, Stream.FILM))
    adapted = learner.adapt(oracle, steps=1)
    observation = np.array([0.1, -0.2], np.float32)
    seen = []
    original = film.episode

    def watched(tasks, task, act, *rest):  # type: ignore[no-untyped-def]
        seen.append(act(observation))
        return original(tasks, task, act, *rest)

    monkeypatch.setattr(film, "episode", watched)
    film.shoot(learner, source, tasks, given)
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
