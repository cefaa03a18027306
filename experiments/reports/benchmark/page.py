"""The measurements as Markdown tables."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from metarl.experiments.reports.benchmark.growth import group_by_size
from metarl.experiments.reports.columns import Columns, number, table, text

EXPLANATION = """\
limit: the operations needed, at the rate of the batched product measured with each row (GFLOP/s); with MuJoCo also
the environment steps, at the rate of physics alone; memory: the peak minus the memory in use before."""

WORKLOAD: Columns = {
    "workload": text("name"),
    "size": text("size"),
    "N": text("inner_steps"),
    "seconds": number("seconds", ".4g"),
    "least - greatest": lambda row: f"{row['least']:.4g} - {row['greatest']:.4g}",
    "draws: s": lambda row: f"{row['draws']}: {row['draw_seconds']:.3g}" if row["draws"] else "",
    "steps or samples / s": number("per_second", ",.0f"),
    "peak MB": number("memory_mb", ".0f"),
    "GFLOP/s": number("product_gflops", ".0f"),
    "limit, s": number("limit_seconds", ".3g"),
    "seconds / limit": number("ratio", ".1f"),
}
STEPPING: Columns = {
    "environment steps / s": text("env"),
    "environments": text("environments"),
    **{name: number(name, ",.0f") for name in ("whole", "physics", "Sync", "Async", "envpool", "mjbatch")},
    "whole / physics": number("whole / physics", ".2f"),
}
GROWTH: Columns = {
    "exact MAML, inner batch reused": text("changed"),
    "": text("value"),
    "seconds": number("seconds", ".4g"),
    "limit, s": number("limit_seconds", ".3g"),
    "seconds / limit": number("ratio", ".1f"),
    "peak MB": number("memory_mb", ".0f"),
    "peak / first peak": number("memory_ratio", ".2f"),
}
REACH: Columns = {
    "task": text("env"),
    "setting": text("setting"),
    "return wanted": number("score", "g"),
    "return after one step": number("found", ".1f"),
    "iterations": text("iterations"),
    "million steps": number("env_steps", ".2f", unit=1e6),
    "seconds": number("seconds", ".1f"),
}
COSTS: Columns = {"ms": number("seconds", ".1f", unit=1e-3), "share": number("share", ".0%")}


def markdown_page(results: dict[str, Any]) -> str:
    """All tables, for each device."""
    sections = [EXPLANATION]
    for device, found in results["devices"].items():
        sections.append(f"## {device}: {found['name']}")
        sections += [
            TABLES.get(part, partial(table, WORKLOAD))(rows) for part, rows in found.items() if part != "name" and rows
        ]
    return "\n\n".join(sections)


def mujoco_tables(rows: Sequence[dict[str, Any]]) -> str:
    """Meta-iterations, then the steps a second of other ways to step environments."""
    iterations, stepping = ([row for row in rows if key in row] for key in ("limit_seconds", "environments"))
    return f"{table(WORKLOAD, iterations)}\n\n{table(STEPPING, stepping)}"


def profile_tables(rows: Sequence[dict[str, Any]]) -> str:
    """The seconds of an iteration, by part and by operation."""
    (found,) = rows
    head, limit = f"exact MAML, inner batch reused, {found['size']}", number("limit_seconds", ".1f", unit=1e-3)
    total = {"part": "all", "seconds": found["seconds"], "limit_seconds": found["limit_seconds"]}
    parts = table({head: text("part"), **COSTS, "limit, ms": limit}, [*found["parts"], total])
    operations = table({"operation": text("operation"), "calls": text("calls"), **COSTS}, found["operations"])
    return f"{parts}\n\n{operations}"


TABLES: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "mujoco": mujoco_tables,
    "growth": lambda rows: table(GROWTH, [row for of_size in group_by_size(rows).values() for row in of_size]),
    "profile": profile_tables,
    "reach": partial(table, REACH),
}
