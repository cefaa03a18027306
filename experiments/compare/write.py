"""The files of a comparison: tables, scores, pictures and the report."""

from collections.abc import Sequence
from pathlib import Path

from metarl.experiments.common.config import describe_setup
from metarl.experiments.compare.pictures import adaptation_curves, curves_figure, heat_map
from metarl.experiments.compare.plan import RESULTS, Arguments
from metarl.experiments.compare.report import report
from metarl.experiments.compare.results import RowResult, summarize
from metarl.experiments.compare.tables import latex, markdown, scores_csv, table_csv
from metarl.files import write_atomically, write_json


def write_results(given: Arguments, rows: Sequence[RowResult]) -> None:
    """Write everything and print the table."""
    out = given.out
    summaries = {row.label: summarize(row) for row in rows}
    write_text(out / "table.md", markdown(summaries) + "\n")
    write_text(out / "table.tex", latex(summaries))
    write_text(out / "table.csv", table_csv(summaries))
    write_text(out / "scores.csv", scores_csv(rows))

    about = f"{given.env}: held-out tasks"
    figures = {
        "curves": curves_figure(rows, f"{about} during training"),
        "adaptation": adaptation_curves(rows, f"{about} after {given.env_steps / 1e6:g} M training steps"),
    }
    if given.sweep:
        figures["heat_map"] = heat_map([row for row in rows if row.cell], about)
    for name, figure in figures.items():
        write_atomically(out / f"{name}.png", figure.savefig)
    setup = describe_setup(given)
    write_text(out / "report.html", report(given, rows, summaries, setup))
    write_json(out / RESULTS, {"settings": setup, "rows": summaries})
    print(markdown(summaries))
    print(f"look at {out / 'report.html'}; tables, pictures and runs are in {out}")


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))
