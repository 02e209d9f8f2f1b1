"""The worker's end of the conversation with a runner: frames from a byte stream, and outcomes from frames.

Nothing that comes out of a sandbox is trusted. A frame of an unknown kind, out of turn or too large, an exit that makes no
sense, silence past a deadline: each is a `SandboxLost`, and the sandbox is thrown away.
"""

from __future__ import annotations

import json
import math
import struct
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import trio

from continuum.model import Ending, Outcome, RunRequest, Stream
from continuum.sandbox import seccomp
from continuum.sandbox.frames import LARGEST_FRAME, Frame, FrameKind, FrameParser, OutputText
from continuum.sandbox.judgement import Exit, judge, parse_exit
from continuum.sandbox.limits import Limits
from continuum.sandbox.protocol import OutputSink, SandboxLost
from continuum.sandbox.streams import PromptStream

LOADER = """\
import os
def r(n):
    b = b""
    while len(b) < n:
        c = os.read(0, n - len(b))
        if not c:
            raise SystemExit(0)
        b += c
    return b
exec(compile(r(int.from_bytes(r(4), "big")), "<runner>", "exec"), {"__name__": "runner", "__builtins__": __builtins__})
"""
BOOTSTRAP = ("python3", "-I", "-c", LOADER)
"""What to start inside a sandbox: it reads the runner from stdin. `-I` keeps the image's environment out."""

BOOT_DEADLINE = 30.0
"""Seconds for an interpreter to start and say ready, on a busy host."""
READY_DEADLINE = 15.0
"""Seconds for the runner to have cleaned up after the script before."""
GRACE = 8.0
"""Seconds beyond a script's own timeout for the runner to kill it, see it gone (its CLEANING_DEADLINE) and say so."""
LAST_WORDS = 2.0
"""Seconds for what a runner said before it stopped to listen."""

_HEADER = struct.Struct("!IIQ")
_LENGTH = struct.Struct("!I")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LONGEST_TIMEOUT = 2**32 - 1
_MEBIBYTE = 1024 * 1024
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """How a runner is to treat scripts.

    uid, gid: whom a script becomes; None leaves it the runner's own user (where there is no other).
    writable: places to empty after each script; `home` is one of them and holds the script's directories.
    limits: resource limits by name, as the module `resource` calls them.
    cpu_seconds: CPU time that a script may use; 0 for any.
    kill_all: the runner is in a process namespace of its own and kills everything there after each script.
    path: directories that scripts import from beside the usual ones, as with PYTHONPATH; their `bin` is in PATH.
    """

    uid: int | None
    gid: int | None
    home: str = "/sandbox"
    writable: tuple[str, ...] = ("/sandbox", "/tmp", "/dev/shm", "/dev/mqueue")  # noqa: S108
    limits: dict[str, int] = field(default_factory=dict)
    cpu_seconds: int = 0
    kill_all: bool = True
    user: str = "sandboxuser"
    path: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The configuration as the runner reads it."""
        values = asdict(self) | {
            "task_directory": f"{self.home}/task",
            "work_directory": f"{self.home}/work",
            "limits": self.limits | ({"RLIMIT_CPU": self.cpu_seconds} if self.cpu_seconds else {}),
            "seccomp": seccomp.program().hex(),
            "machines": seccomp.MACHINES,
            "environment": {
                "PATH": ":".join([*(f"{each}/bin" for each in self.path), _PATH]),
                "HOME": f"{self.home}/work",
                "USER": self.user,
                "LOGNAME": self.user,
                "LANG": "C.UTF-8",
                "TMPDIR": "/tmp",  # noqa: S108
                **({"PYTHONPATH": ":".join(self.path)} if self.path else {}),
            },
        }
        return prefixed(json.dumps(values).encode())


class RunnerChannel:
    """One runner behind a byte stream. Any exception from a method means: close it, and the sandbox with it."""

    def __init__(self, stream: PromptStream, *, name: str, limits: Limits) -> None:
        self.name = name
        self._stream = stream
        self._limits = limits
        self._parser = FrameParser()
        self._frames: deque[Frame] = deque()
        self._ready = False

    async def boot(self, config: RunnerConfig, deadline: float = BOOT_DEADLINE) -> None:
        """Send the runner and its configuration, and wait until it is ready.

        deadline: seconds. Raises `SandboxLost`.
        """
        source = Path(__file__).with_name("runner.py").read_bytes()
        with _lost_after(deadline, "the runner did not start", started=False):
            await self._send(prefixed(source) + config.encode())
            await self._wait_until_ready()

    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        """Run a script; see `continuum.sandbox.protocol.Sandbox.run`."""
        told = _encode_request(request)
        if len(told) > self._limits.memory_mb * _MEBIBYTE:
            size = (
                f"its code and payload have {len(told) / _MEBIBYTE:.1f} MB, more than the {self._limits.memory_mb} MB"
            )
            return Outcome(Ending.OUT_OF_MEMORY, message=f"Out of memory: {size} that it may use")
        if not self._is_ready():
            with _lost_after(READY_DEADLINE, "the runner did not clean up after the script before", started=False):
                await self._wait_until_ready()
        self._see_that_nothing_follows()
        self._ready = False
        out = OutputText(Stream.OUTPUT, sink, request.output_limit)
        err = OutputText(Stream.ERROR, sink, request.output_limit)
        with _lost_after(request.timeout + GRACE, "the runner did not end a script at its timeout"):
            if rest := self._send_what_is_taken(told):
                ended = await self._send_and_receive_exit(rest, out, err)
            else:
                ended = await self._receive_exit(out, err)
        output = out.finish(ended.dropped_output)
        error_output = err.finish(ended.dropped_error)
        # The last line tells the cause, where it is the last.
        last_words = "" if ended.dropped_error else error_output
        ending, exit_code, message = judge(ended, request.timeout, self._limits, last_words)
        return Outcome(ending, exit_code, output, error_output, message)

    def _send_what_is_taken(self, told: bytes) -> memoryview:
        """Send the part of a request for which nobody has to wait, most often all of it; return the rest."""
        try:
            return memoryview(told)[self._stream.send_nowait(told) :]
        except _BROKEN:  # as the rest will find, too
            return memoryview(told)

    async def _send_and_receive_exit(self, rest: memoryview, out: OutputText, err: OutputText) -> Exit:
        """Both at once, because a child that dies over its request leaves the rest of it unread."""
        whole = False
        ended: Exit | None = None
        lost = SandboxLost("the sandbox ended")
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                nonlocal whole
                try:
                    await self._send(rest)
                    whole = True
                except SandboxLost:
                    nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS

            nursery.start_soon(send)
            try:
                ended = await self._receive_exit(out, err)
            except SandboxLost as error:
                lost = error
            nursery.cancel_scope.cancel()
        if not whole:
            # What is left unsent would be missing, and what is left unread taken for the next request.
            await self.aclose()
        if ended is not None:
            return ended
        try:
            if not whole:
                # A script begins once its whole request has been read. A stream that ends after a send that went well proves
                # nothing of the kind.
                raise SandboxLost(f"{lost} while it took the request", started=False, amid_request=True) from lost
            raise lost
        finally:
            # Its traceback holds this frame: together they would keep the request until a garbage collection.
            del lost

    async def _receive_exit(self, out: OutputText, err: OutputText) -> Exit:
        while True:
            frame = await self._receive()
            match frame.kind:
                case FrameKind.OUTPUT:
                    out.add(frame.data)
                case FrameKind.ERROR:
                    err.add(frame.data)
                case FrameKind.EXIT:
                    return parse_exit(frame.data)
                case _:
                    raise SandboxLost("the runner said ready while a script ran")

    async def aclose(self) -> None:
        """Close the stream: the runner ends when its stdin does."""
        await trio.aclose_forcefully(self._stream)

    async def _wait_until_ready(self) -> None:
        while not self._ready:
            self._learn_ready(await self._receive(started=False))

    def _is_ready(self) -> bool:
        """Whether it has said so, as far as that has become known here."""
        if not self._ready and (frame := self._receive_nowait()) is not None:
            self._learn_ready(frame)
        return self._ready

    def _learn_ready(self, frame: Frame) -> None:
        if frame.kind is not FrameKind.READY or frame.data:
            raise SandboxLost(f"the runner sent {frame.kind.name.lower()} instead of ready", started=False)
        self._ready = True

    def _see_that_nothing_follows(self) -> None:
        """Raise `SandboxLost` when the sandbox has ended since it was ready, as far as that has become known here.

        Nothing comes between ready and the next request but the end.
        """
        if (frame := self._receive_nowait()) is not None:
            raise SandboxLost(f"the runner sent {frame.kind.name.lower()} unasked", started=False)

    async def _send(self, data: bytes | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except _BROKEN as error:
            raise SandboxLost("the sandbox ended", started=False) from error

    async def _receive(self, *, started: bool = True) -> Frame:
        """The next frame. started: whether a script may have begun, of which a lost sandbox tells."""
        while not self._frames:
            try:
                data = await self._stream.receive_some(LARGEST_FRAME)
            except _BROKEN as error:
                raise SandboxLost("the sandbox ended", started=started) from error
            self._take(data, started=started)
        return self._next_frame(started=started)

    def _receive_nowait(self) -> Frame | None:
        """The next frame before a script has begun; None when it has not come yet."""
        while not self._frames:
            try:
                data = self._stream.receive_nowait(LARGEST_FRAME)
            except _BROKEN as error:
                raise SandboxLost("the sandbox ended", started=False) from error
            if data is None:
                return None
            self._take(data, started=False)
        return self._next_frame(started=False)

    def _take(self, data: bytes | bytearray, *, started: bool) -> None:
        if not data:
            raise SandboxLost("the sandbox ended", started=started)
        self._frames += self._parser.feed(data)

    def _next_frame(self, *, started: bool) -> Frame:
        frame = self._frames.popleft()
        if frame.kind is FrameKind.FATAL:
            raise SandboxLost(f"the runner gave up: {frame.data[:500].decode('utf-8', 'replace')}", started=started)
        return frame


def _encode_request(request: RunRequest) -> bytes:
    environment = {
        **request.environment,
        "CONTINUUM_TASK_ID": str(request.task_id),
        "CONTINUUM_ATTEMPT": str(request.attempt),
    }
    body = b"".join(
        prefixed(part)
        for part in (
            "".join(f"{name}={value}\0" for name, value in environment.items()).encode(),
            request.code.encode("utf-8", "surrogatepass"),
            request.payload.encode("utf-8", "surrogatepass"),
        )
    )
    timeout = min(_LONGEST_TIMEOUT, max(1, math.ceil(request.timeout * 1000)))
    return _HEADER.pack(timeout, request.output_limit, len(body)) + body


def prefixed(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


class _lost_after:  # noqa: N801 - used like a function
    """Within the block, silence longer than `seconds` is a lost sandbox."""

    def __init__(self, seconds: float, what: str, *, started: bool = True) -> None:
        self._what = what
        self._started = started
        self._scope = trio.CancelScope(deadline=trio.current_time() + seconds)

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(self, *failure: Any) -> bool | None:
        handled = self._scope.__exit__(*failure)
        if self._scope.cancelled_caught:
            raise SandboxLost(self._what, started=self._started)
        return handled
