"""Worker processes that step environments: slices of them in several processes, with the results of one.

The parent asks all workers, then waits for all of their answers. Every question is answered, in order; a worker that
fails, dies or takes too long ends all of them, as the answers still on their way would belong to no question.

Observations go through the pipes as they lie in memory, the rest is pickled. Shared memory would be some 15
microseconds faster for an image of 84 x 84 x 4, but has to be cleaned up after processes that were killed, and ends a
process with a bus error where /dev/shm is small.
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

from metarl.envs.gym_vector import Array, EnvStore, Slice, StepResults
from metarl.types import TaskParams

STARTUP = 120.0
"""Seconds a worker may take to start, if `timeout` is not longer: imports are slow on a busy machine."""

PATIENCE = 5.0
"""Seconds workers may take to close their environments before they are killed."""


class WorkerError(RuntimeError):
    """A worker process failed, died or did not answer; names it and its environments."""


class Workers:
    """`count` processes that live until `close`, until one of them fails, or until nobody holds this object any more.

    They are spawned, never forked. They ignore Ctrl-C, which the parent hears too, and exit when the parent is gone.

    Args:
        store: what they take their environments from.
        count: how many.
        timeout: seconds one answer may take.

    Raises:
        WorkerError: a worker did not start.
    """

    def __init__(self, store: EnvStore, count: int, timeout: float) -> None:
        self.observation_space, self.timeout = store.observation_space, timeout
        self.dropped: deque[int] = deque()  # filled by finalizers, which may run in the middle of anything
        self._keys, self._lock = itertools.count(), threading.Lock()
        self._workers: list[_Worker] = []
        self._stop = weakref.finalize(self, _stop, self._workers, os.getpid())
        recipe = pickle.dumps(store)
        with self._lock, self._all_or_none():
            for i in range(count):
                self._workers.append(_Worker(i, recipe))
            self._collect(max(timeout, STARTUP), ["starting"] * count)

    @property
    def closed(self) -> bool:
        """Whether the processes have been stopped."""
        return not self._stop.alive

    def close(self) -> None:
        """Let the workers close their environments and exit; kills those that do not."""
        self._stop()

    def open(self, task: TaskParams) -> RemoteSlices:
        """Environments for the rows of `task`, whose arrays are `[N, ...]`, in slices of nearly equal size."""
        return RemoteSlices(self, next(self._keys), task)

    def ask(
        self, method: str, arguments: Sequence[tuple[Any, ...]], slices: Sequence[slice], into: Array | None = None
    ) -> list[tuple[Any, ...]]:
        """Every worker's answer to `method(*arguments[i])`, about the environments `slices[i]`.

        Args:
            method: of `_Server`.
            arguments: one tuple for each worker.
            slices: of all N environments, one for each worker.
            into: `[N, ...]`, where observations are received, if the method has any.

        Raises:
            WorkerError: a worker failed, died, or did not answer in time; all are closed then.
        """
        with self._lock:
            if self.closed:
                raise WorkerError("the workers of this vector environment have been closed; make another one")
            dropped = [self.dropped.popleft() for _ in range(len(self.dropped))]
            with self._all_or_none():
                names = [_range(part) for part in slices]
                for worker, args, name in zip(self._workers, arguments, names, strict=True):
                    worker.send((dropped, method, args), name)
                return self._collect(self.timeout, names, None if into is None else [into[s] for s in slices])

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # Ctrl-C too: answers are on their way that nobody is going to wait for
            self.close()
            raise

    def _collect(
        self, timeout: float, names: Sequence[str], into: Sequence[Array] | None = None
    ) -> list[tuple[Any, ...]]:
        answers: dict[int, tuple[Any, ...]] = {}
        deadline = time.monotonic() + timeout
        while waiting := [worker for worker in self._workers if worker.index not in answers]:
            # the sentinel tells of a death at once, also where a child of the worker keeps the pipe open
            handles = {handle: worker for worker in waiting for handle in (worker.pipe, worker.process.sentinel)}
            ready = connection.wait(list(handles), max(0.0, deadline - time.monotonic()))
            if not ready:
                for worker in waiting:  # they would not close their environments either
                    worker.process.kill()
                waiting[0].fail(names[waiting[0].index], f"did not answer within {timeout:g} seconds and was killed")
            for i in {handles[handle].index for handle in ready}:  # type: ignore[index]
                answers[i] = self._workers[i].receive(names[i], None if into is None else into[i])
        return [answers[i] for i in range(len(answers))]


def _range(part: slice) -> str:
    return f"environments {part.start} to {part.stop - 1}" if part.stop > part.start else "no environments"


class RemoteSlices:
    """An `Engine` whose environments are in worker processes."""

    def __init__(self, workers: Workers, key: int, task: TaskParams) -> None:
        self._workers, self._key = workers, key
        n, count = len(next(iter(task.values()))), len(workers._workers)
        edges = [n * i // count for i in range(count + 1)]  # some are empty where there are more workers
        self._slices = [slice(*pair) for pair in itertools.pairwise(edges)]
        space = workers.observation_space
        self._shape, self._dtype = (n, *(space.shape or ())), space.dtype
        self._ask("open", [({name: value[s] for name, value in task.items()},) for s in self._slices])
        self._drop = weakref.finalize(self, workers.dropped.append, key)

    def reset(self, mask: Array, seed: int | None) -> Array:
        """As `Engine.reset`."""
        observations = np.empty(self._shape, self._dtype)
        seeds = [None if seed is None else seed + s.start for s in self._slices]
        self._ask("reset", [(mask[s], i) for s, i in zip(self._slices, seeds, strict=True)], observations)
        return observations

    def step(self, actions: Array) -> StepResults:
        """As `Engine.step`."""
        observations = np.empty(self._shape, self._dtype)
        answers = self._ask("step", [(actions[s],) for s in self._slices], observations)
        rewards, terminated, truncated = map(np.concatenate, zip(*answers, strict=True))
        return StepResults(observations, rewards, terminated, truncated)

    def close(self) -> None:
        """As `Engine.close`; the workers hear of it with the next question."""
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
        with theirs, _interrupts_blocked():
            self.process.start()

    def send(self, message: object, environments: str) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            self._died(environments)

    def receive(self, environments: str, into: Array | None) -> tuple[Any, ...]:
        """Its answer; observations are received in `into`."""
        try:
            if not self.pipe.poll():  # it was the sentinel
                raise EOFError
            good, answer = self.pipe.recv()
            if good and into is not None:
                self.pipe.recv_bytes_into(into.reshape(-1).view(np.uint8))
        except (EOFError, OSError):
            self._died(environments)
        if not good:
            self.fail(environments, f"failed:\n{answer}")
        return answer  # type: ignore[no-any-return]

    def fail(self, environments: str, what: str) -> NoReturn:
        raise WorkerError(f"worker {self.index} ({environments}) {what}")

    def _died(self, environments: str) -> NoReturn:
        self.process.join(PATIENCE)
        code = self.process.exitcode
        name = f" ({signal.Signals(-code).name})" if code is not None and code < 0 else ""
        hint = "; what a script runs must be under `if __name__ == '__main__':`" if environments == "starting" else ""
        self.fail(environments, f"died with exit code {code}{name}{hint}")


def _stop(workers: list[_Worker], owner: int) -> None:
    """Close the pipes, on which workers exit; wait; kill what is left."""
    if os.getpid() != owner:  # a fork of the parent: not its workers
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
def _interrupts_blocked() -> Iterator[None]:
    """A child started here does not hear Ctrl-C until it unblocks it; the parent hears it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it unblocks the signal, so not in between
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: connection.Connection, recipe: bytes) -> None:
    """What a worker does: answer until the parent has closed the pipe, or is gone."""
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
    """For a worker that is busy in an environment when its parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Server:
    """The environments of one worker."""

    def __init__(self, pipe: connection.Connection, store: EnvStore) -> None:
        self._pipe, self._store = pipe, store
        self._slices: dict[int, Slice] = {}

    def answer(self, dropped: list[int], method: str, args: tuple[Any, ...]) -> None:
        """Call `method` and send what it returns, or the traceback."""
        try:
            for key in dropped:
                self._slices.pop(key).close()
            observations, *rest = getattr(self, method)(*args) or (None,)
        except Exception:
            self._pipe.send((False, traceback.format_exc()))
            return
        self._pipe.send((True, tuple(rest)))
        if observations is not None:
            self._pipe.send_bytes(observations.reshape(-1).view(np.uint8))

    def open(self, key: int, task: TaskParams) -> None:
        self._slices[key] = Slice(self._store, task)

    def reset(self, key: int, mask: Array, seed: int | None) -> tuple[Array]:
        return (self._slices[key].reset(mask, seed),)

    def step(self, key: int, actions: Array) -> StepResults:
        return self._slices[key].step(actions)

    def close(self) -> None:
        self._store.close()  # those in use, too
