"""Work on independent parts in several threads, where torch uses one thread for each operation.

Where torch splits every single operation over the cores, they wait for each other after each one. Independent parts
keep all cores busy. `torch.set_num_threads` sets the number of threads.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
T = TypeVar("T")


def over_threads(work: Callable[[Item], T], items: Sequence[Item], most: int | None = None) -> list[T]:
    """`[work(item) for item in items]` without gradients, in as many threads as torch has.

    `work` must be safe in several threads at once, and must not call this function. The results do not depend on the
    number of threads.

    Args:
        work: called with one item.
        items: taken by the next free thread.
        most: the greatest number of threads. With a single one torch splits each operation instead.
    """
    helpers = min(torch.get_num_threads(), len(items), len(items) if most is None else most) - 1
    if helpers == 0:
        with torch.no_grad():
            return [*map(work, items)]
    results: dict[int, T] = {}
    rest = iter(enumerate(items))  # shared: each item goes to one thread

    @torch.no_grad()
    def take() -> None:
        for i, item in rest:
            results[i] = work(item)

    # this thread works, too, so one helper fewer is needed
    with one_torch_thread():
        futures = [_pool(helpers).submit(take) for _ in range(helpers)]
        try:
            take()
        finally:
            for future in futures:
                if not future.cancel():  # a helper that has not begun is not needed, and may wait for this thread
                    future.result()
    return [results[i] for i in range(len(items))]


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch use one thread for each operation in this block."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that live as long as the process."""
    # torch keeps its number of threads for each thread; the matrix library has one for all, which the caller has set
    return ThreadPoolExecutor(threads, "metarl", initializer=functools.partial(torch.set_num_threads, 1))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
