"""A run packed, opened elsewhere and shared: the same policy, the same evaluation, nothing executed."""

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import metarl
from metarl.checkpoint import package
from metarl.engine import Engine
from metarl.experiments import train
from metarl.experiments.common import opening
from metarl.experiments.common.packages import MEMBERS
from metarl.files import write_json
from tests.experiments import runs
from tests.experiments.conftest import PICTURES

pytestmark = pytest.mark.usefixtures("unrecorded")
GOAL = {"goal": [0.3, -0.2]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a small evaluation; to be looked at, not changed."""
    with Engine(record=False).current(), pytest.MonkeyPatch.context() as patch:
        for name, value in {"FINAL_TASKS": 3, "FINAL_EPISODES": 2}.items():
            patch.setattr(train, name, value)
        for name in PICTURES:
            patch.setattr(train, name, lambda *_, **__: Figure())
        return runs.train(tmp_path_factory.mktemp("export") / "nav", "--iterations", 3)


@pytest.fixture(scope="module")
def packed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its package; to be looked at, not changed."""
    path = tmp_path_factory.mktemp("packed") / "policy.zip"
    metarl.export(run, path)
    return path


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_an_evaluation_of_an_older_version_is_refused(run: Path, tmp_path: Path) -> None:
    copy = runs.copy(run, tmp_path / "old")
    path = copy / "evaluation.json"
    curve = json.loads(path.read_text())
    write_json(path, {name: value for name, value in curve.items() if name not in ("costs", "tasks", "score")})
    outcome = runs.call("export", copy, tmp_path / "policy.zip")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"run must have two adaptation curves in {path}" in outcome.err
    assert not (tmp_path / "policy.zip").exists()
    assert "final evaluation on 3 tasks, iteration 3" in runs.call("info", copy).out
    # what the message says works
    path.unlink()
    runs.resume(copy)
    assert runs.call("export", copy, tmp_path / "policy.zip").code == 0


def test_members_that_the_manifest_does_not_name_are_not_read(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.zip"
    shutil.copy(packed, path)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../outside.txt", "more.txt"):
            archive.writestr(name, "more")
    assert package.read(path) == package.read(packed)
    opening.unpack(path, tmp_path / "folder", ())
    assert {found.name for found in tmp_path.iterdir()} == {"more.zip", "folder"}
    assert not (tmp_path / "folder" / "more.txt").exists()


def test_the_learner_comes_back(run: Path, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    found, wanted = metarl.load(packed), metarl.load(run)
    assert same(found.params, wanted.params)
    assert (found.iterations, found.counts) == (wanted.iterations, wanted.counts)
    assert found.state_dict()["rng"] == wanted.state_dict()["rng"]
    assert np.array_equal(found.evaluate(num_tasks=3).scores, wanted.evaluate(num_tasks=3).scores)
    obs = np.array([[0.1, 0.2]], np.float32)
    actions = [x.adapt(GOAL, seed=1).predict(obs, deterministic=True)[0] for x in (found, wanted)]
    assert np.array_equal(*actions)
    assert found.learn(1).iterations == wanted.iterations + 1
    assert runs.files(run) == runs.files(tmp_path / "copy")


def test_the_command(run: Path, tmp_path: Path) -> None:
    outcome = runs.call("export", run, tmp_path / "policy")
    assert (outcome.code, outcome.err) == (0, "")
    assert {path.name for path in (tmp_path / "policy").iterdir()} == set(MEMBERS)
    assert same(metarl.load(tmp_path / "policy").params, metarl.load(run).params)
    again = runs.call("export", run, tmp_path / "policy")
    assert again.code == 2
    assert again.err.startswith("error: path must be a new file or folder")
    assert len(again.err.splitlines()) == 1


def test_what_a_policy_learned_of_observations_is_in_it(tmp_path: Path, no_pictures: None) -> None:
    step = ("--outer", "maml_plus_plus", "--inner-steps", 2)
    folder = runs.train(tmp_path / "run", "--iterations", 2, "--normalize-observations", *step)
    metarl.export(folder, tmp_path / "policy.zip")
    found, wanted = metarl.load(tmp_path / "policy.zip"), metarl.load(folder)
    assert any(key.startswith("meta/") for key in found.params)  # learned step sizes
    assert same(found.params, wanted.params)
    moments = [x.source.state_dict() for x in (found, wanted)]  # type: ignore[attr-defined]
    assert same(*moments)
    assert moments[0]["count"] > 0
    assert same(*(x.adapt(GOAL, 2).params for x in (found, wanted)))


def test_supervised_runs(tmp_path: Path, no_pictures: None) -> None:
    few = ("--iterations", 1, "--meta-batch-size", 2, "--eval-tasks", 2, "--final-tasks", 3)
    where = ("--log-dir", tmp_path, "--name", "sin")
    outcome = runs.call("train_supervised", "sinusoid", *few, *where)
    assert outcome.code == 0, outcome.err
    metarl.export(tmp_path / "sin", tmp_path / "sin.zip")
    assert same(metarl.load(tmp_path / "sin.zip").params, metarl.load(tmp_path / "sin").params)


def test_the_card_says_how_good_it_is_and_how_to_load_it(run: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        card = archive.read("README.md").decode()
    curve = json.loads((run / "evaluation.json").read_text())
    for step in curve["steps"]:
        assert f"| {step} | {curve['mean'][step]:.2f} [" in card
    assert 'metarl.load("policy.zip")' in card
    assert "![adaptation](adaptation.png)" in card
    assert '| `env` | `"navigation"` |' in card
    assert card.startswith("---\nlibrary_name: metarl\n")
    config = json.loads(package.read(packed)["config.json"])
    assert (config["log_dir"], config["launch"]) == ("runs", None)
    assert str(run.parent) not in package.read(packed)["config.json"].decode()


# Bad input


def test_only_finished_runs_are_packed(run: Path, tmp_path: Path) -> None:
    unfinished = runs.copy(run, tmp_path / "run")
    curve = json.loads((unfinished / "evaluation.json").read_text())
    write_json(unfinished / "evaluation.json", {**curve, "iterations": 1})
    with pytest.raises(ValueError, match="run must be evaluated at its last checkpoint, after 3 iterations"):
        metarl.export(unfinished, tmp_path / "policy.zip")
    (unfinished / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="run must be finished"):
        metarl.export(unfinished, tmp_path / "policy.zip")
    with pytest.raises(ValueError, match="run must be the folder of a run"):
        metarl.export(tmp_path, tmp_path / "policy.zip")
    assert not (tmp_path / "policy.zip").exists()


def test_a_package_is_not_packed_again(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is a package"):
        metarl.export(packed, tmp_path / "other.zip")


def repack(packed: Path, to: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A package with another member and right digests, as a forger would make it."""
    members = package.read(packed)
    del members["manifest.json"]
    path = to / "forged.zip"
    package.write(path, {**members, name: change(members[name])}, {})
    return path


def set_json(**values: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **values}).encode()


def change_weights(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        tensors = package.unpack_tensors(data, "weights")
        change(tensors)
        return package.pack_tensors(tensors)

    return apply


NAME = "params/policy.action_net.bias"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda _: b"[]", "config.json must be a JSON object"),
        ("config.json", lambda _: b"{", "config.json must be JSON"),
        ("config.json", set_json(hidden="wide"), "hidden must be"),
        ("config.json", set_json(hidden=[9]), "does not fit: .*params"),
        (
            "config.json",
            set_json(normalize_observations=True),
            "normalize_observations is True, but the checkpoint has none",
        ),
        ("learner.json", set_json(iterations=-1), "does not fit: iterations"),
        ("learner.json", set_json(more=1), "learner.json must have the entries"),
        ("learner.json", set_json(params={}), "learner.json must have the entries"),
        ("weights.safetensors", lambda _: b"12345678", "weights.safetensors must be a safetensors file"),
        ("weights.safetensors", change_weights(lambda x: x.pop(NAME)), "does not fit: params"),
        ("weights.safetensors", change_weights(lambda x: x.update({NAME: torch.zeros(3)})), "does not fit: params"),
        ("weights.safetensors", change_weights(lambda x: x.update({"w": x.pop(NAME)})), "names"),
    ],
)
def test_other_members_are_refused(packed: Path, tmp_path: Path, name: str, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metarl.load(repack(packed, tmp_path, name, change))


def test_plugins_are_imported_only_if_you_name_them(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_plugin.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = repack(packed, tmp_path, "config.json", set_json(plugins=["evil_plugin"]))
    with pytest.raises(ValueError, match="plugins must name the modules"):
        metarl.load(path)
    assert not (tmp_path / "executed").exists()
    assert metarl.load(path, plugins=["evil_plugin"]).iterations == 3
    assert (tmp_path / "executed").exists()


def test_changes_are_those_of_runs(packed: Path) -> None:
    assert metarl.load(packed, learning_rate=0.5).state_dict()["config"]["learning_rate"] == 0.5
    with pytest.raises(ValueError, match="horizon cannot change"):
        metarl.load(packed, horizon=7)


# The hub


class Hub(ModuleType):
    """A stand-in for `huggingface_hub` that keeps repositories in a local folder; the signatures are its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.created = folder, {}  # type: ignore[var-annotated]

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> str:
        if not exist_ok and repo_id in self.created:
            raise OSError("409")
        self.created[repo_id] = private
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str | Path, allow_patterns: list[str] | None = None) -> str:
        assert repo_id in self.created
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
        for path in Path(folder_path).iterdir():
            if allow_patterns is None or path.name in allow_patterns:
                shutil.copy(path, self.folder / repo_id)
        return f"https://hub/{repo_id}/commit/1"

    def snapshot_download(
        self, repo_id: str, *, revision: str | None = None, allow_patterns: list[str] | None = None
    ) -> str:
        self.revision = revision
        copy = self.folder / "cache" / repo_id
        files = [path for path in (self.folder / repo_id).iterdir() if path.name in (allow_patterns or [])]
        copy.mkdir(parents=True)
        for path in files:
            shutil.copy(path, copy)
        return str(copy)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return made


@pytest.mark.parametrize("kind", ["run", "packed"])
def test_to_the_hub_and_back(hub: Hub, kind: str, request: pytest.FixtureRequest) -> None:
    given = request.getfixturevalue(kind)
    assert metarl.to_hub(given, "user/nav", private=True) == "https://hub/user/nav/commit/1"
    assert hub.created == {"user/nav": True}
    assert {path.name for path in (hub.folder / "user" / "nav").iterdir()} == set(MEMBERS)
    (hub.folder / "user" / "nav" / "setup.py").write_text("raise SystemExit")
    found = metarl.from_hub("user/nav", revision="v1")
    assert hub.revision == "v1"
    assert not (hub.folder / "cache" / "user" / "nav" / "setup.py").exists()
    assert same(found.params, metarl.load(given).params)


def test_damaged_downloads_are_refused(hub: Hub, run: Path) -> None:
    metarl.to_hub(run, "user/nav")
    weights = hub.folder / "user" / "nav" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ValueError, match=r"weights.safetensors is not what was saved"):
        metarl.from_hub("user/nav")


def test_a_damaged_package_is_not_uploaded(hub: Hub, packed: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(packed.read_bytes().replace(b'"iterations": 3', b'"iterations": 4'))
    with pytest.raises(ValueError, match="is not what was saved"):
        metarl.to_hub(damaged, "user/nav")
    assert not hub.created


def test_without_the_hub(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: metarl.to_hub(run, "user/nav"), lambda: metarl.from_hub("user/nav")):
        with pytest.raises(ValueError, match=r'pip install "metarl-torch\[hub\]"'):
            call()
