"""Callbacks of `MetaLearner.learn`: progress, checkpoints, held-out evaluation. Logging is in `metarl.logging`.

They are called in the order they are given. One that saves belongs last, so that it saves what the others did.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeAlias

from tqdm import tqdm

from metarl import checkpoint
from metarl.errors import check_has, check_int, check_step_sizes, check_type
from metarl.types import TaskSource

if TYPE_CHECKING:
    from metarl.learner import MetaLearner

Metrics: TypeAlias = dict[str, float]
"""One iteration's numbers by tag; callbacks may add to it for those after them."""


class Callback:
    """The base: does nothing. Override what is needed."""

    first_process_only: ClassVar[bool] = False
    """Whether only the first of several processes has it: for what shows or writes, and computes nothing together."""

    def on_start(self, learner: "MetaLearner", total_iterations: int) -> None:
        """Before the first iteration; training ends at `total_iterations` in all."""

    def on_iteration(self, learner: "MetaLearner", metrics: Metrics) -> None:
        """After every iteration; `learner.stop()` ends training after it."""

    def on_end(self, learner: "MetaLearner") -> None:
        """After the last iteration, also when a signal or a callback ended training; not after an error."""

    def close(self) -> None:
        """Always called last, after errors too."""

    def state_dict(self) -> dict[str, Any]:
        """What belongs into a checkpoint, so that a resumed run goes on the same."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""


class ProgressBar(Callback):
    """A progress bar with the scores before and after adaptation and the environment steps per second."""

    first_process_only = True

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None

    def on_start(self, learner: "MetaLearner", total_iterations: int) -> None:
        self._bar = tqdm(total=total_iterations, initial=learner.iterations, unit="it", dynamic_ncols=True)

    def on_iteration(self, learner: "MetaLearner", metrics: Metrics) -> None:
        assert self._bar is not None
        name = learner.source.score_name
        shown = {when: f"{metrics[f'rollout/{name}_{when}']:.4g}" for when in ("before", "after")}
        if "time/env_steps_per_second" in metrics:
            shown["steps/s"] = f"{metrics['time/env_steps_per_second']:.3g}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Checkpointing(Callback):
    """Saves to `path` every `every` iterations and at the end; the previous file stays until the new one is whole."""

    first_process_only = True

    def __init__(self, path: Path, every: int = 10) -> None:
        check_type("path", path, (str, Path), "a path")
        self.path = Path(path)
        self.every = check_int("every", every)

    def on_start(self, learner: "MetaLearner", total_iterations: int) -> None:
        checkpoint.check(learner.state_dict())  # what cannot be saved is known before hours have gone into it

    def on_iteration(self, learner: "MetaLearner", metrics: Metrics) -> None:
        if learner.iterations % self.every == 0:
            learner.save(self.path)

    def on_end(self, learner: "MetaLearner") -> None:
        learner.save(self.path)


class HeldOutEvaluation(Callback):
    """Adds `eval/<score>_step_k` to the metrics every `every` iterations, always on the same held-out tasks.

    `step_sizes` has an inner step size for each step; `None` is the one of training.
    """

    def __init__(
        self,
        every: int = 10,
        source: TaskSource | None = None,
        num_tasks: int = 20,
        step_sizes: Sequence[float | None] = (None, None, None),
        seed: int = 1000,
    ) -> None:
        self.every = check_int("every", every)
        if source is not None:
            check_has("source", source, ("sample", "initial_params"), "a source of tasks, as ReinforcementLearning")
        self.source = source
        self.num_tasks = check_int("num_tasks", num_tasks)
        self.step_sizes = check_step_sizes(step_sizes)
        self.seed = check_int("seed", seed, minimum=0)

    def on_iteration(self, learner: "MetaLearner", metrics: Metrics) -> None:
        if learner.iterations % self.every == 0:
            curve = learner.evaluate(
                self.source,
                num_tasks=self.num_tasks,
                steps=len(self.step_sizes),
                step_sizes=self.step_sizes,
                seed=self.seed,
                warn=False,  # early in training the curve may fall for a while
            )
            for step, value in enumerate(curve.mean):
                metrics[f"eval/{learner.source.score_name}_step_{step}"] = value
