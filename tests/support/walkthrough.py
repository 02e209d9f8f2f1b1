"""Going through a page as its reader would: its blocks one after another, in one folder and as if in one shell."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg

from tests.support.documents import Block
from tests.support.postgres import free_port

DEADLINE = 120.0
"""Seconds for one block."""
_ADDRESS = re.compile(r"\b(?:localhost|127\.0\.0\.1):8080\b")


@dataclass
class Walkthrough:
    """folder: where the reader is at first. environment: what it has at first. url: the queue that SQL goes to. port: of the
    worker's status server, which pages call 8080."""

    folder: Path
    environment: dict[str, str]
    url: str
    port: int
    _said: str = ""
    _services: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def go(self, block: Block) -> None:
        """Do what a block says. Raises AssertionError when it does not do what the page promises."""
        match block.word, block.language:
            case ("cannot", _):
                pass
            case ("output", _):
                assert _alike(block.text, self._said), f"{block.place}: it wrote\n{self._said}"
            case ("file", _):
                self._write(block.argument, block.text)
            case ("service", "sh"):
                self._serve(block)
            case ("task", "python"):
                self._write("task.py", block.text)
                payload = f"--payload {shlex.quote(block.argument)}" if block.argument else ""
                self._shell(block, f"continuum submit task.py --wait --timeout 60 {payload}")
            case (_, "sh"):
                self._shell(block, block.text)
            case (_, "console"):
                self._converse(block)
            case (_, "python"):
                self._python(block)
            case (word, "sql"):
                self._sql(block, commit=word == "commit")

    def end(self) -> None:
        """Stop what the page started in the background; each ends in order."""
        for service in self._services:
            service.send_signal(signal.SIGINT)
        codes = []
        for service in self._services:
            try:
                codes.append(service.wait(40))
            except subprocess.TimeoutExpired:
                os.killpg(service.pid, signal.SIGKILL)
                codes.append(service.wait())
        assert set(codes) <= {0, 130}, codes

    @property
    def _state(self) -> Path:
        """Beside the reader's folder: what a shell exported and where it was, for the next block's."""
        return self.folder.parent / "state"

    def _write(self, name: str, text: str) -> None:
        path = self._directory() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._here(text))

    def _directory(self) -> Path:
        place = self.folder.parent / "directory"
        return Path(place.read_text().strip()) if place.exists() else self.folder

    def _here(self, text: str) -> str:
        return _ADDRESS.sub(f"127.0.0.1:{self.port}", text)

    def _script(self, text: str, *, last: str = "") -> str:
        """A shell script that goes on where the block before it left off. last: what to do at its end."""
        state = shlex.quote(str(self._state))
        return f"[ ! -e {state} ] || . {state}\n{last}\nset -e\n{self._here(text)}"

    def _shell(self, block: Block, text: str) -> None:
        wanted = int(block.argument) if block.word == "exit" else 0
        state, directory = (shlex.quote(str(self.folder.parent / name)) for name in ("state", "directory"))
        keep = f"trap 'export -p >{state}; pwd >{directory}' EXIT"
        with subprocess.Popen(
            ["sh", "-c", self._script(text, last=keep)],
            cwd=self._directory(),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=DEADLINE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
                raise AssertionError(f"{block.place}: not done within {DEADLINE} s\n{said.decode()}") from None
        self._said = said.decode(errors="replace")
        assert process.returncode == wanted, f"{block.place}: exit code {process.returncode}\n{self._said}"

    def _converse(self, block: Block) -> None:
        """Each command of a console block, and whether it answers as shown."""
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines(keepends=True)
            typed = 1
            while typed < len(lines) and lines[typed].startswith("> "):
                typed += 1
            self._shell(block, "".join(line.removeprefix("> ") for line in lines[:typed]))
            shown = "".join(lines[typed:])
            assert _alike(shown, self._said), f"{block.place}: {lines[0].strip()} wrote\n{self._said}"

    def _python(self, block: Block) -> None:
        program = self.folder.parent / "block.py"
        program.write_text(self._here(block.text))
        self._shell(block, f"{shlex.quote(sys.executable)} {shlex.quote(str(program))}")

    def _sql(self, block: Block, *, commit: bool) -> None:
        with psycopg.connect(self.url) as connection:
            (before,) = connection.execute("SELECT coalesce(max(id), 0) FROM tasks").fetchone() or (0,)
            try:
                connection.execute(block.text.encode())
            except psycopg.Error as error:
                raise AssertionError(f"{block.place}: {error}") from None
            if not commit:
                connection.rollback()
                return
            connection.commit()
            deadline = time.monotonic() + DEADLINE
            while time.monotonic() < deadline:
                ended = connection.execute(
                    "SELECT status, last_error FROM tasks WHERE id > %s AND (run_at IS NULL OR run_at < now())",
                    (before,),
                ).fetchall()
                connection.commit()
                if not {"pending", "processing"} & {status for status, _ in ended}:
                    break
                time.sleep(0.05)
            assert {status for status, _ in ended} <= {"completed"}, f"{block.place}: {ended}"

    def _serve(self, block: Block) -> None:
        """A worker in the background, ready when this returns. It takes over the address of the page."""
        self.port = free_port()
        log = self.folder.parent / f"service-{len(self._services)}.log"
        with log.open("wb") as sink:
            service = subprocess.Popen(
                ["sh", "-c", self._script(f"exec {block.text}")],
                cwd=self._directory(),
                env=self.environment | {"API_PORT": str(self.port)},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._services.append(service)
        wait_until_ready(self.port, service, log)


def wait_until_ready(port: int, service: subprocess.Popen[bytes], log: Path, seconds: float = DEADLINE) -> None:
    """Until the worker's status server says that it is ready. Raises AssertionError with its log."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and service.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the worker is not ready, exit code {service.poll()}:\n{log.read_text(errors='replace')}")


def _alike(shown: str, said: str) -> bool:
    """Whether a program said what a page shows: numbers may differ, `...` stands for anything, blanks for blanks."""
    pattern = re.escape(" ".join(shown.split()))
    pattern = re.sub(r"\d+", lambda _: r"\d+", pattern)
    pattern = pattern.replace(r"\.\.\.", ".*").replace(r"\ ", r"\s+")
    return re.fullmatch(pattern, " ".join(said.split()), re.DOTALL) is not None
