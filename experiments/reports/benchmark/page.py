"""The measurements as Markdown tables."""

from collections.abc import Sequence
from typing import Any

from metarl.experiments.common.tables import markdown_table
from metarl.experiments.reports.benchmark.growth import series

Rows = Sequence[dict[str, Any]]


def page(results: dict[str, Any]) -> str:
    """All tables, for each device."""
    sections = [
        "limit: the operations needed, at the rate of the batched product beside each row (GFLOP/s); with MuJoCo also",
        "the environment steps, at the rate of physics alone; memory: the peak above what was there before.",
    ]
    for device, found in results["devices"].items():
        sections += ["", f"## {device}: {found['name']}"]
        for part, rows in found.items():
            if part != "name" and rows:
                sections += ["", TABLES.get(part, workload_table)(rows)]
    return "\n".join(sections)


def workload_table(rows: Rows) -> str:
    """Seconds, rates, memory and limits."""
    head = ["workload", "size", "N", "seconds", "least - greatest", "draws: s", "steps or samples / s"]
    head += ["peak MB", "GFLOP/s", "limit, s", "seconds / limit"]
    cells = []
    for row in rows:
        draws = f"{row['draws']}: {row['draw_seconds']:.3g}" if row["draws"] else ""
        texts = [row["name"], row["size"], str(row.get("inner_steps", "")), f"{row['seconds']:.4g}"]
        texts += [f"{row['least']:.4g} - {row['greatest']:.4g}", draws, f"{row['per_second']:,.0f}"]
        texts += [f"{row['memory_mb']:.0f}", f"{row['product_gflops']:.0f}", f"{row['limit_seconds']:.3g}"]
        cells.append([*texts, f"{row['ratio']:.1f}"])
    return markdown_table(head, cells)


def mujoco_tables(rows: Rows) -> str:
    """Meta-iterations, then environment steps a second of other ways to step."""
    iterations = [row for row in rows if "limit_seconds" in row]
    return "\n\n".join([workload_table(iterations), stepping_table([row for row in rows if "environments" in row])])


def stepping_table(rows: Rows) -> str:
    """Environment steps a second."""
    columns = ("whole", "physics", "Sync", "Async", "envpool")
    cells = []
    for row in rows:
        figures = [f"{row[c]:,.0f}" if c in row else "" for c in columns]
        cells.append([row["env"], str(row["environments"]), *figures, f"{row['whole / physics']:.2f}"])
    return markdown_table(["environment steps / s", "environments", *columns, "whole / physics"], cells)


def growth_table(rows: Rows) -> str:
    """Seconds and memory by size."""
    head = [
        "exact MAML, inner batch reused",
        "",
        "seconds",
        "limit, s",
        "seconds / limit",
        "peak MB",
        "peak / first peak",
    ]
    cells = []
    for size, of_size in series(rows).items():
        for row in of_size:
            texts = [size, str(row["value"]), f"{row['seconds']:.4g}", f"{row['limit_seconds']:.3g}"]
            cells.append([*texts, f"{row['ratio']:.1f}", f"{row['memory_mb']:.0f}", f"{row['memory_ratio']:.2f}"])
    return markdown_table(head, cells)


def profile_tables(rows: Rows) -> str:
    """Where the seconds go, by part and by operation."""
    (found,) = rows
    parts = [
        [row["part"], f"{1e3 * row['seconds']:.1f}", f"{row['share']:.0%}", f"{1e3 * row['limit_seconds']:.1f}"]
        for row in found["parts"]
    ]
    parts.append(["all", f"{1e3 * found['seconds']:.1f}", "", f"{1e3 * found['limit_seconds']:.1f}"])
    operations = [
        [row["operation"], str(row["calls"]), f"{1e3 * row['seconds']:.1f}", f"{row['share']:.0%}"]
        for row in found["operations"]
    ]
    head = [f"exact MAML, inner batch reused, {found['size']}", "ms", "share", "limit, ms"]
    return "\n\n".join([markdown_table(head, parts), markdown_table(["operation", "calls", "ms", "share"], operations)])


TABLES = {"mujoco": mujoco_tables, "growth": growth_table, "profile": profile_tables}
