"""Training runs in the folder of a baseline: a new one, the rest of an interrupted one, or one that is finished."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

from metarl.checkpoint import package
from metarl.experiments.common.config import C, read_config, settings
from metarl.experiments.common.run import Run, is_finished, new_run, resume_run, settle, write_run


def train_in(folder: Path, config: C, train: Callable[[Run[C]], None]) -> Path:
    """Train a run with these settings in `folder`, unless it is finished, by `train`, which evaluates it at its end.

    Raises:
        ValueError: when the folder has a run with other settings.
    """
    config = settle(dataclasses.replace(config, log_dir=folder.parent, name=folder.name))
    if not (folder / "config.json").is_file():
        run = new_run(config)
    else:
        saved, wanted = read_config(type(config), folder), settings(config)
        for name, value in settings(saved).items():
            if wanted[name] != value and name != "log_dir":
                found = f"{folder} has a run with {name}={value!r}, not {wanted[name]!r}"
                raise ValueError(f"{found}; choose another folder")
        if is_finished(folder, config.iterations):
            return folder
        run = resume_run(folder, saved, saved)
    with write_run(run, f"; it was in {run.folder}; the same command continues it"):
        train(run)
    return folder


def fingerprint(path: Path) -> str | None:
    """The SHA-256 digest of a file, of a run's checkpoint, or of a package's manifest; `None` if there is no such file.

    The manifest has the digests of everything else in the package.
    """
    files = (path, path / "checkpoint.pt", path / package.MANIFEST)
    found = next((file for file in files if file.is_file()), None)
    return None if found is None else hashlib.sha256(found.read_bytes()).hexdigest()
