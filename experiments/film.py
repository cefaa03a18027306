"""Draw what a trained policy does before and after adaptation: a strip of pictures and a film, on held-out tasks.

    metarl film runs/cheetah --steps 0 3 --tasks 2
    metarl film runs/cheetah --tasks-from speeds.csv --mp4

Writes `film.png`, with a row per task and number of gradient steps, and `film.gif`, with all of them side by side, to
the run folder; with `--mp4` also `film.mp4`. TensorBoard shows the film among the run's images. The policy adapts as in
`metarl evaluate`; in the film it takes the mean, or most likely, action.
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
from metarl.experiments.common.videos import Frame, gif, import_imageio, mp4, with_caption
from metarl.files import write_atomically
from metarl.functional_call import call
from metarl.inner import adapt_stepwise
from metarl.logging import RunLog
from metarl.random import Stream, stream_generator
from metarl.rl import ReinforcementLearning
from metarl.rl.actions import make_clipper
from metarl.rl.distributions import distribution_for
from metarl.rl.oracle import RLTaskBatch
from metarl.tree import float_leaf, take
from metarl.types import Params, TaskParams

MAX_PIXELS = 240  # largest side of a picture
SPEED = 20.0  # environment steps in a second, where an environment does not say


@dataclass(frozen=True)
class Arguments:
    """Settings of a film."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run."""
    steps: tuple[int, ...] = (0, 3)
    """Numbers of gradient steps to show."""
    tasks: int | None = None
    """Held-out tasks to sample. Default: 2."""
    tasks_from: Path | None = None
    """CSV file with the tasks instead: a line for each, the columns are its parameters, such as goal[0],goal[1]."""
    episodes: int = 40
    """Episodes per gradient step."""
    seed: int = 1000
    """Seed of the tasks and of all randomness in them."""
    frames: int = 8
    """Pictures per row of the strip."""
    every: int = 2
    """Environment steps between two pictures of the film, which plays at the environment's own speed."""
    mp4: bool = False
    """Write an MP4, too (needs the extra: pip install "metarl-torch[video]")."""
    out: Path | None = None
    """Output folder. Default: the run's."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, for example one that registers your own outer update."""


class Scene(NamedTuple):
    """One episode: its pictures, before each step and at the end, and the body's place, if it is known."""

    task: str
    text: str  # the gradient steps and the return
    frames: list[Frame]
    places: list[float | None]
    speed: float  # environment steps in a second

    @property
    def title(self) -> str:
        """Task, steps and return."""
        return f"{self.task}, {self.text}"


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl film", __doc__)
    learner, source, tasks = cli.prepare(lambda: prepare(given))
    scenes = shoot(learner, source, tasks, given)
    folder = given.out or given.run
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "film.png", strip(scenes, given.frames).savefig)
    frames, speed = film(scenes, given.every), scenes[0].speed / given.every
    moving = gif(frames, speed)
    write_atomically(folder / "film.gif", lambda file: file.write(moving))
    written = [folder / "film.png", folder / "film.gif"]
    if given.mp4:
        encoded = mp4(frames, speed)
        write_atomically(folder / "film.mp4", lambda file: file.write(encoded))
        written.append(folder / "film.mp4")
    if given.out is None:
        log = RunLog(given.run)
        log.animation("figures/film", moving, frames[0].shape, learner.iterations)
        log.close()
    print(f"{', '.join(map(str, written))}: {'; '.join(scene.title for scene in scenes)}")


def prepare(given: Arguments) -> tuple[MetaLearner, ReinforcementLearning, RLTaskBatch]:
    """The trained learner, the source of held-out tasks, and the tasks.

    Raises:
        ValueError: naming what cannot work.
    """
    for step in given.steps:
        check_int("steps", step, minimum=0)
    if not given.steps:
        raise ValueError("steps must name at least one number of gradient steps")
    for name in ("frames", "every"):
        check_int(name, getattr(given, name))
    if given.mp4:
        import_imageio()
    cli.check_output_folder("run" if given.out is None else "out", given.out or given.run)
    sampled = 2 if given.tasks is None and given.tasks_from is None else given.tasks
    setup = evaluate.prepare(
        evaluate.Arguments(
            given.run,
            tasks=sampled,
            tasks_from=given.tasks_from,
            episodes=given.episodes,
            seed=given.seed,
            plugins=given.plugins,
            device="cpu",
        )
    )
    check_renders(setup.source, given.run)
    rng = stream_generator(given.seed, Stream.FILM)
    if setup.tasks is not None:
        return setup.learner, setup.source, setup.source.tasks(setup.tasks, rng)
    assert sampled is not None
    return setup.learner, setup.source, setup.source.sample(sampled, rng)


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


def shoot(learner: MetaLearner, source: ReinforcementLearning, oracle: RLTaskBatch, given: Arguments) -> list[Scene]:
    """An episode of every task after every number of steps; task by task."""
    tasks = source.distribution
    assert isinstance(tasks, EnvDistribution)
    rules = learner.rules(step_sizes(learner, max(given.steps)))
    with learner.engine.current():
        after = list(adapt_stepwise(learner.params, oracle, rules))
    scenes = []
    for t in range(oracle.num_tasks):
        task = {name: value[t] for name, value in oracle.task.items()}
        for step in given.steps:
            act = actor(source.policy, take(after[step], t), tasks.action_space, source.actions)
            scenes.append(episode(tasks, task, act, given.seed, step))
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


def episode(tasks: EnvDistribution, task: TaskParams, act: Callable[[Any], Any], seed: int, step: int) -> Scene:
    """Act in one environment to the end of an episode, with the policy after `step` gradient steps."""
    env = tasks.make(task, render_mode="rgb_array")
    observation, info = env.reset(seed=seed)
    frames, places, total, ended = [picture(env)], [info.get("x_position")], 0.0, False
    while not ended:
        observation, reward, terminated, truncated, info = env.step(act(observation))
        frames.append(picture(env))
        places.append(info.get("x_position"))
        total, ended = total + float(reward), terminated or truncated
    env.close()
    speed = float(env.metadata.get("render_fps") or SPEED)
    return Scene(describe_task(task), f"step {step}: return {total:.1f}", frames, places, speed)


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


def film(scenes: Sequence[Scene], every: int) -> list[Frame]:
    """The pictures of the film: all scenes side by side; a scene that ends early stands still."""
    length = max(len(scene.frames) for scene in scenes)
    return [
        np.concatenate(
            [with_caption(scene.frames[min(k, len(scene.frames) - 1)], (scene.task, scene.text)) for scene in scenes],
            axis=1,
        )
        for k in range(0, length, every)
    ]


if __name__ == "__main__":
    main()
