"""Meta-train on a supervised problem, with fixed data sets or fresh data, and log what the theory is about.

    metarl train-supervised sinusoid --outer maml --iterations 1000 --seed 0
    metarl train-supervised six_logistic --outer fo_maml --iterations 2000 --name fo
    metarl train-supervised images --data omniglot/ --inverted --rotations --ways 20 --outer fo_maml
    metarl plot runs/fo --y theory/grad_norm --x oracle/samples --log-x --log-y

Problems: two_quadratics, quadratics, six_logistic, logistic, logistic_breast_cancer, logistic_digits, logistic_iris,
logistic_wine, sinusoid, digits, mnist1d, images. The folder gets what a run of `metarl train` has; `metrics.jsonl`
and TensorBoard also have |grad F| (`theory/grad_norm`), the distances to known stationary points, and the counts of
gradients, Hessian-vector products and samples.
"""

import dataclasses
import json
import statistics
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from metarl import Evaluation, MetaLearner, make_method
from metarl.callbacks import Callback, HeldOutEvaluation
from metarl.checkpoint import write_atomically, write_json
from metarl.errors import check_choice, check_int
from metarl.evaluation import evaluate
from metarl.experiments.common import cli, run
from metarl.experiments.common.figures import adaptation_figure
from metarl.experiments.common.problems import PROBLEMS, Known, ProblemSettings, SupervisedProblem, check_settings
from metarl.experiments.common.run import Recipe, Run, RunConfig, check_shared, learner_arguments
from metarl.experiments.common.tables import with_interval
from metarl.experiments.plot import plot, points
from metarl.logging import read_metrics
from metarl.memory import check_fits
from metarl.processes import ALONE, Processes
from metarl.random import Stream, stream_generator
from metarl.step import OuterStep
from metarl.theory import AdaptiveStep, estimate_source, fallah_rule, ji_rule
from metarl.theory.monitors import SmoothnessMonitor, StationarityMonitor
from metarl.theory.step_sizes import FALLAH
from metarl.tree import broadcast

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass(frozen=True, kw_only=True)
class FiniteSumConfig(RunConfig, ProblemSettings):
    """Settings of one training run on a supervised problem."""

    problem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBLEM")]
    """The problem, see above."""
    iterations: int = 1000
    """Meta-iterations in all."""
    inner_lr: float | None = None
    """Inner step size alpha; default: one that suits the problem and the update."""
    meta_batch_size: int | None = None
    """Tasks per iteration; default: as many as suit the problem, all of a small fixed set."""
    outer_step: Literal["adam", "sgd", "fallah", "ji"] | None = None
    """How w moves; fallah and ji are descent with the step sizes of Fallah et al. (2020) and Ji et al. (2022)."""
    learning_rate: float | None = None
    """Outer step size of adam and sgd; default: one that suits the problem."""
    step_tasks: int = 20
    """Tasks, of their own, from which fallah and ji choose each step size."""
    anneal_iterations: int | None = 0
    """Let the step size of adam and sgd fall linearly to a tenth over so many iterations; default: never."""
    eval_every: int = 100
    """Evaluate, and take |grad F|, every so many iterations."""
    save_every: int = 100
    """Write a checkpoint every so many iterations."""
    eval_tasks: int = 20
    """Held-out tasks of the evaluations during training; of a fixed set, at most all."""
    eval_steps: int = 10
    """Inner steps of evaluations."""
    final_tasks: int = 400
    """Tasks of the evaluation at the end; of a fixed set, at most all."""


@dataclass(frozen=True, kw_only=True)
class Arguments(FiniteSumConfig):
    """Settings of one training run on a supervised problem."""

    problem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBLEM")] = ""
    """The problem, see above; not needed with --resume."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Go on with the run in this folder, up to --iterations; its other settings stay as they are."""
    json: bool = False
    """Print one JSON object instead of a table."""


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    with cli.together() as processes:
        given, asked = run.parsed(FINITE_SUM, Arguments, arguments, __doc__, processes)
        with run.writing(asked), cli.one_line_errors(run.last_good(asked.folder), processes), one_line_warnings():
            results = train(asked, sys.stderr if given.json else sys.stdout)
        if processes.is_first:
            print(json.dumps(results) if given.json else table(results))


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show warnings as errors are shown: one line, without the place in the source that gave it."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def train(asked: Run[FiniteSumConfig], messages: Any = None) -> dict[str, Any]:
    """Train to the end, evaluate, and leave everything in the run's folder; returns what `--json` prints.

    Of several processes, the first one does the last two; the others return nothing.
    """
    config, learner, folder = asked.config, asked.learner, asked.folder
    problem = build_problem(config)
    log = run.learn(asked, watching(config, learner, problem), config.problem, messages)
    curves, title = final_curves(config, learner, problem), f"{config.problem}, {config.outer}"
    if not learner.processes.is_first:
        return {}
    results = summary(asked, curves)
    figures = {"adaptation": adaptation_figure(curves, title, learner.source.score_name)}
    metric = "theory/grad_norm"
    lines = read_metrics(folder)
    if any(metric in line for line in lines):
        curve = {title: points(lines, folder, "iteration", metric)}
        figures["stationarity"] = plot(curve, "iteration", metric, log_y=True)
    for name, figure in figures.items():
        write_atomically(folder / f"{name}.png", figure.savefig)
        log.figure(f"figures/{name}", figure, learner.iterations)
    log.close()
    write_json(folder / "evaluation.json", results)  # last: it says that the run is finished
    return results


def settle(config: FiniteSumConfig) -> FiniteSumConfig:
    """With the defaults of the problem filled in.

    Raises:
        ValueError: for a problem that is none.
    """
    check_choice("problem", config.problem, PROBLEMS)
    defaults = PROBLEMS[config.problem][1]
    step = config.outer_step or defaults.optimizer
    suits = {
        "meta_batch_size": defaults.meta_batch_size,
        "inner_lr": defaults.sign_inner_lr if config.outer == "sign_maml" else defaults.inner_lr,
        "outer_step": step,
        **({"learning_rate": defaults.learning_rate} if step in OPTIMIZERS else {}),
    }
    missing: dict[str, Any] = {name: value for name, value in suits.items() if getattr(config, name) is None}
    if config.device == "auto" and not defaults.anywhere:
        missing["device"] = "cpu"
    return dataclasses.replace(config, **missing)


def build_problem(config: FiniteSumConfig) -> SupervisedProblem:
    """The problem.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    check_settings(config.problem, config)
    check_int("seed", config.seed, minimum=0)
    device = cli.pick_device(config.device)
    if device.type != "cpu" and not PROBLEMS[config.problem][1].anywhere:
        raise ValueError(f"device must be 'cpu' for the problem {config.problem!r}, got {config.device!r}")
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(ProblemSettings)}
    return built(config.problem, ProblemSettings(**settings), device, config.seed)


@lru_cache(maxsize=1)  # the learner and those who watch it have one and the same: images are decoded once
def built(name: str, given: ProblemSettings, device: torch.device, seed: int) -> SupervisedProblem:
    """The problem, from settings that have been checked."""
    return PROBLEMS[name][0](given, device, seed)


def build_learner(config: FiniteSumConfig, processes: Processes = ALONE) -> MetaLearner:
    """The learner before training; everything in the configuration has then been checked.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    check_shared(config)
    for name in ("step_tasks", "final_tasks"):
        check_int(name, getattr(config, name))
    check_int("eval_steps", config.eval_steps, minimum=0)
    assert config.meta_batch_size is not None
    size = check_int("meta_batch_size", config.meta_batch_size)
    arguments = {**learner_arguments(config, processes), "meta_batch_size": size}
    check_outer_step(config)
    make_method(config.outer, config.inner_lr, config.inner_steps, **arguments["outer_options"])
    problem = build_problem(config)  # may spend minutes on decoding images, so what can be checked has been
    if problem.all_tasks is not None and size > problem.all_tasks:
        raise ValueError(f"meta_batch_size must be at most {problem.all_tasks}, the tasks there are, got {size}")
    check_sizes(config, problem)
    if config.outer_step in OPTIMIZERS:
        arguments |= {"optimizer": OPTIMIZERS[config.outer_step], "learning_rate": config.learning_rate}
    learner = MetaLearner(problem.train, **arguments)
    check_points(learner)
    if config.outer_step in OPTIMIZERS:
        return learner
    step = theory_step(config, learner, problem)
    return MetaLearner.from_parts(
        problem.train, learner.method, step, meta_batch_size=size, seed=config.seed, processes=processes
    )


def check_sizes(config: FiniteSumConfig, problem: SupervisedProblem) -> None:
    """Every task has its points, and every step of an evaluation a score for each task.

    Raises:
        ValueError: naming the settings that do not fit into memory.
    """
    points, of = max((getattr(config, name) or 1, name) for name in ("eval_shots", "queries", "shots"))
    for name in ("meta_batch_size", "eval_tasks", "final_tasks"):
        tasks = getattr(config, name) if problem.all_tasks is None else 1  # of a fixed set, at most all are taken
        check_fits(f"{name} x {of} = {tasks} x {points}", tasks * points)
    check_fits(f"eval_steps = {config.eval_steps}", config.eval_steps, bytes_each=8)


def check_outer_step(config: FiniteSumConfig) -> None:
    """Settings of another way to step are an error, not ignored; and a step size belongs to its theorem's methods.

    Raises:
        ValueError: naming the setting.
    """
    own_default = {"learning_rate": None, "max_grad_norm": None, "anneal_iterations": 0}  # of adam and sgd
    for name, default in ({"step_tasks": 20} if config.outer_step in OPTIMIZERS else own_default).items():
        if getattr(config, name) != default:
            raise ValueError(f"{name} means nothing to the outer step {config.outer_step!r}; leave it alone")
    if config.outer_step == "fallah":
        if config.outer not in FALLAH:
            raise ValueError(f"outer must be one of {sorted(FALLAH)} for the outer step 'fallah', got {config.outer!r}")
        if config.inner_steps not in (None, 1):
            raise ValueError(f"inner_steps must be 1 for the outer step 'fallah', or 'ji', got {config.inner_steps}")


def check_points(learner: MetaLearner) -> None:
    """An update that compares the points of a task needs more than one of them in a draw.

    Raises:
        ValueError: when there are not as many.
    """
    needed = learner.method.min_episodes
    if needed > 1:
        tasks = learner.source.sample(1, np.random.default_rng(0))
        found = tasks.cost(tasks.draw(broadcast(learner.params, 1), "inner"))["samples"]
        if found < needed:
            raise ValueError(f"outer_options need at least {needed} points of a task in D_in, got {found}")


def theory_step(config: FiniteSumConfig, learner: MetaLearner, problem: SupervisedProblem) -> OuterStep:
    """The outer step of `fallah` or `ji`, with L and rho in closed form where they are known, else estimated."""
    assert config.inner_lr is not None
    tasks = at_most_all(config.step_tasks, problem)
    if tasks < learner.processes.size:
        raise ValueError(f"step_tasks must be at least {learner.processes.size} for as many processes, got {tasks}")
    with learner.engine.current():
        known = problem.known or estimated(problem, tasks, config.seed)
    if config.outer_step == "fallah":
        rule = fallah_rule(config.outer, known.L, known.rho, config.inner_lr)
    else:
        rule = ji_rule(known.L, known.rho, config.inner_lr, learner.method.inner.steps)
    return AdaptiveStep(rule, problem.train, tasks, config.seed)


def estimated(problem: SupervisedProblem, tasks: int, seed: int) -> Known:
    """L and rho near the initial parameters."""
    constants = estimate_source(problem.train, tasks, stream_generator(seed, Stream.CONSTANTS))
    return Known(constants.L, constants.rho)


def watching(config: FiniteSumConfig, learner: MetaLearner, problem: SupervisedProblem) -> list[Callback]:
    """Held-out evaluation, |grad F|, and the warning when alpha is too large for theory."""
    source, tasks = problem.test, at_most_all(config.eval_tasks, problem)
    sizes = [None] * config.eval_steps
    assert config.inner_lr is not None
    points = {} if problem.known is None else problem.known.points(config.inner_lr, learner.method.inner.steps)
    return [
        HeldOutEvaluation(config.eval_every, source, tasks, sizes, config.eval_seed),
        StationarityMonitor(source, problem.all_tasks or 100, every=config.eval_every, points=points),
        *([] if config.outer in NOT_GRADIENT_STEPS else [SmoothnessMonitor(config.eval_every, source, tasks)]),
    ]


NOT_GRADIENT_STEPS = ("sign_maml", "moreau", "imaml")
"""Updates whose inner steps are not `w - alpha g`, which the bound on alpha L is about."""


def at_most_all(number: int, problem: SupervisedProblem) -> int:
    """So many tasks, or all of a fixed set that has fewer."""
    return number if problem.all_tasks is None else min(number, problem.all_tasks)


def final_curves(config: FiniteSumConfig, learner: MetaLearner, problem: SupervisedProblem) -> dict[str, Evaluation]:
    """Adaptation curves of the trained and of the untrained parameters on the same held-out tasks."""
    number = at_most_all(config.final_tasks, problem)
    rules = learner.rules([None] * config.eval_steps)

    def curve(params: Any) -> Evaluation:
        tasks = problem.test.sample(number, stream_generator(config.eval_seed, Stream.HELD_OUT_TASKS))
        return evaluate(params, tasks, rules, learner.processes, learner.engine)

    return {"meta-trained": curve(learner.params), "random initialisation": curve(learner.source.initial_params())}


def summary(asked: Run[FiniteSumConfig], curves: dict[str, Evaluation]) -> dict[str, Any]:
    """Everything that came of a run, as plain values."""
    config, learner = asked.config, asked.learner
    lines = read_metrics(asked.folder)
    seconds = [line["time/iteration_seconds"] or 0.0 for line in lines if "time/iteration_seconds" in line]
    last: dict[str, Any] = {key: value for line in lines for key, value in line.items()}
    watched = {key.removeprefix("theory/"): value for key, value in last.items() if key.startswith("theory/")}
    return {
        "problem": config.problem,
        "outer": config.outer,
        "seed": config.seed,
        "iterations": learner.iterations,
        "score": learner.source.score_name,
        **curves["meta-trained"].summary(),
        "random_init": curves["random initialisation"].summary(),
        "theory": watched,
        "counts": dict(learner.counts),
        "seconds_per_iteration": statistics.median(seconds or [0.0]),
        "run": str(asked.folder),
    }


def table(results: dict[str, Any]) -> str:
    """The adaptation curve, and what theory looks at."""
    lines = [f"{results['score']} on {results['num_tasks']} tasks, mean and 95 % interval over tasks"]
    lines.append(f"{'steps':>5} {'meta-trained':>30} {'random initialisation':>30}")
    for step in results["steps"]:
        both = [(r["mean"][step], r["ci95"][step]) for r in (results, results["random_init"])]
        cells = [with_interval(mean, interval, "9.4f", "8.4f") for mean, interval in both]
        lines.append(f"{step:>5} {cells[0]:>30} {cells[1]:>30}")
    lines += [f"{key}: {value:.3g}" for key, value in results["theory"].items() if value is not None]
    lines += [f"{key}: {value:,}" for key, value in results["counts"].items()]
    seconds = results["seconds_per_iteration"]
    return "\n".join([*lines, f"{seconds:.4f} s per iteration; everything is in {results['run']}"])


FINITE_SUM = Recipe("metarl train-supervised", FiniteSumConfig, build_learner, lambda config: config.problem, settle)


if __name__ == "__main__":
    main()
