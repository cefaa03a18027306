"""How the seconds and the memory of a meta-iteration grow with each size; the others keep their published values."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from metarl.experiments.common.figures import new_figure


def group_by_size(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each size, in order, with their peak memory relative to the first row of the size."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        of_size = found.setdefault(row["changed"], [])
        first = of_size[0] if of_size else row
        of_size.append({**row, "memory_ratio": row["memory_mb"] / max(first["memory_mb"], 1e-9)})
    return found


def growth_figure(devices: Mapping[str, Sequence[dict[str, Any]]]) -> Figure:
    """A column for each size: seconds with their limit above, peak memory below; a colour for each device."""
    sizes = list(group_by_size(next(iter(devices.values()))))
    figure = new_figure(2.4 * len(sizes), 4.6)
    axes = figure.subplots(2, len(sizes), squeeze=False, sharex="col", sharey="row")
    for ax in axes.flat:
        ax.set(xscale="log", yscale="log")
        ax.grid(alpha=0.3)
    for number, (device, rows) in enumerate(devices.items()):
        style: dict[str, Any] = {"color": f"C{number}", "markersize": 4}
        for (above, below), (size, of_size) in zip(axes.T, group_by_size(rows).items(), strict=True):
            values = [row["value"] for row in of_size]
            above.plot(values, [row["seconds"] for row in of_size], marker="o", label=device, **style)
            above.plot(values, [row["limit_seconds"] for row in of_size], "--", label=f"{device}, limit", **style)
            below.plot(values, [max(row["memory_mb"], 0.1) for row in of_size], marker="o", **style)
            below.set_xlabel(size)
            below.set_xticks(values, [str(value) for value in values])
            below.xaxis.minorticks_off()
    axes[0][0].set_ylabel("seconds")
    axes[1][0].set_ylabel("peak memory, MB")
    axes[0][0].legend(fontsize=7)
    return figure
