"""Measure the speed of every part on this machine, and its distance from the limit.

    metarl benchmark [--quick] [--json] [--only navigation growth] [--picture growth.png]

The limit of a workload is the time of its products alone: the floating-point operations the method needs, at the rate
that one batched product of the workload's shapes reaches just before and just after it; with MuJoCo also the
environment steps at the rate of physics alone. Elementwise work is not included. The parts:

- rollouts: episodes of 2-D navigation, 20 x 100 steps a task;
- navigation: one meta-iteration of every outer update, 20 and 40 tasks, 20 episodes of 100 steps, 2 x 100 tanh;
- mujoco: exact MAML on half-cheetah goal velocity, 40 tasks, and other ways to step environments (needs the extra);
- sinusoid: exact MAML, 32 tasks of 10 + 10 points, 2 x 40 units, 1 and 5 steps;
- conv4: exact MAML, 8 tasks of 20 ways, 28 x 28 images, 5 steps: all tasks in one vmap, and as in the scripts;
- growth: how time and memory of exact MAML on navigation grow with each size;
- profile: the seconds of each part of a meta-iteration of exact MAML on navigation;
- reach: seconds and environment steps to a stated return on standard tasks (only if named: it trains).

Each row is measured in a new process, so that its peak memory is not that of another row.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from metarl.devices import pick_device
from metarl.errors import check_choice, check_int
from metarl.experiments.common import cli
from metarl.experiments.common.config import commit, device_name, versions
from metarl.experiments.reports.benchmark.growth import growth_figure
from metarl.experiments.reports.benchmark.measure import Call, call_in_new_process
from metarl.experiments.reports.benchmark.page import markdown_page
from metarl.experiments.reports.benchmark.profile import plan_profile
from metarl.experiments.reports.benchmark.reach import plan_reach
from metarl.experiments.reports.benchmark.workloads import PLANS, Scale, full_scale, quick_scale
from metarl.files import write_atomically

PARTS = {**PLANS, "profile": plan_profile, "reach": plan_reach}
LONG = ("reach",)
"""Parts that run only if they are named."""


@dataclass(frozen=True)
class Arguments:
    """Settings of a benchmark."""

    quick: bool = False
    """Tiny sizes, one repetition: to see that it runs, not how fast it is."""
    json: bool = False
    """Print one JSON object instead of tables."""
    only: tuple[str, ...] = ()
    """Parts to run: rollouts, navigation, mujoco, sinusoid, conv4, growth, profile (default: all of these), reach."""
    repetitions: int = 5
    """Timed repetitions of each row, after two that are not timed."""
    device: str = "cpu"
    """Where to run; with an accelerator the CPU is measured too. auto takes an accelerator if there is one."""
    picture: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to save a picture of the growth."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl benchmark", __doc__)
    parts, scales = cli.prepare(lambda: prepare(given))
    results = run_parts(parts, scales)
    if given.picture is not None:
        series = {name: found["growth"] for name, found in results["devices"].items()}
        write_atomically(given.picture, growth_figure(series).savefig)
    print(json.dumps(results) if given.json else markdown_page(results))


def prepare(given: Arguments) -> tuple[list[str], list[Scale]]:
    """The parts to run, and their sizes on each device.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    check_int("repetitions", given.repetitions)
    for name in given.only:
        check_choice("only", name, PARTS)
    has_mujoco = find_spec("mujoco") is not None
    if "mujoco" in given.only and not has_mujoco:
        raise ValueError("only must name parts that can run, got 'mujoco', which needs the extra of that name")
    chosen = given.only or [name for name in PARTS if name not in LONG]
    parts = [name for name in PARTS if name in chosen and (has_mujoco or name != "mujoco")]
    if given.picture is not None:
        if "growth" not in parts or not given.picture.absolute().parent.is_dir():
            raise ValueError(f"picture must be a file in an existing folder, with the part growth, got {given.picture}")
        cli.check_output("picture", given.picture)
    devices = list(dict.fromkeys(["cpu", str(pick_device(given.device))]))
    return parts, [quick_scale(d) if given.quick else full_scale(d, given.repetitions) for d in devices]


def run_parts(parts: list[str], scales: list[Scale]) -> dict[str, Any]:
    """Every measurement."""
    plan: list[tuple[str, str, Call]] = [
        (scale.device, part, call) for scale in scales for part in parts for call in PARTS[part](scale)
    ]
    found: dict[str, dict[str, Any]] = {scale.device: defaultdict(list) for scale in scales}
    for device, part, call in tqdm(plan, disable=None, unit="row"):
        found[device][part].append(call_in_new_process(call))
    devices = {device: {"name": device_name(device), **rows} for device, rows in found.items()}
    return {"versions": versions(), "commit": commit(), "devices": devices}
