"""Training in several processes: each computes a share of the tasks, and all get the results of all tasks.

Every process runs the same program and samples the same tasks. It computes its own share of them and sums its results.
All processes then add the sums of all in the same order (`metarl.tree.total`), so they hold the same parameters, bit
for bit. Apart from these sums, they exchange only a few numbers for the log.
"""

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from metarl.devices import environment_number, local_rank
from metarl.tree import total
from metarl.types import HasEqualLengths, Shardable, TaskBatch
from metarl.wrappers import TaskWrapper

T = TypeVar("T")

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets for each process."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them. The default is a single process.

    All processes must call the same methods in the same order.

    Args:
        rank: the number of this process; the first one, 0, logs and saves.
        size: the number of processes.

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
        """The `x` of every process, in their order, `[size, *x.shape]`; all must have the same shape."""
        if self.size == 1:
            return x[None]
        every = x.new_empty(self.size, *x.shape)
        with _as_connection_errors():
            dist.all_gather(list(every), x.contiguous(), _nccl() if x.is_cuda else None)
        return every

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over the processes."""
        # Each x is the root of a subtree (`total` of the process's own rows); this adds the levels above them.
        return x if self.size == 1 else total(self.gather(x))

    def gather_objects(self, value: T) -> list[T]:
        """The `value` of every process, in their order; for small values and rare calls."""
        if self.size == 1:
            return [value]
        every: list[T] = [value] * self.size
        with _as_connection_errors():
            dist.all_gather_object(every, value)
        return every

    def first(self, value: T | None) -> T | None:
        """The first `value` that is not `None`, in the order of the processes; the same in all of them."""
        if not self.any(value is not None):
            return None
        return next(one for one in self.gather_objects(value) if one is not None)

    def differ(self, text: str, tensors: Iterable[Tensor]) -> list[int]:
        """The processes whose `text` or `tensors` are not those of the first process, compared by a digest."""
        digest = hashlib.sha256(text.encode())
        for x in tensors:
            digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        found = self.gather_objects(digest.hexdigest())
        return [rank for rank, one in enumerate(found) if one != found[0]]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))))

    def max(self, number: int) -> int:
        """The largest `number` of all processes."""
        return number if self.size == 1 else int(self.gather(torch.tensor([number])).max())

    def together(self, function: Callable[[], T]) -> T:
        """Call `function` and return its result in this process.

        Raises:
            ValueError: in every process, when `function` failed in any of them: a bad value, a file, too little memory.
        """
        try:
            result, error = function(), None
        except ConnectionError:
            raise
        except (ValueError, OSError, MemoryError, RecursionError) as found:
            if self.size == 1:
                raise
            error = str(found) or type(found).__name__
        for message in self.gather_objects(error):
            if message is not None:
                raise ValueError(message)
        return result

    def from_first(self, function: Callable[[], T]) -> T:
        """Call `function` in the first process only and return its result in all; it must be picklable, on the CPU.

        Raises:
            ValueError: in every process, when `function` raised one.
        """
        results = [self.together(lambda: function() if self.is_first else None)]
        if self.size > 1:
            with _as_connection_errors():
                dist.broadcast_object_list(results, src=0)
        return cast(T, results[0])


ALONE = Processes()
"""A single process, which needs no communication."""


class Share(NamedTuple):
    """The tasks `first` ... `last` - 1 of T, which one process computes.

    The shares follow each other in the order of the processes. Their sizes differ by at most one task.
    """

    processes: Processes
    num_tasks: int  # T, in all processes

    @property
    def first(self) -> int:
        """The number of this share's first task."""
        return self._start(self.processes.rank)

    @property
    def last(self) -> int:
        """The number of the first task after this share."""
        return self._start(self.processes.rank + 1)

    def gather(self, own: Tensor) -> Tensor:
        """The rows of all tasks, `[T, ...]`, from one row for each own task, `[t, ...]`."""
        size = self.processes.size
        missing = -(-self.num_tasks // size) - len(own)  # pad to the largest share: all processes send the same shape
        padded = torch.cat([own, own.new_zeros(missing, *own.shape[1:])])
        every = self.processes.gather(padded)  # [size, t, ...]
        return torch.cat([every[k, : self._start(k + 1) - self._start(k)] for k in range(size)])

    def mean(self, own: Tensor) -> Tensor:
        """The mean over all T tasks, `[...]`, from one row for each own task, `[t, ...]`."""
        return self.processes.sum(total(own)) / self.num_tasks

    def _start(self, rank: int) -> int:
        return rank * self.num_tasks // self.processes.size


class ShardTasks(TaskWrapper):
    """The share of `tasks` that one of several processes computes.

    Raises:
        ValueError: when there are fewer tasks than processes, or the tasks cannot be sharded.
    """

    def __init__(self, tasks: TaskBatch, processes: Processes) -> None:
        self.share = Share(processes, tasks.num_tasks)
        if tasks.num_tasks < processes.size:
            size = processes.size
            raise ValueError(f"tasks must be at least {size}, the number of processes, got {tasks.num_tasks}")
        if not isinstance(tasks, Shardable):
            raise ValueError(
                f"tasks must have a method shard(first, last) -> TaskBatch to be trained in several processes "
                f"(see metarl.types.Shardable), which {type(tasks).__name__} lacks"
            )
        super().__init__(tasks.shard(self.share.first, self.share.last))
        if isinstance(self.tasks, HasEqualLengths):
            self.tasks.agree = processes.max

    @property
    def first_task(self) -> int:
        return self.share.first

    def gather(self, own: Tensor) -> Tensor:
        return self.share.gather(own)

    def wrap(self, tasks: TaskBatch) -> TaskBatch:
        return ShardTasks(tasks, self.share.processes)


def shard(tasks: TaskBatch, processes: Processes) -> TaskBatch:
    """This process's share of `tasks`; all of them for a single process."""
    return tasks if processes.size == 1 else ShardTasks(tasks, processes)


def share_of(tasks: TaskBatch) -> Share:
    """The share of the whole batch that `tasks` are, with the processes that have the other shares."""
    while isinstance(tasks, TaskWrapper):
        if isinstance(tasks, ShardTasks):
            return tasks.share
        tasks = tasks.tasks
    return Share(ALONE, tasks.num_tasks)


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started together, from the environment; without torchrun, this one alone.

    Tensors on the CPU travel over gloo, tensors on GPUs over NCCL. Inside, `cuda` means the GPU numbered LOCAL_RANK.
    The process leaves the group at the end, also after an error.

    Raises:
        ValueError: when some of torchrun's environment variables are missing or wrong.
        ConnectionError: when the others cannot be reached.
    """
    if not is_launched():
        yield ALONE
        return
    if missing := [name for name in LAUNCHED if name not in os.environ]:
        raise ValueError(f"the environment must have all of {LAUNCHED}, as torchrun sets them, but lacks {missing}")
    if environment_number("RANK") >= environment_number("WORLD_SIZE"):
        found = f"RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']}"
        raise ValueError(f"RANK must be less than WORLD_SIZE in the environment, got {found}")
    # `cuda` means this process's GPU
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    # join the group under a name that no earlier attempt has used
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
    """The group for tensors on GPUs, created at first use.

    It is separate from the default group: with one group for both, a process once waited for another that had left.

    Raises:
        ValueError: if torch was built without NCCL.
    """
    if not dist.is_nccl_available():
        raise ValueError("device must be 'cpu' in several processes if torch has no NCCL, got 'cuda'")
    return cast(dist.ProcessGroup, dist.new_group(backend="nccl"))


def _new_name(store: Store, rank: int, size: int) -> str:
    """A new name for this group, the same in all its processes and unlike all earlier ones in `store`.

    After a restart torchrun may keep its store, with the addresses of killed processes, and its count of restarts can
    differ between nodes (pytorch issue 135712). So each process writes a new word, and the first process answers each
    word with the name. It repeats this until every live process has confirmed the name.
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
    """Whether torchrun or a similar launcher started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restarts() -> int:
    """How often torchrun has restarted the processes of this machine after a failure."""
    return environment_number("TORCHELASTIC_RESTART_COUNT")


def launch() -> str | None:
    """The name of the torchrun call that started this process; the same on all machines and after restarts."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name


@contextmanager
def _as_connection_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # the back ends raise it when the other side is gone
        reason = str(error).strip().split("\n")[0]
        raise ConnectionError(f"another process has ended or cannot be reached ({reason})") from error
