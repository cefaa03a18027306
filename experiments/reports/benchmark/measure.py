"""One row: the seconds of a workload, its peak memory and its limit, measured in a new process."""

import multiprocessing
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from metarl.experiments.reports.benchmark.limits import Product, Tally, network_flops, synchronize

Call: TypeAlias = Callable[[], dict[str, Any]]
"""Measures one row of the results; it can be sent to another process."""


class Job(NamedTuple):
    """A workload ready to run, built in the process that measures it."""

    run: Callable[[], object]
    tally: Tally  # updated by `run`
    network: nn.Module
    inputs: Tensor  # a few rows for the network
    product: Product
    physics: Callable[[], float] | None = None  # environment steps a second of the physics alone


def measure(
    about: dict[str, Any], build: Callable[[], Job], tiny: Callable[[], Job] | None, repetitions: int
) -> dict[str, Any]:
    """The row of a workload: `about`, with the measurements.

    `tiny` is a small version of the same job. It runs first and loads libraries, whose memory is not the workload's.
    """
    # Memory: the first run records and compiles, the second shows the usual peak.
    if tiny is not None:
        tiny().run()
    job = build()
    device = job.inputs.device
    before, start = memory_mark(device), time.perf_counter()
    job.run()
    synchronize(device)
    first = time.perf_counter() - start
    job.run()
    synchronize(device)
    memory = peak_memory(device) - before

    # Time: between two measurements of the machine, whose speed drifts.
    rates = [machine_rates(job)]
    seconds, draws = [], []
    for _ in range(repetitions):
        job.tally.clear()
        start = time.perf_counter()
        job.run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        draws.append(job.tally.draw_seconds)
    rates.append(machine_rates(job))
    return {
        **about,
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "greatest": max(seconds),
        "first_seconds": first,  # including recording and compilation
        "draws": job.tally.draws,
        "draw_seconds": statistics.median(draws),
        "memory_mb": memory,
        **against_limit(job, statistics.median(seconds), *map(statistics.mean, zip(*rates, strict=True))),
    }


def machine_rates(job: Job) -> tuple[float, float]:
    """Operations a second of the product, and environment steps a second of the physics (0 without physics)."""
    return job.product.rate(job.inputs.device), 0.0 if job.physics is None else job.physics()


def against_limit(job: Job, seconds: float, product_rate: float, physics_rate: float) -> dict[str, Any]:
    """The rest of a row: rates, the needed operations, the limit and the ratio to it."""
    flops, drawn = job.tally.flops(network_flops(job.network, job.inputs)), job.tally.of("drawn")
    limit = flops / product_rate + (drawn / physics_rate if physics_rate else 0.0)
    return {
        "unit": "env_steps" if job.tally.of("forward") else "samples",
        "per_second": drawn / seconds,
        "needed_gflop": 1e-9 * flops,
        "product_gflops": 1e-9 * product_rate,
        **({"physics_per_second": physics_rate} if physics_rate else {}),
        "limit_seconds": limit,
        "ratio": seconds / limit,
    }


def memory_mark(device: torch.device) -> float:
    """The memory in use before the workload, in MB."""
    if device.type != "cuda":
        return peak_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**20


def peak_memory(device: torch.device) -> float:
    """The peak memory of this process, in MB; on a GPU that of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def call_in_new_process(call: Call) -> dict[str, Any]:
    """`call()` in a new process with its own peak memory; a forked or spawned process starts with this one's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metarl.experiments.reports.benchmark", "torch._dynamo"])  # imported once for all
    with ProcessPoolExecutor(1, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as executor:
        return executor.submit(call).result()
