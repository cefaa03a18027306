"""Do faults to runs, and print which of them they survived.

    python -m tests.faults             everything
    python -m tests.faults --quick     a few of each group
    python -m tests.faults --only kill the faults whose group or name has the word
    python -m tests.faults --minutes 5 no further fault after so many minutes; the groups take turns

A run survives a fault when what it promises holds: the same numbers bit for bit after it went on, or one clean line
and exit code 2, or a saved state and a clean end; never a traceback, a wrong number without a word, or a lost file.
The exit code is 1 where one has failed.
"""

import argparse
import functools
import importlib
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.faults.fault import FAULTS, Fault, Result
from tests.faults.subject import SHARED, scratch

GROUPS = ("kills", "signals", "system", "limits", "damage", "numbers", "processes", "surroundings")
QUICK = 3  # faults of each group


def main() -> int:
    """Run the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few of each group")
    parser.add_argument("--only", default="", help="the faults whose group or name has this in it")
    parser.add_argument("--jobs", type=int, default=2, help="faults at the same time")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no fault after so many")
    given = parser.parse_args()
    for name in GROUPS:
        importlib.import_module(f"tests.faults.{name}")
    chosen = [fault for fault in FAULTS if given.only in f"{fault.group}: {fault.name}"]
    began = time.monotonic()
    do_until = functools.partial(do, until=began + 60 * given.minutes)
    with SHARED, ThreadPoolExecutor(given.jobs) as pool:
        done = list(pool.map(do_until, in_turns(some(chosen) if given.quick else chosen)))
    results: dict[str, list[Result]] = {fault.group: [] for fault in chosen}
    for fault, found in done:
        results[fault.group] += found
    print(table(results))
    print(f"{time.monotonic() - began:.0f} seconds")
    return int(any(result.problem for found in results.values() for result in found))


def do(fault: Fault, until: float) -> tuple[Fault, list[Result]]:
    """Do a fault in a folder of its own, if there is time left; a line for each that failed."""
    results: list[Result] = []
    if time.monotonic() > until:
        return fault, results
    with scratch() as folder:
        for result in fault.results(folder):
            results.append(result)
            if result.problem:
                print(f"failed: {fault.group}: {result.name}: {result.problem}", file=sys.stderr, flush=True)
            if time.monotonic() > until:
                break
    return fault, results


def in_turns(chosen: Iterable[Fault]) -> list[Fault]:
    """One fault of each group, then the next of each: what a limit of time leaves out is of all groups."""
    rank: dict[str, int] = defaultdict(int)
    placed = []
    for fault in chosen:
        placed.append((rank[fault.group], fault))
        rank[fault.group] += 1
    return [fault for _, fault in sorted(placed, key=lambda pair: pair[0])]


def some(chosen: Iterable[Fault]) -> list[Fault]:
    """A few faults of each group, as far apart as they can be."""
    groups: dict[str, list[Fault]] = defaultdict(list)
    for fault in chosen:
        groups[fault.group].append(fault)
    return [fault for found in groups.values() for fault in found[:: max(1, len(found) // QUICK)][:QUICK]]


def table(results: dict[str, list[Result]]) -> str:
    """Faults by group: tried, survived, failed."""
    rows = [(group, len(found), sum(result.problem is None for result in found)) for group, found in results.items()]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = [f"| {group} | {tried} | {survived} | {tried - survived} |" for group, tried, survived in rows]
    return "\n".join(["| group of faults | tried | survived | failed |", "| --- | --: | --: | --: |", *lines])


if __name__ == "__main__":
    sys.exit(main())
