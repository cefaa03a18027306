"""The pages' Python runs, their commands exist, and their links point to something."""

import io
import pkgutil
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metarl
from metarl.agents import make_policy
from metarl.derivatives import gradients
from metarl.envs import Navigation
from metarl.experiments import train
from metarl.experiments.command import SCRIPTS
from metarl.rl import ReinforcementLearning
from tests.experiments import runs
from tests.pages import PAGES, ROOT, commands, headings, links, python_blocks, run_blocks

DOCS = ROOT / "docs"
RUN_HERE = {
    "README",
    "callbacks",
    "own_data",
    "from_python",
    "results",
    "getting_started",
    "environments",
    "engine",
    "distributed",
    "troubleshooting",
}


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def environments() -> Iterator[dict[str, Any]]:
    """What the page of environments defines."""
    yield from run_blocks(DOCS / "environments.md")


def test_every_page_with_python_is_run() -> None:
    assert {page.stem for page in PAGES if python_blocks(page)} == RUN_HERE


def test_getting_started(in_folder: Path) -> None:
    for names in run_blocks(DOCS / "getting_started.md"):
        assert names["learner"].iterations == 2
        assert names["action"].shape == (2,)
        learner = metarl.MetaLearner(
            names["source"], "clipped_fo_maml", outer_options={"max_norm": 0.5}, meta_batch_size=2
        )
        assert learner.learn(1).iterations == 1


def test_callbacks(in_folder: Path) -> None:
    for names in run_blocks(DOCS / "callbacks.md"):
        assert names["learner"].iterations == 2
        assert (in_folder / "runs/own/checkpoint.pt").is_file()


def test_own_data(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for names in run_blocks(DOCS / "own_data.md"):
        names["learner"].learn(60)
        before, *_, after = names["learner"].evaluate(names["held_out"], num_tasks=10, steps=3).mean
        assert before < 2 * after < 0  # measured: -3.3 before adaptation, -0.6 after three steps
        assert len(names["train"]) == 30


def test_from_python(in_folder: Path) -> None:
    runs.train(in_folder / "runs" / "nav", "--iterations", 1)
    for names in run_blocks(DOCS / "from_python.md"):
        assert names["run"].iterations == 3
        assert {len(leaf) for leaf in names["adapted"].values()} == {3}


def test_results(capsys: pytest.CaptureFixture[str]) -> None:
    """The bound of a policy that knows the direction of a goal alone."""
    for names in run_blocks(DOCS / "results.md"):
        assert f"{names['mean_return'](0.42):.1f} {names['mean_return'](names['distance']):.1f}" == "-10.6 -0.5"


def test_the_task_distribution_trains(environments: dict[str, Any]) -> None:
    tasks = environments["carts"]
    policy = make_policy(tasks.observation_space, tasks.action_space)
    learner = metarl.MetaLearner(ReinforcementLearning(tasks, policy, episodes=2), meta_batch_size=2)
    assert learner.learn(1).iterations == 1
    env = tasks.make({"position": 0.5})
    assert env.reset(seed=0)[0].shape == (2,)
    assert env.step(env.action_space.sample())[1] <= 0
    (block,) = (block for block in python_blocks(DOCS / "environments.md") if "class Cart" in block)
    assert len([line for line in block.splitlines() if line]) < 30


@pytest.fixture
def source() -> ReinforcementLearning:
    """Tasks of a few steps."""
    tasks = Navigation(horizon=5)
    return ReinforcementLearning(tasks, make_policy(tasks.observation_space, tasks.action_space), episodes=3)


def test_engine(source: ReinforcementLearning) -> None:
    tasks = source.sample(2, np.random.default_rng(0))
    params = metarl.tree.broadcast(source.initial_params(), 2)
    given = {"tasks": tasks, "params": params, "batch": tasks.draw(params, "inner"), "source": source}
    for names in run_blocks(DOCS / "engine.md", MetaLearner=metarl.MetaLearner, gradients=gradients, **given):
        assert names["grads"].keys() == params.keys()


def test_processes(in_folder: Path, source: ReinforcementLearning) -> None:
    for names in run_blocks(DOCS / "distributed.md", source=source, folder=in_folder / "run"):
        assert names["learner"].iterations == 2
        assert (in_folder / "run" / "checkpoint.pt").exists()


def test_a_run_is_opened(in_folder: Path) -> None:
    sizes = ["--iterations", "1", "--meta-batch-size", "2", "--episodes", "2", "--horizon", "5", "--eval-tasks", "2"]
    train.main([*sizes, "--name", "nav"])
    for names in run_blocks(DOCS / "troubleshooting.md"):
        assert names["learner"].iterations == 1


@cache
def known_options(script: str, problem: str | None) -> set[str]:
    """The options in the help of a script, or of one problem of it."""
    said = io.StringIO()
    with redirect_stdout(said), pytest.raises(SystemExit) as end:
        import_module(f"metarl.experiments.{SCRIPTS[script][0]}").main([*([problem] if problem else []), "--help"])
    assert end.value.code == 0
    return set(re.findall(r"--[a-z][a-z0-9-]*", said.getvalue()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page: Path) -> None:
    for script, *words in commands(page):
        assert script in SCRIPTS, f"metarl {script}"
        nested = script in ("train-supervised", "baseline")
        problem = words[0] if nested and words and words[0].isidentifier() else None
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option in known_options(script, problem), f"metarl {script} {problem or ''} {option}"
        for option in (
            part for word in words if " " in word for part in re.findall(r"(?<![\w-])--[a-z0-9-]+(?!=)\b", word)
        ):
            assert option in known_options("train", None) | known_options(script, problem), f"metarl train {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    used = re.findall(r"(?:`|^ {4,})make ([a-z-]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(used) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_point_to_something(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in headings(path), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_and_files_exist(page: Path) -> None:
    """What the pages call `metarl.rl.NormalizedPolicy` or `tests/envs` is there."""
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"`(metarl(?:\.\w+)+)", text)):
        pkgutil.resolve_name(name)
    for path in set(re.findall(r"`((?:metarl|envs|agents|experiments|tests)/[\w/]*(?:\.\w+)?)[`:]", text)):
        assert "NAME" in path or (ROOT / path).exists(), path


def test_the_pages_are_read() -> None:
    """The tests above look at something."""
    assert ["evaluate", "runs/nav", "--ood"] in commands(DOCS / "getting_started.md")
    assert any(words[:2] == ["train", "--env"] for words in commands(DOCS / "distributed.md"))
    assert "docs/results.md" in links(ROOT / "README.md")
