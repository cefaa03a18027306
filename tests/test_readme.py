"""The README's Python is run as it stands, with fewer iterations, and is as short as it claims."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import metarl
from metarl.outer import OUTER

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the README's blocks define, run one after the other in one namespace."""
    checkpoint = str(tmp_path_factory.mktemp("readme") / "maml.pt")
    quick = {"learn(150": "learn(2", "episodes=20": "episodes=3", '"maml.pt"': repr(checkpoint)}
    module = ModuleType("readme")
    sys.modules["readme"] = module
    for block in BLOCKS:
        for long, short in quick.items():
            block = block.replace(long, short)
        exec(compile(block, "README.md", "exec"), module.__dict__)
    return module.__dict__


def block_with(text: str) -> list[str]:
    (block,) = [block for block in BLOCKS if text in block]
    return block.strip().splitlines()


def test_what_the_blocks_left_behind(names: dict[str, object]) -> None:
    assert isinstance(names["learner"], metarl.MetaLearner)
    assert names["learner"].iterations == 2
    assert names["action"].shape == (2,)  # type: ignore[attr-defined]


def test_the_readme_s_own_update_trains(names: dict[str, object]) -> None:
    learner = metarl.MetaLearner(names["source"], "normalized_fo_maml", outer_options={"power": 1.0}, meta_batch_size=2)  # type: ignore[arg-type]
    assert learner.learn(1).iterations == 1
    assert len(block_with("@register")) < 25
    del OUTER["normalized_fo_maml"]


def test_the_readme_s_own_task_distribution_trains(names: dict[str, object]) -> None:
    from metarl.agents import make_policy
    from metarl.rl import ReinforcementLearning

    tasks = names["cart_tasks"]
    policy = make_policy(tasks.observation_space, tasks.action_space)  # type: ignore[attr-defined]
    learner = metarl.MetaLearner(ReinforcementLearning(tasks, policy, episodes=2), meta_batch_size=2)  # type: ignore[arg-type]
    assert learner.learn(1).iterations == 1
    env = tasks.make({"position": 0.5})  # type: ignore[attr-defined]
    assert env.reset(seed=0)[0].shape == (2,)
    assert env.step(env.action_space.sample())[1] <= 0
    assert len([line for line in block_with("class Cart") if line]) < 30
