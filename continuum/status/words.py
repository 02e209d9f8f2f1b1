"""Numbers, times and texts as the pages show them. The script static/dashboard.js says times in the same words."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable

from jinja2 import Environment, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

NOTHING = "\N{EN DASH}"
_TRICKS = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]")
"""Characters that change the order in which others are shown: code may look like something else."""
_AGO = Markup('<time datetime="{}" title="{}" data-ago>{}</time>')
_ELAPSED = Markup('<time datetime="{}" title="{}" data-elapsed>{}</time>')


def install(environment: Environment) -> None:
    """Let templates say `task.started | ago`, and so on, and leave no trace of their own lines."""
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters.update(
        number=number, duration=duration, rate=rate, ago=ago, elapsed=elapsed, at=at, visible=visible
    )


def number(value: float) -> str:
    """A whole number: `12,345`."""
    return f"{value:,.0f}"


def rate(value: float | None) -> str:
    """How many in a second, or an hour: two digits at least, no more than needed."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def duration(seconds: float | None) -> str:
    """`0.8 ms`, `12 ms`, `1.24 s`, `2 min 5 s`, `3 h 12 min`, `4 d 3 h`; a dash for None."""
    if seconds is None:
        return NOTHING
    if seconds < 0.9995:
        milliseconds = max(0.0, seconds * 1000)
        return f"{milliseconds:.0f} ms" if milliseconds >= 10 or milliseconds == 0 else f"{milliseconds:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    return span(seconds)


def span(seconds: float) -> str:
    """A time that goes on, in its two largest units, without fractions: `12 s`, `2 min 5 s`, `3 h 12 min`, `4 d 3 h`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def relative(seconds: float) -> str:
    """How long ago: `just now`, `12 s ago`, `5 min ago`, `3 h ago`, `2 days ago`; `in 5 min` for what is to come."""
    whole = int(abs(seconds))
    if whole < 2:
        return "just now"
    if whole < 60:
        text = f"{whole} s"
    elif whole < 3600:
        text = f"{whole // 60} min"
    elif whole < 48 * 3600:
        text = f"{whole // 3600} h"
    else:
        text = f"{whole // 86400} days"
    return f"{text} ago" if seconds > 0 else f"in {text}"


@pass_context
def ago(context: Context, time: dt.datetime | str | None) -> str | Markup:
    """A `time` element that says how long ago something was; the script keeps it true."""
    return _time(context, time, _AGO, relative)


@pass_context
def elapsed(context: Context, time: dt.datetime | str | None) -> str | Markup:
    """A `time` element that says for how long something has gone on."""
    return _time(context, time, _ELAPSED, span)


def at(time: dt.datetime | str | None) -> str | Markup:
    """A `time` element with the exact time: `2026-01-31 12:00:05 UTC`."""
    moment = _moment(time)
    if moment is None:
        return NOTHING
    return Markup('<time datetime="{}">{}</time>').format(_iso(moment), _exact(moment))


def visible(text: str) -> str:
    """A text in which what would change the order of its characters is shown as what it is."""
    return _TRICKS.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)


def _time(context: Context, time: dt.datetime | str | None, shape: Markup, say: Callable[[float], str]) -> str | Markup:
    """Where the script says it (`live`), the text is left out: it would differ each second, and nothing else with it."""
    moment = _moment(time)
    if moment is None:
        return NOTHING
    text = "" if context.get("live") else say((dt.datetime.now(dt.UTC) - moment).total_seconds())
    return shape.format(_iso(moment), _exact(moment), text)


def _moment(time: dt.datetime | str | None) -> dt.datetime | None:
    return dt.datetime.fromisoformat(time) if isinstance(time, str) else time


def _iso(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _exact(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
