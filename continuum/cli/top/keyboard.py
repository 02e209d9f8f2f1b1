"""Keys from a terminal, read by Trio: no thread is left waiting for one."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import trio

ESCAPE = 0.05
"""Seconds in which the rest of a key's sequence follows its first character, unless that is the escape key itself."""

NAMES = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"k": "up",
    b"\x1b[B": "down", b"\x1bOB": "down", b"j": "down",
    b"\x1b[5~": "page up", b"\x1b[6~": "page down", b"\x1b[H": "home", b"\x1b[F": "end", b"\x1bOH": "home", b"\x1bOF": "end",
    b"\r": "enter", b"\n": "enter", b"\x1b[C": "enter", b"\x1bOC": "enter",
    b"\x1b": "back", b"\x7f": "back", b"\x08": "back", b"\x1b[D": "back", b"\x1bOD": "back",
}  # fmt: skip
"""Keys that are not the character that they send."""


@contextmanager
def key_by_key(terminal: int) -> Iterator[None]:
    """Within the block, keys come one by one and are not shown; Ctrl-C and Ctrl-Z stay signals. Afterwards the terminal is as it
    was, without what was typed."""
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal, termios.TCSANOW)
    try:
        yield
    finally:
        with suppress(termios.error):  # it may be gone
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


@contextmanager
def suspended(terminal: int) -> Iterator[None]:
    """Within the block, which is inside `key_by_key`'s, the terminal reads lines and shows them again."""
    ours = termios.tcgetattr(terminal)
    lines = termios.tcgetattr(terminal)
    lines[3] |= termios.ICANON | termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, lines)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, ours)


async def keys(terminal: int) -> AsyncIterator[str]:
    """The keys as they are pressed, by their names in `NAMES` or as characters; ends with the terminal."""
    while True:
        typed = await _read(terminal)
        if typed == b"\x1b":
            with trio.move_on_after(ESCAPE):
                typed += await _read(terminal)
        if not typed:
            return
        for one in split(typed):
            yield NAMES.get(one) or one.decode("utf-8", "ignore")


async def _read(terminal: int) -> bytes:
    await trio.lowlevel.wait_readable(terminal)
    try:
        return os.read(terminal, 1024)
    except OSError:  # the terminal is gone
        return b""


def split(typed: bytes) -> list[bytes]:
    """The sequences of the keys that came at once. What is no key that anybody knows is one."""
    found = []
    known = sorted(NAMES, key=len, reverse=True)
    while typed:
        sequence = next((one for one in known if typed.startswith(one)), typed[:1])
        found.append(sequence)
        typed = typed[len(sequence) :]
    return found
