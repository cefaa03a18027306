"""Jobs side by side in worker processes; with one thread each, a job's numbers do not depend on how many there are.

    run_all([Job("maml-0", 100, partial(train_one, config)), ...], workers=2)

Workers live for several jobs, since a process needs seconds to import torch. Each has its own process group, so that
Ctrl-C reaches only the parent: it stops the workers, and waits until each has finished its iteration and saved. If the
parent is killed, they stop themselves.
"""

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from tqdm import tqdm

from metarl import MetaLearner
from metarl.callbacks import Callback, Metrics
from metarl.experiments.common import cli

Pipe = connection.Connection

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables with the number of threads of the numerical libraries."""

WORKER = {"TQDM_DISABLE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""No progress bar but the parent's; threads that wait sleep, since spinning is very slow on a busy machine."""


class Progress(Callback):
    """Tells the parent how many iterations of the job are done."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell = tell

    def on_start(self, learner: MetaLearner, total_iterations: int) -> None:
        self.tell(learner.iterations)

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        self.tell(learner.iterations)


class Job(NamedTuple):
    """Some work, which may take hours; it can be pickled."""

    name: str
    iterations: int  # in total, those done earlier included
    work: Callable[[Progress], None]


class Message(NamedTuple):
    """What a worker says about its job."""

    kind: Literal["at", "done", "ended", "bug"]
    number: int = 0  # the iterations done, or the exit code
    text: str = ""  # what the job wrote to stderr


# In the parent.


def run_all(jobs: Sequence[Job], workers: int, done: int = 0, threads: int = 1) -> None:
    """Run all jobs, `workers` at a time, with one progress bar; `done` iterations of other jobs count as done.

    Each worker has `threads` threads.

    An error that a job reports, as in `cli.fail`, ends the program in the same way, after the others have been stopped.

    Raises:
        RuntimeError: with the traceback, if a job failed in another way.
    """
    total = done + sum(job.iterations for job in jobs)
    bar = tqdm(total=total, initial=done, unit="it", dynamic_ncols=True, mininterval=0.5, disable=not jobs)
    with bar, crew(min(workers, len(jobs)), threads) as processes:
        _hand_out(list(jobs), processes, bar)


def _hand_out(waiting: list[Job], processes: Mapping[Pipe, SpawnProcess], bar: "tqdm[NoReturn]") -> None:
    """Give each process a job, and another one when it is done, until none is left."""
    number, finished = len(waiting), 0
    busy: dict[Pipe, Job] = {}
    counted = {job.name: 0 for job in waiting}

    def count(job: Job, iterations: int) -> None:
        bar.update(iterations - counted[job.name])
        counted[job.name] = iterations

    def give(pipe: Pipe) -> None:
        if waiting:
            busy[pipe] = waiting.pop(0)
            pipe.send(busy[pipe])
        bar.set_postfix_str(f"{finished} of {number} runs finished", refresh=False)

    for pipe in processes:
        give(pipe)
    while busy:
        for ready in connection.wait(list(busy)):
            pipe = next(pipe for pipe in busy if pipe is ready)
            job = busy[pipe]
            message = receive(pipe, processes[pipe], job)
            if message.kind == "at":
                count(job, message.number)
                continue
            if message.text:
                bar.write(f"{job.name}: {message.text}", file=sys.stderr)
            count(job, job.iterations)
            finished += 1
            del busy[pipe]
            give(pipe)


def receive(pipe: Pipe, process: SpawnProcess, job: Job) -> Message:
    """The next message of a worker. Its errors end the program."""
    try:
        message: Message = pipe.recv()
    except (EOFError, ConnectionError):
        process.join()
        cli.fail(f"the process of {job.name} died (exit code {process.exitcode})", cli.FAILED)
    if message.kind == "bug":
        raise RuntimeError(f"{job.name} failed:\n{message.text}")
    if message.kind == "ended":
        cli.fail(f"{job.name}: {message.text.removeprefix('error: ')}", message.number)
    return message


@contextlib.contextmanager
def crew(number: int, threads: int = 1) -> Iterator[dict[Pipe, SpawnProcess]]:
    """`number` workers by their pipes. At an error or a signal they finish their iteration, save and end.

    A second Ctrl-C kills them.
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[Pipe, SpawnProcess] = {}
    try:
        with environment({**dict.fromkeys(THREADS, str(threads)), **WORKER}):
            for _ in range(number):
                here, there = context.Pipe()
                process = context.Process(target=serve, args=(there, threads))
                process.start()
                there.close()
                processes[here] = process
        yield processes
        for pipe in processes:
            pipe.close()  # no more jobs
        for process in processes.values():
            process.join()
    except BaseException:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()
        raise
    finally:
        for process in processes.values():
            process.kill()


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that processes started inside the block inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# In a worker.


def serve(pipe: Pipe, threads: int = 1) -> None:
    """Do one job after another until the parent closes the pipe, or a signal stops one."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        message = do(job, pipe.send)
        pipe.send(message)
        if message.kind != "done":
            return


def do(job: Job, send: Callable[[Message], None]) -> Message:
    """Do a job. What it prints is dropped; what it writes to stderr is in the message."""
    errors = io.StringIO()
    progress = Progress(lambda iterations: send(Message("at", iterations)))
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(errors):
        try:
            with cli.one_line_errors():
                job.work(progress)
        except SystemExit as end:
            return Message("ended", end.code if isinstance(end.code, int) else cli.FAILED, errors.getvalue().strip())
        except BaseException:
            return Message("bug", cli.FAILED, traceback.format_exc())
    return Message("done", text=errors.getvalue().strip())


def _end_with_parent() -> None:
    """Stop when the parent ends, as at SIGTERM."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
