"""The table of a comparison as Markdown, LaTeX and CSV, and its scores one by one."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

from metarl.experiments.common.tables import markdown_table, with_interval
from metarl.experiments.compare.results import RowResult, Summary
from metarl.outer import OUTER


def points(summaries: Iterable[Summary]) -> int:
    """The largest number of points of a curve, at least 1."""
    return max([1, *(len(summary.get("mean", ())) for summary in summaries)])


def head_and_rows(summaries: Mapping[str, Summary]) -> tuple[list[str], list[list[str]]]:
    """The heads of the columns, and the cells of each row, for readers."""
    steps = points(summaries.values())
    head = ["row", *(f"step {k}" for k in range(steps)), "iterations", "environment steps", "CPU s / iteration"]
    rows = []
    for label, row in summaries.items():
        cells = [with_interval(*cell) for cell in zip(row.get("mean", ()), row.get("ci95", ()), strict=True)]
        if row["axis"] != "step":
            cells = [f"{row['axis']} {point:g}: {cell}" for point, cell in zip(row["points"], cells, strict=True)]
        if row["diverged"]:
            cells = [f"diverged ({len(row['diverged'])} of {len(row['seeds'])} seeds)"]
        cells += [""] * (steps - len(cells))
        cpu = "" if row["cpu_seconds_per_iteration"] is None else f"{row['cpu_seconds_per_iteration']:.2f}"
        rows.append([label, *cells, f"{row['iterations']}", f"{row['env_steps'] / 1e6:.3g} M", cpu])
    return head, rows


def markdown(summaries: Mapping[str, Summary]) -> str:
    """The table in Markdown."""
    head, rows = head_and_rows(summaries)
    return markdown_table(head, [[f"`{row[0]}`" if row[0] in OUTER else row[0], *row[1:]] for row in rows])


LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
}
"""What LaTeX would not print as it is."""


def latex_text(text: str) -> str:
    """`text` as LaTeX prints it.

    Example:
        >>> print(latex_text("<b>&_%"))
        \\textless{}b\\textgreater{}\\&\\_\\%
    """
    return "".join(LATEX.get(letter, letter) for letter in text)


def latex(summaries: Mapping[str, Summary]) -> str:
    """The table as a LaTeX `tabular`; it needs the package booktabs."""
    head, rows = head_and_rows(summaries)
    lines = [" & ".join(_latex_cell(cell) for cell in line) + r" \\" for line in (head, *rows)]
    body = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join(["% \\usepackage{booktabs}", *body, r"\bottomrule", r"\end{tabular}", ""])


def _latex_cell(text: str) -> str:
    """A cell; the minus of a number is set as one."""
    return re.sub(r"(?<![\w.)])-(?=\d)", "$-$", latex_text(text)) if re.match(r"^-?\d", text) else latex_text(text)


def table_csv(summaries: Mapping[str, Summary]) -> str:
    """A line for each row: mean and interval after each step, and what training spent."""
    steps = range(points(summaries.values()))
    spent = ("iterations", "env_steps", "gradients", "cpu_seconds", "seconds")
    head = ["row", *(f"step_{k}_{name}" for k in steps for name in ("mean", "low", "high")), "diverged", *spent]
    rows = []
    for label, row in summaries.items():
        means, intervals = row.get("mean", []), row.get("ci95", [])
        cells: list[object] = []
        for k in steps:
            cells += [means[k], *(intervals[k] or ("", ""))] if k < len(means) else ["", "", ""]
        rows.append([label, *cells, len(row["diverged"]), *(row[name] for name in spent)])
    return _csv(head, rows)


def scores_csv(rows: Iterable[RowResult]) -> str:
    """A line for each row, seed, task and step: the score of one task after one number of steps."""
    found = [
        [row.label, seed, task, step, float(row.spent[s, step]), float(row.scores[s, task, step])]
        for row in rows
        if row.scores is not None
        for s, seed in enumerate(row.seeds)
        for task in range(row.scores.shape[1])
        for step in range(row.scores.shape[2])
    ]
    return _csv(["row", "seed", "task", "step", "adaptation_env_steps", "score"], found)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([head, *rows])
    return file.getvalue()
