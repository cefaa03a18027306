"""Runs of the command line, opened from Python, packed and shared."""

import importlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from metarl.errors import check_type
from metarl.learner import MetaLearner
from metarl.processes import ALONE, Processes


def load(path: str | Path, *, plugins: Iterable[str] = (), processes: Processes = ALONE, **changes: Any) -> MetaLearner:
    """The learner of a run of `metarl train` or `metarl train-supervised` at its last checkpoint, or of a package.

        metarl.load("runs/nav").evaluate(num_tasks=40)
        metarl.load("runs/nav", device="cpu", learning_rate=1e-4).learn(100).save("further.pt")
        metarl.load("policy.zip").adapt(env)

    The tasks, the policy and the schedule are made from the settings in its `config.json`; nothing in it is executed or
    changed. Further training continues with the run's schedule, which stays constant after its end; that of a package
    starts with a fresh outer step.

    Args:
        path: a run's folder, or a zip file or a folder written by `metarl export`.
        plugins: modules that the run needs, such as one that registers an outer update. Modules named in the folder
            are only imported if they are listed here.
        processes: the processes that train together.
        changes: settings that a resumed run may change: `device`, `learning_rate`, `anneal_iterations`.

    Raises:
        ValueError: when it is neither a run nor a package, or a file in it is missing, damaged, or does not fit.
    """
    check_type("path", path, (str, Path), "the folder of a run, or a package")
    check_type("processes", processes, Processes, "the processes from metarl.processes.joined()")
    learner = _opening("path").open_learner(Path(path), changes, plugins, processes)
    assert isinstance(learner, MetaLearner)
    return learner


def export(run: str | Path, path: str | Path, *, plugins: Iterable[str] = ()) -> None:
    """Write a package of a finished run, which `load` opens: weights, settings, adaptation curve, card and pictures.

    Args:
        run: the run's folder.
        path: a new file that ends in `.zip`, or a new folder.
        plugins: as for `load`.

    Raises:
        ValueError: when `run` is not a finished run, or `path` exists.
    """
    check_type("run", run, (str, Path), "the folder of a run")
    check_type("path", path, (str, Path), "a new .zip file, or a new folder")
    _opening("run").export(Path(run), Path(path), plugins)


def to_hub(run: str | Path, repo_id: str, *, plugins: Iterable[str] = (), private: bool = False) -> str:
    """Upload a finished run, or a package, to the Hugging Face Hub; returns the address of the commit.

    You need the package `huggingface_hub` (the extra `hub`), and must be logged in.

    Args:
        run: the run's folder, or a package.
        repo_id: such as `user/navigation`; made if it does not exist.
        plugins: as for `load`.
        private: whether a new repository is private.

    Raises:
        ValueError: without `huggingface_hub`, and as for `export`.
    """
    check_type("run", run, (str, Path), "the folder of a run, or a package")
    check_type("repo_id", repo_id, str, "the name of a repository, such as 'user/navigation'")
    hub, opening = _hub(), _opening("run")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "package"
        opening.unpack(Path(run), folder, plugins)
        hub.create_repo(repo_id, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=list(opening.MEMBERS)))


def from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    plugins: Iterable[str] = (),
    processes: Processes = ALONE,
    **changes: Any,
) -> MetaLearner:
    """The learner of a package on the Hugging Face Hub; only a package's files are downloaded, and none is executed.

    Args:
        repo_id: such as `user/navigation`.
        revision: a branch, a tag or a commit; default: the newest.
        plugins: as for `load`, like the arguments after it.
        processes: the processes that train together.
        changes: settings that may change.

    Raises:
        ValueError: without `huggingface_hub`, and as for `load`.
    """
    check_type("repo_id", repo_id, str, "the name of a repository, such as 'user/navigation'")
    hub, members = _hub(), list(_opening("repo_id").MEMBERS)
    folder = hub.snapshot_download(repo_id, revision=revision, allow_patterns=members)
    return load(folder, plugins=plugins, processes=processes, **changes)


def _opening(argument: str) -> Any:
    try:
        return importlib.import_module("metarl.experiments.common.opening")
    except ModuleNotFoundError as error:
        raise ValueError(f"{argument} needs metarl.experiments, which cannot be imported: {error}") from error


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ValueError(f'repo_id needs the extra hub: pip install "metarl-torch[hub]" ({error})') from error
