"""Draw what a trained policy does before and after adaptation: a strip of pictures and a film, on held-out tasks.

    metarl film runs/cheetah --steps 0 3 --tasks 2

Writes `film.png`, with a row per task and number of gradient steps, and `film.gif`, with all of them side by side, to
the run folder. The policy adapts as in `metarl evaluate`; in the film it takes the mean, or most likely, action.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
import tyro
from gymnasium import spaces
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from metarl import MetaLearner
from metarl.envs.base import EnvDistribution, describe_task
from metarl.errors import check_int
from metarl.experiments import evaluate
from metarl.experiments.common import cli
from metarl.experiments.common.evaluation import step_sizes
from metarl.experiments.common.figures import new_figure
from metarl.files import write_atomically
from metarl.functional_call import call
from metarl.inner import adapt_stepwise
from metarl.random import Stream, stream_generator
from metarl.rl import ReinforcementLearning
from metarl.rl.actions import make_clipper
from metarl.rl.distributions import distribution_for
from metarl.tree import float_leaf, take
from metarl.types import Params, TaskParams

Frame = npt.NDArray[np.uint8]
MAX_PIXELS = 240  # largest side of a picture


@dataclass(frozen=True)
class Arguments:
    """Settings of a film."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    steps: tuple[int, ...] = (0, 3)
    """Numbers of gradient steps to show."""
    tasks: int = 2
    """Held-out tasks."""
    episodes: int = 40
    """Episodes per gradient step."""
    seed: int = 1000
    """Seed of the tasks and of all randomness in them."""
    frames: int = 8
    """Pictures per row of the strip."""
    every: int = 2
    """Environment steps between two pictures of the film."""
    out: Path | None = None
    """Output folder. Default: the run's."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, for example one that registers your own outer update."""


class Scene(NamedTuple):
    """One episode: its pictures, before each step and at the end, and the body's place, if it is known."""

    title: str
    frames: list[Frame]
    places: list[float | None]


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl film", __doc__)
    learner, source = cli.prepare(lambda: prepare(given))
    scenes = shoot(learner, source, given)
    folder = given.out or given.run
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "film.png", strip(scenes, given.frames).savefig)
    write_atomically(folder / "film.gif", lambda file: film(scenes, given.every, file))
    print(f"{folder / 'film.png'}, {folder / 'film.gif'}: {'; '.join(scene.title for scene in scenes)}")


def prepare(given: Arguments) -> tuple[MetaLearner, ReinforcementLearning]:
    """The trained learner and the source of held-out tasks.

    Raises:
        ValueError: naming what cannot work.
    """
    for step in given.steps:
        check_int("steps", step, minimum=0)
    if not given.steps:
        raise ValueError("steps must name at least one number of gradient steps")
    for name in ("frames", "every"):
        check_int(name, getattr(given, name))
    cli.check_output_folder("run" if given.out is None else "out", given.out or given.run)
    setup = evaluate.prepare(
        evaluate.Arguments(
            given.run, tasks=given.tasks, episodes=given.episodes, seed=given.seed, plugins=given.plugins, device="cpu"
        )
    )
    check_renders(setup.source, given.run)
    return setup.learner, setup.source


def check_renders(source: ReinforcementLearning, run: Path) -> None:
    """Take one picture, before any time is spent on adaptation.

    Raises:
        ValueError: when the environment cannot be made with `render_mode="rgb_array"`, or gives no picture.
    """
    tasks = source.distribution
    assert isinstance(tasks, EnvDistribution)
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # without a screen MuJoCo cannot open a window
    task = {name: value[0] for name, value in tasks.sample(1, np.random.default_rng(0)).items()}
    try:
        with contextlib.closing(tasks.make(task, render_mode="rgb_array")) as env:
            env.reset(seed=0)
            picture(env)
    except Exception as error:  # environments may raise anything when they cannot draw
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"run must have an environment with render_mode='rgb_array' to be filmed,"
            f" got {run} ({type(error).__name__}: {reason})"
        ) from error


def shoot(learner: MetaLearner, source: ReinforcementLearning, given: Arguments) -> list[Scene]:
    """An episode of every task after every number of steps; task by task."""
    tasks = source.distribution
    assert isinstance(tasks, EnvDistribution)
    oracle = source.sample(given.tasks, stream_generator(given.seed, Stream.FILM))
    rules = learner.rules(step_sizes(learner, max(given.steps)))
    with learner.engine.current():
        after = list(adapt_stepwise(learner.params, oracle, rules))
    scenes = []
    for t in range(given.tasks):
        task = {name: value[t] for name, value in oracle.task.items()}
        for step in given.steps:
            act = actor(source.policy, take(after[step], t), tasks.action_space, source.actions)
            title = f"{describe_task(task)}, step {step}"
            scenes.append(episode(tasks, task, act, given.seed, title))
    return scenes


def actor(
    policy: nn.Module, params: Params, space: gymnasium.Space[Any], actions: str = "clip"
) -> Callable[[Any], Any]:
    """The policy of a task: the mean action, sent as in training, or the most likely one."""
    send, distribution = make_clipper(space, torch.device("cpu"), actions), distribution_for(space, actions)

    @torch.no_grad()
    def act(observation: Any) -> Any:
        leaf = float_leaf(params)
        outputs: tuple[Tensor, ...] = call(policy, params, torch.as_tensor(np.asarray(observation)).to(leaf)[None])
        action = distribution.mode(outputs)
        sent = send(action)[0].numpy()
        return int(sent) if isinstance(space, spaces.Discrete) else sent

    return act


def episode(tasks: EnvDistribution, task: TaskParams, act: Callable[[Any], Any], seed: int, title: str) -> Scene:
    """Act in one environment to the end of an episode; the title gets its return."""
    env = tasks.make(task, render_mode="rgb_array")
    observation, info = env.reset(seed=seed)
    frames, places, total, ended = [picture(env)], [info.get("x_position")], 0.0, False
    while not ended:
        observation, reward, terminated, truncated, info = env.step(act(observation))
        frames.append(picture(env))
        places.append(info.get("x_position"))
        total, ended = total + float(reward), terminated or truncated
    env.close()
    return Scene(f"{title}: return {total:.1f}", frames, places)


def picture(env: gymnasium.Env[Any, Any]) -> Frame:
    """A picture of the environment now, `[height, width, 3]`, at most `MAX_PIXELS` wide and high."""
    frame = env.render()
    if not isinstance(frame, np.ndarray):
        raise TypeError(f"render must return an image, got {type(frame).__name__}")
    image = Image.fromarray(frame)
    image.thumbnail((MAX_PIXELS, MAX_PIXELS))
    return np.asarray(image)


def strip(scenes: Sequence[Scene], number: int) -> Figure:
    """A row of `number` pictures for each scene, evenly spaced over its episode."""
    figure = new_figure(1.6 * number, 1.8 * len(scenes), dpi=120)
    rows = figure.subplots(len(scenes), number, squeeze=False)
    for row, scene in zip(rows, scenes, strict=True):
        shown = np.linspace(0, len(scene.frames) - 1, number).round().astype(int)
        for ax, k in zip(row, shown, strict=True):
            ax.imshow(scene.frames[k])
            ax.set(xticks=[], yticks=[])
            place = scene.places[k]
            ax.set_xlabel(f"{k}" if place is None else f"{k}: x = {place:.1f} m", fontsize=7)
        row[0].set_title(scene.title, fontsize=9, loc="left")
    return figure


def film(scenes: Sequence[Scene], every: int, file: Any) -> None:
    """All scenes side by side as an animated GIF; a scene that ends early stands still."""
    length = max(len(scene.frames) for scene in scenes)
    pictures = []
    for k in range(0, length, every):
        side_by_side = np.concatenate([scene.frames[min(k, len(scene.frames) - 1)] for scene in scenes], axis=1)
        pictures.append(Image.fromarray(side_by_side).quantize(64))
    pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:], duration=50 * every, loop=0)


if __name__ == "__main__":
    main()
