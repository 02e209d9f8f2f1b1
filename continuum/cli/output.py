"""What tasks wrote, on its way to a terminal or a pipe.

A pipe gets every character as it is. On a terminal colours pass and other control characters are shown: what a task that nobody
trusts has written does not move the cursor or set a title.
"""

from __future__ import annotations

import json
import os
import re
import sys

from continuum.cli.errors import tell
from continuum.model import Stream

_CONTROL = re.compile(r"(\x1b\[[0-9;]*m)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Colours, which are kept, or a control character but for tabs and ends of lines."""
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


def for_terminal(text: str) -> str:
    """The text with nothing in it that a terminal obeys, but for colours and ends of lines."""
    return _CONTROL.sub(lambda found: found[1] or ascii(found[0])[1:-1], text)


def one_line(text: str, longest: int = 300) -> str:
    """The beginning of a text, as a cell of a table may show it: no control characters at all."""
    shown = " ".join(text[: 2 * longest].split())
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], shown)[:longest]


class Printer:
    """Writes the pieces of a task's outputs to stdout and stderr, and between them remarks of ours, each on a line of its own."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._open_line = False

    def piece(self, stream: Stream, text: str) -> None:
        if self._as_json:
            _write(Stream.OUTPUT, json.dumps({"stream": stream.value, "text": text}) + "\n")
            return
        _write(stream, text)
        self._open_line = not text.endswith("\n")

    def remark(self, text: str) -> None:
        """Say something beside the output."""
        if self._open_line and sys.stdout.isatty():
            sys.stderr.write("\n")
        self._open_line = False
        tell(one_line(text, 1000))


def _write(stream: Stream, text: str) -> None:
    target = sys.stdout if stream is Stream.OUTPUT else sys.stderr
    if target.isatty():
        text = for_terminal(text)
        if stream is Stream.ERROR and not os.environ.get("NO_COLOR"):
            text = f"{_RED}{text}{_PLAIN}"
    target.write(text)
    target.flush()
