"""Worker processes that step environments in parallel, with the same results as one process.

The protocol: the parent sends every worker a request (which environments to drop, a method of `_Server`, its
arguments), then waits for all answers. Workers answer in order, with (True, results) and the observations, or with
(False, traceback). If one worker fails, dies or takes too long, all are stopped: otherwise answers to an old request
would be read as answers to a new one.

Observations go through the pipes as raw bytes, everything else is pickled. Shared memory would be some 15 microseconds
faster for an image of 84 x 84 x 4, but must be cleaned up after processes that were killed, and ends a process with a
bus error where /dev/shm is small.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection, resource_tracker
from typing import Any, NoReturn

import numpy as np

from metarl.envs.env_store import EnvStore
from metarl.envs.gym_vector import Array, LocalStepper, StepResults
from metarl.types import TaskParams

STARTUP = 120.0
"""Seconds a worker may take to start, unless `timeout` is longer: imports are slow on a busy machine."""

PATIENCE = 5.0
"""Seconds workers have to close their environments before they are killed."""


class WorkerError(RuntimeError):
    """A worker process failed, died or did not answer; names the worker and its environments."""


class Workers:
    """`count` processes that live until `close`, until one of them fails, or until this object is garbage-collected.

    They are spawned, never forked. They ignore Ctrl-C, because the parent receives it too, and exit when the parent
    does.

    Args:
        store: makes their environments; each worker gets a copy.
        count: number of processes.
        timeout: seconds one answer may take.

    Raises:
        WorkerError: a worker did not start.
    """

    def __init__(self, store: EnvStore, count: int, timeout: float) -> None:
        self.observation_space, self.timeout = store.observation_space, timeout
        self.dropped: deque[int] = deque()  # filled by finalizers, which may run at any moment
        self._keys, self._lock = itertools.count(), threading.Lock()
        self._workers: list[_Worker] = []
        self._stop = weakref.finalize(self, _stop_all, self._workers, os.getpid())
        recipe = pickle.dumps(store)
        with self._lock, self._close_on_error():
            for i in range(count):
                self._workers.append(_Worker(i, recipe))
            self._collect(max(timeout, STARTUP), ["starting"] * count)

    @property
    def closed(self) -> bool:
        """Whether the processes have been stopped."""
        return not self._stop.alive

    def close(self) -> None:
        """Let the workers close their environments and exit; kill the rest."""
        self._stop()

    def open(self, task: TaskParams) -> WorkerStepper:
        """Environments for the rows of `task`, whose arrays are `[N, ...]`, spread evenly over the workers."""
        return WorkerStepper(self, next(self._keys), task)

    def ask(
        self, method: str, arguments: Sequence[tuple[Any, ...]], slices: Sequence[slice], into: Array | None = None
    ) -> list[tuple[Any, ...]]:
        """Call `method(*arguments[i])` in worker i, for its environments `slices[i]`; returns all answers.

        Args:
            method: of `_Server`.
            arguments: one tuple for each worker.
            slices: of all N environments, one for each worker.
            into: `[N, ...]`, which receives the observations, if the method returns any.

        Raises:
            WorkerError: a worker failed, died, or did not answer in time; then all are closed.
        """
        with self._lock:
            if self.closed:
                raise WorkerError("the workers of this vector environment have been closed; make another one")
            dropped = [self.dropped.popleft() for _ in range(len(self.dropped))]
            with self._close_on_error():
                names = [_describe_range(part) for part in slices]
                # All requests first, then all answers: the workers step at the same time.
                for worker, args, name in zip(self._workers, arguments, names, strict=True):
                    worker.send((dropped, method, args), name)
                return self._collect(self.timeout, names, None if into is None else [into[s] for s in slices])

    @contextlib.contextmanager
    def _close_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # also Ctrl-C: nobody will read the remaining answers
            self.close()
            raise

    def _collect(
        self, timeout: float, names: Sequence[str], into: Sequence[Array] | None = None
    ) -> list[tuple[Any, ...]]:
        answers: dict[int, tuple[Any, ...]] = {}
        deadline = time.monotonic() + timeout
        while waiting := [worker for worker in self._workers if worker.index not in answers]:
            # The sentinel reports a death at once, even if a child of the worker keeps the pipe open.
            handles = {handle: worker for worker in waiting for handle in (worker.pipe, worker.process.sentinel)}
            ready = connection.wait(list(handles), max(0.0, deadline - time.monotonic()))
            if not ready:
                for worker in waiting:  # they would not answer a request to close either
                    worker.process.kill()
                waiting[0].fail(names[waiting[0].index], f"did not answer within {timeout:g} seconds and was killed")
            for i in {handles[handle].index for handle in ready}:  # type: ignore[index]
                answers[i] = self._workers[i].receive(names[i], None if into is None else into[i])
        return [answers[i] for i in range(len(answers))]


def _describe_range(part: slice) -> str:
    return f"environments {part.start} to {part.stop - 1}" if part.stop > part.start else "no environments"


class WorkerStepper:
    """A `Stepper` whose environments are in worker processes."""

    def __init__(self, workers: Workers, key: int, task: TaskParams) -> None:
        self._workers, self._key = workers, key
        n, count = len(next(iter(task.values()))), len(workers._workers)
        edges = [n * i // count for i in range(count + 1)]  # some ranges are empty if there are more workers than n
        self._slices = [slice(*pair) for pair in itertools.pairwise(edges)]
        space = workers.observation_space
        self._shape, self._dtype = (n, *(space.shape or ())), space.dtype
        self._ask("open", [({name: value[s] for name, value in task.items()},) for s in self._slices])
        self._drop = weakref.finalize(self, workers.dropped.append, key)

    def reset(self, mask: Array, seed: int | None) -> Array:
        """As `Stepper.reset`."""
        observations = np.empty(self._shape, self._dtype)
        seeds = [None if seed is None else seed + s.start for s in self._slices]
        self._ask("reset", [(mask[s], i) for s, i in zip(self._slices, seeds, strict=True)], observations)
        return observations

    def step(self, actions: Array) -> StepResults:
        """As `Stepper.step`."""
        observations = np.empty(self._shape, self._dtype)
        answers = self._ask("step", [(actions[s],) for s in self._slices], observations)
        rewards, terminated, truncated, successes = map(np.concatenate, zip(*answers, strict=True))
        return observations, rewards, terminated, truncated, successes

    def close(self) -> None:
        """As `Stepper.close`; the workers are told with the next request."""
        self._drop()

    def _ask(
        self, method: str, arguments: Sequence[tuple[Any, ...]], into: Array | None = None
    ) -> list[tuple[Any, ...]]:
        return self._workers.ask(method, [(self._key, *args) for args in arguments], self._slices, into)


class _Worker:
    """One process, and the parent's end of its pipe."""

    def __init__(self, index: int, recipe: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.index = index
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, recipe), name=f"worker {index}", daemon=True)
        with theirs, _block_interrupts():
            self.process.start()

    def send(self, message: object, environments: str) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            self._report_death(environments)

    def receive(self, environments: str, into: Array | None) -> tuple[Any, ...]:
        """The answer; `into` receives the observations."""
        try:
            if not self.pipe.poll():  # the sentinel was ready, not the pipe
                raise EOFError
            good, answer = self.pipe.recv()
            if good and into is not None:
                self.pipe.recv_bytes_into(into.reshape(-1).view(np.uint8))
        except (EOFError, OSError):
            self._report_death(environments)
        if not good:
            self.fail(environments, f"failed:\n{answer}")
        return answer  # type: ignore[no-any-return]

    def fail(self, environments: str, what: str) -> NoReturn:
        raise WorkerError(f"worker {self.index} ({environments}) {what}")

    def _report_death(self, environments: str) -> NoReturn:
        self.process.join(PATIENCE)
        code = self.process.exitcode
        name = f" ({signal.Signals(-code).name})" if code is not None and code < 0 else ""
        hint = "; a script must run its work under `if __name__ == '__main__':`" if environments == "starting" else ""
        self.fail(environments, f"died with exit code {code}{name}{hint}")


def _stop_all(workers: list[_Worker], owner: int) -> None:
    """Close the pipes, which makes the workers exit; wait; kill the rest."""
    if os.getpid() != owner:  # in a fork of the parent, which does not own the workers
        return
    for worker in workers:
        worker.pipe.close()
    deadline = time.monotonic() + PATIENCE
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.process.kill()
        worker.process.join()
        worker.process.close()


@contextlib.contextmanager
def _block_interrupts() -> Iterator[None]:
    """Delay Ctrl-C: a child started here inherits the block until it lifts it; the parent gets it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # before the block, because starting it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: connection.Connection, recipe: bytes) -> None:
    """The main function of a worker: answer until the parent closes the pipe or exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        server = _Server(pipe, pickle.loads(recipe))
    except Exception:
        pipe.send((False, traceback.format_exc()))
        return
    with contextlib.suppress(EOFError, OSError):
        pipe.send((True, ()))
        while True:
            server.answer(*pipe.recv())
    server.close()


def _exit_with_parent() -> None:
    """End this worker when its parent is killed, even while an environment is busy."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Server:
    """The environments of one worker."""

    def __init__(self, pipe: connection.Connection, store: EnvStore) -> None:
        self._pipe, self._store = pipe, store
        self._steppers: dict[int, LocalStepper] = {}

    def answer(self, dropped: list[int], method: str, args: tuple[Any, ...]) -> None:
        """Call `method` and send its results, or the traceback."""
        try:
            for key in dropped:
                self._steppers.pop(key).close()
            observations, *rest = getattr(self, method)(*args) or (None,)
        except Exception:
            self._pipe.send((False, traceback.format_exc()))
            return
        self._pipe.send((True, tuple(rest)))
        if observations is not None:
            self._pipe.send_bytes(observations.reshape(-1).view(np.uint8))

    def open(self, key: int, task: TaskParams) -> None:
        self._steppers[key] = LocalStepper(self._store, task)

    def reset(self, key: int, mask: Array, seed: int | None) -> tuple[Array]:
        return (self._steppers[key].reset(mask, seed),)

    def step(self, key: int, actions: Array) -> StepResults:
        return self._steppers[key].step(actions)

    def close(self) -> None:
        self._store.close()
