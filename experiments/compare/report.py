"""`report.html`: a comparison on one page, without anything from the network."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from metarl.experiments.common.config import read_if_whole, settings
from metarl.experiments.common.tables import with_interval
from metarl.experiments.compare.charts import Series, line_chart
from metarl.experiments.compare.pairs import MOST_ROWS, compare_rows, describe_rows
from metarl.experiments.compare.pictures import COLORS, mean_curve, metric
from metarl.experiments.compare.plan import Arguments
from metarl.experiments.compare.results import AXES, RowResult, Summary
from metarl.experiments.compare.tables import head_and_rows
from metarl.experiments.train import TrainConfig
from metarl.statistics import Estimate
from metarl.task_params import split_columns

HERE = Path(__file__).parent
DASHES = ("", "7 4", "2 3", "9 3 2 3")
WIDEST = 900  # pixels of an embedded picture
PLACE = ("log_dir", "name", "seed", "resume", "iterations")  # settings that differ between the runs of a row


def report(
    given: Arguments, rows: Sequence[RowResult], summaries: Mapping[str, Summary], setup: Mapping[str, Any]
) -> str:
    """The whole page."""
    parts = {
        "table": ("Table", table_section(summaries)),
        "sweep": ("Sweep", sweep_section(given.out / "heat_map.png") if given.sweep else ""),
        "adaptation": ("Adaptation", adaptation_section(rows)),
        "training": ("Training", training_section(rows)),
        "statistics": ("Statistics", statistics_section(rows)),
        "tasks": ("Tasks", tasks_section(rows)),
        "behaviour": ("Behaviour", behaviour_section(rows)),
        "configuration": ("Configuration", configuration_section(rows, setup)),
    }
    parts = {name: part for name, part in parts.items() if part[1]}
    links = "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in parts.items())
    body = "".join(f'<h2 id="{name}">{title}</h2>{text}' for name, (title, text) in parts.items())
    seeds = ", ".join(map(str, given.seeds))
    kinds = {(row.tasks, row.scores.shape[1]) for row in rows if row.scores is not None}
    same = ", the same for all rows" if len(kinds) <= 1 else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(given.env)}: {len(rows)} rows compared</title>"
        f"<style>{(HERE / 'report.css').read_text(encoding='utf-8')}</style></head><body>"
        f"<h1>{escape(given.env)}: {len(rows)} rows compared</h1>"
        f'<p class="weak">{given.env_steps / 1e6:g} million environment steps of training each; seeds {seeds}. '
        f"Scores are undiscounted returns on held-out tasks{same}; intervals hold with 95 % over seeds and"
        f" tasks.</p><nav>{links}</nav>{body}"
        f"<script>{(HERE / 'report.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def escape(text: object) -> str:
    """Text as HTML shows it."""
    return html.escape(str(text))


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], last: str = "") -> str:
    """A table of plain texts in a box that scrolls; `last` is the class of the last column."""
    cells = [
        [f"<td>{escape(cell)}</td>" for cell in row[:-1]] + [f'<td class="{last}">{escape(row[-1])}</td>']
        for row in rows
    ]
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def legend(rows: Sequence[RowResult]) -> str:
    """The rows and their lines, once for all charts of a section."""
    lines = []
    for number, row in enumerate(rows):
        color, dashes = style(number)
        sample = f'<line x1="0" y1="6" x2="34" y2="6" stroke="{color}" stroke-width="2.5" stroke-dasharray="{dashes}"/>'
        lines.append(f'<li><svg width="34" height="12" aria-hidden="true">{sample}</svg>{escape(row.label)}</li>')
    return f'<ul class="legend">{"".join(lines)}</ul>'


def style(number: int) -> tuple[str, str]:
    """The colour and the dashes of a row, as in the pictures."""
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


# Sections.


def table_section(summaries: Mapping[str, Summary]) -> str:
    """The table of the comparison."""
    head, rows = head_and_rows(summaries)
    note = "Mean return after each gradient step of adaptation. Training of all rows used the same budget."
    return f"<p>{note}</p>{html_table(head, rows)}"


def adaptation_section(rows: Sequence[RowResult]) -> str:
    """Adaptation against gradient steps, and against environment steps."""
    charts = ""
    for name, xs_of in (("gradient steps", "points"), ("environment steps of adaptation, per task", "env_steps")):
        series = []
        for number, row in enumerate(rows):
            if row.axis == "step" or xs_of == "env_steps":
                xs = getattr(row, xs_of)
                ends = zip(xs, row.intervals, strict=False)
                band = [(x, *interval) for x, interval in ends if interval is not None]
                series.append(Series(row.label, *style(number), list(zip(xs, row.means, strict=False)), band))
        charts += line_chart(series, name, "return")
    note = "Bands are 95 % intervals over seeds and tasks. Point at a chart to read it."
    return f'<p>{note}</p>{legend(rows)}<div class="charts">{charts}</div>'


def training_section(rows: Sequence[RowResult]) -> str:
    """The held-out score during training, against all that training spends."""
    charts = ""
    for x, name in AXES.items():
        series = []
        for number, row in enumerate(rows):
            seeds = range(len(row.seeds)) if len(row.seeds) > 1 else ()
            thin = [list(row.curve(seed, x, metric(row)).values()) for seed in seeds]
            series.append(Series(row.label, *style(number), mean_curve(row, x), (), thin))
        charts += line_chart(series, name, "return after adaptation")
    if not charts:
        return "<p>No evaluation during training: the runs are shorter than <code>eval_every</code>.</p>"
    note = (
        "Return on held-out tasks after the steps that each row is trained for; thin lines are seeds. Runs trained side"
        " by side, so their seconds depend on each other and are not comparable; CPU seconds depend on it less."
    )
    return f'<p>{note}</p>{legend(rows)}<div class="charts">{charts}</div>'


def sweep_section(path: Path) -> str:
    """The heat map."""
    note = "Mean return after the steps that each row is trained for. A cross: a seed diverged."
    return f'<p>{note}</p><div class="wide">{picture(path, "heat map of the sweep")}</div>'


def statistics_section(rows: Sequence[RowResult]) -> str:
    """Rows alone, and all pairs."""
    described = describe_rows(rows)
    gaps = any(one.gap is not None for one in described)
    alone = [
        [one.label, show(one.middle), *(["" if one.gap is None else show(one.gap)] if gaps else [])]
        for one in described
    ]
    pairs = [
        [f"{pair.first} - {pair.second}", show(pair.difference), show(pair.improvement, 2)]
        for pair in compare_rows(rows)
    ]
    if not alone:
        return ""
    note = "The interquartile mean leaves out the lowest and the highest quarter of all seeds and tasks."
    note += " The gap to the oracle is the mean of what each score falls short of the oracle's." if gaps else ""
    text = f"<p>{note}</p>{html_table(['row', 'interquartile mean', *(['gap to the oracle'] if gaps else [])], alone)}"
    if pairs:
        which = "all pairs" if len(rows) <= MOST_ROWS else "pairs with the best row"
        text += (
            f"<p>Paired differences of {which} on the same seeds and tasks, after the steps that each row is trained"
            " for (rows without gradient steps: at their last point); and the probability that the first row scores"
            " higher on a random task. An interval of the difference without 0 is evidence that the rows differ.</p>"
            + html_table(["pair", "difference", "probability of improvement"], pairs)
        )
    return text


def show(estimate: Estimate, digits: int = 1) -> str:
    """An estimate with its interval."""
    return with_interval(estimate.value, estimate.interval, digits)


def tasks_section(rows: Sequence[RowResult]) -> str:
    """The score of every task before adaptation and after it, the mean over seeds."""
    shown = [row for row in rows if row.scores is not None]
    if not shown:
        return ""
    parameters, lines = task_columns(shown), []
    for task in range(max(row.final.shape[1] for row in shown)):
        cells = [f"{values[task]:.3g}" for values in parameters.values()]
        for row in shown:
            assert row.scores is not None
            if task < row.final.shape[1]:
                before, after = (float(row.scores[:, task, k].mean()) for k in (0, row.trained))
                cells.append(f"{before:.1f} → {after:.1f}" if row.trained else f"{after:.1f}")
            else:
                cells.append("")
        lines.append([str(task), *cells])
    note = (
        "Return on each held-out task before adaptation → after the trained steps, the mean over seeds. Single scores"
        " are in <code>scores.csv</code>."
    )
    return f"<p>{note}</p>{html_table(['task', *parameters, *(row.label for row in shown)], lines)}"


def task_columns(rows: Sequence[RowResult]) -> dict[str, npt.NDArray[Any]]:
    """The parameters of the held-out tasks, each number a column; none if rows have other tasks, or none are stored."""
    if any(row.tasks != rows[0].tasks for row in rows):
        return {}
    for folder in (folder for row in rows for folder in row.folders):
        tasks = (read_if_whole(folder / "evaluation.json") or {}).get("tasks")
        if tasks:
            return split_columns({name: np.asarray(values) for name, values in tasks.items()})
    return {}


def behaviour_section(rows: Sequence[RowResult]) -> str:
    """The trajectories of each row's first seed."""
    figures = []
    for row in rows:
        path = row.folders[0] / "trajectories.png"
        if path.exists():
            caption = f"<figcaption>{escape(row.label)}, seed {row.seeds[0]}</figcaption>"
            figures.append(f"<figure>{picture(path, f'trajectories of {row.label}')}{caption}</figure>")
    if not figures:
        return ""
    note = "Held-out tasks in rows, before adaptation and after each gradient step in columns."
    return f'<p>{note}</p><div class="pictures">{"".join(figures)}</div>'


def configuration_section(rows: Sequence[RowResult], setup: Mapping[str, Any]) -> str:
    """The settings of each row that differ from the defaults of training, and versions."""
    default = settings(TrainConfig())
    lines = []
    for row in rows:
        own = {
            name: value for name, value in settings(row.config).items() if name not in PLACE and value != default[name]
        }
        lines.append(
            [row.label, f"{row.iterations}", ", ".join(f"{k}={plain(v)}" for k, v in own.items()) or "defaults"]
        )
    found = [row.configs[seed].get("versions") for row in rows for seed in range(len(row.seeds)) if row.configs[seed]]
    versions = {**setup["versions"], "commit": setup["commit"], "device": setup["device_name"]}
    note = (
        "" if all(one == setup["versions"] for one in found) else "<p>Some runs were trained with other versions.</p>"
    )
    return (
        "<p>Settings of <code>metarl train</code> that differ from its defaults; every run folder has all of them.</p>"
        + html_table(["row", "iterations", "settings"], lines, last="long")
        + f"<p>Diverged: {escape(describe_diverged(rows))}.</p>{note}"
        + html_table(["package", "version"], [[name, str(value)] for name, value in versions.items()])
    )


def describe_diverged(rows: Sequence[RowResult]) -> str:
    """The runs that diverged, with their errors."""
    return "; ".join(f"{row.label}, seed {seed}: {why}" for row in rows for seed, why in row.diverged.items()) or "none"


def plain(value: object) -> str:
    """A setting's value as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def picture(path: Path, about: str) -> str:
    """A picture inside the page, not wider than `WIDEST`."""
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((WIDEST, 4 * WIDEST))
        file = io.BytesIO()
        small.save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img loading="lazy" src="data:image/png;base64,{data}" alt="{escape(about)}">'
