"""The tables of the results' page, from the committed results alone.

A block of the page begins with `<!-- reproduce NAME -->` and ends with `<!-- end -->`; what is between them is written.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from metarl.experiments.common import cli
from metarl.experiments.common.tables import markdown_table, with_interval
from metarl.experiments.reports.reproduce import pictures, table
from metarl.experiments.reports.reproduce.rows import CommittedRow, compare_with_multitask, read_rows, steps, untrained
from metarl.experiments.reports.reproduce.table import Published
from metarl.files import write_atomically

BLOCK = re.compile(r"<!-- reproduce (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def check(path: Path, results: Path, names: Sequence[str]) -> None:
    """Raise a `ValueError` unless the page can be written from the results."""
    if not results.is_dir():
        raise ValueError(
            f"results must be the folder of the committed results, got {results}, which does not exist; clone the"
            " repository, or give --results FOLDER"
        )
    if not path.is_file():
        raise ValueError(f"page must be a file with blocks '<!-- reproduce NAME -->', got {path}, which does not exist")
    cli.check_output("page", path)
    fill(path.read_text(encoding="utf-8"), results, names)


def write(path: Path, results: Path, names: Sequence[str]) -> None:
    """Write the blocks of these names. A name that has results also gets its picture."""
    text = fill(path.read_text(encoding="utf-8"), results, names)
    for name in names:
        if rows := read_rows(results, name):
            write_atomically(path.parent / picture(name), pictures.draw_rows(name, rows).savefig)
    write_atomically(path, lambda file: file.write(text.encode()))


def fill(text: str, results: Path, names: Sequence[str]) -> str:
    """The page with the blocks of these names written; other blocks stay.

    Raises:
        ValueError: for a block of an unknown name, for results without a block, and for results that do not fit.
    """
    blocks = [match[1] for match in BLOCK.finditer(text)]
    if unknown := [name for name in blocks if name not in table.REFERENCES]:
        raise ValueError(f"page must have blocks of {', '.join(table.REFERENCES)}, got {unknown[0]!r}")
    rows = {name: read_rows(results, name) for name in names}
    contents = {name: block(name, rows[name]) for name in names}
    for name in names:
        if name not in blocks and rows[name]:
            raise ValueError(
                f"page must have a block for the results of {name}: <!-- reproduce {name} -->, <!-- end -->"
            )

    def replace(match: re.Match[str]) -> str:
        content = contents.get(match[1])
        return match[0] if content is None else f"<!-- reproduce {match[1]} -->\n{content}<!-- end -->"

    return BLOCK.sub(replace, text)


def picture(name: str) -> str:
    """The file of a name's picture, relative to the page."""
    return f"pictures/reproduce_{name}.png"


def block(name: str, rows: Sequence[CommittedRow]) -> str:
    """What stands between the comments."""
    reference = table.REFERENCES[name]
    parts = [f"    metarl reproduce {name}"]
    if rows:
        first = untrained(rows)
        parts += [results_table([*rows, *([first] if first else [])]), notes(rows)]
        if lines := lines_of_kinds(rows):
            head = ["row", "tasks", *(f"step {k}" for k in range(len(lines[0]) - 2))]
            parts += ["Mean returns of each kind of task:", markdown_table(head, lines)]
        if sentence := compare_with_multitask(rows):
            parts.append(sentence)
        parts.append(f"![{name}: held-out return during training, and after each step]({picture(name)})")
    else:
        parts.append("No result is committed yet.")
    if reference.published:
        parts += ["Published:", published_table(reference.published)]
    if reference.remark:
        parts.append(reference.remark)
    return "\n" + "\n\n".join(parts) + "\n\n"


def results_table(rows: Sequence[CommittedRow]) -> str:
    """A line for each row."""
    most = max(len(row.first.points) for row in rows)
    head = ["row", *(f"step {k}" for k in range(most)), "iterations", "steps of training", "hours", "seeds"]
    return markdown_table(head, [cells_of(row, most) for row in rows])


def lines_of_kinds(rows: Sequence[CommittedRow]) -> list[list[str]]:
    """For each row of gradient steps whose tasks are of two kinds, a line for each kind."""
    lines = []
    for row in rows:
        if row.finite and row.first.axis == "step":
            for kind, which in row.kinds.items():
                means = row.scores[:, which].mean((0, 1))
                lines.append([quoted(row.label), f"{which.sum()} with {kind}", *(f"{mean:.1f}" for mean in means)])
    most = max(map(len, lines), default=0)
    return [line + [""] * (most - len(line)) for line in lines]


def quoted(label: str) -> str:
    """The label of a row; names of updates as code."""
    return f"`{label}`" if " " not in label else label


def cells_of(row: CommittedRow, most: int) -> list[str]:
    """The cells of a row; points that are not gradient steps are named."""
    if not row.finite:
        bad = [str(result.seed) for result in row.results if result.final is None]
        cells = [f"diverged (seed {', '.join(bad)})"]
    else:
        cells = [with_interval(*cell) for cell in zip(row.means, row.intervals, strict=True)]
        if row.first.axis != "step":
            named = zip(row.first.points, cells, strict=True)
            cells = [f"{row.first.axis} {point:g}: {cell}" for point, cell in named]
    cells += [""] * (most - len(cells))
    trained = row.mean_of("iterations") > 0
    cost = (
        [f"{row.mean_of('iterations'):.0f}", steps(row), f"{row.mean_of('seconds') / 3600:.2g}"]
        if trained
        else [""] * 3
    )
    return [quoted(row.label), *cells, *cost, str(len(row.results))]


def notes(rows: Sequence[CommittedRow]) -> str:
    """What the intervals are over, and where the numbers were made."""
    counts = {len(row.results) for row in rows}
    over = ["seeds and tasks"] if max(counts) > 1 else []
    over += ["the tasks of the one seed"] if min(counts) == 1 else []
    abouts = [result.about for row in rows for result in row.results]
    machines = sorted({f"{about['hardware']['cpu']}, {about['hardware']['cores']} cores" for about in abouts})
    versions = sorted({f"torch {about['versions']['torch']}" for about in abouts})
    tasks = max((len(row.first.scores) for row in rows if row.finite), default=0)
    lines = " Thin lines in the picture are single seeds." if max(counts) > 1 else ""
    return (
        f"Mean return on {tasks} held-out tasks with 95 % intervals over {', or over '.join(over)}. Steps and hours are"
        f" those of one run; hours depend on what else the machine does. Made on {'; '.join(machines)}, with"
        f" {', '.join(versions)}.{lines}{''.join(budgets(row) for row in rows if row.first.axis == 'budget')}"
    )


def budgets(row: CommittedRow) -> str:
    """What a budget is, and on how many tasks."""
    final = row.first.final
    if final is None:
        return ""
    tasks = final.scores.shape[1]
    steps = float(final.costs["env_steps"][0, 1]) / tasks / row.first.points[1]
    return (
        f" {quoted(row.label)} learns each of the first {tasks} tasks alone, and is not in the picture:"
        f" a budget of 1 is {steps:,.0f} environment steps of the task."
    )


def published_table(published: Sequence[Published]) -> str:
    """The published rows with their sources."""
    rows = []
    for row in published:
        steps_then_after = [*row.returns, ""] if len(row.returns) > 1 else ["", "", "", "", *row.returns]
        rows.append([row.label, *steps_then_after, row.source])
    return markdown_table(["", *(f"step {k}" for k in range(4)), "after adaptation", "source"], rows)
