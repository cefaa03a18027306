"""Map the final score over the inner and outer step size, for several updates and networks: how hard is tuning?

    metarl tuning [--problem sinusoid|navigation] [--outer maml fo_maml sign_maml] [--quick] [--out FOLDER]

Antoniou et al. (2019) report that MAML is sensitive to its step sizes and to the network. A run is *good* if it gets at
least `best - distance (best - untrained)`, with the best score of all updates with its network and the untrained
network's score before adaptation. A run that ends in a NaN or an infinity is a result too: it diverged.

The folder gets `tuning_PROBLEM.json` and `tuning_PROBLEM.png`. The file is written after every run; the same command
continues where it was stopped.
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from metarl.engine import Engine
from metarl.errors import check_choice, check_int, check_real
from metarl.experiments.common import cli
from metarl.experiments.common.config import commit, versions
from metarl.experiments.common.lock import FolderLock
from metarl.experiments.common.options import check_each, check_seeds
from metarl.experiments.reports.tuning.maps import (
    Maps,
    Place,
    collect,
    name,
    places,
    score_untrained,
    shares_for_all,
    summarize,
    table,
    train,
)
from metarl.experiments.reports.tuning.picture import draw_maps
from metarl.experiments.reports.tuning.problems import PROBLEMS, Hidden, Problem
from metarl.files import write_atomically, write_json
from metarl.outer import OUTER
from metarl.types import TaskSource

Runs = dict[Place, dict[str, Any]]


@dataclass(frozen=True)
class Arguments:
    """Settings of the maps."""

    problem: Literal["sinusoid", "navigation"] = "sinusoid"
    """Problem; it has its own networks, step sizes and numbers of iterations."""
    outer: tuple[str, ...] = ("maml", "fo_maml", "sign_maml")
    """Outer updates."""
    iterations: int | None = None
    """Meta-iterations of each run. Default: 200 for sinusoid, 40 for navigation."""
    seeds: tuple[int, ...] = (0,)
    """Seeds: one run for each in every cell of the maps."""
    distance: float = 0.1
    """How far from the best a good run may be, as a share of the way from the untrained network to the best."""
    quick: bool = False
    """2 x 2 step sizes, two networks, a few iterations: to see that it works, in seconds."""
    json: bool = False
    """Print one JSON object instead of tables."""
    out: Path = Path("runs/tuning")
    """Folder of the results and the picture."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl tuning", __doc__)
    problem = cli.prepare(lambda: prepare(given))
    path = given.out / f"tuning_{given.problem}.json"
    runs = cli.prepare(lambda: read_finished(path, describe(given, problem)))
    given.out.mkdir(parents=True, exist_ok=True)
    hint = "; the same command continues there"
    with FolderLock(given.out), cli.one_line_errors(hint), Engine().current():
        report(given, problem, path, runs)


def prepare(given: Arguments) -> Problem:
    """The problem with its settings checked.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    check_each("outer", given.outer, partial(check_choice, choices=OUTER))
    check_seeds(given.seeds)
    check_real("distance", given.distance, high=1.0)
    cli.check_output_folder("out", given.out)
    problem = PROBLEMS[given.problem].quick() if given.quick else PROBLEMS[given.problem]
    if given.iterations is None:
        return problem
    return dataclasses.replace(problem, iterations=check_int("iterations", given.iterations))


def describe(given: Arguments, problem: Problem) -> dict[str, Any]:
    """The settings on which the runs depend, as plain values."""
    own = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem) if field.name != "build"}
    whole = {"problem": given.problem, "outer": given.outer, "seeds": given.seeds, **own}
    plain: dict[str, Any] = json.loads(json.dumps(whole))
    return plain


def read_finished(path: Path, settings: dict[str, Any]) -> Runs:
    """The runs that an earlier call has finished; none without a file.

    Raises:
        ValueError: when the file is not of these settings.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        same = found["settings"] == settings
        runs = {Place(tuple(run["network"]), *(run[key] for key in Place._fields[1:])): run for run in found["runs"]}
        if same:
            return {place: {key: run[key] for key in ("score", "iterations", "error")} for place, run in runs.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"out must be without {path.name}, or have a whole one, got {path} ({error!r})") from None
    raise ValueError(f"out must be another folder: {path} has runs with other settings")


def report(given: Arguments, problem: Problem, path: Path, runs: Runs) -> None:
    """Train what is missing, save it after every run, then draw and print."""
    settings = describe(given, problem)
    setup = {"settings": settings, "versions": versions(), "commit": commit()}
    untrained: dict[tuple[Hidden, int], float] = {}
    built: dict[tuple[Hidden, int], tuple[TaskSource, TaskSource]] = {}

    # Runs of one network and seed share their sources, and with them the engine's records.
    for place in tqdm(list(places(problem, given.outer, given.seeds)), disable=None, unit="run"):
        key = place.network, place.seed
        if key not in built:
            built = {key: (problem.build(*key, False), problem.build(*key, True))}
            untrained[key] = score_untrained(problem, built[key][1])
        if place not in runs:
            runs[place] = train(problem, place, *built[key])
            write_json(path, {**setup, "runs": [{**found._asdict(), **run} for found, run in runs.items()]})

    maps = collect({place: runs[place] for place in places(problem, given.outer, given.seeds)}, untrained)
    results = {**setup, **summary(maps, given.distance)}
    results |= {"untrained": [{"network": name(net), "seed": seed, "score": x} for (net, seed), x in untrained.items()]}
    results["runs"] = [{**place._asdict(), **run} for place, run in runs.items()]
    write_json(path, results)
    title = f"{given.problem}: {problem.iterations} iterations, N = {problem.inner_steps}"
    figure = draw_maps(maps, title, problem.score, given.distance)
    write_atomically(path.with_suffix(".png"), figure.savefig)
    print(json.dumps(results) if given.json else table(results["regions"], results["for_all"], given.distance))


def summary(maps: Maps, distance: float) -> dict[str, Any]:
    """The good regions, as plain values."""
    return {"distance": distance, "regions": summarize(maps, distance), "for_all": shares_for_all(maps, distance)}
