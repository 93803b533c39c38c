"""The figures as a Markdown table and as a picture."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Times

BASE = "ptp + host-local"


@dataclass(frozen=True)
class Promise:
    """A row of what must hold.

    :param least: the limit is the least that will do, not the most.
    """

    what: str
    found: float
    limit: float
    least: bool = False
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.found >= self.limit if self.least else self.found <= self.limit

    def row(self) -> list[str]:
        sign = "≥" if self.least else "≤"
        found = f"{self.found:.2f}{self.unit}"
        return [self.what, found, f"{sign} {self.limit:g}{self.unit}", "yes" if self.holds else "**no**"]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def times_table(times: Times) -> str:
    """Milliseconds, and the ratio of each median to the Go plugins'."""
    rows = []
    for (command, name), found in sorted(times.items(), key=lambda item: (item[0][0], item[0][1] == BASE)):
        ratio = statistics.median(found) / statistics.median(times[command, BASE])
        figures = (min(found), statistics.median(found), percentile(found, 99))
        rows.append([command, name, *(f"{1000 * figure:.1f}" for figure in figures), f"{ratio:.2f}"])
    return table(["", "", "min ms", "median ms", "p99 ms", "ratio of medians"], rows)


def percentile(found: Sequence[float], percent: float) -> float:
    return sorted(found)[min(len(found) - 1, int(len(found) * percent / 100))]


def machine() -> str:
    """Where and when it was measured."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    load = os.getloadavg()[0]
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores of {cpu}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.1f} at the start"
    )


_COLOURS = {"vpc": "#5eead4", "eniip_veth": "#0f766e", "eni": "#99a8b8", BASE: "#f59e0b"}


def picture(path: Path, single: Times, many: Times) -> None:
    """Medians, and from the least to the 90th percentile, for each plugin; next to them the bursts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, times, title, scale, unit in (
        (left, single, "one by one, process start to exit", 1000, "ms"),
        (right, many, "110 pods, 16 at a time", 1, "s"),
    ):
        commands = list(dict.fromkeys(command for command, _ in times))
        names = sorted({name for _, name in times}, key=lambda name: (name == BASE, name))
        for position, name in enumerate(names):
            found = [[scale * one for one in times[command, name]] for command in commands]
            medians = [statistics.median(one) for one in found]
            below = [median - min(one) for median, one in zip(medians, found, strict=True)]
            above = [percentile(one, 90) - median for median, one in zip(medians, found, strict=True)]
            places = [number + 0.8 * position / len(names) for number in range(len(commands))]
            bars = axes.bar(
                places,
                medians,
                width=0.75 / len(names),
                yerr=[below, above],
                ecolor="#94a3b8",
                label=name,
                color=_COLOURS.get(name, "#64748b"),
            )
            axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
        axes.set_xticks([number + 0.4 - 0.4 / len(names) for number in range(len(commands))], commands)
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path, dpi=130)
