"""Drawing what the benchmark found, as PNG and SVG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import Plot, Result


def draw(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Draw every plot of the results into a folder; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for result in results:
        for plot in result.plots:
            written += _draw_one(folder, plot)
    return written


def inline_svg(plot: Plot) -> str:
    """One plot as an element of an HTML page: in the page's fonts and the colour of its text, for light and dark pages."""
    inked: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    )
    with plt.rc_context(inked | {"legend.framealpha": 0, "svg.fonttype": "none", "svg.hashsalt": plot.name}):
        figure = _figure(plot)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{escape(plot.title)}"', svg, count=1)


_INK = "#010203"
"""A colour that nothing else has; it becomes the page's own."""


def _draw_one(folder: Path, plot: Plot) -> list[Path]:
    figure = _figure(plot)
    paths = [folder / f"{plot.name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths


def _figure(plot: Plot) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    first = next((x for points in plot.series.values() for x, _ in points), 0.0)
    if isinstance(first, str):
        _bars(axes, plot)
        axes.set(xlabel=plot.y_label, ylabel=plot.x_label, xscale="log" if plot.log_y else "linear")
        axes.margins(x=0.12)
        axes.grid(visible=True, axis="x", alpha=0.3)
    else:
        for name, points in plot.series.items():
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
        axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
        axes.set(xscale="log" if plot.log_x else "linear", yscale="log" if plot.log_y else "linear")
        axes.grid(visible=True, axis="y", alpha=0.3)
        if not plot.log_y:
            axes.set_ylim(bottom=0)
    axes.set_title(plot.title)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.series) > 1:
        axes.legend()
    return figure


def _bars(axes: Axes, plot: Plot) -> None:
    """Lying, so that long names have room; the first on top."""
    names = list(dict.fromkeys(str(x) for points in plot.series.values() for x, _ in points))
    height = 0.8 / len(plot.series)
    for number, (series, points) in enumerate(plot.series.items()):
        places = [names.index(str(x)) + (number - (len(plot.series) - 1) / 2) * height for x, _ in points]
        bars = axes.barh(places, [y for _, y in points], height, label=series)
        axes.bar_label(
            bars, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}", fontsize=8, padding=3
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
