"""Several processes: what does not fit together is refused, a member that ends takes no state with it."""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.callbacks import Checkpointing
from metarl.envs import Navigation
from metarl.processes import joined
from metarl.rl import ReinforcementLearning
from tests.experiments import runs
from tests.faults.fault import fault
from tests.faults.subject import end, in_child, iterations_logged, kill_all, left_behind, one_line, same, spawn, wait

GROUP = "several processes"
LINE = ("sinusoid", "--eval-every", "20", "--save-every", "4", "--eval-tasks", "8", "--final-tasks", "40")
ITERATIONS = 40


def torchrun(module: str, *arguments: object, size: int = 2, options: tuple[str, ...] = ("--standalone",)) -> Any:
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node", str(size)]
    return spawn([*command, "-m", module, *map(str, arguments)])


def supervised(folder: Path, *more: object, tasks: int = 4) -> list[object]:
    where = ("--log-dir", folder.parent, "--name", folder.name)
    return [*LINE, "--iterations", ITERATIONS, "--meta-batch-size", tasks, *where, *more]


def alone(folder: Path, tasks: int = 4) -> Path:
    command = [sys.executable, "-m", "metarl.experiments.train_supervised", *map(str, supervised(folder, tasks=tasks))]
    outcome = end(spawn(command))
    assert outcome.code == 0, outcome.err
    return folder


def learner(seed: int, **arguments: Any) -> MetaLearner:
    tasks = Navigation(horizon=5)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]}, seed=seed)
    return MetaLearner(ReinforcementLearning(tasks, policy, episodes=2), meta_batch_size=4, seed=seed, **arguments)


def learned(seed: int) -> list[float]:
    params = learner(seed).learn(2).params
    return [number for leaf in params.values() for number in leaf.flatten().tolist()]


@fault(GROUP, "seed", "policy", "early")
def one_differs(folder: Path, what: str) -> None:
    """The second process has another seed, other weights or fewer iterations: an error, and nothing wrong is saved."""
    code = "import sys; from tests.faults.processes import differ; differ(*sys.argv[1:])"
    options = ["--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, sys.executable, "-c", code]
    process = spawn([*command, what, str(folder)])
    outcome = end(process)
    assert outcome.code != 0, "nobody noticed"
    assert not left_behind(process), "a process lives on"
    wanted = {"early": "ConnectionError"}.get(what, "ValueError")
    assert wanted in outcome.err, outcome.err[-300:]
    if what == "early":
        state = MetaLearner.load(folder / "checkpoint.pt", learner(0).source)
        whole = learner(0)
        whole.learn(state.iterations)
        assert all(torch.equal(whole.params[name], leaf) for name, leaf in state.params.items())


def differ(what: str, folder: str) -> None:
    rank = int(os.environ["RANK"])
    with joined() as processes:
        made = learner(rank if what == "seed" else 0, processes=processes)
        if what == "policy" and rank:
            made.params = {name: leaf + 1e-7 for name, leaf in made.params.items()}
        if what == "early":
            made.learn(3, [Checkpointing(Path(folder, "checkpoint.pt"), 1)])
            if rank:
                os._exit(0)
        made.learn(3)


@fault(GROUP, 2, 4)
def shares_of_a_power_of_two(folder: Path, size: int) -> None:
    """Bit for bit the run of one process."""
    outcome = end(
        torchrun("metarl.experiments.train_supervised", *supervised(folder / "run", tasks=2 * size), size=size)
    )
    assert outcome.code == 0, outcome.err[-300:]
    same(folder / "run", alone(folder / "one", tasks=2 * size))


@fault(GROUP, (3, 2), (4, 3), (5, 2))
def unequal_shares(folder: Path, tasks: int, size: int) -> None:
    """To rounding the run of one process."""
    outcome = end(torchrun("metarl.experiments.train_supervised", *supervised(folder / "run", tasks=tasks), size=size))
    assert outcome.code == 0, outcome.err[-300:]
    alone(folder / "one", tasks=tasks)
    states = [torch.load(folder / name / "checkpoint.pt", weights_only=True)["params"] for name in ("run", "one")]
    for name, leaf in states[0].items():
        torch.testing.assert_close(leaf, states[1][name], rtol=1e-5, atol=1e-7)


@fault(GROUP)
def fewer_tasks_than_processes(folder: Path) -> None:
    outcome = end(torchrun("metarl.experiments.train_supervised", *supervised(folder / "run", tasks=1)))
    own = re.split(r"^[EWI]\d{4} ", outcome.err, maxsplit=1, flags=re.MULTILINE)[0]  # torchrun adds its report to it
    one_line(outcome._replace(err=own), 1, holds="meta_batch_size")
    assert not (folder / "run").exists()


def members(process: Any) -> Iterator[int]:
    """The processes of the session that train."""
    for path in Path("/proc").iterdir():
        try:
            stat = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        trains = b"metarl.experiments.train_supervised" in command and b"torch.distributed.run" not in command
        if trains and process.pid in (int(stat[1]), int(stat[3])):
            yield int(path.name)


@fault(GROUP, *[(name, which) for name in ("SIGKILL", "SIGTERM") for which in (0, 1)])
def a_member_ends(folder: Path, name: str, which: int) -> None:
    """The others end too; `--resume` leads to what an undisturbed run leaves."""
    run = folder / "run"
    process = torchrun("metarl.experiments.train_supervised", *supervised(run, "--iterations", 100_000))
    wait(process, lambda: iterations_logged(run) >= 8)
    os.kill(sorted(members(process))[which], signal.Signals[name])
    end(process)
    time.sleep(0.1)
    kill_all(process)
    done = runs.saved(run)["iterations"]
    command = [
        sys.executable,
        "-m",
        "metarl.experiments.train_supervised",
        "--resume",
        str(run),
        "--iterations",
        str(done + 4),
    ]
    outcome = end(spawn(command))
    assert outcome.code == 0, outcome.err[-300:]
    again = [*supervised(folder / "one"), "--iterations", done + 4]
    assert end(spawn([sys.executable, "-m", "metarl.experiments.train_supervised", *map(str, again)])).code == 0
    assert runs.saved(run) == runs.saved(folder / "one"), "another checkpoint"


@fault(GROUP)
def a_port_that_is_taken(folder: Path) -> None:
    """The first process cannot listen there: it ends, in a line, before anything is written."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "metarl.experiments.train_supervised", *map(str, supervised(folder / "run"))]
        one_line(end(spawn(command, launched)), 1, 2)
    assert not (folder / "run").exists()


@fault(GROUP, "WORLD_SIZE=two", "RANK=7", "MASTER_PORT=none", "WORLD_SIZE=0", "RANK=")
def wrong_variables(folder: Path, text: str) -> None:
    name, _, value = text.partition("=")
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    command = [sys.executable, "-m", "metarl.experiments.train_supervised", *map(str, supervised(folder / "run"))]
    one_line(end(spawn(command, {**launched, name: value})), 1, 2)
    assert not (folder / "run").exists()


class Learned(Dataset[list[float]]):
    """Item i is what a learner of seed i has learned."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[float]:
        return learned(index)


@fault(GROUP, "spawn", "fork", "forkserver", "DataLoader spawn", "DataLoader fork")
def in_children(folder: Path, how: str) -> None:
    """A learner gives the same numbers in any child, also where the parent has trained before it."""
    outcome = in_child("processes", "compare", how)
    assert outcome.code == 0, outcome.err[-300:]
    found = json.loads(outcome.out)
    assert found["children"] == found["parent"]


def compare(how: str) -> None:
    torch.set_num_threads(1)
    parent, method = [learned(seed) for seed in range(4)], how.split()[-1]
    if how.startswith("DataLoader"):
        loader = DataLoader(Learned(), None, num_workers=2, multiprocessing_context=method)
        children = list(loader)
    else:
        with torch.multiprocessing.get_context(method).Pool(2) as pool:
            children = pool.map(learned, range(4))
    print(json.dumps({"parent": parent, "children": children}))
