"""Plots of the published run of the benchmark, drawn when the site is built."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from benchmarks.report import Plot, read_plots

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "published.json"


@cache
def plots() -> dict[str, Plot]:
    """What can be drawn, by name."""
    return read_plots(PUBLISHED)


@cache
def draw(name: str) -> str:
    """One plot, as HTML that stands in a page."""
    from benchmarks.plots import inline_svg

    return f'<figure class="plot">{inline_svg(plots()[name])}</figure>'
