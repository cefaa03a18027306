"""Train several outer updates with equal environment steps and compare how fast they adapt to held-out tasks.

    metarl compare --env navigation --env-steps 12000000 --seeds 0 1 2 --out runs/comparison
    metarl compare --rows "Adam:" "SGD: --outer-step sgd --learning-rate 0.1" --options="--hidden 64 64"
    metarl compare --outer maml fo_maml --set maml.inner_lr=0.2 --sweep learning_rate 0.001 0.003 0.01

A row is an update of `--outer`, or a label and options of `metarl train` in `--rows`; `--sweep` makes a row for every
value; `--baselines` adds rows to compare with. The budget of environment steps gives each row its number of iterations,
over which the outer step size is annealed. Runs train side by side, in a process each. Ctrl-C stops them, and the same
call continues: finished runs are recognised by their settings.

The folder gets the runs, curves of training and adaptation, the table as CSV, JSON, Markdown and LaTeX, and all of it
on one page, `report.html`.
"""

from metarl.experiments.common import cli
from metarl.experiments.common.lock import FolderLock
from metarl.experiments.compare.jobs import run_all
from metarl.experiments.compare.plan import RESULTS, Arguments, Row, count_jobs, plan
from metarl.experiments.compare.results import read_row
from metarl.experiments.compare.write import write_results
from metarl.files import write_json


@cli.one_line_errors("; the same call continues")
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl compare", __doc__)
    rows = cli.prepare(lambda: plan(given))
    given.out.mkdir(parents=True, exist_ok=True)
    with cli.prepare(lambda: hold(given)):
        compare(given, rows)


def hold(given: Arguments) -> FolderLock:
    """The lock of the comparison's folder, taken."""
    lock = FolderLock(given.out)
    lock.acquire()
    return lock


def compare(given: Arguments, rows: list[Row]) -> None:
    """Train what is missing, then write the results and print the table."""
    if not (given.out / RESULTS).exists():
        write_json(given.out / RESULTS, {})  # from now on the folder is a comparison's
    runs = [run for row in rows for run in row.runs]
    missing = [run for run in runs if not run.is_done()]
    done = sum(run.config.iterations for run in runs) - sum(run.config.iterations for run in missing)
    print(f"{given.out}: {len(runs)} runs, {len(missing)} to train, {count_jobs(given)} at a time", flush=True)
    run_all([run.job for run in missing], count_jobs(given), done)
    write_results(given, [read_row(row) for row in rows])
