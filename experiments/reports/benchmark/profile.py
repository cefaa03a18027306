"""The seconds of a meta-iteration by part, next to each part's limit, and its most expensive operations.

The functions are timed from outside. A part's seconds do not include those of the parts it calls.
"""

import dataclasses
import pkgutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity

from metarl.experiments.reports.benchmark.limits import Flops, Tally, network_flops, synchronize
from metarl.experiments.reports.benchmark.measure import Call
from metarl.experiments.reports.benchmark.workloads import Scale, build_iteration
from metarl.experiments.train import TrainConfig

WATCHED = {
    "metarl.rl.RLTaskBatch.rollout": "rollouts",
    "metarl.rl.RLTaskBatch.draw": "baselines and advantages",
    "metarl.inner.gradients": "inner gradients",
    "metarl.outer.maml.hessian_vector_products": "Hessian-vector products",
    "metarl.outer.pull_back.gradients_and_scores": "outer gradients",
    "metarl.wrappers.check_finite": "checks for NaN",
    "metarl.step.OptimizerStep.__call__": "outer step",
    "metarl.MetaLearner._update": "rest of the outer update",
    "metarl.MetaLearner.learn": "rest of the iteration",
}
"""The functions to time, where their callers look them up, and the part that each belongs to."""


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


def watching(clock: Clock) -> ExitStack:
    """Time all functions of `WATCHED` in this block."""
    with ExitStack() as stack:
        for name, part in WATCHED.items():
            stack.enter_context(patch(name, clock.watch(part, pkgutil.resolve_name(name))))
        return stack.pop_all()


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
    seconds = {part: statistics.median(one[part] for one in spent) for part in WATCHED.values()}
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
