"""Training in several processes: each works on some of the tasks, and all know what came of all of them.

Every process runs the same program and samples the same tasks. It computes its own share of them, sums what it got, and
everyone adds up everyone's sums in the same order (`metarl.summation`). So all processes hold the same parameters, bit
for bit, and nothing else travels but a few numbers for the log.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from metarl.errors import check_int
from metarl.summation import total

T = TypeVar("T")

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a process in its environment."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them; by default one alone, which needs no communication.

    Whatever is called here must be called by all of them, in the same order.

    Args:
        rank: the number of this process; the first one, 0, is the one that logs and saves.
        size: how many there are.

    Raises:
        ConnectionError: by every method, when another process has ended.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self.rank == 0

    def gather(self, x: Tensor) -> Tensor:
        """Everyone's `x`, in the order of the processes, `[size, *x.shape]`; the shape must be the same everywhere."""
        if self.size == 1:
            return x[None]
        every = x.new_empty(self.size, *x.shape)
        with _as_connection_errors():
            dist.all_gather(list(every), x.contiguous(), _nccl() if x.is_cuda else None)
        return every

    def sum(self, x: Tensor) -> Tensor:
        """The sum of everyone's `x`: the upper part of the tree whose lower parts are `total` of everyone's rows."""
        return x if self.size == 1 else total(self.gather(x))

    def gather_objects(self, value: T) -> list[T]:
        """Everyone's `value`, in the order of the processes; for what is small and seldom."""
        if self.size == 1:
            return [value]
        every: list[T] = [value] * self.size
        with _as_connection_errors():
            dist.all_gather_object(every, value)
        return every

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true somewhere."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))))

    def max(self, number: int) -> int:
        """The greatest of everyone's numbers."""
        return number if self.size == 1 else int(self.gather(torch.tensor([number])).max())

    def together(self, function: Callable[[], T]) -> T:
        """What `function` returns here.

        Raises:
            ValueError: in every process, when `function` raised one in any of them, or could not use a file or memory.
        """
        try:
            result, error = function(), None
        except ConnectionError:
            raise
        except (ValueError, OSError, MemoryError, RecursionError) as found:
            if self.size == 1:
                raise
            error = str(found) or type(found).__name__
        for found_by_one in self.gather_objects(error):
            if found_by_one is not None:
                raise ValueError(found_by_one)
        return result

    def from_first(self, function: Callable[[], T]) -> T:
        """What `function` returns in the first process, which alone calls it; on the CPU, and able to be pickled.

        Raises:
            ValueError: in every process, when `function` raised one.
        """
        results = [self.together(lambda: function() if self.is_first else None)]
        if self.size > 1:
            with _as_connection_errors():
                dist.broadcast_object_list(results, src=0)
        return cast(T, results[0])


ALONE = Processes()
"""One process."""


class Share(NamedTuple):
    """The part of T tasks that one process works on: those from `first` to before `last`.

    The shares are neighbours in the order of the processes, and differ by one task at most.
    """

    processes: Processes
    num_tasks: int  # T, of all processes

    @property
    def first(self) -> int:
        """The number of this share's first task."""
        return self._start(self.processes.rank)

    @property
    def last(self) -> int:
        """The number after this share's last task."""
        return self._start(self.processes.rank + 1)

    def gather(self, own: Tensor) -> Tensor:
        """One row for each own task, `[t, ...]`, to the rows of all tasks, `[T, ...]`."""
        size = self.processes.size
        missing = -(-self.num_tasks // size) - len(own)  # up to the largest share: what travels must be of one shape
        padded = torch.cat([own, own.new_zeros(missing, *own.shape[1:])])
        every = self.processes.gather(padded)  # [size, t, ...]
        return torch.cat([every[k, : self._start(k + 1) - self._start(k)] for k in range(size)])

    def mean(self, own: Tensor) -> Tensor:
        """The mean over all T tasks of one row for each own task, `[t, ...]` to `[...]`."""
        return self.processes.sum(total(own)) / self.num_tasks

    def _start(self, rank: int) -> int:
        return rank * self.num_tasks // self.processes.size


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that were started together, as torchrun says in the environment; without it, this one alone.

    They talk over gloo about what is on the CPU and over NCCL about what is on GPUs; `cuda` means the GPU numbered
    LOCAL_RANK from here on. The group is left at the end, however it comes.

    Raises:
        ValueError: when the environment says only half of it.
        ConnectionError: when the others cannot be reached.
    """
    if not is_launched():
        yield ALONE
        return
    if missing := [name for name in LAUNCHED if name not in os.environ]:
        raise ValueError(f"the environment must have all of {LAUNCHED}, as torchrun sets them, but lacks {missing}")
    if _number("RANK") >= _number("WORLD_SIZE"):
        found = f"RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']}"
        raise ValueError(f"RANK must be less than WORLD_SIZE in the environment, got {found}")
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    with _as_connection_errors():
        store, rank, size = next(rendezvous("env://"))
        group = PrefixStore(_new_name(store, rank, size), store)
        dist.init_process_group("gloo", store=group, rank=rank, world_size=size)
    try:
        yield Processes(rank, size)
    finally:
        dist.destroy_process_group()
        _nccl.cache_clear()


@cache
def _nccl() -> dist.ProcessGroup:
    """The group that talks about what is on GPUs, made when it is first needed.

    It is not part of the default group: with one that had both, a process was once seen to wait for another that had
    left.

    Raises:
        ValueError: where torch was built without NCCL.
    """
    if not dist.is_nccl_available():
        raise ValueError("device must be 'cpu' in several processes where torch has no NCCL, got 'cuda'")
    return cast(dist.ProcessGroup, dist.new_group(backend="nccl"))


def _new_name(store: Store, rank: int, size: int) -> str:
    """A name for this group that no earlier one in `store` has had, the same in all of its processes.

    torchrun may keep its store when it starts processes again, with the addresses of those that were killed, and its
    count of restarts is not the same on all nodes (pytorch issue 135712). So each process says a word that is new, and
    the first one answers to it with the name; it goes on until all those have thanked it that are alive.
    """
    word = uuid.uuid4().hex
    if rank > 0:
        store.set(f"metarl/hello/{rank}", word)
        name = str(store.get(f"metarl/name/{word}"), "ascii")
        store.set(f"metarl/thanks/{name}/{rank}", "")
        return name
    waiting = list(range(1, size))
    while waiting:
        for other in waiting:
            store.set(f"metarl/name/{store.get(f'metarl/hello/{other}').decode()}", word)
        time.sleep(0.01)
        waiting = [other for other in waiting if not store.check([f"metarl/thanks/{word}/{other}"])]
    return word


def is_launched() -> bool:
    """Whether this process was started by torchrun or the like."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return _number("LOCAL_RANK")


def restarts() -> int:
    """How often torchrun has started the processes of this machine again, after one of them had failed."""
    return _number("TORCHELASTIC_RESTART_COUNT")


def launch() -> str | None:
    """The name of the call of torchrun that started this process; the same on all machines and after restarts."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name


def _number(name: str) -> int:
    text = os.environ.get(name, "0")
    return check_int(name, int(text) if text.isdecimal() else text, minimum=0)


@contextmanager
def _as_connection_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what the back ends raise when the other side is gone
        reason = str(error).strip().split("\n")[0]
        raise ConnectionError(f"another process has ended or cannot be reached ({reason})") from error
