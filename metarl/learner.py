"""The loop: sample tasks, compute the meta-gradient, take an outer step. It can be saved and continued exactly."""

import copy
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Self

import numpy as np
import torch

from metarl import checkpoint, tree
from metarl.callbacks import Callback, Metrics, check_callbacks, collect_metrics
from metarl.checkpoint import learner_state
from metarl.diagnostics import Diagnose
from metarl.engine import Engine, current_engine
from metarl.errors import NonFiniteError, check_has, check_int, check_source, check_type
from metarl.evaluation import ScoreBefore
from metarl.initialization import Initialization
from metarl.learned_rules import hide_meta
from metarl.outer import Method, check_method, make_method
from metarl.partial import Patterns
from metarl.processes import ALONE, Processes, shard, share_of
from metarl.random import generator_state, restore_generator
from metarl.signals import first_signal
from metarl.state_dict import snapshot
from metarl.step import (
    ChecksSource,
    MeanGrad,
    OptimizerFactory,
    OptimizerStep,
    OuterStep,
    Schedule,
    average,
    check_same_method,
)
from metarl.types import LearningSource, Params, TaskBatch, TaskSource
from metarl.wrappers import CheckFinite, CountCost, check_finite, find_non_finite


class MetaLearner(Initialization):
    """Meta-trains initial parameters so that a few inner steps adapt them to a task.

    This constructor takes names and numbers; `from_parts` takes a `Method` and an `OuterStep` of your own.

    Args:
        source: where tasks come from, for example `metarl.rl.ReinforcementLearning`.
        outer: the name of a registered method.
        inner_lr: alpha, the inner step size; default: the method's own.
        inner_steps: N, the number of inner steps; default: the method's own.
        adapt: which parameters inner steps move: `head`, `context` or patterns (`metarl.partial`); default: all.
        outer_options: options of the method, such as `{"hessian_data": "reuse"}`.
        meta_batch_size: T, tasks per iteration.
        learning_rate: beta, the outer step size.
        optimizer: a class of `torch.optim`, or any factory `(leaves, lr=...)`.
        max_grad_norm: clips the mean meta-gradient.
        schedule: from the number of finished iterations to a factor of `learning_rate`.
        inner_lr_rate: the outer step size of learned inner step sizes (see `metarl.step.OptimizerStep`).
        seed: everything random in training follows from it.
        processes: the processes that train together (see `metarl.processes`). All of them make the same learner and
            call the same methods. They share the tasks, and all get the results, which do not depend on their number.
        engine: computes derivatives and rollouts (see `metarl.engine`); default: the current engine, or a new one.

    Attributes:
        diagnostics: whether metrics have entropies, divergences, gradient norms and so on (`metarl.diagnostics`).

    Raises:
        ValueError: for arguments that cannot work, before anything starts.

    Example:
        >>> from metarl.agents import make_policy
        >>> from metarl.envs import Navigation
        >>> from metarl.rl import ReinforcementLearning
        >>> tasks = Navigation(horizon=10)
        >>> policy = make_policy(tasks.observation_space, tasks.action_space)
        >>> learner = MetaLearner(ReinforcementLearning(tasks, policy, episodes=4), "maml", meta_batch_size=2)
        >>> learner.learn(2).iterations
        2
        >>> len(learner.evaluate(num_tasks=3, steps=1).mean)
        2
    """

    live: ClassVar[frozenset[str]] = frozenset({"source", "meta_batch_size", "processes", "engine"})
    diagnostics = True

    def __init__(
        self,
        source: TaskSource,
        outer: str = "maml",
        *,
        inner_lr: float | None = None,
        inner_steps: int | None = None,
        adapt: Patterns | None = None,
        outer_options: Mapping[str, Any] | None = None,
        meta_batch_size: int = 20,
        learning_rate: float = 1e-3,
        optimizer: OptimizerFactory = torch.optim.Adam,
        max_grad_norm: float | None = None,
        schedule: Schedule | None = None,
        inner_lr_rate: float | None = None,
        seed: int = 0,
        processes: Processes = ALONE,
        engine: Engine | None = None,
    ) -> None:
        check_type("outer_options", outer_options, (Mapping, NoneType), "a mapping of the method's options")
        if isinstance(outer, Method):
            raise ValueError("outer must be the name of a registered method; for a Method use MetaLearner.from_parts")
        options = dict(outer_options or {})
        if wrong := {"name", "inner_lr", "inner_steps", "adapt"} & set(options):
            raise ValueError(f"outer_options must be options of {outer!r}, got {min(wrong)!r}")
        method = make_method(outer, inner_lr, inner_steps, adapt=adapt, **options)
        self._set_up(source, method, meta_batch_size, seed, processes, engine)
        settings = (optimizer, learning_rate, max_grad_norm, schedule, inner_lr_rate)
        self.outer_step: OuterStep = OptimizerStep(self.params, *settings)

    @classmethod
    def from_parts(
        cls,
        source: TaskSource,
        method: Method,
        outer_step: OuterStep | None = None,
        *,
        meta_batch_size: int = 20,
        seed: int = 0,
        processes: Processes = ALONE,
        engine: Engine | None = None,
    ) -> Self:
        """A learner with a method and an outer step of your own.

        Args:
            source: as for the constructor.
            method: your own `Method(update, inner)`, or `make_method("maml", inner_lr=0.1)`.
            outer_step: how a meta-gradient moves the parameters; default: a step of Adam.
            meta_batch_size: as for the constructor, like the arguments after it.

        Raises:
            ValueError: for arguments that cannot work, before anything starts.
        """
        check_type("method", method, Method, "a metarl.Method, such as make_method('maml')")
        learner = cls.__new__(cls)
        learner._set_up(source, method, meta_batch_size, seed, processes, engine)
        learner.outer_step = OptimizerStep(learner.params) if outer_step is None else outer_step
        check_has("outer_step", learner.outer_step, ("__call__", "state_dict", "load_state_dict"), "an OuterStep")
        if isinstance(learner.outer_step, ChecksSource):
            learner.outer_step.check_source(source)
        check_same_method(learner.outer_step, method)
        return learner

    def _set_up(
        self, source: TaskSource, method: Method, size: int, seed: int, processes: Processes, engine: Engine | None
    ) -> None:
        """Set everything except the outer step."""
        check_source(source)
        check_type("processes", processes, Processes, "the processes from metarl.processes.joined()")
        check_type("engine", engine, (Engine, NoneType), "a metarl.engine.Engine or None")
        self.meta_batch_size, self.seed = check_int("meta_batch_size", size), check_int("seed", seed, minimum=0)
        if size < processes.size:
            raise ValueError(f"meta_batch_size must be at least {processes.size}, the number of processes, got {size}")
        check_method(method, source, size, stacklevel=3)
        self.source, self.method, self.processes = source, method, processes
        self.engine = current_engine(default=Engine()) if engine is None else engine
        self.params = method.initial_params(source)
        self.counts: Counter[str] = Counter()
        self.iterations = 0
        self.stopped_by: str | None = None
        self._rng = np.random.default_rng(seed)
        self._callback_states = learner_state.CallbackStates()
        self._stop_requested: str | None = None
        self._fix_settings()

    def learn(self, iterations: int, callbacks: Iterable[Callback] = ()) -> Self:
        """Train for `iterations` more iterations.

        After the first SIGINT (Ctrl-C), SIGTERM or SIGHUP the current iteration finishes and training ends normally,
        with the callbacks' `on_end` (so a checkpoint is written); `stopped_by` then names the signal. All processes end
        after the same iteration, whichever of them got the signal. After an error you can still save the learner and
        continue training.

        Raises:
            NonFiniteError: at the first NaN or infinity; the parameters are those after the last good iteration.
            ValueError: for wrong `callbacks`, or when the processes start with different parameters.
            ConnectionError: when another process has ended, for example after a `NonFiniteError`.
        """
        check_int("iterations", iterations)
        given = check_callbacks(callbacks)
        self._check_same_everywhere()
        active = [c for c in given if self.processes.is_first or not c.first_process_only]
        self._stop_requested = self.stopped_by = None
        # callbacks get their saved states, and the first signal calls `stop`
        with self._callback_states.of(active), ExitStack() as closing, first_signal(self.stop), self.engine.current():
            for callback in reversed(active):  # all are closed, in the given order, even if one of them fails
                closing.callback(callback.close)
            for callback in active:
                callback.on_start(self, self.iterations + iterations)
            if self.iterations == 0:
                untrained: Metrics = {"iteration": 0}
                for callback in active:
                    callback.on_untrained(self, untrained)
            for _ in range(iterations):
                metrics = self._iterate()
                for callback in active:
                    callback.on_iteration(self, metrics)
                # all processes end after the same iteration
                self.stopped_by = self.processes.first(self._stop_requested)
                if self.stopped_by:
                    break
            for callback in active:
                callback.on_end(self)
        return self

    def stop(self, reason: str = "stop()") -> None:
        """End `learn` after the current iteration, in all processes; for callbacks."""
        self._stop_requested = reason

    def _check_same_everywhere(self) -> None:
        values = {**self.params, **learner_state.source_state(self.source)}
        if different := self.processes.differ(f"{self.iterations} {generator_state(self._rng)}", values.values()):
            raise ValueError(
                f"params, seed and iterations must be the same in every process, but those of {different} differ from "
                "process 0; was the network made without a seed?"
            )

    def save(self, path: str | Path) -> None:
        """Write a checkpoint with everything the next iteration depends on; of several processes, the first writes."""
        check_type("path", path, (str, Path), "a path")
        if self.processes.is_first:
            checkpoint.save(Path(path), self.state_dict())

    @classmethod
    def load(
        cls,
        path: str | Path,
        source: TaskSource,
        *,
        method: Method | None = None,
        outer_step: OuterStep | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        processes: Processes = ALONE,
        engine: Engine | None = None,
    ) -> Self:
        """The learner saved at `path`, ready to continue exactly where it stopped.

        `metarl.load` opens a run of the command line without any of these arguments.

        Args:
            path: a checkpoint.
            source: the same kind of source as in training.
            method: needed if it was a method of your own, which a file cannot hold.
            outer_step: needed if it was an outer step of your own.
            optimizer: needed if it was not a class of `torch.optim`.
            schedule: needed if it was not one of `metarl.schedules`.
            processes: any number of processes that continue together.
            engine: as for the constructor.

        Raises:
            ValueError: when the file is not a whole checkpoint, or does not fit the source or the arguments.
        """
        check_type("path", path, (str, Path), "a path")
        state = checkpoint.load(Path(path))
        with learner_state.file_errors(Path(path)):
            learner_state.check_complete(state)
            config = state["config"]
            method = learner_state.restore_method(config, method)
            params = method.initial_params(source)
            learner = cls.from_parts(
                source,
                method,
                outer_step or learner_state.restore_outer_step(config, params, method, optimizer, schedule),
                meta_batch_size=config["meta_batch_size"],
                seed=config["seed"],
                processes=processes,
                engine=engine,
            )
            learner.load_state_dict(state)
            return learner

    def state_dict(self) -> dict[str, Any]:
        """What `save` saves."""
        return {
            "config": self._config(),
            "params": self.params,
            "outer_step": self.outer_step.state_dict(),
            "counts": dict(self.counts),
            "iterations": self.iterations,
            "rng": generator_state(self._rng),
            "source": learner_state.source_state(self.source),
            "callbacks": self._callback_states.collect(),
        }

    def _config(self) -> dict[str, Any]:
        return learner_state.describe_config(self.method, self.outer_step, self.meta_batch_size, self.seed)

    def load_state_dict(self, state: Mapping[str, Any], changed: Collection[str] = ()) -> None:
        """Continue from `state_dict()`.

        Args:
            state: from `state_dict()`, or a checkpoint.
            changed: settings that may differ from the saved ones: `learning_rate`, `schedule`.

        Raises:
            ValueError: when an entry is missing or does not fit, or other settings differ.
        """
        check_type("state", state, Mapping, "a dictionary from state_dict()")
        learner_state.check_complete(state)
        learner_state.check_config(state["config"], self._config(), changed)
        rng = copy.deepcopy(self._rng)
        with learner_state.restore_source_on_error(self.source):
            # entries that are checked while they are loaded
            with learner_state.state_errors("source"):
                learner_state.load_source_state(self.source, state.get("source", {}))
            learner_state.check_entries(state, self.params)
            restore_generator(rng, state["rng"])
            with learner_state.state_errors("outer_step"):
                self.outer_step.load_state_dict(state["outer_step"])
        self.params = {k: state["params"][k].to(leaf.device) for k, leaf in self.params.items()}
        self.counts, self.iterations, self._rng = Counter(state["counts"]), state["iterations"], rng
        self._callback_states = learner_state.CallbackStates(state["callbacks"])
        checkpoint.note_if_unsealed(state)

    def _iterate(self) -> Metrics:
        start, cpu_start, steps_before = time.perf_counter(), time.process_time(), self.counts["env_steps"]

        # sample tasks: every process samples all of them and computes its share
        tasks = shard(self.source.sample(self.meta_batch_size, self._rng), self.processes)
        spent: Counter[str] = Counter()
        noted = Diagnose(tasks)
        first = ScoreBefore(CheckFinite(CountCost(noted if self.diagnostics else tasks, spent)))

        # adapt, take the meta-gradient (see `_update`) and step; an error leaves parameters and outer step as before
        good = snapshot(self.outer_step.state_dict())
        try:
            stepped = self.outer_step(self.params, first, self._update)
            for key, _ in find_non_finite(stepped.params):  # of no task
                raise NonFiniteError(f"parameters after the outer step {key}")
        except NonFiniteError as error:
            self.outer_step.load_state_dict(good)
            raise error.at(iteration=self.iterations + 1) from error
        self.params = stepped.params

        # the source learns last, so all draws of an iteration have the same observation statistics
        if hasattr(self.source, "learn_from") and isinstance(self.source, LearningSource):  # the first look is fast
            self.source.learn_from(tasks, lambda rows: self.processes.sum(tree.total(rows)))
        self.iterations += 1

        # metrics: scores and counts of all processes
        score_before, *counts = self.processes.sum(
            torch.tensor([first.total_score, *spent.values()], dtype=torch.float64)
        ).tolist()
        self.counts.update(dict(zip(spent, map(int, counts), strict=True)))
        score_before /= self.meta_batch_size
        diagnostics = noted.values(share_of(tasks)) if self.diagnostics else {}
        name = self.source.score_name
        metrics = collect_metrics(self.iterations, name, score_before, stepped, self.counts, diagnostics)
        if self.inner_lr is not None:
            metrics["train/inner_lr"] = self.inner_lr
        if self.method.learned_rule is not None:
            learned = self.method.learned_rule.describe(self.params)
            metrics.update({f"train/{name}": value for name, value in learned.items()})
        seconds = metrics["time/iteration_seconds"] = time.perf_counter() - start
        metrics["time/iteration_cpu_seconds"] = time.process_time() - cpu_start
        if self.diagnostics:
            metrics.update({"time/sampling_seconds": noted.seconds, "time/learning_seconds": seconds - noted.seconds})
        if "env_steps" in self.counts:
            metrics["time/env_steps_per_second"] = (self.counts["env_steps"] - steps_before) / seconds
        return metrics

    def _update(self, params: Params, tasks: TaskBatch) -> MeanGrad:
        meta_grad = self.method.at(self.iterations)(params, hide_meta(tasks, params), self.method.inner)
        share = share_of(tasks)
        check_finite(meta_grad.grads, "meta-gradient", share.first)
        return average(meta_grad, share.mean)
