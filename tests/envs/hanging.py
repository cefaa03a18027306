"""A script whose last worker never answers: prints the workers' process ids, then `hanging` from within the worker."""

import signal
import sys

import numpy as np

from tests.envs.toy_envs import HANG, WORK, trouble


def main(workers: int) -> None:
    tasks = trouble(workers, timeout=3600.0)  # on a busy machine it waits long for the test
    vec = tasks.make_vec({"length": [1]}, workers)
    vec.reset(seed=0)
    print(*(worker.process.pid for worker in tasks._pool._workers), flush=True)
    vec.step(np.array([WORK] * (workers - 1) + [HANG]))


if __name__ == "__main__":
    signal.alarm(1200)  # the end, should the tests be killed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background, it is ignored
    main(int(sys.argv[1]))
