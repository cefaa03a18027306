"""The workloads: rollouts, and meta-iterations of every kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from metarl import MetaLearner
from metarl.engine import Engine
from metarl.experiments.reports.benchmark.limits import Product, TalliedSource, Tally
from metarl.experiments.reports.benchmark.measure import Call, Job, measure
from metarl.experiments.reports.benchmark.stepping import NAMES, SteppingSize, measure_stepping, physics_rate
from metarl.experiments.train import TrainConfig, build_source
from metarl.outer import inner_defaults, without_particles
from metarl.rl import ReinforcementLearning
from metarl.supervised import networks
from metarl.supervised.class_sets import ClassSet
from metarl.supervised.few_shot import FewShot
from metarl.supervised.sinusoid import Sinusoids
from metarl.tree import broadcast

T = TypeVar("T")


class ImageWork(NamedTuple):
    """The size of a meta-iteration with four convolutions."""

    tasks: int = 8
    ways: int = 20
    queries: int = 15
    filters: int = 32


IMAGES, TINY_IMAGES, STEPPING = ImageWork(), ImageWork(2, 2, 2, 4), SteppingSize()

GROWTH = {
    "tasks": (5, 10, 20, 40, 80),
    "episodes": (10, 20, 40),
    "horizon": (50, 100, 200),
    "inner steps": (1, 2, 5, 10, 20),
    "hidden units": (32, 100, 256),
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The number of repetitions and all sizes; the defaults are the published sizes."""

    config: TrainConfig
    repetitions: int
    tiny_first: bool = True  # whether each row loads its libraries before its memory is measured
    tasks: tuple[int, ...] = (20, 40)  # of navigation
    rollout_tasks: tuple[int, ...] = (20, 40)
    many_tasks: tuple[int, ...] = ()  # of exact MAML reusing the inner batch for the Hessian, besides `tasks`
    growth: Mapping[str, tuple[int, ...]] = field(default_factory=GROWTH.copy)
    cheetahs: int = 40
    stepping: SteppingSize = STEPPING
    sinusoids: int = 32
    images: ImageWork = IMAGES

    @property
    def device(self) -> str:
        """Where everything is measured."""
        return self.config.device


def full_scale(device: str, repetitions: int) -> Scale:
    """The published sizes, and on an accelerator also sizes that fill it."""
    scale = Scale(config=TrainConfig(horizon=100, device=device), repetitions=repetitions)
    if torch.device(device).type == "cpu":
        return scale
    return replace(scale, rollout_tasks=(20, 40, 100, 1000, 4000, 16000), many_tasks=(1000,))


def quick_scale(device: str) -> Scale:
    """Tiny sizes."""
    return Scale(
        config=TrainConfig(meta_batch_size=3, episodes=2, horizon=5, hidden=(8,), device=device),
        repetitions=1,
        tiny_first=False,
        tasks=(3,),
        rollout_tasks=(3,),
        growth={"inner steps": (1, 2)},
        cheetahs=3,
        stepping=SteppingSize((4,), 40, 1),
        sinusoids=3,
        images=TINY_IMAGES,
    )


def plan_rollouts(scale: Scale) -> list[Call]:
    """Episodes with the policy in the loop."""
    configs = [replace(scale.config, meta_batch_size=tasks) for tasks in scale.rollout_tasks]
    return [rl_row(scale, {"name": "navigation rollout"}, build_rollout, config) for config in configs]


def plan_navigation(scale: Scale) -> list[Call]:
    """Every outer update with fresh draws, and MAML reusing the inner batch for the Hessian, with the fewest draws."""
    reuse = replace(scale.config, outer="maml", hessian_data="reuse")
    configs = [
        replace(scale.config, meta_batch_size=tasks, outer=outer)
        for tasks, outer in product(scale.tasks, without_particles())
    ]
    configs += [replace(reuse, meta_batch_size=tasks) for tasks in (*scale.tasks, *scale.many_tasks)]
    return [iteration_row(scale, config) for config in configs]


def plan_mujoco(scale: Scale) -> list[Call]:
    """Exact MAML on half-cheetah goal velocity, and ways to step environments without a policy; CPU only."""
    if torch.device(scale.device).type != "cpu":
        return []
    config = replace(scale.config, env="half_cheetah_velocity", meta_batch_size=scale.cheetahs)
    rows = [iteration_row(scale, config), iteration_row(scale, replace(config, hessian_data="reuse"))]
    stepping = product(NAMES, scale.stepping.environments)
    return [*rows, *(partial(measure_stepping, name, number, scale.stepping) for name, number in stepping)]


def plan_sinusoid(scale: Scale) -> list[Call]:
    """Exact MAML; an iteration is so short that it is repeated ten times as often."""
    often = replace(scale, repetitions=10 * scale.repetitions)
    about = {"name": "sinusoid maml", "size": f"{scale.sinusoids} x (10 + 10)"}
    build = partial(build_sinusoids, scale.device)
    rows = [({**about, "inner_steps": steps}, partial(build, steps)) for steps in (1, 5)]
    return [row(often, labels, one, scale.sinusoids, 2) for labels, one in rows]


def plan_conv4(scale: Scale) -> list[Call]:
    """Exact MAML: all tasks in one vmap, and as in the scripts."""
    work, ways = scale.images, {"all at once": False, "as chosen": True}
    about = {"size": f"{work.tasks} x {work.ways} x (1 + {work.queries})", "inner_steps": 5}
    rows = [({"name": f"4-conv maml, {how}", **about}, chosen) for how, chosen in ways.items()]
    return [
        row(scale, labels, partial(build_images, scale.device, chosen), work, TINY_IMAGES) for labels, chosen in rows
    ]


def plan_growth(scale: Scale) -> list[Call]:
    """Exact MAML reusing the inner batch for the Hessian on navigation, one size changed at a time."""
    base = replace(scale.config, outer="maml", hessian_data="reuse")
    return [
        iteration_row(scale, resize(base, size, value), changed=size, value=value)
        for size, values in scale.growth.items()
        for value in values
    ]


PLANS: dict[str, Callable[[Scale], list[Call]]] = {
    "rollouts": plan_rollouts,
    "navigation": plan_navigation,
    "mujoco": plan_mujoco,
    "sinusoid": plan_sinusoid,
    "conv4": plan_conv4,
    "growth": plan_growth,
}
"""What to measure in each part."""


def resize(config: TrainConfig, size: str, value: int) -> TrainConfig:
    """`config` with one size changed."""
    if size == "hidden units":
        return replace(config, hidden=(value, value))
    setting = {"tasks": "meta_batch_size", "inner steps": "inner_steps"}.get(size, size)
    return replace(config, **{setting: value})  # type: ignore[arg-type]  # every one of them is an int


def iteration_row(scale: Scale, config: TrainConfig, **about: Any) -> Call:
    """One meta-iteration of a reinforcement-learning run."""
    name = f"{config.env} {config.outer}{', inner batch reused' if config.hessian_data == 'reuse' else ''}"
    steps = config.inner_steps or inner_defaults(config.outer)[1]
    return rl_row(scale, {"name": name, "inner_steps": steps, **about}, build_iteration, config)


def rl_row(scale: Scale, about: dict[str, Any], build: Callable[[TrainConfig], Job], config: TrainConfig) -> Call:
    """A reinforcement-learning workload, to be measured."""
    size = f"{config.meta_batch_size} x {config.episodes} x {config.horizon}"
    tiny = replace(config, meta_batch_size=2, episodes=2, horizon=5)
    return row(scale, {"size": size, **about}, build, config, tiny)


def row(scale: Scale, about: dict[str, Any], build: Callable[[T], Job], size: T, tiny: T) -> Call:
    """A workload of this size, to be measured."""
    small = partial(build, tiny) if scale.tiny_first else None
    return partial(measure, about, partial(build, size), small, scale.repetitions)


def build_rollout(config: TrainConfig) -> Job:
    """One rollout of all tasks."""
    source, tally = build_source(config), Tally()
    tasks = source.sample(config.meta_batch_size, np.random.default_rng(0))
    params, engine = broadcast(source.initial_params(), config.meta_batch_size), Engine()

    def run() -> None:
        with engine.current():
            mask = tasks.rollout(params).episodes.mask
        for kind in ("drawn", "forward"):
            tally.inputs[kind, "inner"] += int(tasks.cost({"mask": mask})["env_steps"])

    return Job(run, tally, source.policy, observations(source), policy_product(config))


def build_iteration(config: TrainConfig) -> Job:
    """One iteration of `MetaLearner.learn`, with everything in it."""
    learner = config.build_learner()
    source = learner.source
    assert isinstance(source, ReinforcementLearning)
    physics = None
    if config.env in NAMES:
        physics = partial(physics_rate, config.env, config.meta_batch_size * config.episodes)
    return build_learning(learner, source.policy, observations(source), policy_product(config), physics)


def build_sinusoids(device: str, steps: int, tasks: int) -> Job:
    """One iteration of exact MAML."""
    source = Sinusoids(device=device)
    assert source.network is not None
    learner = MetaLearner(source, "maml", inner_lr=0.01, inner_steps=steps, meta_batch_size=tasks)
    return build_learning(learner, source.network, torch.zeros(1, 1, device=device), Product(tasks, 10, 40, 40))


def build_images(device: str, chosen: bool, work: ImageWork) -> Job:
    """One iteration of exact MAML on random images; its product is a convolution written as a matrix product."""
    generator = torch.Generator().manual_seed(0)
    made = tuple(torch.rand(1 + work.queries, 1, 28, 28, generator=generator) for _ in range(work.ways))
    classes = ClassSet(tuple(map(str, range(work.ways))), made)
    network = networks.conv4(1, 28, work.ways, filters=work.filters)
    source = FewShot(classes, network, ways=work.ways, queries=work.queries, device=device)
    engine = Engine(record=chosen)
    learner = MetaLearner(source, "maml", inner_lr=0.1, inner_steps=5, meta_batch_size=work.tasks, engine=engine)
    convolution = Product(work.tasks, 2000, 9 * work.filters, work.filters)
    return build_learning(learner, network, torch.zeros(2, 1, 28, 28, device=device), convolution)


def build_learning(
    learner: MetaLearner,
    network: torch.nn.Module,
    inputs: torch.Tensor,
    layer: Product,
    physics: Callable[[], float] | None = None,
) -> Job:
    """One iteration of a learner, with a tally."""
    tally = Tally()
    learner.source = TalliedSource(learner.source, tally)
    return Job(lambda: learner.learn(1), tally, network, inputs, layer, physics)


def observations(source: ReinforcementLearning) -> torch.Tensor:
    """A few inputs for the policy."""
    leaf = next(source.policy.parameters())
    return torch.zeros(2, *(source.distribution.observation_space.shape or ())).to(leaf)


def policy_product(config: TrainConfig) -> Product:
    """The second layer's product, for all tasks (at most 2000), episodes and steps."""
    tasks, rows = min(config.meta_batch_size, 2000), config.episodes * (config.horizon or 100)
    return Product(tasks, rows, config.hidden[0], config.hidden[-1])
