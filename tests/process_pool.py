"""A few processes that wait for functions to call together, so that tests need not start new ones each time."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch
from torch.distributed import TCPStore

from metarl.processes import joined

SECONDS = 120.0  # more than any call takes on a busy machine


class Pool:
    """`size` processes; `call` has some of them call a function, in an environment as torchrun makes it."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(size)]
        self._connections = [ours for ours, _ in pairs]
        self._processes = [context.Process(target=serve, args=(theirs,), daemon=True) for _, theirs in pairs]
        for process in self._processes:
            process.start()

    def call(self, size: int, function: Callable[..., Any], *arguments: Any, **variables: object) -> list[Any]:
        """What `function(*arguments)` returns in each of `size` processes, or the exception it raised.

        Environment `variables` replace those that torchrun would set.
        """
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank, connection in enumerate(self._connections[:size]):
            environment = {  # the store is here, so that nobody has to guess a free port
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)},
                **{"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"},
                **{name: str(value) for name, value in variables.items()},
            }
            connection.send_bytes(pickle.dumps((environment, function, arguments)))
        return [self._answer(connection) for connection in self._connections[:size]]

    def join(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(processes, *arguments)` returns in each of the joined processes; an exception is raised."""
        answers = self.call(size, joining, function, *arguments)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def _answer(self, connection: Connection) -> Any:
        if not connection.poll(SECONDS):
            self.kill()  # what they answered later would be taken for the answers to other calls
            raise TimeoutError("the processes wait for each other")
        return pickle.loads(connection.recv_bytes())

    def kill(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()


def serve(connection: Connection) -> None:
    """What a process of the pool does."""
    torch.set_num_threads(1)
    born_with = dict(os.environ)
    while True:
        environment, function, arguments = pickle.loads(connection.recv_bytes())
        os.environ.clear()
        os.environ.update(born_with | environment)
        connection.send_bytes(pickle.dumps(called(function, arguments)))


def called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return error


def joining(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function` with the processes that were called together as its first argument."""
    with joined() as processes:
        return function(processes, *arguments)
