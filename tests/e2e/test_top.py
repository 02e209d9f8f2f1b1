"""`continuum top` at a terminal of its own: what it shows, its keys, and that the terminal is as it was whatever ends it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import continuum
from continuum.config import Settings
from continuum.model import Completion, PartialOutput, Status
from tests.e2e.test_cli_watching import DEADLINE, environment
from tests.support.postgres import PostgresServer
from tests.support.proxy import Fault, fault_proxy

WORKER = "host-1"
SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])")
BEGIN, END = "\x1b[?1049h", "\x1b[?1049l"
"""What switches to the other screen of a terminal, and back."""


@pytest.fixture
async def client(url: str) -> AsyncIterator[continuum.Client]:
    async with continuum.Client(Settings.model_validate({"database_url": url})) as opened:
        yield opened


class Terminal:
    """A terminal with `continuum top` in it."""

    def __init__(self, process: subprocess.Popen[bytes], ours: int) -> None:
        self._process = process
        self._ours = ours
        self.raw = ""

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def forget(self) -> None:
        """What was shown so far does not count any more."""
        self.raw = ""

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    @property
    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self._ours)

    @property
    def stopped(self) -> bool:
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    async def see(self, text: str) -> None:
        """Wait until something is shown, as lines without their colours."""
        with trio.fail_after(DEADLINE):
            while text not in SEQUENCE.sub("", self.raw):
                await self._read()

    async def _read(self) -> None:
        await trio.lowlevel.wait_readable(self._ours)
        self.raw += os.read(self._ours, 65536).decode(errors="replace")

    async def end(self) -> int:
        """Wait for the end of the process; the terminal must be itself again by then."""
        with trio.fail_after(DEADLINE):
            while self.raw.rfind(END) <= self.raw.rfind(BEGIN):
                await self._read()
            while self._process.poll() is None:
                await trio.sleep(0.02)
        assert "\x1b[?25h" in self.raw, "the cursor is shown again"
        return self._process.returncode


@asynccontextmanager
async def top(url: str) -> AsyncIterator[Terminal]:
    """The command in a terminal of 100 columns and 30 lines, which must end with the attributes that it had."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "continuum", "top"],
        env=environment(url, TERM="xterm-256color"),
        preexec_fn=lambda: os.login_tty(os.dup(theirs)),
    )
    try:
        terminal = Terminal(process, ours)
        await terminal.see("continuum top")
        yield terminal
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


async def test_it_shows_the_queue_and_what_a_chosen_task_writes(client: continuum.Client, url: str) -> None:
    first, second, third = [await client.submit("pass", name=name) for name in ("zebra", "ape", "waits")]
    assert third
    await client.database.claim(WORKER, 2, lease=60)
    async with top(url) as terminal:
        await terminal.see("1 pending")
        await terminal.see("2 running")
        await terminal.see("longest first")
        await terminal.see("zebra")
        await client.database.progress(WORKER, [PartialOutput(second, 1, "line one\n\x1b[2Jline two\n", "oops\n")])
        terminal.press("ss")
        await terminal.see("sorted by name")
        terminal.press("\x1b[B\x1b[A\r")  # down, up: the first by name is the second that was submitted
        for text in (f"task {second}", "\\x1b[2Jline two", "stderr, 1 lines"):
            await terminal.see(text)
        terminal.press("\x1b")
        terminal.forget()
        await terminal.see("sorted by name")
        done = Completion(first, 1, Status.FAILED, 1, "", "", "ValueError: not 5")
        await client.database.complete(WORKER, [done])
        await terminal.see("ValueError: not #")
        terminal.press("p")
        await terminal.see("paused")
        terminal.resize(12, 60)
        terminal.forget()
        await terminal.see("q quit")
        terminal.press("q")
        assert await terminal.end() == 0


async def test_ctrl_z_leaves_the_terminal_to_the_shell_for_a_while(url: str) -> None:
    async with top(url) as terminal:
        terminal.press("\x1a")
        with trio.fail_after(DEADLINE):
            while not terminal.stopped:
                await trio.sleep(0.02)
        assert terminal.attributes[3] & termios.ICANON
        assert terminal.attributes[3] & termios.ECHO
        terminal.send(signal.SIGCONT)
        with trio.fail_after(DEADLINE):
            while terminal.attributes[3] & termios.ECHO:
                await trio.sleep(0.02)
        terminal.press("p")
        await terminal.see("paused")
        terminal.press("q")
        assert await terminal.end() == 0


@pytest.mark.parametrize(("keys", "number", "code"), [("\x03", None, 130), ("", signal.SIGTERM, 143)])
async def test_a_signal_ends_it_and_the_terminal_is_as_it_was(
    url: str, keys: str, number: signal.Signals | None, code: int
) -> None:
    async with top(url) as terminal:
        terminal.press(keys)
        if number is not None:
            terminal.send(number)
        assert await terminal.end() == code


async def test_a_database_that_is_away_is_told_of_and_waited_for(url: str, shared_server: PostgresServer) -> None:
    async with fault_proxy(shared_server.port) as proxy:
        through = re.sub(r":\d+/", f":{proxy.port}/", url)
        async with top(through) as terminal:
            proxy.set(Fault.REFUSE)
            await terminal.see("database away for")
            await terminal.see("trying again")
            proxy.set(Fault.NONE)
            terminal.forget()
            await terminal.see("tasks/s")
            with trio.fail_after(DEADLINE):
                while "database away" in terminal.raw:
                    terminal.forget()
                    await terminal.see("q quit")
            terminal.press("q")
            assert await terminal.end() == 0


def test_without_a_terminal_it_names_another_command(url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "continuum", "top"],
        env=environment(url),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "continuum: `continuum top` needs a terminal with a keyboard; `continuum status` prints the queue once, with --watch "
        "again and again\n"
    )
