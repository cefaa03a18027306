"""The chosen reference runs: their folders, their committed results, and how they are trained."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from metarl.errors import check_choice, did_you_mean
from metarl.experiments.common import options
from metarl.experiments.common.config import read_if_whole
from metarl.experiments.compare.plan import RUNS, Arguments, file_stem, make_baseline, make_row, read_rows
from metarl.experiments.compare.runs import AnyRun, BaselineRun
from metarl.experiments.reports.reproduce import table
from metarl.experiments.reports.reproduce.table import ReferenceRow
from metarl.logging import read_metrics


class ReferenceRun(NamedTuple):
    """A row with one seed."""

    name: str
    row: ReferenceRow
    seed: int
    log_dir: Path
    results: Path

    @property
    def title(self) -> str:
        """How it is called in messages, such as `navigation/maml-0`."""
        return f"{self.name}/{self.stem}"

    @property
    def stem(self) -> str:
        """The name of its folder, and of its result without `.json`."""
        return f"{file_stem(self.row.label)}-{self.seed}"

    @property
    def result(self) -> Path:
        """Where its committed result is, or will be."""
        return self.results / self.name / f"{self.stem}.json"

    @property
    def place(self) -> Path:
        """The folder of all runs of its name."""
        return self.log_dir / self.name

    @property
    def folder(self) -> Path:
        """The folder that it is trained in."""
        return self.place / RUNS / self.stem

    def describe_state(self) -> str:
        """What there is of it: a committed result, a run that has begun, or nothing."""
        begun = self._describe_begun()
        if self.result.is_file():
            return "committed" if begun is None else f"committed; again: {begun}"
        return begun or "missing"

    def _describe_begun(self) -> str | None:
        if not self.folder.exists():
            return None
        lines = read_metrics(self.folder)
        done = int(lines[-1]["iteration"] or 0) if lines else 0
        total = (read_if_whole(self.folder / "config.json") or {}).get("iterations")
        return "begun" if total is None else f"{done} of {total} iterations"


def choose(
    names: Sequence[str], labels: Sequence[str], seeds: Sequence[int], log_dir: Path, results: Path
) -> list[ReferenceRun]:
    """The runs with these names, labels and seeds, in the order of the table; without labels or seeds, all of them.

    Raises:
        ValueError: for names, labels and seeds that the table does not have.
    """
    options.check_each("names", names, partial(check_choice, choices=table.REFERENCES))
    if labels:
        options.check_distinct("rows", labels)
    if seeds:
        options.check_seeds(seeds)
    known = [row.label for name in names for row in table.REFERENCES[name].rows]
    for label in labels:
        if label not in known:
            near = did_you_mean(label, known)
            raise ValueError(f"rows must be among {', '.join(dict.fromkeys(known))}, got {label!r}{near}")
    found = [
        ReferenceRun(name, row, seed, log_dir, results)
        for name in names
        for row in table.REFERENCES[name].rows
        for seed in row.seeds
        if (not labels or row.label in labels) and (not seeds or seed in seeds)
    ]
    for seed in seeds:
        if seed not in (run.seed for run in found):
            raise ValueError(f"seeds must be those of the chosen rows, which do not have {seed}")
    return found


def build(runs: Sequence[ReferenceRun]) -> dict[ReferenceRun, AnyRun]:
    """The runs of a comparison that they are. Building them checks every setting.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    found: dict[ReferenceRun, AnyRun] = {}
    for first in runs:
        if first not in found:  # the runs of a row are built together: counting its iterations takes a second
            of_row = [run for run in runs if run[:2] == first[:2]]
            found.update(zip(of_row, _build_row(first, [run.seed for run in of_row]), strict=True))
    return {run: found[run] for run in runs}


def _build_row(first: ReferenceRun, seeds: Sequence[int]) -> list[AnyRun]:
    row = first.row
    given = Arguments(
        env=table.REFERENCES[first.name].env,
        rows=(f"{row.label}: {row.options}",),
        seeds=tuple(seeds),
        env_steps=row.env_steps,
        out=first.place,
    )
    config = read_rows(given)[row.label]
    if row.baseline is None:
        return list(make_row(given, row.label, row.label, config, {}).runs)
    runs = make_baseline(given, row.baseline, config).runs
    folders = [first._replace(seed=seed).folder for seed in seeds]
    return [
        dataclasses.replace(run, folder=folder)
        for run, folder in zip(runs, folders, strict=True)
        if isinstance(run, BaselineRun)
    ]
