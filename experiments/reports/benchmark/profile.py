"""The seconds of a meta-iteration by part, next to each part's limit, and its most expensive operations.

The functions are timed from outside. A part's seconds do not include those of the parts it calls.
"""

import dataclasses
import pkgutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity

from metarl.experiments.reports.benchmark.limits import Flops, Tally, network_flops, synchronize
from metarl.experiments.reports.benchmark.measure import Call
from metarl.experiments.reports.benchmark.workloads import Scale, build_iteration
from metarl.experiments.train import TrainConfig

REST = "rest of the iteration"


class Watched(NamedTuple):
    """A function to time: where its callers look it up, and the part it belongs to."""

    owner: str  # a module, or a class in one
    name: str
    part: str

    def resolve(self) -> Any:
        """The owner itself."""
        return pkgutil.resolve_name(self.owner)


WATCHED = (
    Watched("metarl.rl:RLTaskBatch", "rollout", "rollouts"),
    Watched("metarl.rl:RLTaskBatch", "draw", "baselines and advantages"),
    Watched("metarl.inner:", "gradients", "inner gradients"),
    Watched("metarl.outer.maml:", "hessian_vector_products", "Hessian-vector products"),
    Watched("metarl.outer.pull_back:", "gradients", "outer gradients"),
    Watched("metarl.wrappers:", "check_finite", "checks for NaN"),
    Watched("metarl.step:OptimizerStep", "__call__", "outer step"),
    Watched("metarl:MetaLearner", "_update", "rest of the outer update"),
    Watched("metarl:MetaLearner", "learn", REST),
)


class Clock:
    """Adds up the seconds of functions, without those of the watched functions they call."""

    def __init__(self, device: str) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device
        self._within: list[float] = []

    def watch(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._within.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronize(self._device)
                spent = time.perf_counter() - start
                self.seconds[part] += spent - self._within.pop()
                if self._within:
                    self._within[-1] += spent

        return timed


@contextmanager
def watching(clock: Clock) -> Iterator[None]:
    """Time all functions of `WATCHED` in this block."""
    with ExitStack() as stack:
        for watched in WATCHED:
            owner, name = watched.resolve(), watched.name
            function = getattr(owner, name)
            setattr(owner, name, clock.watch(watched.part, function))
            stack.callback(setattr, owner, name, function)
        yield


def plan_profile(scale: Scale) -> list[Call]:
    """Exact MAML reusing the inner batch for the Hessian on navigation."""
    config = dataclasses.replace(scale.config, outer="maml", hessian_data="reuse")
    return [partial(profile_iteration, config, scale.repetitions)]


def profile_iteration(config: TrainConfig, repetitions: int) -> dict[str, Any]:
    """Seconds of each part, medians over the repetitions, with their limits; and the top operations."""
    device, clock = torch.device(config.device), Clock(config.device)
    # Warm up, then measure between two measurements of the machine.
    with watching(clock):
        job = build_iteration(config)
        for _ in range(2):
            job.run()
        rates, spent = [job.product.rate(device)], []
        for _ in range(repetitions):
            job.tally.clear()
            clock.seconds.clear()
            job.run()
            spent.append(dict(clock.seconds))
        rates.append(job.product.rate(device))
    # Each part's limit is its share of the operations at that rate.
    rate = statistics.mean(rates)
    limits = {
        part: flops / rate for part, flops in needed_flops(job.tally, network_flops(job.network, job.inputs)).items()
    }
    seconds = {part: statistics.median(one[part] for one in spent) for part in (watched.part for watched in WATCHED)}
    total = sum(seconds.values())
    return {
        "size": f"{config.meta_batch_size} x {config.episodes} x {config.horizon}",
        "product_gflops": 1e-9 * rate,
        "seconds": total,
        "limit_seconds": sum(limits.values()),
        "parts": [
            {"part": part, "seconds": own, "share": own / total, "limit_seconds": limits.get(part, 0.0)}
            for part, own in seconds.items()
        ],
        "operations": top_operations(job.run, device),
    }


def needed_flops(tally: Tally, network: Flops) -> dict[str, float]:
    """Operations that each part needs."""
    return {
        "rollouts": network.forward * tally.of("forward"),
        "inner gradients": network.gradient * tally.of("gradients", "inner"),
        "Hessian-vector products": network.hessian_vector_product * tally.of("hessian_vector_products"),
        "outer gradients": network.gradient * tally.of("gradients", "outer"),
    }


def top_operations(run: Callable[[], object], device: torch.device, number: int = 12) -> list[dict[str, Any]]:
    """The operations of one run with the most seconds, without those of operations they call, by torch's profiler."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities, acc_events=True) as recorded:
        run()
        synchronize(device)
    kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, kind))
    total = sum(getattr(event, kind) for event in events)
    return [
        {
            "operation": event.key,
            "calls": event.count,
            "seconds": 1e-6 * getattr(event, kind),
            "share": getattr(event, kind) / max(total, 1e-9),
        }
        for event in events[:number]
    ]
