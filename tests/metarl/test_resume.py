"""2n iterations equal n, a checkpoint, and n more in another process: bit for bit, for every registered method."""

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import metarl
from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.callbacks import Callback, Metrics
from metarl.engine import Engine
from metarl.envs import Navigation
from metarl.outer import without_particles
from metarl.rl import ReinforcementLearning
from tests.environment import with_root

N = 2
FACTORIES: dict[str, dict[str, Any]] = {
    "adam": {},
    "momentum": {"optimizer": functools.partial(torch.optim.SGD, momentum=0.9), "schedule": lambda n: 1 / (1 + n)},
}
ENGINE = Engine()  # one in each process, which saves most of the recording
CASES = [(outer, name) for outer in sorted(without_particles()) for name in FACTORIES]


class Best(Callback):
    """Has a state that a resumed run needs: all scores so far."""

    def __init__(self) -> None:
        self.scores: list[float] = []

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        self.scores.append(metrics["rollout/return_after"])

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scores = list(state["scores"])


@functools.cache
def make_source() -> ReinforcementLearning:
    tasks = Navigation(horizon=5)
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]})
    return ReinforcementLearning(tasks, policy, episodes=2)


def make(outer: str, name: str) -> MetaLearner:
    arguments = {"inner_lr": 0.01, "meta_batch_size": 2, "learning_rate": 0.01, "max_grad_norm": 1.0, "seed": 3}
    return MetaLearner(make_source(), outer, engine=ENGINE, **arguments, **FACTORIES[name])


def resume(folder: Path, cases: list[tuple[str, str]]) -> None:
    """What the other process does."""
    for outer, name in cases:
        learner = MetaLearner.load(folder / f"{outer}-{name}-half", make_source(), engine=ENGINE, **FACTORIES[name])
        learner.learn(N, [Best()]).save(folder / f"{outer}-{name}-resumed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `half` and `resumed` checkpoints of all cases; one process resumes them all."""
    path = tmp_path_factory.mktemp("resume")
    for outer, name in CASES:
        make(outer, name).learn(N, [Best()]).save(path / f"{outer}-{name}-half")
    root = Path(metarl.__file__).parents[1]
    command = [sys.executable, __file__, str(path), json.dumps(CASES)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=with_root())
    assert result.returncode == 0, result.stderr
    return path


def assert_same(a: Any, b: Any, where: str = "state") -> None:
    """Equal bit for bit, however nested."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
        assert a.dtype == b.dtype, where
    elif isinstance(a, Mapping):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.mark.parametrize(("outer", "name"), CASES)
def test_resuming_in_another_process_changes_nothing(folder: Path, outer: str, name: str) -> None:
    half, resumed = (torch.load(folder / f"{outer}-{name}-{part}", weights_only=True) for part in ("half", "resumed"))
    straight = make(outer, name).learn(2 * N, [Best()])
    assert resumed.pop("format")
    assert_same(straight.state_dict(), resumed)
    assert resumed["iterations"] == 2 * N
    assert len(resumed["callbacks"][0][1]["scores"]) == 2 * N
    assert half["rng"] != resumed["rng"]
    for key, leaf in half["params"].items():
        assert not torch.equal(leaf, resumed["params"][key]), "nothing was learnt, so nothing was shown"


def test_the_comparison_can_fail() -> None:
    for a, b in [({"x": torch.zeros(2)}, {"x": torch.tensor([0.0, 1e-45])}), ([1, [2]], [1, [3]]), ((1,), (1, 2))]:
        with pytest.raises(AssertionError):
            assert_same(a, b)


def test_callbacks_are_matched_by_kind_and_order(tmp_path: Path) -> None:
    first, second = Best(), Best()
    make("fo_maml", "adam").learn(1, [Callback(), first, second]).save(tmp_path / "saved")
    second.scores.append(7.0)  # after saving: not in the file
    learner = MetaLearner.load(tmp_path / "saved", make_source())
    restored = [Best(), Best(), Best()]
    learner.learn(1, restored)
    assert [len(x.scores) for x in restored] == [2, 2, 1]


def test_loading_and_saving_keeps_the_callbacks(tmp_path: Path) -> None:
    make("fo_maml", "adam").learn(1, [Best()]).save(tmp_path / "saved")
    learner = MetaLearner.load(tmp_path / "saved", make_source())
    assert len(learner.state_dict()["callbacks"]) == 1


if __name__ == "__main__":
    resume(Path(sys.argv[1]), json.loads(sys.argv[2]))
