"""Many MuJoCo simulations stepped together, each exactly as MuJoCo steps it alone.

What the next step depends on (positions, velocities, the solver's warm start, controls) is a row of one array. Threads
take environments off a shared list: a row goes into the thread's `MjData`, MuJoCo steps it with the interpreter's lock
released, and the row comes back. `mujoco.rollout` makes the same steps in C, but does not give back the warm start:
stepped in a closed loop it starts the solver anew at every call, and after twenty steps its states differ in the 13th
digit.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import mujoco
import numpy as np
import numpy.typing as npt
from mujoco import MjData, MjModel, mjtState

Array: TypeAlias = npt.NDArray[np.float64]

Read: TypeAlias = Callable[[MjModel, MjData, int], None]
"""`read(model, data, i)` takes what is not in the state of environment i out of `data`; it runs in several threads."""

Work: TypeAlias = Callable[[MjModel, MjData], None]

_WITHOUT_TIME = mjtState.mjSTATE_FULLPHYSICS.value & ~mjtState.mjSTATE_TIME.value  # on which no model here depends
STATE = _WITHOUT_TIME | mjtState.mjSTATE_WARMSTART.value | mjtState.mjSTATE_CTRL.value
"""What the next step depends on."""


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Physics:
    """N simulations.

    Args:
        models: N models of the same sizes, or the same one N times.
        frame_skip: physics steps per control step.
        contact_forces: whether `read` wants `cfrc_ext` after steps (after resets it is zero).
        threads: that step; the result does not depend on it.
    """

    def __init__(
        self,
        models: Sequence[MjModel],
        frame_skip: int,
        contact_forces: bool = False,
        threads: int | None = None,
    ) -> None:
        threads = min(threads or usable_cpus(), len(models))
        self.model, self.frame_skip, self._contact_forces = models[0], frame_skip, contact_forces
        self.threads = threads
        self._datas = [MjData(models[0]) for _ in range(threads)]
        self._blocks = [state_block(models[0], data) for data in self._datas]
        self._pool = thread_pool(threads - 1) if threads > 1 else None
        self.state = np.tile(self._blocks[0], (len(models), 1))  # [N, ...]: MuJoCo's layout, with its padding
        self.qpos = self._part("qpos")  # [N, nq], a view, as those below
        self.qvel = self._part("qvel")  # [N, nv]
        self.ctrl = self._part("ctrl")  # [N, nu]
        self._warmstart = self._part("qacc_warmstart")
        self._items = list(zip(range(len(models)), models, self.state, strict=True))

    def reset(self, environments: Sequence[int], qpos: Array, qvel: Array, read: Read) -> None:
        """Put some environments to `qpos` `[n, nq]` and `qvel` `[n, nv]`, controls and warm start zero; then `read`."""
        where = np.asarray(environments)
        self.qpos[where], self.qvel[where] = qpos, qvel
        self.ctrl[where] = self._warmstart[where] = 0.0
        self._run(self._forward, environments, read)

    def step(self, environments: Sequence[int], read: Read) -> None:
        """One control step of some environments, with what is in `ctrl`; then `read`."""
        self._run(self._step, environments, read)

    def _run(self, work: Work, environments: Sequence[int], read: Read) -> None:
        # one iterator for all threads, this one among them: whoever is free takes the next environment
        items = iter(self._items if len(environments) == len(self._items) else [self._items[i] for i in environments])
        workers = list(zip(self._datas, self._blocks, strict=True))[: self.threads]
        futures = [self._pool.submit(_take, work, read, items, *worker) for worker in workers[1:] if self._pool]
        _take(work, read, items, *workers[0])
        for future in futures:
            future.result()

    def _step(self, model: MjModel, data: MjData) -> None:
        mujoco.mj_step(model, data, self.frame_skip)
        if self._contact_forces:
            mujoco.mj_rnePostConstraint(model, data)

    def _forward(self, model: MjModel, data: MjData) -> None:
        data.cfrc_ext[:] = 0.0  # which only steps compute
        mujoco.mj_forward(model, data)

    def _part(self, name: str) -> Array:
        """The columns of `state` that are `name` in MjData."""
        whole, part = self._blocks[0], getattr(self._datas[0], name)
        first = (_address(part) - _address(whole)) // whole.itemsize
        return self.state[:, first : first + part.size]


def _take(work: Work, read: Read, items: Iterator[tuple[int, MjModel, Array]], data: MjData, block: Array) -> None:
    """Do the work of one thread."""
    for i, model, row in items:
        block[:] = row
        work(model, data)
        row[:] = block
        read(model, data, i)


@functools.cache
def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay for as long as the process does."""
    return ThreadPoolExecutor(threads, "mujoco")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=thread_pool.cache_clear)  # threads do not survive a fork


def state_block(model: MjModel, data: MjData) -> Array:
    """What MuJoCo keeps in one piece from `qpos` to `ctrl`, as a view: two copies a step instead of ten.

    Raises:
        RuntimeError: when this version of MuJoCo keeps it otherwise.
    """
    size = (_address(data.ctrl) + data.ctrl.nbytes - _address(data.qpos)) // data.qpos.itemsize
    needed = mujoco.mj_stateSize(model, STATE)
    if not 0 < size < needed + 64:  # each part is padded to 64 bytes
        raise RuntimeError(_layout_message())
    block: Array = np.lib.stride_tricks.as_strided(data.qpos, (size,))
    _check_block(model, data, block)
    return block


def _check_block(model: MjModel, data: MjData, block: Array) -> None:
    """Write a state by MuJoCo's own function, carry it over in the block alone, read it back by MuJoCo's own."""
    written = np.arange(1.0, mujoco.mj_stateSize(model, STATE) + 1)
    mujoco.mj_setState(model, data, written, STATE)
    carried = block.copy()
    mujoco.mj_resetData(model, data)
    block[:] = carried
    read = np.empty_like(written)
    mujoco.mj_getState(model, data, read, STATE)
    mujoco.mj_resetData(model, data)
    if not np.array_equal(read, written):
        raise RuntimeError(_layout_message())


def _layout_message() -> str:
    return (
        f"MuJoCo {mujoco.__version__} lays out its state in a way this version of metarl does not know; use 3.3 to 4.0"
    )


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.ctypes.data
    return address
