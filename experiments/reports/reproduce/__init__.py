"""Train the reference runs again and compare them with the committed results, or write results that are missing.

    metarl reproduce navigation --quick
    metarl reproduce navigation --rows maml fo_maml --seeds 0
    metarl reproduce half_cheetah_direction --missing
    metarl reproduce --list
    metarl reproduce --report

A result is a JSON file in `results/NAME`. A run without one writes it. A run with one is compared with it: *within its
interval*, or *DRIFTED* and exit code 1. Runs are trained one after the other. Ctrl-C stops them, and the same call
continues. `--report` writes the tables and pictures of docs/results.md from the JSON files alone. docs/reproduce.md
says what a comparison can see.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metarl.errors import check_int
from metarl.experiments.common import cli
from metarl.experiments.common.lock import FolderLock
from metarl.experiments.common.tables import markdown_table
from metarl.experiments.compare.jobs import Job, Progress, run_all
from metarl.experiments.compare.plan import count_cores
from metarl.experiments.compare.runs import AnyRun
from metarl.experiments.reports.reproduce import again, drift, page, table
from metarl.experiments.reports.reproduce.drift import Verdict
from metarl.experiments.reports.reproduce.plan import ReferenceRun, build, choose
from metarl.experiments.reports.reproduce.quick import QuickRun, first_evaluation, make_quick
from metarl.experiments.reports.reproduce.result import (
    Result,
    describe_making,
    describe_row,
    make_result,
    read_result,
    round_numbers,
    write_result,
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which runs, and what to do with them."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of the table, such as navigation; --list shows them. --list and --report take all without a name."""
    rows: tuple[str, ...] = ()
    """Labels of rows. Default: all rows."""
    seeds: tuple[int, ...] = ()
    """Seeds, of those in the table. Default: all of them."""
    missing: bool = False
    """Only runs without a committed result."""
    update: bool = False
    """Replace committed results by the new ones, after the comparison."""
    quick: bool = False
    """Train up to the first evaluation and compare with the committed one at that iteration."""
    list: bool = False
    """Print the table and what is done, and train nothing."""
    report: bool = False
    """Write tables and pictures from the committed results, and train nothing."""
    jobs: int = 1
    """Runs at a time. They share the cores."""
    log_dir: Path = Path("runs/reproduce")
    """Folder of the runs."""
    results: Path = Path("results")
    """Folder of the committed results, which a clone of the repository has."""
    page: Path = Path("docs/results.md")
    """The page that --report writes to, with a folder `pictures` beside it."""


Committed = Mapping[ReferenceRun, Result]


@cli.one_line_errors("; the same call continues")
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl reproduce", __doc__)
    runs = cli.prepare(lambda: choose_runs(given))
    if given.list:
        print(list_runs(runs))
    elif given.report:
        cli.prepare(lambda: page.check(given.page, given.results, names_of(given)))
        page.write(given.page, given.results, names_of(given))
        print(f"{given.page} and its pictures are written")
    elif runs:
        run_chosen(given, runs)
    else:
        print("nothing is missing")


def run_chosen(given: Arguments, runs: Sequence[ReferenceRun]) -> None:
    """Train and compare; every setting and every committed result is checked before."""
    committed = cli.prepare(lambda: read_committed(runs))
    trainings = cli.prepare(lambda: build(runs))
    cli.prepare(lambda: check_runs(given, trainings, committed))
    with ExitStack() as stack:
        for place in dict.fromkeys(run.place for run in runs):
            place.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(place)
            cli.prepare(lock.acquire)
            stack.callback(lock.release)
        if given.quick:
            verdicts = run_quick(given, runs, trainings, committed)
        else:
            verdicts = run_whole(given, runs, trainings, committed)
    conclude(verdicts, given.update)


# Before anything is written.


def names_of(given: Arguments) -> Sequence[str]:
    """The names that were given; all of them for `--list` and `--report` without names."""
    return given.names or (tuple(table.REFERENCES) if given.list or given.report else ())


def choose_runs(given: Arguments) -> Sequence[ReferenceRun]:
    """The runs that the arguments choose.

    Raises:
        ValueError: naming the argument that cannot work.
    """
    check_int("jobs", given.jobs)
    ways = [name for name in ("list", "report", "quick", "missing", "update") if getattr(given, name)]
    if len(ways) > 1:
        raise ValueError(f"{ways[0]} does not go together with {ways[1]}; remove one of them")
    if not names_of(given):
        raise ValueError(f"names must be one or more of {', '.join(table.REFERENCES)}, got none")
    if given.report and (given.rows or given.seeds):
        raise ValueError("rows and seeds do not apply with report, which shows all results; remove them")
    found = choose(names_of(given), given.rows, given.seeds, given.log_dir, given.results)
    if given.quick and not given.results.is_dir():
        raise ValueError(
            f"results must be the folder of the committed results, got {given.results}, which does not exist; clone"
            " the repository, or give --results FOLDER"
        )
    return [run for run in found if not given.missing or not run.result.is_file()]


def read_committed(runs: Sequence[ReferenceRun]) -> Committed:
    """The committed results of the chosen rows, also those of other seeds.

    Raises:
        ValueError: when a file is damaged, or is the result of another run.
    """
    found: dict[ReferenceRun, Result] = {}
    for run in runs:
        for other in (run._replace(seed=seed) for seed in {run.seed, *run.row.seeds}):
            if other not in found and other.result.is_file():
                result = found[other] = read_result(other.result)
                if (result.name, result.label, result.seed) != (other.name, other.row.label, other.seed):
                    raise ValueError(f"{other.result} must be the result of {other.title}, got that of {result.title}")
    return found


def check_runs(given: Arguments, trainings: Mapping[ReferenceRun, AnyRun], committed: Committed) -> None:
    """Raise a `ValueError` for what cannot be compared or written."""
    for run, training in trainings.items():
        if not given.quick:
            training.is_done()  # names a setting that differs from the run in its folder
            cli.check_output("results", run.result)
        if run in committed and not given.update:
            now = round_numbers(describe_making(training)["settings"])
            drift.check_row(committed[run], describe_row(run), now, run.result)
    cli.check_output_folder("log_dir", given.log_dir)


# Training.


@dataclass(frozen=True)
class Reproduce:
    """Train a run, and write its result if that is missing."""

    run: ReferenceRun
    training: AnyRun

    @property
    def job(self) -> Job:
        return Job(self.run.title, self.training.config.iterations, self)

    def __call__(self, progress: Progress) -> None:
        """Train from the last checkpoint, or from the beginning."""
        self.training.job.work(progress)
        write_missing(self.run, self.training)


def write_missing(run: ReferenceRun, training: AnyRun) -> Result:
    """The result of a run that is done, written unless there is one already."""
    result = make_result(run, training)
    if not run.result.exists():
        write_result(run.result, result)
    return result


def run_whole(
    given: Arguments,
    runs: Sequence[ReferenceRun],
    trainings: Mapping[ReferenceRun, AnyRun],
    committed: Committed,
) -> dict[ReferenceRun, Verdict]:
    """Train what is to train; write the results that are missing, and compare the others."""
    if not given.results.is_dir():
        print(f"{given.results}: there is no such folder, so nothing is compared; results are written there")
    to_compare = [run for run in runs if run in committed]
    again.start_again(to_compare, trainings)
    waiting = [Reproduce(run, trainings[run]).job for run in runs if not trainings[run].is_done()]
    train(given, runs, waiting)
    verdicts = {}
    for run in runs:
        result = write_missing(run, trainings[run])
        if run in committed:
            verdicts[run] = drift.compare(result, committed[run], row_of(run, committed))
            if given.update:
                write_result(run.result, result)
        else:
            said = result.diverged or f"{result.axis} {drift.points(result)}: {drift.means(result)}"
            print(f"{run.title}: written to {run.result}\n    {said}")
    again.end(to_compare)
    return verdicts


def row_of(run: ReferenceRun, committed: Committed) -> list[Result]:
    """The committed results of all seeds of the run's row."""
    return [result for other, result in committed.items() if other[:2] == run[:2]]


def run_quick(
    given: Arguments,
    runs: Sequence[ReferenceRun],
    trainings: Mapping[ReferenceRun, AnyRun],
    committed: Committed,
) -> dict[ReferenceRun, Verdict]:
    """Train the beginnings of the runs that have a committed evaluation, and compare them."""
    quick: dict[ReferenceRun, QuickRun] = {}
    for run in runs:
        first = first_evaluation(committed[run]) if run in committed else None
        if first is None:
            print(f"{run.title}: no {'evaluation during training' if run in committed else 'result'} to compare with")
        else:
            quick[run] = make_quick(run, trainings[run], first.iteration)
    train(given, list(quick), [found.job for found in quick.values()])
    verdicts = {}
    for run, found in quick.items():
        first = first_evaluation(committed[run])
        assert first is not None
        verdicts[run] = drift.compare_beginning(
            found.read(committed[run]), first, committed[run], row_of(run, committed)
        )
    return verdicts


def train(given: Arguments, runs: Sequence[ReferenceRun], jobs: Sequence[Job]) -> None:
    """Run the jobs. Jobs that run at the same time share the cores."""
    threads = max(1, count_cores() // given.jobs)
    print(f"{given.log_dir}: {len(runs)} runs, {len(jobs)} to train, {given.jobs} at a time", flush=True)
    run_all(jobs, given.jobs, threads=threads)


# What is printed.


def conclude(verdicts: Mapping[ReferenceRun, Verdict], update: bool) -> None:
    """Print every verdict. Exit code 1 if a run has drifted, unless the results were updated."""
    for run, verdict in verdicts.items():
        print(f"{run.title}: {'DRIFTED' if verdict.drifted else 'within its interval'}\n    {verdict.text}")
    drifted = [run.title for run, verdict in verdicts.items() if verdict.drifted]
    if update and verdicts:
        print(f"{len(verdicts)} results are updated")
    elif drifted:
        cli.fail(f"{len(drifted)} of {len(verdicts)} runs drifted: {', '.join(drifted)}", cli.FAILED)


def list_runs(runs: Sequence[ReferenceRun]) -> str:
    """The table of the runs and their states: committed, begun or missing."""
    rows = [
        [run.name, run.row.label, str(run.seed), f"{run.row.env_steps / 1e6:g} M", run.describe_state(), what(run)]
        for run in runs
    ]
    return markdown_table(["name", "row", "seed", "steps", "state", "options of metarl train"], rows, align=True)


def what(run: ReferenceRun) -> str:
    """What a row is, in words of the command line."""
    baseline = f"baseline {run.row.baseline}" if run.row.baseline else ""
    return " ".join(part for part in (baseline, run.row.options) if part) or "its defaults"
