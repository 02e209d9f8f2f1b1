"""Drawing what the benchmark found, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.report import Plot, Result


def draw(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Draw every plot of the results into a folder; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for result in results:
        for plot in result.plots:
            written += _draw_one(folder, plot)
    return written


def _draw_one(folder: Path, plot: Plot) -> list[Path]:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    first = next((x for points in plot.series.values() for x, _ in points), 0.0)
    if isinstance(first, str):
        _bars(axes, plot)
    else:
        for name, points in plot.series.items():
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    if plot.log_x:
        axes.set_xscale("log")
    if plot.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
    axes.grid(visible=True, axis="y", alpha=0.3)
    if len(plot.series) > 1:
        axes.legend()
    paths = [folder / f"{plot.name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths


def _bars(axes: Axes, plot: Plot) -> None:
    names = list(dict.fromkeys(str(x) for points in plot.series.values() for x, _ in points))
    width = 0.8 / len(plot.series)
    for number, (series, points) in enumerate(plot.series.items()):
        places = [names.index(str(x)) + (number - (len(plot.series) - 1) / 2) * width for x, _ in points]
        bars = axes.bar(places, [y for _, y in points], width, label=series)
        axes.bar_label(bars, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}", fontsize=8)
    axes.set_xticks(range(len(names)), names, fontsize=8)
