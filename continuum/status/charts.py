"""Curves as SVG paths, and the scales beside them. Templates draw them; nothing here knows of HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from continuum.nursery.recent import INTERVAL, INTERVALS, Interval, Times
from continuum.status.words import duration, rate

HEIGHT = 100.0
"""Units from a chart's floor to its top; a unit across is one interval."""

MINUTES = INTERVALS * INTERVAL / 60
BRIDGED = 5
"""Intervals without a value over which a line goes on: tasks that come now and then make a line, not dots."""

Values = Sequence[float | None]
Height = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart. line, area: `d` of an SVG path, empty where there is nothing. now: its last value, in words."""

    name: str
    kind: str
    line: str
    area: str
    now: str


@dataclass(frozen=True, slots=True)
class Chart:
    """ticks: what stands beside the scale, from the top to the floor, at equal distances."""

    title: str
    width: int
    ticks: tuple[str, ...]
    curves: tuple[Curve, ...]
    summary: str
    """The chart in a sentence, for who cannot see it."""


def throughput(intervals: Sequence[Interval], everybody: Values | None) -> Chart:
    """Tasks that ended in each second. everybody: of all workers, where there are more than this one."""
    curves: list[tuple[str, str, Values]] = [
        ("completed", "good", [one.completed / INTERVAL for one in intervals]),
        ("not completed", "bad", [one.failed / INTERVAL for one in intervals]),
    ]
    if everybody is not None:
        curves.insert(0, ("all workers", "all", everybody))
    top = _round_up(max((value for _, _, values in curves for value in values if value is not None), default=0.0))

    def height(value: float) -> float:
        return value / top * HEIGHT

    drawn = tuple(
        Curve(name, kind, _line(values, height), _area(values, height), f"{rate(_last(values))}/s")
        for name, kind, values in curves
    )
    ended = sum(one.completed + one.failed for one in intervals)
    summary = f"{ended:,} tasks ended here in the last {MINUTES:g} minutes. " + _sentence(drawn)
    return Chart("Throughput", INTERVALS, (rate(top), rate(top / 2), "0"), drawn, summary)


def latency(intervals: Sequence[Interval]) -> Chart:
    """How long tasks waited and ran, on a scale on which each tick is ten times the one below."""
    curves = [
        ("wait, 95 %", "wait", [one.waits.quantile(0.95) for one in intervals]),
        ("run, 95 %", "slow", [one.runs.quantile(0.95) for one in intervals]),
        ("run, median", "run", [one.runs.quantile(0.5) for one in intervals]),
    ]
    values = [value for _, _, values in curves for value in values if value is not None]
    low = math.floor(math.log10(max(1e-3, min(values, default=1e-2))) + 1e-9)
    high = max(low + 2, math.ceil(math.log10(max(1e-3, *values, 1e-2)) - 1e-9))

    def height(value: float) -> float:
        return (math.log10(max(value, 10.0**low)) - low) / (high - low) * HEIGHT

    drawn = tuple(
        Curve(name, kind, _line(values, height), "", duration(_last(values, BRIDGED))) for name, kind, values in curves
    )
    ticks = tuple(_tick(power) for power in range(high, low - 1, -1))
    return Chart("Latency", INTERVALS, ticks, drawn, _sentence(drawn))


def quantiles(intervals: Sequence[Interval]) -> dict[str, float | None]:
    """Over all of these intervals: half of the runs, and 95 % of them, were no longer than this."""
    runs, waits = Times(), Times()
    for one in intervals:
        runs.merge(one.runs)
        waits.merge(one.waits)
    return {"run": runs.quantile(0.5), "slow": runs.quantile(0.95), "wait": waits.quantile(0.95)}


def _sentence(curves: Sequence[Curve]) -> str:
    return "Now: " + ", ".join(f"{curve.name} {curve.now}" for curve in curves) + "."


def _last(values: Values, recent: int = 1) -> float | None:
    return next((value for value in reversed(values[-recent:]) if value is not None), None)


def _tick(power: int) -> str:
    """10 to this power, as a time."""
    return f"{10 ** (power + 3):,} ms" if power < 0 else f"{10**power:,} s"


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ...: what a scale may well end with."""
    if value <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _line(values: Values, height: Height) -> str:
    """Lines through what there is; where there is nothing for long they stop. What stands alone becomes a dot."""
    return " ".join(f"M{_points(run, height)}" if len(run) > 1 else _dot(run[0], height) for run in _runs(values))


def _area(values: Values, height: Height) -> str:
    floor = f"{HEIGHT:g}"
    return " ".join(
        f"M{run[0][0]} {floor}L{_points(run, height)}L{run[-1][0]} {floor}Z" for run in _runs(values) if len(run) > 1
    )


def _runs(values: Values) -> list[list[tuple[int, float]]]:
    """The values with their places, parted where there are none. They end at the chart's right edge."""
    runs: list[list[tuple[int, float]]] = []
    before = -BRIDGED - 1
    for place, value in enumerate(values, start=INTERVALS - len(values)):
        if value is None:
            continue
        if place - before > BRIDGED:
            runs.append([])
        runs[-1].append((place, value))
        before = place
    return runs


def _points(run: Sequence[tuple[int, float]], height: Height) -> str:
    """Points on a level line are left out but for its ends."""
    kept = [
        point
        for index, point in enumerate(run)
        if not 0 < index < len(run) - 1 or not run[index - 1][1] == point[1] == run[index + 1][1]
    ]
    return "L".join(f"{place} {_y(value, height)}" for place, value in kept)


def _dot(point: tuple[int, float], height: Height) -> str:
    return f"M{point[0]} {_y(point[1], height)}h.01"


def _y(value: float, height: Height) -> str:
    return f"{HEIGHT - height(value):.4g}"
