"""Many MuJoCo simulations stepped together, each exactly as MuJoCo steps a single one.

The state of one environment (positions, velocities, the solver's warm start, controls) is a row of one array. Threads
take environments from a shared iterator: a thread copies the row into its `MjData`, lets MuJoCo step with Python's lock
released, and copies the row back. `mujoco.rollout` makes the same steps in C, but does not return the warm start: in a
closed loop the solver starts cold at every call, and after twenty steps the states differ in the 13th digit.
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
"""`read(model, data, i)` copies from `data` what is not in the state of environment i; it runs in several threads."""

Work: TypeAlias = Callable[[MjModel, MjData], None]

_WITHOUT_TIME = mjtState.mjSTATE_FULLPHYSICS.value & ~mjtState.mjSTATE_TIME.value  # no model here depends on time
STATE = _WITHOUT_TIME | mjtState.mjSTATE_WARMSTART.value | mjtState.mjSTATE_CTRL.value
"""The parts of the state that the next step depends on."""


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Physics:
    """N simulations.

    Args:
        models: N models of the same sizes, or the same one N times.
        frame_skip: physics steps per control step.
        contact_forces: whether `read` needs `cfrc_ext` after steps (after resets it is zero).
        threads: number of threads; the result does not depend on it.
    """

    def __init__(
        self, models: Sequence[MjModel], frame_skip: int, contact_forces: bool = False, threads: int | None = None
    ) -> None:
        threads = min(threads or usable_cpus(), len(models))
        self.model, self.frame_skip, self._contact_forces = models[0], frame_skip, contact_forces
        self.threads = threads
        self._datas = [MjData(models[0]) for _ in range(threads)]
        self._blocks = [state_block(models[0], data) for data in self._datas]
        self._pool = thread_pool(threads - 1) if threads > 1 else None
        self.state = np.tile(self._blocks[0], (len(models), 1))  # [N, ...], in MuJoCo's layout, with its padding
        self.qpos = self._part("qpos")  # [N, nq]; this and the next ones are views
        self.qvel = self._part("qvel")  # [N, nv]
        self.ctrl = self._part("ctrl")  # [N, nu]
        self._warmstart = self._part("qacc_warmstart")
        self._items = list(zip(range(len(models)), models, self.state, strict=True))

    def reset(self, environments: Sequence[int], qpos: Array, qvel: Array, read: Read) -> None:
        """Set `qpos` `[n, nq]` and `qvel` `[n, nv]` of some environments, zero controls and warm start; then `read`."""
        where = np.asarray(environments)
        self.qpos[where], self.qvel[where] = qpos, qvel
        self.ctrl[where] = self._warmstart[where] = 0.0
        self._run(self._forward, environments, read)

    def step(self, environments: Sequence[int], read: Read) -> None:
        """One control step of some environments with the actions in `ctrl`; then `read`."""
        self._run(self._step, environments, read)

    def _run(self, work: Work, environments: Sequence[int], read: Read) -> None:
        # All threads, including this one, share one iterator: a free thread takes the next environment.
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
        data.cfrc_ext[:] = 0.0  # only steps compute it
        mujoco.mj_forward(model, data)

    def _part(self, name: str) -> Array:
        """The columns of `state` that MjData calls `name`."""
        whole, part = self._blocks[0], getattr(self._datas[0], name)
        first = (_address(part) - _address(whole)) // whole.itemsize
        return self.state[:, first : first + part.size]


def _take(work: Work, read: Read, items: Iterator[tuple[int, MjModel, Array]], data: MjData, block: Array) -> None:
    """The loop of one thread."""
    for i, model, row in items:
        block[:] = row
        work(model, data)
        row[:] = block
        read(model, data, i)


@functools.cache
def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that live as long as the process."""
    return ThreadPoolExecutor(threads, "mujoco")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=thread_pool.cache_clear)  # threads do not survive a fork


def state_block(model: MjModel, data: MjData) -> Array:
    """A view of the memory of `data` from `qpos` to `ctrl`, which contains the whole state.

    MuJoCo allocates these arrays side by side, so one copy into the block and one out of it replace ten.

    Raises:
        RuntimeError: this version of MuJoCo has another layout.
    """
    # From the first byte of qpos to the last of ctrl: plausible only if little more than the state lies in between.
    size = (_address(data.ctrl) + data.ctrl.nbytes - _address(data.qpos)) // data.qpos.itemsize
    needed = mujoco.mj_stateSize(model, STATE)
    if not 0 < size < needed + 64:  # each array is padded to 64 bytes
        raise RuntimeError(_layout_message())
    block: Array = np.lib.stride_tricks.as_strided(data.qpos, (size,))
    _check_block(model, data, block)
    return block


def _check_block(model: MjModel, data: MjData, block: Array) -> None:
    """Raise a RuntimeError unless copying the block alone copies the whole state."""
    # Write a state of different numbers with MuJoCo's own function, and keep only the block.
    written = np.arange(1.0, mujoco.mj_stateSize(model, STATE) + 1)
    mujoco.mj_setState(model, data, written, STATE)
    carried = block.copy()
    # Restore the block into fresh data, and read the state with MuJoCo's own function.
    mujoco.mj_resetData(model, data)
    block[:] = carried
    read = np.empty_like(written)
    mujoco.mj_getState(model, data, read, STATE)
    mujoco.mj_resetData(model, data)
    if not np.array_equal(read, written):
        raise RuntimeError(_layout_message())


def _layout_message() -> str:
    return f"MuJoCo {mujoco.__version__} lays out its state in a way that metarl does not know; use MuJoCo 3.3 to 4.0"


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.ctypes.data
    return address
