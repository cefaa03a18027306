"""The loop: sample tasks, let the outer update make a meta-gradient, step; with everything needed to go on later."""

import copy
import hashlib
import inspect
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Self

import numpy as np
import torch

from metarl import checkpoint, tree
from metarl.arguments import check_at_least, check_callbacks, check_source, check_tasks
from metarl.callbacks import Callback, Metrics
from metarl.checkpoint.learner_state import (
    check_complete,
    check_config,
    check_entries,
    check_same_source_state,
    load_source_state,
    read_arguments,
    restore_callbacks,
    restore_source_on_error,
    source_state,
    state_errors,
)
from metarl.engine import Engine, current_engine
from metarl.errors import MoreStepsWarning, NonFiniteError, check_has, check_int, check_step_sizes, check_type
from metarl.evaluation import Evaluation, ScoreBefore, evaluate, note_if_worse
from metarl.inner import adapt
from metarl.memory import check_fits
from metarl.outer import Method, check_hessian, inner_defaults, make_method
from metarl.processes import ALONE, Processes, shard, share_of
from metarl.random import Stream, generator_state, restore_generator, stream_generator
from metarl.settings import FixedSettings
from metarl.signals import first_signal
from metarl.state_dict import snapshot
from metarl.step import MeanGrad, OptimizerFactory, OptimizerStep, OuterStep, Schedule, Stepped, average
from metarl.types import ChecksSize, HasEpisodes, LearningSource, Params, Rule, TaskBatch, TaskSource
from metarl.wrappers import CheckFinite, CountCost, check_finite, find_non_finite


class MetaLearner(FixedSettings):
    """Meta-trains initial parameters so that a few inner steps adapt them to a task.

    Args:
        source: where tasks come from, for example `metarl.rl.ReinforcementLearning`.
        outer: the name of a registered method, or a `Method` of your own.
        inner_lr: alpha, the inner step size of a named method; `None` takes the method's default.
        inner_steps: N; likewise.
        outer_options: options of a named method, such as `{"hessian_data": "reuse"}`.
        meta_batch_size: T, tasks per iteration.
        learning_rate: beta, the outer step size.
        optimizer: a class of `torch.optim`, or any factory `(leaves, lr=...)`.
        max_grad_norm: clips the mean meta-gradient.
        schedule: from the number of finished iterations to a factor of `learning_rate`.
        outer_step: how a meta-gradient moves the parameters, instead of a step of `optimizer`; the four arguments above
            then have no meaning and must be left alone.
        seed: everything random in training follows from it.
        processes: who train together (see `metarl.processes`). All of them make the same learner and call the same
            methods; the tasks are shared, the results are everyone's, and do not depend on how many they are.
        engine: computes derivatives and rollouts; `metarl.engine.Engine(record=False)` records nothing. Default: the
            current engine, or if there is none, a new `Engine()`.

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

    live: ClassVar[frozenset[str]] = frozenset({"source", "meta_batch_size", "outer_step", "processes", "engine"})

    def __init__(
        self,
        source: TaskSource,
        outer: str | Method = "maml",
        *,
        inner_lr: float | None = None,
        inner_steps: int | None = None,
        outer_options: Mapping[str, Any] | None = None,
        meta_batch_size: int = 20,
        learning_rate: float = 1e-3,
        optimizer: OptimizerFactory = torch.optim.Adam,
        max_grad_norm: float | None = None,
        schedule: Schedule | None = None,
        outer_step: OuterStep | None = None,
        seed: int = 0,
        processes: Processes = ALONE,
        engine: Engine | None = None,
    ) -> None:
        check_source("source", source)
        check_type("processes", processes, Processes, "the processes from metarl.processes.joined()")
        check_type("engine", engine, (Engine, NoneType), "a metarl.engine.Engine or None")
        check_type("outer_options", outer_options, (Mapping, NoneType), "a mapping of the method's options")
        if outer_step is not None:
            check_has("outer_step", outer_step, ("__call__", "state_dict", "load_state_dict"), "an OuterStep")
        self.source = source
        self.processes = processes
        self.engine = current_engine(default=Engine()) if engine is None else engine
        self.outer = outer
        self.inner_lr = inner_defaults(outer)[0] if isinstance(outer, str) and inner_lr is None else inner_lr
        self.outer_options = dict(outer_options or {})
        self.method = self._make_method(inner_lr, inner_steps)
        check_fits(f"inner_steps = {self.method.inner.steps}", self.method.inner.steps, bytes_each=8)  # a rule for each
        self.meta_batch_size = check_int("meta_batch_size", meta_batch_size)
        check_at_least("meta_batch_size", meta_batch_size, self.method.min_tasks, "this outer update")
        check_at_least("meta_batch_size", meta_batch_size, processes.size, "as many processes")
        episodes = source.episodes if isinstance(source, HasEpisodes) else None
        check_at_least("episodes", episodes, self.method.min_episodes, "this outer update")
        if isinstance(source, ChecksSize):
            source.check_size(self.meta_batch_size, "meta_batch_size")
        self.seed = check_int("seed", seed, minimum=0)
        check_hessian(self.method, source, stacklevel=2)
        self.params: Params = source.initial_params()
        arguments: dict[str, Any] = {
            "learning_rate": learning_rate,
            "optimizer": optimizer,
            "max_grad_norm": max_grad_norm,
            "schedule": schedule,
        }
        if outer_step is not None and (changed := {k: v for k, v in arguments.items() if v != _defaults()[k]}):
            raise ValueError(f"outer_step replaces the optimizer's step: leave its arguments alone, got {changed}")
        self.outer_step: OuterStep = OptimizerStep(self.params, **arguments) if outer_step is None else outer_step
        self.counts: Counter[str] = Counter()
        self.iterations, self._warned_of_steps = 0, False
        self.stopped_by: str | None = None
        self._rng = np.random.default_rng(seed)
        self._callbacks: list[Callback] = []
        self._saved_callbacks: list[tuple[str, dict[str, Any]]] = []
        self._stop_requested: str | None = None
        self._fix_settings()

    def learn(self, iterations: int, callbacks: Iterable[Callback] = ()) -> Self:
        """Train for `iterations` more iterations.

        The first SIGINT (Ctrl-C), SIGTERM or SIGHUP lets the running iteration finish and ends training in good order,
        with the callbacks' `on_end` (so a checkpoint is written); `stopped_by` then names the signal. It ends in all
        processes after the same iteration, whichever got the signal. After an error the learner can still be saved, and
        learn on.

        Raises:
            NonFiniteError: at the first NaN or infinity; the parameters are those of the last good iteration.
            ValueError: for `callbacks` that are none; when the processes do not begin with the same parameters.
            ConnectionError: when another process has ended, as one does that raised a `NonFiniteError`.
        """
        check_int("iterations", iterations)
        given = check_callbacks(callbacks)
        self._check_same_everywhere()
        active = self._callbacks = [c for c in given if self.processes.is_first or not c.first_process_only]
        self._stop_requested = self.stopped_by = None
        with self._kept_at_errors(), ExitStack() as closing, first_signal(self.stop), self.engine.current():
            restore_callbacks(self._callbacks, self._saved_callbacks)
            for callback in reversed(active):  # all are closed, in order, even if one of them fails
                closing.callback(callback.close)
            for callback in active:
                callback.on_start(self, self.iterations + iterations)
            for _ in range(iterations):
                metrics = self._iterate()
                for callback in active:
                    callback.on_iteration(self, metrics)
                self.stopped_by = self._request_anywhere()
                if self.stopped_by:
                    break
            for callback in active:
                callback.on_end(self)
        return self

    def stop(self, reason: str = "stop()") -> None:
        """End `learn` after the running iteration, in all processes; for callbacks."""
        self._stop_requested = reason

    def _request_anywhere(self) -> str | None:
        """What the first process that was asked to stop was told; the same in all processes."""
        if not self.processes.any(self._stop_requested is not None):
            return None
        return next(reason for reason in self.processes.gather_objects(self._stop_requested) if reason is not None)

    def _check_same_everywhere(self) -> None:
        digest = hashlib.sha256(generator_state(self._rng).encode())
        for leaf in (*self.params.values(), *source_state(self.source).values()):
            digest.update(leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        found = self.processes.gather_objects(f"{self.iterations} {digest.hexdigest()}")
        if different := [rank for rank, one in enumerate(found) if one != found[0]]:
            raise ValueError(
                f"params, seed and iterations must be the same in every process, but those of {different} differ from "
                "process 0; has the network been made without a seed?"
            )

    def adapt(self, tasks: TaskBatch, steps: int | None = None) -> Params:
        """The parameters adapted to each of `tasks`, stacked `[T, ...]`, after `steps` (default: as in training).

        More steps than in training may make the score worse: `evaluate` tells.

        Raises:
            ValueError: for `tasks` that are not a batch of tasks, such as `source.sample(5, rng)`.
        """
        check_tasks("tasks", tasks)
        inner = self.method.inner
        if steps is not None:
            inner = inner._replace(steps=check_int("steps", steps, minimum=0))
        with self.engine.current():
            return adapt(self.params, CheckFinite(tasks), inner)

    def evaluate(
        self,
        source: TaskSource | None = None,
        *,
        num_tasks: int = 40,
        steps: int = 3,
        step_sizes: Sequence[float | None] | None = None,
        seed: int = 1000,
        warn: bool = True,
    ) -> Evaluation:
        """The score after 0, 1, ..., `steps` inner steps on held-out tasks.

        Args:
            source: of the held-out tasks; default: the training source, whose tasks are drawn anew from `seed`. If the
                training source normalises observations, make it with `dataclasses.replace(learner.source, ...)`.
            num_tasks: how many.
            steps: inner steps.
            step_sizes: an inner step size for each step; `None`, for all or for one: as in training.
            seed: of the tasks and of everything random in them; training is not disturbed.
            warn: give a `MoreStepsWarning`, once, when more steps than in training make a trained score worse.

        Raises:
            ValueError: for arguments that cannot work, naming them.
        """
        check_source("source", self.source if source is None else source)
        check_int("steps", steps, minimum=0)
        sizes = [self.inner_lr] * steps if step_sizes is None else check_step_sizes(step_sizes)
        if len(sizes) != steps:
            raise ValueError(f"step_sizes must have one entry for each of the {steps} steps, got {len(sizes)}")
        rules = self.rules(sizes)
        rng = stream_generator(check_int("seed", seed, minimum=0), Stream.HELD_OUT_TASKS)
        source = self.source if source is None else source
        check_same_source_state(source, self.source)
        tasks = source.sample(check_int("num_tasks", num_tasks), rng)
        curve = evaluate(self.params, tasks, rules, self.processes, self.engine)
        if warn and self.iterations and not self._warned_of_steps:
            note = note_if_worse(curve, self.method.inner.steps, self.source.score_name)
            if note is not None:
                self._warned_of_steps = True
                warnings.warn(note, MoreStepsWarning, stacklevel=2)
        return curve

    def rules(self, step_sizes: Sequence[float | None]) -> list[Rule]:
        """The method's inner rule at each of the step sizes; `None` is the one of training."""
        check_step_sizes(step_sizes)
        return [self.method.inner.rule if size in (None, self.inner_lr) else self._rule(size) for size in step_sizes]

    def _rule(self, step_size: float | None) -> Rule:
        if not isinstance(self.outer, str):
            raise ValueError("step_sizes need a method given by its name, which knows how to make its rule")
        return self._make_method(step_size, None).inner.rule

    def save(self, path: str | Path) -> None:
        """Write a checkpoint: everything the next iteration depends on. Of several processes, the first one does."""
        check_type("path", path, (str, Path), "a path")
        if self.processes.is_first:
            checkpoint.save(Path(path), self.state_dict())

    @classmethod
    def load(cls, path: str | Path, source: TaskSource, **arguments: Any) -> Self:
        """The learner saved at `path`, ready to go on exactly where it was.

        Args:
            path: a checkpoint.
            source: the same kind of source it was trained with.
            arguments: of the constructor that a file cannot hold: an `outer` given as a `Method`, an `optimizer` other
                than a class of `torch.optim`, a `schedule` other than those of `metarl.schedules`, an `outer_step`,
                `processes` (as many as you like). `metarl.load` opens a run of the command line without any.

        Raises:
            ValueError: when the file is not a whole checkpoint, or does not fit the source.
        """
        check_type("path", path, (str, Path), "a path")
        state = checkpoint.load(Path(path))
        try:
            check_complete(state)
            learner = cls(source, **read_arguments(state["config"], arguments, _defaults()))
            learner.load_state_dict(state)
        except FOREIGN as error:
            raise ValueError(f"checkpoint {path} does not fit: {error}{checkpoint.hint(Path(path).parent)}") from error
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
            "source": source_state(self.source),
            "callbacks": self._callback_states(),
        }

    def load_state_dict(self, state: Mapping[str, Any], changed: Collection[str] = ()) -> None:
        """Continue from `state_dict()`.

        Args:
            state: from `state_dict()`, or a checkpoint.
            changed: what this learner may have otherwise: `learning_rate`, `schedule`.

        Raises:
            ValueError: when something is missing, it was saved with other settings, or the parameters do not fit.
        """
        check_type("state", state, Mapping, "a dictionary from state_dict()")
        check_complete(state)
        check_config(state["config"], self._config(), changed)
        with restore_source_on_error(self.source):
            with state_errors("source"):
                load_source_state(self.source, state.get("source", {}))
            self._check_state(state)
        self.params = {k: state["params"][k].to(leaf.device) for k, leaf in self.params.items()}
        self.counts = Counter(state["counts"])
        self.iterations = state["iterations"]
        self._saved_callbacks = list(state["callbacks"])
        checkpoint.note_if_unsealed(state)

    def _check_state(self, state: Mapping[str, Any]) -> None:
        """Compare everything with this learner before it is used; what checks itself, as it is read, is read here."""
        check_entries(state, self.params)
        rng = copy.deepcopy(self._rng)
        restore_generator(rng, state["rng"])
        with state_errors("outer_step"):
            self.outer_step.load_state_dict(state["outer_step"])
        self._rng = rng

    def _iterate(self) -> Metrics:
        start, steps_before = time.perf_counter(), self.counts["env_steps"]
        tasks = shard(self.source.sample(self.meta_batch_size, self._rng), self.processes)
        spent: Counter[str] = Counter()
        first = ScoreBefore(CheckFinite(CountCost(tasks, spent)))
        good = snapshot(self.outer_step.state_dict())
        try:
            stepped = self.outer_step(self.params, first, self._update)
            for key, _ in find_non_finite(stepped.params):  # of no task
                raise NonFiniteError(f"parameters after the outer step {key}")
        except NonFiniteError as error:
            self.outer_step.load_state_dict(good)
            raise error.at(iteration=self.iterations + 1) from error
        self.params = stepped.params
        if isinstance(self.source, LearningSource):
            self.source.learn_from(tasks, lambda rows: self.processes.sum(tree.total(rows)))
        self.iterations += 1
        score_before, *counts = self.processes.sum(
            torch.tensor([first.total_score, *spent.values()], dtype=torch.float64)
        ).tolist()
        self.counts.update(dict(zip(spent, map(int, counts), strict=True)))
        return self._metrics(stepped, score_before / self.meta_batch_size, start, steps_before)

    def _update(self, params: Params, tasks: TaskBatch) -> MeanGrad:
        meta_grad = self.method.update(params, tasks, self.method.inner)
        share = share_of(tasks)
        check_finite(meta_grad.grads, "meta-gradient", share.first)
        return average(meta_grad, share.mean)

    def _metrics(self, stepped: Stepped, score_before: float, start: float, steps_before: int) -> Metrics:
        name, meta_grad = self.source.score_name, stepped.meta_grad
        metrics: Metrics = {
            "iteration": self.iterations,
            f"rollout/{name}_before": score_before,
            f"rollout/{name}_after": meta_grad.score,
            "train/meta_grad_norm": float(tree.norm(meta_grad.grads)),
            "train/meta_grad_spread": meta_grad.spread,
            **{f"train/{key}": value for key, value in meta_grad.info.items()},
            **{f"train/{key}": value for key, value in stepped.info.items()},
            **{f"oracle/{key}": value for key, value in sorted(self.counts.items())},
        }
        seconds = metrics["time/iteration_seconds"] = time.perf_counter() - start
        if "env_steps" in self.counts:
            metrics["time/env_steps_per_second"] = (self.counts["env_steps"] - steps_before) / seconds
        return metrics

    def _make_method(self, inner_lr: float | None, inner_steps: int | None) -> Method:
        if isinstance(self.outer, str):
            for name in ("name", "inner_lr", "inner_steps"):
                if name in self.outer_options:
                    raise ValueError(f"outer_options must be options of {self.outer!r}, got {name!r}")
            return make_method(self.outer, inner_lr, inner_steps, **self.outer_options)
        if not isinstance(self.outer, Method):
            raise ValueError(f"outer must be the name of a registered method or a Method, got {self.outer!r}")
        if self.outer_options or inner_lr is not None or inner_steps is not None:
            raise ValueError("inner_lr, inner_steps and outer_options go with a method's name; a Method has its own")
        return self.outer

    def __getstate__(self) -> dict[str, Any]:
        """For `copy.deepcopy` and `pickle`: a method given by its name is made anew, and records are left out."""
        named = {"method": self.method.inner.steps} if isinstance(self.outer, str) else {}
        return {**vars(self), **named}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.outer, str):
            self.method = self._make_method(self.inner_lr, state["method"])

    def _callback_states(self) -> list[tuple[str, dict[str, Any]]]:
        return [(type(c).__name__, c.state_dict()) for c in self._callbacks] + self._saved_callbacks

    @contextmanager
    def _kept_at_errors(self) -> Iterator[None]:
        """After an error, what callbacks hold stays for a checkpoint, and those that cannot say it are given up."""
        try:
            yield
        except BaseException:
            callbacks, self._callbacks = self._callbacks, []
            for callback in reversed(callbacks):
                try:
                    self._saved_callbacks.insert(0, (type(callback).__name__, callback.state_dict()))
                except Exception as error:
                    name = type(callback).__name__
                    warnings.warn(f"{name} could not give its state, which is not kept: {error}", stacklevel=3)
            raise

    def _config(self) -> dict[str, Any]:
        step = self.outer_step
        return {
            "outer": self.outer if isinstance(self.outer, str) else None,
            "inner_lr": self.inner_lr,
            "inner_steps": self.method.inner.steps if isinstance(self.outer, str) else None,
            "outer_options": self.outer_options,
            "meta_batch_size": self.meta_batch_size,
            "outer_step": None if isinstance(step, OptimizerStep) else type(step).__name__,
            **(step.config() if isinstance(step, OptimizerStep) else {}),
            "seed": self.seed,
        }


FOREIGN = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RuntimeError)
"""What the constructor may raise for the settings in a file of somebody else."""


def _defaults() -> dict[str, Any]:
    """The defaults of the constructor's arguments."""
    parameters = inspect.signature(MetaLearner.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}
