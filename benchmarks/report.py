"""What a part of the benchmark found: tables, ratios with their targets, and what to plot; printed, and kept as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table as RichTable

Cell = str | float | int | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of figures under headings that name their units. None is a figure that could not be had; `note` says why."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure over another of the same run, and what it should be; `target` None is told for orientation only."""

    name: str
    value: float
    target: float | None = None
    direction: Literal["at least", "at most"] = "at least"

    @property
    def reached(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.direction == "at least" else self.value <= self.target


@dataclass(frozen=True, slots=True)
class Plot:
    """Points of some series to draw; a series' x may be numbers (lines) or names (bars)."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[str | float, float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """All that one part found."""

    part: str
    title: str
    tables: Sequence[Table] = ()
    ratios: Sequence[Ratio] = ()
    plots: Sequence[Plot] = ()
    seconds: float = 0.0


def machine() -> dict[str, str | int | float]:
    """What these figures were measured on, and how busy it was with other things."""
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpus": os.cpu_count() or 1,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load before": os.getloadavg()[0],
    }


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def show(console: Console, result: Result) -> None:
    """Print what a part found."""
    console.rule(f"[bold]{result.title}[/bold] ({result.seconds:.0f} s)")
    for table in result.tables:
        shown = RichTable(title=table.title, caption=table.note or None, title_justify="left", caption_justify="left")
        for number, heading in enumerate(table.columns):
            shown.add_column(heading, justify="right" if number else "left")
        for row in table.rows:
            shown.add_row(*map(_cell, row))
        console.print(shown)
    for ratio in result.ratios:
        mark = {True: "[green]reached[/green]", False: "[red]not reached[/red]", None: ""}[ratio.reached]
        wanted = "" if ratio.target is None else f"({ratio.direction} {ratio.target:g}) "
        console.print(f"  {ratio.name}: [bold]{ratio.value:.3g}[/bold] {wanted}{mark}", highlight=False)


def _cell(value: Cell) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
        case int():
            return f"{value:,}"
        case _:
            return value


def write(folder: Path, about: Mapping[str, object], results: Sequence[Result]) -> Path:
    """Keep the results as JSON and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    kept = [
        asdict(result) | {"ratios": [asdict(r) | {"reached": r.reached} for r in result.ratios]} for result in results
    ]
    path.write_text(json.dumps({"about": about, "results": kept}, indent=1, default=str) + "\n")
    return path


def read_plots(path: Path) -> dict[str, Plot]:
    """The plots of results that `write` kept, by their names."""
    results = json.loads(path.read_text())["results"]
    return {plot["name"]: Plot(**plot) for result in results for plot in result["plots"]}
