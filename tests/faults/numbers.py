"""NaN and infinity, environments that raise, hang or exit: named, what was saved stays, and training can go on."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from metarl import Batch, MetaLearner, NonFiniteError, Params, TaskBatch
from metarl.agents import make_policy
from metarl.callbacks import Callback, Checkpointing, Metrics
from metarl.envs.workers import WorkerError
from metarl.errors import shorten
from metarl.rl import ReinforcementLearning
from metarl.supervised.sinusoid import Sinusoids
from metarl.types import Role
from metarl.wrappers import TaskWrapper
from tests.experiments import runs
from tests.faults.fault import Result, fault, faults
from tests.faults.subject import cases_in_child, end, go_on, one_line, start, undisturbed
from tests.faults.worlds import Walks

GROUP = "NaN, environments that fail"
STEPS = 5
PER_ITERATION = 3 * STEPS  # steps of an environment in an iteration of MAML: three draws of an episode each
TOTAL = 4


def learner_of(tasks: Walks, outer: str = "maml") -> MetaLearner:
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]})
    return MetaLearner(ReinforcementLearning(tasks, policy, episodes=2), outer, meta_batch_size=2, seed=3)


def goes_on(own: Path, learner: MetaLearner, error: BaseException) -> None:
    """After `error`: a learner with finite numbers that can be saved, and a checkpoint that leads to the same end."""
    assert all(bool(value.isfinite().all()) for value in learner.params.values()), "NaN in the parameters"
    learner.save(own / "after.pt")
    with contextlib.closing(Walks()) as healthy, contextlib.closing(Walks()) as another:
        whole, again = learner_of(healthy), learner_of(another)
        whole.learn(TOTAL)
        if (own / "checkpoint.pt").exists():
            again.load_state_dict(MetaLearner.load(own / "checkpoint.pt", again.source).state_dict())
        assert again.iterations <= learner.iterations, "it has saved what it had not done"
        again.learn(TOTAL - again.iterations)
        for name, value in whole.params.items():
            assert torch.equal(value, again.params[name]), f"another {name} after {shorten(error)}"


def harm(_: Path, own: Path, case: str) -> None:
    """In iteration k, in this process (0 workers) or in two."""
    workers, k, what = case.split(" ", 2)
    step = PER_ITERATION * (int(k) - 1) + 2
    given: dict[str, Any] = {"workers": int(workers), "harm": what, "at": step, "timeout": 1.5}
    with contextlib.closing(Walks(**given)) as tasks:
        learner = learner_of(tasks)
        wanted = expected(what, int(workers))
        try:
            learner.learn(TOTAL, [Checkpointing(own / "checkpoint.pt", 1)])
        except wanted as error:
            names(error, what.split()[0], int(k))
            goes_on(own, learner, error)
        else:
            raise AssertionError(f"no error; after {learner.iterations} iterations")


def names(error: BaseException, what: str, iteration: int) -> None:
    """Where a number is not finite, it is said what it is, and in which iteration it came."""
    if isinstance(error, NonFiniteError):
        assert what in str(error), f"does not name the {what}: {error}"
        assert error.iteration == iteration, f"names iteration {error.iteration}: {error}"


def expected(what: str, workers: int) -> type[Exception]:
    if what.split()[0] in ("reward", "observation"):
        return NonFiniteError
    return WorkerError if workers else RuntimeError


@faults(GROUP)
def environments(folder: Path) -> Iterator[Result]:
    bad = [f"{what} {value}" for what in ("reward", "observation") for value in ("nan", "inf", "-inf")]
    cases = [f"0 {k} {what}" for k in (1, 3) for what in [*bad, "raise"]]
    cases += [f"2 {k} {what}" for k in (1, 2) for what in ("reward nan", "observation inf", "raise", "hang", "exit")]
    return cases_in_child("numbers", "harm", folder, cases)


class Poisoned(TaskWrapper):
    """Tasks whose data are not finite from a draw on."""

    def __init__(self, tasks: TaskBatch, value: float) -> None:
        super().__init__(tasks)
        self.value = value

    def draw(self, params: Params, role: Role) -> Batch:
        poison = lambda leaf: leaf * self.value if leaf.is_floating_point() else leaf  # noqa: E731
        return tree_map(poison, super().draw(params, role))


class PoisonedSource:
    """Sinusoids whose data are not finite in iteration `at`."""

    score_name = "score"

    def __init__(self, value: float, at: int) -> None:
        self.healthy, self.value, self.at, self.sampled = Sinusoids(), value, at, 0

    def initial_params(self) -> Params:
        return self.healthy.initial_params()

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskBatch:
        self.sampled += 1
        tasks = self.healthy.sample(num_tasks, rng)
        return Poisoned(tasks, self.value) if self.sampled == self.at else tasks


def data(_: Path, own: Path, case: str) -> None:
    """The loss is not finite in iteration k."""
    value, at, outer = case.split()
    source = PoisonedSource(float(value), int(at))
    learner = MetaLearner(source, outer, meta_batch_size=3, seed=3)
    try:
        learner.learn(TOTAL, [Checkpointing(own / "checkpoint.pt", 1)])
    except NonFiniteError as error:
        names(error, "", int(at))
    else:
        raise AssertionError("no error")
    assert learner.iterations == int(at) - 1
    assert all(bool(value.isfinite().all()) for value in learner.params.values()), "NaN in the parameters"
    if at != "1":
        assert MetaLearner.load(own / "checkpoint.pt", source).iterations == learner.iterations


class Poison(Callback):
    """Writes a number into a parameter after iteration `at`."""

    def __init__(self, value: float, at: int) -> None:
        self.value, self.at = value, at

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        if learner.iterations == self.at:
            learner.params = {name: torch.full_like(leaf, self.value) for name, leaf in learner.params.items()}


def action(_: Path, own: Path, case: str) -> None:
    """Parameters that are not finite give actions that are not; the next iteration must not take them."""
    value, at = case.split()
    with contextlib.closing(Walks()) as tasks:
        learner = learner_of(tasks)
        try:
            learner.learn(TOTAL, [Poison(float(value), int(at))])
        except NonFiniteError as error:
            names(error, "", int(at) + 1)
        else:
            raise AssertionError("no error")


@faults(GROUP)
def values(folder: Path) -> Iterator[Result]:
    bad = ("nan", "inf", "-inf")
    yield from cases_in_child("numbers", "action", folder, [f"{value} {at}" for value in bad for at in (1, 3)])
    methods = ("maml", "reptile", "imaml", "moreau")
    losses = [f"{value} {at} {outer}" for value in bad for at in (1, 3) for outer in methods]
    yield from cases_in_child("numbers", "data", folder, losses)


@fault(GROUP, *[(0, "reward nan"), (2, "reward inf"), (2, "observation nan"), (2, "raise"), (2, "exit"), (2, "hang")])
def on_the_command_line(folder: Path, workers: int, what: str) -> None:
    """One line, exit code 1; when the cause is gone, the run goes on to what an undisturbed one leaves."""
    run, armed = folder / "run", folder / "armed"
    armed.touch()
    given = (f"harm={what}", "at=32", f"armed={armed}", f"workers={workers}", "timeout=3")
    outcome = end(start("workers", run, "--env-options", *given))
    if what == "raise":  # the environment's own traceback is shown
        assert outcome.code == 1, outcome.err[-300:]
        for word in ("lost its state", "--resume"):
            assert word in outcome.err, outcome.err[-300:]
    else:
        one_line(outcome, 1, holds="--resume")
    armed.unlink()
    assert end(go_on("workers", run)).code == 0
    whole = undisturbed("workers")[0]
    assert runs.saved(run) == runs.saved(whole), "another checkpoint"
    assert runs.untimed(run) == runs.untimed(whole), "another metrics.jsonl"
