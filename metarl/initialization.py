"""Initial parameters in use: adapted to tasks, and evaluated on held-out ones."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, overload

import gymnasium

from metarl.adaptation_curve import AdaptationCurve
from metarl.checkpoint import learner_state
from metarl.engine import Engine
from metarl.errors import check_bool, check_has, check_int, check_source, check_step_sizes
from metarl.evaluation import evaluate, held_out_tasks, warn_if_worse
from metarl.inner import adapt_stepwise
from metarl.outer import Method
from metarl.processes import Processes
from metarl.random import Stream, stream_generator
from metarl.rl.adapted_policy import AdaptedPolicy, adapt_policy
from metarl.settings import FixedSettings
from metarl.types import Params, Rule, TaskBatch, TaskSource
from metarl.wrappers import CheckFinite


class Initialization(FixedSettings):
    """Initial parameters and the inner loop that adapts them; `metarl.MetaLearner` trains them.

    Attributes:
        source: where tasks come from.
        method: the outer update and the inner loop.
        params: the initial parameters.
        iterations: how many iterations trained them.
        processes: the processes that share the tasks.
        engine: computes derivatives and rollouts.
    """

    source: TaskSource
    method: Method
    params: Params
    iterations: int
    processes: Processes
    engine: Engine
    _warned_of_steps = False

    @property
    def inner_lr(self) -> float | None:
        """The inner step size of a method made by its name; `None` for your own method and learned step sizes."""
        learned = self.method.learned_rule is not None
        return None if learned or self.method.recipe is None else self.method.recipe.inner_lr

    @overload
    def adapt(
        self, tasks: TaskBatch, steps: int | None = None, *, step_sizes: Sequence[float | None] | None = None
    ) -> Params: ...

    @overload
    def adapt(
        self,
        tasks: gymnasium.Env[Any, Any] | Mapping[str, Any],
        steps: int | None = None,
        *,
        step_sizes: Sequence[float | None] | None = None,
        episodes: int | None = None,
        seed: int = 0,
    ) -> AdaptedPolicy: ...

    def adapt(
        self,
        tasks: TaskBatch | gymnasium.Env[Any, Any] | Mapping[str, Any],
        steps: int | None = None,
        *,
        step_sizes: Sequence[float | None] | None = None,
        episodes: int | None = None,
        seed: int = 0,
    ) -> Params | AdaptedPolicy:
        """A policy adapted to one task, or the parameters adapted to each of a batch of tasks, stacked `[T, ...]`.

        More steps than in training may make the score worse; `evaluate` warns of that.

        Args:
            tasks: an environment of yours (it collects episodes in it, one after the other), or the parameters of one
                task, such as `{"goal": [0.3, -0.2]}`; or a batch, such as `source.sample(5, rng)`.
            steps: inner steps; default: as in training.
            step_sizes: an inner step size for each step; `None` for a step, or for all: as in training.
            episodes: for one task, the episodes of each step; default: as in training.
            seed: for one task, of everything random.

        Raises:
            ValueError: for arguments that cannot work, naming them.
        """
        number = self.method.inner.steps if steps is None else check_int("steps", steps, minimum=0)
        rules = self.rules([None] * number if step_sizes is None else step_sizes)
        if len(rules) != number:
            raise ValueError(f"step_sizes must have one entry for each of the {number} steps, got {len(rules)}")

        def run(batch: TaskBatch) -> Params:
            with self.engine.current():
                return deque(adapt_stepwise(self.params, CheckFinite(batch), rules), maxlen=1).pop()

        if isinstance(tasks, gymnasium.Env | Mapping):
            return adapt_policy(self.source, tasks, run, episodes, seed)
        wanted = "an environment, the parameters of one task, or a batch of tasks, such as source.sample(5, rng)"
        check_has("tasks", tasks, ("draw", "loss", "num_tasks"), wanted)
        if episodes is not None:
            raise ValueError(f"episodes does not apply to a batch of tasks, which has its own, got {episodes!r}")
        return run(tasks)

    def evaluate(
        self,
        source: TaskSource | None = None,
        *,
        tasks: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        num_tasks: int | None = None,
        steps: int = 3,
        step_sizes: Sequence[float | None] | None = None,
        seed: int = 1000,
        deterministic: bool = False,
        warn: bool = True,
    ) -> AdaptationCurve:
        """The score after 0, 1, ..., `steps` inner steps on held-out tasks.

        Args:
            source: of the held-out tasks; default: new tasks of the training source. If the training source normalises
                observations, make it with `dataclasses.replace(learner.source, ...)`.
            tasks: chosen tasks instead of sampled ones: a list with the parameters of each, such as
                `[{"goal": [0.3, -0.2]}, ...]`, or a dictionary of arrays `[T, ...]`.
            num_tasks: the number of sampled tasks; default: 40.
            steps: inner steps.
            step_sizes: an inner step size for each step; `None` for a step, or for all: as in training.
            seed: of the tasks and everything random in them; training is not affected.
            deterministic: whether the policy takes its most likely actions in the episodes that measure the scores;
                the episodes of adaptation sample actions in any case.
            warn: give a `MoreStepsWarning`, once, when more steps than in training make a trained score worse.

        Raises:
            ValueError: for arguments that cannot work, naming them.
        """
        source = self.source if source is None else source
        check_source(source)
        check_int("steps", steps, minimum=0)
        check_bool("deterministic", deterministic)
        sizes = [None] * steps if step_sizes is None else step_sizes
        rules = self.rules(sizes)
        if len(rules) != steps:
            raise ValueError(f"step_sizes must have one entry for each of the {steps} steps, got {len(rules)}")
        rng = stream_generator(check_int("seed", seed, minimum=0), Stream.HELD_OUT_TASKS)
        learner_state.check_same_source_state(source, self.source)
        curve = evaluate(
            self.params,
            held_out_tasks(source, rng, num_tasks, tasks),
            rules,
            self.processes,
            self.engine,
            deterministic=deterministic,
            score_name=source.score_name,
            step_sizes=self.known_step_sizes(sizes),
        )
        if warn and self.iterations and not self._warned_of_steps:
            self._warned_of_steps = warn_if_worse(curve, self.method.inner.steps)
        return curve

    def rules(self, step_sizes: Sequence[float | None]) -> list[Rule]:
        """The method's inner rule for each step size; `None` means as in training."""
        return self.method.make_rules(check_step_sizes(step_sizes))

    def known_step_sizes(self, step_sizes: Sequence[float | None]) -> list[float | None]:
        """The step sizes with that of training instead of `None`, unless it is learned or your method's own."""
        return [self.inner_lr if size is None else size for size in check_step_sizes(step_sizes)]
