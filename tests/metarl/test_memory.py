"""Memory: training does not grow the process, evaluation builds no graph, and inner steps cost time but no memory."""

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.callbacks import Callback, Metrics
from metarl.envs import Navigation
from metarl.evaluation import evaluate
from metarl.experiments.reports.benchmark.measure import call_in_new_process
from metarl.inner import adapt_stepwise, sgd
from metarl.rl import ReinforcementLearning
from metarl.supervised.networks import mlp
from metarl.supervised.sinusoid import Sinusoids
from metarl.types import Batch, Params, Role, TaskSource
from metarl.wrappers import TaskWrapper

NOTHING = 1.0  # MB: the most that the interpreter and the allocator may take in 500 iterations; 0.1 was measured


def navigation(episodes: int, horizon: int, units: int) -> ReinforcementLearning:
    tasks = Navigation(horizon=horizon)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [units, units]})
    return ReinforcementLearning(tasks, policy, episodes=episodes)


def sinusoids(points: int, units: int) -> Sinusoids:
    return Sinusoids(mlp(1, 1, hidden=(units, units)), shots=points, queries=points)


SMALL: dict[str, Callable[[], TaskSource]] = {
    "supervised": partial(sinusoids, 5, 80),
    "navigation": partial(navigation, 2, 5, 8),
}
LARGE: dict[str, Callable[[], TaskSource]] = {  # a single task's activations are far more than a draw of all tasks
    "supervised": partial(sinusoids, 10_000, 40),
    "navigation": partial(navigation, 60, 50, 100),
}


def peak_mb() -> float:
    """The most memory this process has had. The tests look at processes of their own."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def forget_the_peak() -> None:
    """Where the system can: libraries with CUDA take a gigabyte while they load, which would hide what comes later."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure_what_is_used() -> None:
    """Before anything large is computed: have glibc return freed blocks at once, not keep them in odd pieces."""
    torch.set_num_threads(1)
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-3, 2**20)  # M_MMAP_THRESHOLD


class Leaking(Callback):
    """Keeps the parameters of every iteration, 27 kB."""

    def __init__(self) -> None:
        self.kept: list[Params] = []

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        self.kept.append(learner.params)


def growth_in_training(make: Callable[[], TaskSource], outer: str, iterations: int, leaks: bool) -> dict[str, float]:
    """MB that the peak of the memory grew by over so many iterations, after a warm-up.

    Records are compared with the plain computation ever more rarely, which takes a little memory the first few times.
    """
    torch.set_num_threads(1)
    learner = MetaLearner(make(), outer, inner_lr=0.01, meta_batch_size=2).learn(300)
    gc.collect()
    forget_the_peak()
    before = peak_mb()
    learner.learn(iterations, [Leaking()] if leaks else [])
    return {"grown": peak_mb() - before}


@pytest.mark.parametrize(
    ("name", "outer"), [("supervised", "maml"), pytest.param("navigation", "fo_maml", marks=pytest.mark.slow)]
)
def test_training_does_not_grow_the_process(name: str, outer: str) -> None:
    assert call_in_new_process(partial(growth_in_training, SMALL[name], outer, 500, False))["grown"] < NOTHING


def test_a_learner_that_leaks_is_found() -> None:
    """The test above can fail: 13 MB in as many iterations; a few fit into the holes that the warm-up leaves."""
    assert call_in_new_process(partial(growth_in_training, SMALL["supervised"], "maml", 500, True))["grown"] > NOTHING


class Graphless(TaskWrapper):
    """Refuses tensors that hold a graph, and counts those it has looked at."""

    looked_at = 0

    def draw(self, params: Params, role: Role) -> Batch:
        batch = super().draw(params, role)
        self.refuse_graphs(*params.values(), *batch.values())
        return batch

    def refuse_graphs(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            assert tensor.grad_fn is None
            assert not tensor.requires_grad
        self.looked_at += len(tensors)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_evaluation_builds_no_graph(name: str) -> None:
    source, rules = SMALL[name](), [sgd(0.01)] * 3
    params = source.initial_params()
    tasks = Graphless(source.sample(2, np.random.default_rng(0)))
    evaluate(params, tasks, rules)
    for w in adapt_stepwise(params, tasks, rules):
        tasks.refuse_graphs(*w.values())
    assert tasks.looked_at > 7 * len(params)


def test_graphs_are_refused() -> None:
    tasks = Graphless(SMALL["supervised"]().sample(2, np.random.default_rng(0)))
    with pytest.raises(AssertionError):
        tasks.refuse_graphs(2 * torch.ones(1, requires_grad=True))


def peaks_of_evaluation(make: Callable[[], TaskSource]) -> dict[str, float]:
    """MB above what an evaluation without inner steps takes, by the number of inner steps."""
    measure_what_is_used()
    source = make()
    tasks = source.sample(2, np.random.default_rng(0))

    def run(steps: int) -> None:
        evaluate(source.initial_params(), tasks, [sgd(0.01)] * steps)

    run(0)
    return peaks(run)


def peaks_of_training(make: Callable[[], TaskSource]) -> dict[str, float]:
    """MB above the state before, of exact MAML reusing the inner batch, by the number of inner steps."""
    measure_what_is_used()
    source, options = make(), {"hessian_data": "reuse"}

    def run(steps: int) -> None:
        MetaLearner(source, inner_lr=0.01, inner_steps=steps, outer_options=options, meta_batch_size=2).learn(2)

    MetaLearner(SMALL["navigation"](), meta_batch_size=2).learn(1)  # loads the libraries
    return peaks(run)


def peaks(run: Callable[[int], object]) -> dict[str, float]:
    """MB that one and ten inner steps raise the peak by; in this order, as a peak does not go down.

    One step is run so often that comparisons of records with the plain function belong to it (`metarl.engine.compare`).
    """
    forget_the_peak()
    before, found = peak_mb(), {}
    for steps, times in ((1, 16), (10, 1)):
        for _ in range(times):
            run(steps)
        found[f"{steps}"] = peak_mb() - before
    return found


@pytest.mark.parametrize("name", ["supervised", pytest.param("navigation", marks=pytest.mark.slow)])
@pytest.mark.parametrize("measured", [peaks_of_evaluation, peaks_of_training])
def test_memory_is_flat_in_inner_steps(measured: Callable[..., dict[str, float]], name: str) -> None:
    found = call_in_new_process(partial(measured, LARGE[name]))
    assert found["1"] > 5  # there is something to be measured
    assert found["10"] < 1.3 * found["1"]
