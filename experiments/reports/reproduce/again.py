"""What a call has started again, so that the next call continues it if it is interrupted.

A call trains every chosen run again. The finished run that was there before is moved to `previous/`. `again.json` names
the runs that were started again: as long as they stand there, the next call continues them. At its end a call removes
its runs from the file.
"""

import shutil
from collections.abc import Mapping, Sequence

from metarl.experiments.common.config import read_if_whole
from metarl.experiments.compare.runs import AnyRun
from metarl.experiments.reports.reproduce.plan import ReferenceRun
from metarl.files import write_json

FILE, PREVIOUS = "again.json", "previous"


def start_again(runs: Sequence[ReferenceRun], trainings: Mapping[ReferenceRun, AnyRun]) -> None:
    """Move finished runs aside, unless an interrupted call has finished them."""
    for name in dict.fromkeys(run.name for run in runs):
        chosen = [run for run in runs if run.name == name]
        place = chosen[0].place
        started = read_started(chosen[0])
        for run in chosen:
            if run.stem not in started and trainings[run].is_done():
                aside = place / PREVIOUS / run.stem
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                run.folder.rename(aside)
        # After the moves: a run that is named here and finished was finished by this call.
        write_json(place / FILE, {"started": sorted({*started, *(run.stem for run in chosen)})})


def end(runs: Sequence[ReferenceRun]) -> None:
    """The call is whole: the next one starts these runs again."""
    for run in runs:
        left = read_started(run) - {run.stem}
        if left:
            write_json(run.place / FILE, {"started": sorted(left)})
        else:
            (run.place / FILE).unlink(missing_ok=True)


def read_started(run: ReferenceRun) -> set[str]:
    """The runs of a name that an interrupted call has started again."""
    found = (read_if_whole(run.place / FILE) or {}).get("started", [])
    return {str(stem) for stem in found} if isinstance(found, list) else set()
