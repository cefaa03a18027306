"""Several threads of this process working on parts of one thing, each with one of torch's threads.

Splitting every single operation over the cores makes them wait for each other after each one; parts that have nothing
to do with each other keep all cores busy. `torch.set_num_threads` says how many there are.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_threads(work: Callable[[Item], Result], items: Sequence[Item], most: int | None = None) -> list[Result]:
    """`[work(item) for item in items]` without gradients, by as many threads as torch has; whoever is free takes one.

    `work` must be safe in several threads at once, and not call this again. The results do not depend on their number.

    Args:
        work: what is done.
        items: what it is done with.
        most: threads at most. A single one lets torch split each operation instead.
    """
    helpers = min(torch.get_num_threads(), len(items), len(items) if most is None else most) - 1
    if helpers == 0:
        with torch.no_grad():
            return [*map(work, items)]
    results: dict[int, Result] = {}
    rest = iter(enumerate(items))  # shared: what a thread takes is gone for the others

    @torch.no_grad()
    def take() -> None:
        for i, item in rest:
            results[i] = work(item)

    with one_torch_thread():
        futures = [_pool(helpers).submit(take) for _ in range(helpers)]
        try:
            take()
        finally:
            for future in futures:
                if not future.cancel():  # one that has not begun may wait for this thread's own pool
                    future.result()
    return [results[i] for i in range(len(items))]


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch use one thread for each operation."""
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
    """Threads that stay for as long as the process does."""
    # torch's number of threads is kept for each thread; the matrix library's is one for all, and set by the caller
    return ThreadPoolExecutor(threads, "metarl", initializer=functools.partial(torch.set_num_threads, 1))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
