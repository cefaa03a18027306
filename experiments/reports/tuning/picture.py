"""Heat maps of the final score over both step sizes: a row for each network, a column for each update."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from metarl.experiments.common.figures import new_figure
from metarl.experiments.reports.tuning.maps import Map, Maps, best_of_network, name


def draw_maps(maps: Maps, title: str, score: str, distance: float) -> Figure:
    """All maps with one colour scale, from the untrained networks' mean score to the best.

    A cross marks runs that diverged, a frame those within `distance` of the network's best.
    """
    networks, outers = (list(dict.fromkeys(key[axis] for key in maps)) for axis in (0, 1))
    untrained = float(np.mean([found.untrained for found in maps.values()]))
    bests = [found.best_score for found in maps.values() if found.best_score is not None]
    scale = Normalize(untrained, max([*bests, untrained + 1e-6]))
    figure = new_figure(3.1 * len(outers) + 1.2, 2.5 * len(networks) + 0.6)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(len(networks), len(outers), squeeze=False)
    for (network, outer), found in maps.items():
        row, column = networks.index(network), outers.index(outer)
        ax = axes[row][column]
        image = draw_map(ax, found, best_of_network(maps, network), distance, scale)
        ax.set_title(f"{outer}, {name(network)}", fontsize=9)
        ax.set_xlabel("outer step size" if row == len(networks) - 1 else "", fontsize=8)
        ax.set_ylabel("inner step size" if column == 0 else "", fontsize=8)
    figure.colorbar(image, ax=axes, label=f"{score} (darkest: as untrained, or worse)", shrink=0.7)
    return figure


def draw_map(ax: Axes, found: Map, best: float | None, distance: float, scale: Normalize) -> AxesImage:
    """One map; the inner step size grows upwards, the outer one to the right."""
    inner, outer = (sorted(set(axis)) for axis in zip(*found.scores, strict=True))
    image = ax.imshow(as_table(found, inner, outer), cmap="viridis", norm=scale, origin="lower", aspect="auto")
    good = set() if best is None else found.good(best, distance)
    for (alpha, beta), score in found.scores.items():
        x, y = outer.index(beta), inner.index(alpha)
        if score is None:
            ax.plot(x, y, "x", color="tab:red", markersize=9, markeredgewidth=2)
            continue
        light = scale(score) > 0.6
        ax.text(x, y, brief(score), ha="center", va="center", fontsize=7, color="black" if light else "white")
        if (alpha, beta) in good:
            ax.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor="tab:red", linewidth=1.5))
    ax.set_xticks(range(len(outer)), [f"{size:g}" for size in outer], fontsize=7)
    ax.set_yticks(range(len(inner)), [f"{size:g}" for size in inner], fontsize=7)
    return image


def as_table(found: Map, inner: Sequence[float], outer: Sequence[float]) -> npt.NDArray[np.float64]:
    """The scores `[inner, outer]`, NaN where a run diverged."""
    return np.array([[np.nan if (s := found.scores[a, b]) is None else s for b in outer] for a in inner])


def brief(score: float) -> str:
    """A score in few letters."""
    return f"{score:.2g}" if abs(score) < 10 else f"{score:.0f}" if abs(score) < 1000 else f"{score:.0e}"
