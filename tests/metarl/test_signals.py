"""SIGINT and SIGTERM: the first ends training in good order, a second one at once."""

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch

import metarl
from metarl import MetaLearner
from metarl.callbacks import Callback, Metrics
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
from tests.environment import with_root

PROGRAM = """
import signal, sys, time
from pathlib import Path
from metarl.callbacks import Callback, Checkpointing
from metarl.supervised import FiniteSumSource
from tests.metarl.test_signals import make

class Slow(FiniteSumSource):
    def sample(self, num_tasks, rng):
        if learner.iterations % 3 == 2:
            print("running", flush=True)
            while not learner._stop_requested:  # every third iteration lasts until it is asked to stop
                time.sleep(0.01)
            print("asked", flush=True)
            time.sleep(600 if learner.iterations == 8 else 0)
        return super().sample(num_tasks, rng)

class Say(Callback):
    def on_end(self, learner):
        print("end", flush=True)
    def close(self):
        print("close", flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born ignoring it
learner = make(Slow)
for _ in range(3):
    learner.learn(1000, [Say(), Checkpointing(Path(sys.argv[1]), every=1000)])
    print(learner.stopped_by, learner.iterations, flush=True)
"""


def make(source: type[FiniteSumSource] = FiniteSumSource) -> MetaLearner:
    tasks = FiniteSumTaskBatch(lambda p, b: (p["w"] - b["c"]) ** 2, {"c": torch.tensor([1.0, 2.0])})
    return MetaLearner(source(tasks, {"w": torch.tensor(0.0)}), meta_batch_size=2)


def test_a_process_that_gets_signals(tmp_path: Path) -> None:
    """SIGINT, then SIGTERM in the next `learn`, then SIGINT twice in the third."""
    root, saved = Path(metarl.__file__).parents[1], tmp_path / "saved"
    command, environment = [sys.executable, "-c", PROGRAM, str(saved)], with_root()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=root, env=environment, **pipes) as process:
        try:
            out, err = talk(process, saved)
        finally:
            process.kill()  # a failure must not wait for it
    assert process.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert out.splitlines() == ["close"]  # tidied up, but neither ended nor saved
    assert MetaLearner.load(saved, make().source).iterations == 6


def talk(process: Any, saved: Path) -> tuple[str, str]:
    def read(number: int = 1) -> list[str]:
        return [process.stdout.readline().strip() for _ in range(number)]

    for name, iterations in [("SIGINT", 3), ("SIGTERM", 6)]:  # the iteration is finished, and saved
        assert read() == ["running"]
        process.send_signal(signal.Signals[name])
        assert read(4) == ["asked", "end", "close", f"{name} {iterations}"]
        loaded = MetaLearner.load(saved, make().source)
        assert loaded.iterations == iterations
        assert torch.equal(loaded.params["w"], make().learn(iterations).params["w"])
    assert read() == ["running"]
    process.send_signal(signal.SIGINT)
    assert read() == ["asked"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return out, err


class Raise(Callback):
    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_handlers_come_back_and_training_can_go_on() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    learner = make().learn(5, [Raise()])
    assert (learner.stopped_by, learner.iterations) == ("SIGTERM", 1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (learner.learn(2).stopped_by, learner.iterations) == (None, 3)


def test_another_thread_leaves_handlers_alone() -> None:
    learner, handlers = make(), []

    class Note(Callback):
        def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=lambda: learner.learn(2, [Note()]))
    thread.start()
    thread.join()
    assert learner.iterations == 2
    assert handlers == [signal.getsignal(signal.SIGINT)] * 2
