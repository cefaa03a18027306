"""Say what a run is: its settings, its progress, its evaluations, its versions.

    metarl info runs/nav
    metarl info policy.zip

Nothing is computed, and no code that the run names is imported.
"""

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from metarl.experiments.common import cli
from metarl.experiments.common.config import read_config, read_if_whole, settings
from metarl.experiments.common.lock import holder
from metarl.experiments.common.opening import AnyConfig, unpack
from metarl.experiments.common.run import is_finished
from metarl.logging import Line, read_metrics


@dataclass(frozen=True)
class Arguments:
    """Settings of the description."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run, or a package."""
    json: bool = False
    """Print one JSON object instead of text."""
    all: bool = False
    """Also the settings that have their default values."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl info", __doc__)
    found = cli.prepare(lambda: describe(given.run, given.all))
    print(json.dumps(found) if given.json else as_text(found))


def describe(run: Path, everything: bool = False) -> dict[str, Any]:
    """What a run is, as plain values.

    Raises:
        ValueError: when it is neither the folder of a run nor a package.
    """
    if run.is_file():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "package"
            unpack(run, folder, ())
            return {**describe(folder, everything), "run": str(run)}
    config = read_config(AnyConfig, run)
    raw = read_if_whole(run / "config.json") or {}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    chosen = {name: value for name, value in settings(config).items() if everything or defaults[name] != value}
    lines = read_metrics(run, untrained=True)
    final = read_if_whole(run / "evaluation.json")
    return {
        "run": str(run),
        "script": config.script,
        "about": config.about,
        "algorithm": config.algorithm,
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in chosen.items()},
        "iterations": int(lines[-1]["iteration"] or 0) if lines else int((final or {}).get("iterations", 0)),
        "of_iterations": config.iterations,
        "written_by": holder(run),
        "seconds": sum(line.get("time/iteration_seconds") or 0.0 for line in lines) if lines else None,
        **evaluations(lines),
        "finished": is_finished(run, config.iterations),
        "final": None if final is None else {key: final.get(key) for key in FINAL},
        **{name: raw.get(name) for name in ("versions", "commit", "device_name", "changes")},
    }


FINAL = ("iterations", "axis", "points", "mean", "num_tasks")
"""What is shown of `evaluation.json`, if it is there."""


def evaluations(lines: Sequence[Line]) -> dict[str, Any]:
    """The first, the last and the best evaluation while training: the iteration, and the score after each step."""
    found = []
    for line in lines:
        scores = {tag: value for tag, value in line.items() if tag.startswith("eval/")}
        if scores:
            found.append({"iteration": line["iteration"], "scores": list(scores.values()), "tags": list(scores)})
    if not found:
        return dict.fromkeys(("first", "last", "best"))

    def highest(entry: Mapping[str, Any]) -> float:
        return max((value for value in entry["scores"] if value is not None), default=-math.inf)

    return {"first": found[0], "last": found[-1], "best": max(found, key=highest)}


def as_text(found: Mapping[str, Any]) -> str:
    """The description for people."""
    writer = f"written by {found['written_by']}" if found["written_by"] else None
    state = writer or ("finished" if found["finished"] else "stopped")
    seconds = "no log" if found["seconds"] is None else f"{found['seconds']:.0f} s"  # packages have none
    done = f"{found['iterations']} of {found['of_iterations']} iterations, {seconds}"
    rows = [f"{found['run']}: {found['algorithm']} on {found['about']} ({found['script']})", f"  {done}, {state}"]
    rows += [_row(name, found[name]) for name in ("first", "last", "best") if found[name]]
    if found["final"] and found["final"]["mean"]:
        rows.append(_final_row(found["final"]))
    rows += ["settings other than the defaults:", *(f"  {name}: {v}" for name, v in found["settings"].items())]
    for change in found["changes"] or []:
        rows.append(f"changed when it was resumed: {change}")
    versions = ", ".join(f"{name} {version}" for name, version in (found["versions"] or {}).items())
    return "\n".join([*rows, f"made with {versions}; commit {found['commit']}; on {found['device_name']}"])


def _row(name: str, entry: Mapping[str, Any]) -> str:
    values = ", ".join("-" if value is None else f"{value:.4g}" for value in entry["scores"])
    axis = "episode" if "_episode_" in entry["tags"][0] else "step"
    points = [tag.rpartition("_")[2] for tag in entry["tags"]]
    return f"  {name} evaluation, iteration {entry['iteration']}, {_at(axis, points)}: {values}"


def _final_row(final: Mapping[str, Any]) -> str:
    where = "" if final["iterations"] is None else f", iteration {final['iterations']}"
    tasks = "" if final["num_tasks"] is None else f" on {final['num_tasks']} tasks"
    points = final["points"] or range(len(final["mean"]))
    values = ", ".join(f"{value:.4g}" for value in final["mean"])
    return f"  final evaluation{tasks}{where}, {_at(final['axis'] or 'step', points)}: {values}"


def _at(axis: str, points: Iterable[object]) -> str:
    """Where the scores of an evaluation were measured."""
    return f"{'after' if axis == 'step' else 'in'} {axis}s {', '.join(map(str, points))}"


if __name__ == "__main__":
    main()
