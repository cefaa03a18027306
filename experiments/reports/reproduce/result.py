"""The result of a reference run as JSON: what was run, where, what it cost, every evaluation and the final scores."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from metarl import AdaptationCurve
from metarl.experiments.baselines import describe
from metarl.experiments.baselines.ppo import adaptation_steps, first_tasks
from metarl.experiments.baselines.result import AXES
from metarl.experiments.common import config as configs
from metarl.experiments.common.run import settle
from metarl.experiments.compare.plan import Row
from metarl.experiments.compare.results import RowResult, read_row, trained_point
from metarl.experiments.compare.runs import FREE, AnyRun, BaselineRun
from metarl.experiments.reports.reproduce.plan import ReferenceRun
from metarl.experiments.train import build_distribution
from metarl.files import write_atomically
from metarl.logging import Line
from metarl.statistics import Interval

FORMAT = 1
DIGITS = 7  # of every number

Array = npt.NDArray[np.float64]


class Evaluation(NamedTuple):
    """A held-out evaluation during training: mean scores at the result's points, with 95 % intervals over tasks."""

    iteration: int
    env_steps: int
    mean: tuple[float, ...]
    ci95: tuple[Interval | None, ...]


@dataclass(frozen=True)
class Result:
    """The result of a run. `about` has what does not enter statistics: settings, versions, commit, hardware."""

    name: str
    label: str
    seed: int
    row: Mapping[str, Any]  # the row of the table that was run
    axis: str  # what points are: step, episode or budget
    points: tuple[float, ...]
    trained: int  # the index of the point that it is trained for
    iterations: int
    env_steps: int
    gradients: int
    seconds: float  # of iterations
    cpu_seconds: float
    evaluations: tuple[Evaluation, ...]
    final: AdaptationCurve | None  # `None`: the run diverged
    random_init: AdaptationCurve | None
    diverged: str | None
    about: Mapping[str, Any]

    @property
    def title(self) -> str:
        """How it is called in messages."""
        return f"{self.name}, {self.label}, seed {self.seed}"

    @property
    def scores(self) -> Array:
        """The final scores, `[tasks, points]`."""
        assert self.final is not None
        found: Array = self.final.scores[0]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        plain = ("name", "label", "seed", "axis", "trained", "iterations", "env_steps", "gradients", "seconds")
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in (*plain, "cpu_seconds", "diverged")},
            "row": dict(self.row),
            "points": list(self.points),
            "evaluations": [evaluation._asdict() for evaluation in self.evaluations],
            "final": None if self.final is None else self.final.to_dict(),
            "random_init": None if self.random_init is None else self.random_init.to_dict(),
            "about": dict(self.about),
        }


# From the folder of a run.


def make_result(reference: ReferenceRun, run: AnyRun) -> Result:
    """The result of a run that is done."""
    baseline = isinstance(run, BaselineRun)
    label = reference.row.label
    row = read_row(Row(label, (run,), label, {}, baseline=baseline))
    final, random_init = (None, None) if row.scores is None else read_curves(run, row)
    return Result(
        name=reference.name,
        label=label,
        seed=reference.seed,
        row=describe_row(reference),
        axis=row.axis,
        points=row.points,
        trained=row.trained,
        iterations=row.iterations,
        env_steps=round(row.last("oracle/env_steps")),
        gradients=round(row.last("oracle/gradients")),
        seconds=row.last("time/seconds"),
        cpu_seconds=row.last("time/cpu_seconds"),
        evaluations=read_evaluations(row.lines[0], row.axis, row.points),
        final=final,
        random_init=random_init,
        diverged=row.diverged.get(reference.seed),
        about=describe_making(run),
    )


def describe_row(reference: ReferenceRun) -> dict[str, Any]:
    """What a result depends on in the table."""
    row = reference.row
    return {"options": row.options, "baseline": row.baseline, "env_steps": row.env_steps}


def read_curves(run: AnyRun, row: RowResult) -> tuple[AdaptationCurve, AdaptationCurve | None]:
    """The adaptation curves of the trained and of the initial parameters; rl2 and ppo have no initial ones."""
    assert row.scores is not None
    found = configs.read_if_whole(run.folder / "evaluation.json")
    if found is not None and "random_init" in found:
        whole = (AdaptationCurve.from_dict(found), AdaptationCurve.from_dict(found["random_init"]))
        trained, untrained = (cut(curve, len(row.points)) for curve in whole)
        return trained, untrained
    tasks = row.scores.shape[1]
    drawn = first_tasks(build_distribution(run.config), tasks)
    total = np.rint(row.spent * tasks).astype(np.int64)
    return AdaptationCurve(row.scores, "return", drawn, costs={"env_steps": total}), None


def cut(curve: AdaptationCurve, points: int) -> AdaptationCurve:
    """The first points of the curve; the oracle has only one."""
    return AdaptationCurve(
        curve.scores[..., :points],
        curve.score_name,
        curve.tasks,
        None if curve.success is None else curve.success[..., :points],
        {unit: spent[:, :points] for unit, spent in curve.costs.items()},
        curve.step_sizes[: points - 1],
    )


def read_evaluations(lines: Sequence[Line], axis: str, points: Sequence[float]) -> tuple[Evaluation, ...]:
    """The evaluations during training that have a finite score at every point."""
    found = []
    for line in lines:
        tags = [f"return_{axis}_{point:g}" for point in points]
        means = [line.get(f"eval/{tag}") for tag in tags]
        halves = [line.get(f"eval_ci95/{tag}") for tag in tags]
        if any(mean is None for mean in means):
            continue
        both = [(mean, half) for mean, half in zip(means, halves, strict=True) if mean is not None]
        ci95 = tuple(None if half is None else (mean - half, mean + half) for mean, half in both)
        spent = round(line.get("oracle/env_steps") or 0.0)
        found.append(Evaluation(int(line["iteration"] or 0), spent, tuple(mean for mean, _ in both), ci95))
    return tuple(found)


def describe_making(run: AnyRun) -> dict[str, Any]:
    """The settings without places, versions, commit and hardware."""
    if isinstance(run, BaselineRun):
        settings = describe(run.name, run.config, run.env_steps, {})
    else:
        settings = configs.settings(settle(run.config))
    saved = configs.read_if_whole(run.folder / "config.json") or configs.describe_setup(run.config)
    return {
        "settings": {name: value for name, value in settings.items() if name not in FREE},
        "versions": saved["versions"],
        "commit": saved["commit"],
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "device": saved["device_name"]},
    }


def cpu_name() -> str:
    """The processor's model."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


# Files.


def round_numbers(value: Any) -> Any:
    """The value for JSON, with every number rounded to `DIGITS` digits.

    Example:
        >>> round_numbers({"mean": (-12.3456789123,), "ci95": None})
        {'mean': [-12.34568], 'ci95': None}
    """
    if isinstance(value, Mapping):
        return {str(key): round_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [round_numbers(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return str(value) if isinstance(value, Path) else value


def to_text(result: Result) -> str:
    """The file: sorted keys, and lists of numbers in one line."""
    text = json.dumps(round_numbers(result.to_dict()), indent=1, sort_keys=True, allow_nan=False)
    return re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def write_result(path: Path, result: Result) -> None:
    """Write the file, atomically."""
    write_atomically(path, lambda file: file.write(to_text(result).encode()))


def read_result(path: Path) -> Result:
    """The result in a file.

    Raises:
        ValueError: when the file is damaged, or another version wrote it.
        OSError: when it cannot be read.
    """
    try:
        found = configs.read_object(path)
        if found.get("format") != FORMAT:
            raise ValueError(f"its format is {found.get('format')!r}, not {FORMAT}")
        return from_dict(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} must be a result of metarl reproduce: {what}") from None


def from_dict(found: Mapping[str, Any]) -> Result:
    """The result of `to_dict()`."""
    final, untrained = (
        None if found[name] is None else AdaptationCurve.from_dict(found[name]) for name in ("final", "random_init")
    )
    points = tuple(float(point) for point in found["points"])
    if final is not None and (final.scores.shape[::2] != (1, len(points)) or not np.isfinite(final.scores).all()):
        raise ValueError(f"final must have finite scores [1, tasks, {len(points)}], got {final.scores.shape}")
    if (final is None) == (found["diverged"] is None) or not points:
        raise ValueError("final, diverged and points do not fit each other")
    _check_points(found, points, final)
    evaluations = tuple(_read_evaluation(entry, len(points)) for entry in found["evaluations"])
    for name, total in (("iteration", "iterations"), ("env_steps", "env_steps")):
        values = [getattr(evaluation, name) for evaluation in evaluations]
        if values != sorted(values) or values[-1:] > [found[total]]:
            raise ValueError(f"{name} of the evaluations must rise to {found[total]} at most, got {values}")
    plain: dict[str, Any] = {
        **{name: str(found[name]) for name in ("name", "label", "axis")},
        **{name: int(found[name]) for name in ("seed", "trained", "iterations", "env_steps", "gradients")},
        **{name: float(found[name]) for name in ("seconds", "cpu_seconds")},
        **{name: dict(found[name]) for name in ("row", "about")},
    }
    return Result(
        **plain,
        points=points,
        evaluations=evaluations,
        final=final,
        random_init=untrained,
        diverged=None if found["diverged"] is None else str(found["diverged"]),
    )


def _check_points(found: Mapping[str, Any], points: tuple[float, ...], final: AdaptationCurve | None) -> None:
    """Raise a `ValueError` unless axis, points and trained point follow from the settings and from what was spent."""
    count, made_with = len(points), found["about"]["settings"]
    axis = "step" if final is None else AXES.get(found["row"]["baseline"], "step")
    if found["axis"] != axis:
        raise ValueError(f"axis must be {axis} with the baseline of the row, got {found['axis']!r}")
    trained = trained_point(axis, count, made_with["outer"], made_with["inner_steps"])
    if found["trained"] != trained:
        raise ValueError(f"trained must be {trained} with the settings of the run, got {found['trained']!r}")
    if axis == "step":
        wanted = [float(k) for k in range(count)]
    elif axis == "episode":
        wanted = [float(k + 1) for k in range(count)]
    else:
        assert final is not None  # the axis of a run that diverged is step
        spent = np.asarray(final.costs["env_steps"][0], np.float64) / final.scores.shape[1]
        wanted = (spent / adaptation_steps(made_with["horizon"])).tolist()
    if not np.allclose(points, wanted, rtol=10.0 ** (1 - DIGITS), atol=0.0):
        raise ValueError(f"points must be the {axis}s {wanted}, got {list(points)}")


def _read_evaluation(entry: Mapping[str, Any], points: int) -> Evaluation:
    mean = tuple(float(value) for value in entry["mean"])
    ci95 = tuple(None if ends is None else (float(ends[0]), float(ends[1])) for ends in entry["ci95"])
    if not len(mean) == len(ci95) == points:
        raise ValueError(f"evaluations must have {points} means and intervals, got {len(mean)} and {len(ci95)}")
    return Evaluation(int(entry["iteration"]), int(entry["env_steps"]), mean, ci95)
