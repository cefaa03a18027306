"""Meta-train on a supervised problem, with fixed data sets or fresh data, and log the quantities of the theory.

    metarl train-supervised sinusoid --outer maml --iterations 1000 --seed 0
    metarl train-supervised six_logistic --outer fo_maml --iterations 2000 --name fo
    metarl train-supervised images --data omniglot/ --inverted --rotations --ways 20 --outer fo_maml
    metarl train-supervised --resume runs/fo --iterations 3000
    metarl plot runs/fo --y theory/grad_norm --x oracle/samples --log-x --log-y

The problem comes first; `metarl train-supervised PROBLEM --help` shows its options. The run folder gets what a run of
`metarl train` has; `metrics.jsonl` and TensorBoard also have |grad F| (`theory/grad_norm`), the distances to known
stationary points, and the counts of gradients, Hessian-vector products and samples.
"""

import dataclasses
import json
import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import numpy as np
import tyro

from metarl import MetaLearner
from metarl.callbacks import Callback, HeldOutEvaluation
from metarl.devices import pick_device
from metarl.errors import check_choice, check_int
from metarl.experiments.common import cli
from metarl.experiments.common.config import RunConfig, learner_arguments, read_adapt
from metarl.experiments.common.evaluation import Curves, evaluate_held_out
from metarl.experiments.common.figures import adaptation_figure
from metarl.experiments.common.outer_steps import APPLY, OPTIMIZERS, STEPS, check_step, make_learner
from metarl.experiments.common.predictions import coverage, prediction_figure
from metarl.experiments.common.problems import (
    PROBLEMS,
    BatchSettings,
    FolderSettings,
    RandomSettings,
    ShippedSettings,
    SinusoidSettings,
    SupervisedProblem,
)
from metarl.experiments.common.run import Run, check_changeable, finish, open_run, train_run
from metarl.experiments.plot import plot, points
from metarl.logging import read_metrics
from metarl.memory import check_fits
from metarl.outer import OUTER
from metarl.processes import ALONE, Processes
from metarl.random import Stream, stream_generator
from metarl.step import OuterStep
from metarl.supervised.particles import Particles
from metarl.supervised.sinusoid import Sinusoids
from metarl.theory import AdaptiveStep, alpha_range, estimate_source, fallah_rule, ji_rule
from metarl.theory.monitors import SmoothnessMonitor, StationarityMonitor
from metarl.theory.step_sizes import FALLAH
from metarl.tree import broadcast
from metarl.types import Params

# The options: those of every problem, then those of each kind of problem.


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(RunConfig):
    """Settings of a run on a supervised problem."""

    script: ClassVar[str] = "metarl train-supervised"
    added: ClassVar[Mapping[str, Any]] = {**RunConfig.added, "particles": None, "context_size": 0}

    problem: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = "two_quadratics"
    """The problem, which the first word of the command line names."""
    iterations: int = 1000
    """Meta-iterations in total."""
    inner_lr: float | None = None
    """Inner step size alpha. Default: one that suits the problem and the update."""
    meta_batch_size: int | None = None
    """Tasks per iteration. Default: a number that suits the problem; all of a small fixed set."""
    outer_step: Literal["adam", "sgd", "alpha_maml", "fallah", "ji"] | None = None
    """Outer step: adam, sgd, or descent with step sizes by hypergradients (alpha_maml) or theorems (fallah, ji)."""
    learning_rate: float | None = None
    """Outer step size of adam and sgd, the initial one of alpha_maml. Default: one that suits the problem."""
    step_tasks: int = 20
    """Separate tasks from which fallah and ji choose each step size."""
    anneal_iterations: int | None = 0
    """Anneal the outer step size to a tenth over this many iterations. Default: no annealing."""
    eval_every: int = 100
    """Evaluate, and measure |grad F|, every this many iterations."""
    save_every: int = 100
    """Save a checkpoint every this many iterations."""
    eval_tasks: int = 20
    """Held-out tasks of each evaluation during training; at most all of a fixed set."""
    eval_steps: int = 10
    """Inner steps in evaluations."""
    final_tasks: int = 400
    """Tasks of the final evaluation; at most all of a fixed set."""
    json: bool = False
    """Print one JSON object instead of a table."""

    @property
    def about(self) -> str:
        """The problem."""
        return self.problem

    @classmethod
    def parse(
        cls, arguments: Sequence[str], description: str | None, processes: Processes, saved: Self | None = None
    ) -> Self:
        """The command line as settings: the first word names the problem, unless a run is resumed."""
        first = arguments[0] if arguments else ""
        # Without a problem, only the list of problems can be shown.
        if saved is None and first in ("-h", "--help"):
            return cast(Self, cli.parse(subcommands(), arguments, cls.script, description))
        # A resumed run knows its problem; naming it again is optional.
        if saved is not None and (not first or first.startswith("-")):
            first, arguments = saved.problem, ["", *arguments]
        if saved is not None:
            cli.prepare(lambda: check_changeable(vars(saved), {"problem": first}), processes)
        cli.prepare(lambda: check_applies(first, arguments), processes)
        kind, about = config_type(first), PROBLEMS[first].about
        own = kind(problem=first) if saved is None else saved
        return cast(Self, cli.parse(kind, arguments[1:], f"{cls.script} {first}", f"{about}.", own, processes))

    @classmethod
    def choose_kind(cls, found: Mapping[str, Any]) -> type[Any]:
        """The class of the problem in a `config.json`."""
        return config_type(check_choice("problem", found.get("problem"), PROBLEMS))

    def settle(self) -> Self:
        """The same with the defaults of the problem filled in."""
        check_choice("problem", self.problem, PROBLEMS)
        defaults = PROBLEMS[self.problem].defaults
        step = self.outer_step or defaults.optimizer
        suits = {
            "meta_batch_size": defaults.meta_batch_size,
            "inner_lr": defaults.sign_inner_lr if self.outer == "sign_maml" else defaults.inner_lr,
            "outer_step": step,
            **({"learning_rate": defaults.learning_rate} if "learning_rate" in APPLY[step] else {}),
        }
        missing: dict[str, Any] = {name: value for name, value in suits.items() if getattr(self, name) is None}
        if getattr(self, "particles", 0) is None and self.outer in OUTER and OUTER[self.outer]().needs_particles:
            missing["particles"] = 5
        if self.device == "auto" and not defaults.anywhere:
            missing["device"] = "cpu"
        return dataclasses.replace(self, **missing)

    def build_learner(self, processes: Processes = ALONE) -> MetaLearner:
        """The learner before training. Checks every setting."""
        # Everything is checked before the problem is built, which may spend minutes on decoding images.
        arguments = learner_arguments(self, processes)
        size = check_int("meta_batch_size", self.meta_batch_size)
        for name in ("step_tasks", "final_tasks"):
            check_int(name, getattr(self, name))
        check_int("eval_steps", self.eval_steps, minimum=0)
        arguments["meta_batch_size"] = size
        step = check_choice("outer_step", self.outer_step, APPLY)
        check_step(step, vars(self), arguments)
        check_theorem(self)

        problem = build_problem(self)
        if problem.all_tasks is not None and size > problem.all_tasks:
            raise ValueError(f"meta_batch_size must be at most {problem.all_tasks}, the number of tasks, got {size}")
        check_sizes(self, problem)
        if step in OPTIMIZERS or step in STEPS:
            learner = make_learner(step, problem.train, self.step_options, self.learning_rate, arguments)
            check_points(learner)
            return learner
        learner = MetaLearner(problem.train, **arguments)
        check_points(learner)
        theory = theory_step(self, learner, problem)
        return MetaLearner.from_parts(
            problem.train, learner.method, theory, meta_batch_size=size, seed=self.seed, processes=processes
        )


@dataclass(frozen=True, kw_only=True)
class BatchConfig(SupervisedConfig, BatchSettings):
    """Settings of a run on fixed tasks."""


@dataclass(frozen=True, kw_only=True)
class RandomConfig(SupervisedConfig, RandomSettings):
    """Settings of a run on random tasks."""


@dataclass(frozen=True, kw_only=True)
class SinusoidConfig(SupervisedConfig, SinusoidSettings):
    """Settings of a run on sinusoids."""


@dataclass(frozen=True, kw_only=True)
class ShippedConfig(SupervisedConfig, ShippedSettings):
    """Settings of a run on a data set that comes with the package."""


@dataclass(frozen=True, kw_only=True)
class FolderConfig(SupervisedConfig, FolderSettings):
    """Settings of a run on a folder of images."""


def config_type(problem: str) -> type[SupervisedConfig]:
    """The settings of a run on the problem: those of every run, and its own."""
    own, kinds = PROBLEMS[problem].settings, (BatchConfig, RandomConfig, SinusoidConfig, ShippedConfig, FolderConfig)
    return next((kind for kind in kinds if kind.__bases__[1] is own), SupervisedConfig)


def check_applies(problem: str, arguments: Sequence[str]) -> None:
    """Raise a `ValueError` for a problem that does not exist, or an option of another problem."""
    check_choice("problem", problem, PROBLEMS)
    options = {name: {field.name for field in dataclasses.fields(config_type(name))} for name in PROBLEMS}
    foreign = set().union(*options.values()) - options[problem]
    for option in (word.partition("=")[0] for word in arguments):
        if option.startswith("--") and option[2:].replace("-", "_") in foreign:
            raise ValueError(f"{option} does not apply to problem {problem!r}; remove it")


def subcommands() -> Any:
    """A subcommand for each problem, for the list in the help."""
    defaults = {name: config_type(name)(problem=name) for name in PROBLEMS}
    return tyro.extras.subcommand_type_from_defaults(defaults, {name: one.about for name, one in PROBLEMS.items()})


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    # warnings are shown like errors: one line, without the place in the source
    one_line = cli.replaced(warnings, "formatwarning", lambda message, *_, **__: f"warning: {message}\n")
    with one_line, open_run(SupervisedConfig, arguments, __doc__) as run:
        train(run)


# Before training: the problem, and what the settings mean for it. `SupervisedConfig.build_learner` makes a learner.


@lru_cache(maxsize=1)  # images are decoded once for the learner and the callbacks
def build_problem(config: SupervisedConfig) -> SupervisedProblem:
    """The problem.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    check_int("seed", config.seed, minimum=0)
    device, entry = pick_device(config.device), PROBLEMS[config.problem]
    if device.type != "cpu" and not entry.defaults.anywhere:
        raise ValueError(f"device must be 'cpu' for the problem {config.problem!r}, got {config.device!r}")
    return entry.build(config, device, config.seed)


def check_theorem(config: SupervisedConfig) -> None:
    """Check that the theorem of the outer step `fallah` holds for the update.

    Raises:
        ValueError: naming the setting.
    """
    if config.outer_step == "fallah":
        if config.outer not in FALLAH:
            raise ValueError(f"outer must be one of {sorted(FALLAH)} for the outer step 'fallah', got {config.outer!r}")
        if config.inner_steps not in (None, 1):
            raise ValueError(f"inner_steps must be 1 for the outer step 'fallah', got {config.inner_steps}; use 'ji'")


def check_sizes(config: SupervisedConfig, problem: SupervisedProblem) -> None:
    """Check that the points of all tasks, and the scores of an evaluation, fit into memory.

    Raises:
        ValueError: naming the settings that do not fit into memory.
    """
    points, of = max((getattr(config, name, None) or 1, name) for name in ("eval_shots", "queries", "shots"))
    for name in ("meta_batch_size", "eval_tasks", "final_tasks"):
        tasks = getattr(config, name) if problem.all_tasks is None else 1  # a fixed set is in memory already
        check_fits(f"{name} x {of} = {tasks} x {points}", tasks * points)
    check_fits(f"eval_steps = {config.eval_steps}", config.eval_steps, bytes_each=8)


def check_points(learner: MetaLearner) -> None:
    """Check that a draw has enough points of a task for an update that compares them.

    Raises:
        ValueError: when a draw has too few.
    """
    needed = learner.method.min_episodes
    if needed > 1:
        tasks = learner.source.sample(1, np.random.default_rng(0))
        found = tasks.cost(tasks.draw(broadcast(learner.params, 1), "inner"))["samples"]
        if found < needed:
            raise ValueError(f"D_in must have at least {needed} points of a task for these outer_options, got {found}")


def theory_step(config: SupervisedConfig, learner: MetaLearner, problem: SupervisedProblem) -> OuterStep:
    """The outer step of `fallah` or `ji`, with L and rho in closed form if they are known, else estimated."""
    assert config.inner_lr is not None
    if (patterns := read_adapt(config)) is not None:
        raise ValueError(
            f"outer_step {config.outer_step!r} does not apply to adapt {list(patterns)}: its theorem adapts everything"
        )
    if learner.method.learned_rule is not None:
        learned = f"learn_inner_lr {config.learn_inner_lr!r}" if config.learn_inner_lr else f"outer {config.outer!r}"
        found = f"outer_step {config.outer_step!r} with {learned}"
        raise ValueError(
            "outer_step must be adam, sgd or alpha_maml to learn inner step sizes: a theorem's alpha is fixed,"
            f" got {found}"
        )
    tasks = limit_tasks(config.step_tasks, problem)
    if tasks < learner.processes.size:
        size = learner.processes.size
        raise ValueError(f"step_tasks must be at least {size}, the number of processes, got {tasks}")
    with learner.engine.current():
        rng = stream_generator(config.seed, Stream.CONSTANTS)
        known = problem.known or estimate_source(problem.train, tasks, rng)
    if config.outer_step == "fallah":
        rule = fallah_rule(config.outer, known.L, known.rho, config.inner_lr)
    else:
        rule = ji_rule(known.L, known.rho, config.inner_lr, learner.method.inner.steps)
    return AdaptiveStep(rule, problem.train, tasks, config.seed)


def limit_tasks(number: int, problem: SupervisedProblem) -> int:
    """The number of tasks, at most all of a fixed set."""
    return number if problem.all_tasks is None else min(number, problem.all_tasks)


# Training, and what comes after it.


def train(run: Run[SupervisedConfig]) -> None:
    """Train to the end, then evaluate and draw; the first process saves and prints the results."""
    config, learner = run.config, run.learner
    problem = build_problem(config)
    train_run(run, make_callbacks(config, learner, problem, run.folder), sys.stderr if config.json else sys.stdout)

    # Evaluate on many held-out tasks, shared by all processes.
    sizes = [None] * config.eval_steps
    final_tasks = limit_tasks(config.final_tasks, problem)
    curves = evaluate_held_out(learner, problem.test, final_tasks, sizes, config.eval_seed)
    if not learner.processes.is_first:
        return

    results, title, metric = summarize(run, curves), f"{config.problem}, {config.outer}", "theory/grad_norm"
    figures = {"adaptation": adaptation_figure(curves.by_label(), title, learner.source.score_name)}
    lines = read_metrics(run.folder)
    if any(metric in line for line in lines):
        stationarity = {title: points(lines, run.folder, "iteration", metric)}
        figures["stationarity"] = plot(stationarity, "iteration", metric, log_y=True)
    if isinstance(problem.test, Particles) and isinstance(problem.test.source, Sinusoids):
        steps = sorted({0, learner.method.inner.steps, config.eval_steps})
        figures["predictions"] = prediction_figure(learner, problem.test, steps, config.eval_seed)
        results["coverage"] = coverage(learner, problem.test, final_tasks, config.eval_steps, config.eval_seed)
    finish(run, results, figures)
    print(json.dumps(results) if config.json else table(results, curves))


def make_callbacks(
    config: SupervisedConfig, learner: MetaLearner, problem: SupervisedProblem, folder: Path
) -> list[Callback]:
    """Held-out evaluation, |grad F|, and the warning when alpha is too large for the theory."""
    source, tasks = problem.test, limit_tasks(config.eval_tasks, problem)
    sizes = [None] * config.eval_steps
    assert config.inner_lr is not None
    points: Mapping[str, Params] = {}
    if problem.known is not None and learner.method.learned_rule is None:  # else they move with alpha
        points = problem.known.points(config.inner_lr, learner.method.inner.steps)
    objective = learner.method if learner.method.needs_particles else "maml"
    return [
        HeldOutEvaluation(config.eval_every, source, tasks, sizes, config.eval_seed, folder / "held_out.json"),
        StationarityMonitor(
            source, problem.all_tasks or 100, every=config.eval_every, objective=objective, points=points
        ),
        *([] if alpha_range(config.outer, 1) is None else [SmoothnessMonitor(config.eval_every, source, tasks)]),
    ]


def summarize(run: Run[SupervisedConfig], curves: Curves) -> dict[str, Any]:
    """All results of a run, as plain values."""
    config, learner = run.config, run.learner
    lines = read_metrics(run.folder)
    seconds = [line["time/iteration_seconds"] or 0.0 for line in lines if "time/iteration_seconds" in line]
    last: dict[str, Any] = {key: value for line in lines for key, value in line.items()}
    return {
        "problem": config.problem,
        "outer": config.outer,
        "seed": config.seed,
        "iterations": learner.iterations,
        "score": learner.source.score_name,
        **curves.summary(),
        "theory": {key.removeprefix("theory/"): value for key, value in last.items() if key.startswith("theory/")},
        "counts": dict(learner.counts),
        "seconds_per_iteration": statistics.median(seconds or [0.0]),
        "run": str(run.folder),
    }


def table(results: Mapping[str, Any], curves: Curves) -> str:
    """The adaptation curve, and the quantities of the theory."""
    lines = [curves.table(results["score"], digits=4)]
    if "coverage" in results:
        shares = ", ".join(f"{share:.0%}" for share in results["coverage"])
        lines.append(f"truth inside the particles' mean ± 2 std after 0, 1, ... steps: {shares}")
    lines += [f"{key}: {value:.3g}" for key, value in results["theory"].items() if value is not None]
    lines += [f"{key}: {value:,}" for key, value in results["counts"].items()]
    lines += [f"{results['seconds_per_iteration']:.4f} s per iteration; results are in {results['run']}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
