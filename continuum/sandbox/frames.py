"""What a runner says: frames from a byte stream however it is cut, and text from their bytes.

Nothing that comes out of a sandbox is trusted: what is no frame, or more than was asked for, is a `SandboxLost`.
"""

from __future__ import annotations

import codecs
import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

from continuum.model import Stream
from continuum.sandbox.protocol import OutputSink, SandboxLost

LARGEST_FRAME = 65_536
"""Bytes of one frame: the runner's buffer. A longer one is no runner's."""

_FRAME = struct.Struct("!cI")
_Decoder = codecs.getincrementaldecoder("utf-8")


class FrameKind(enum.Enum):
    READY = b"R"
    OUTPUT = b"O"
    ERROR = b"E"
    EXIT = b"X"
    FATAL = b"F"


class Frame(NamedTuple):
    kind: FrameKind
    data: bytes


_KINDS = {kind.value: kind for kind in FrameKind}
_OUTPUTS = (FrameKind.OUTPUT, FrameKind.ERROR)


class FrameParser:
    """Frames from bytes, however they are cut. Never holds more than one frame and what came with it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[Frame]:
        """Add bytes and yield the frames that they complete. Raises `SandboxLost` on what is no frame."""
        self._buffer += data
        while len(self._buffer) >= _FRAME.size:
            letter, length = _FRAME.unpack_from(self._buffer)
            kind = _KINDS.get(letter)
            if kind is None:
                raise SandboxLost(f"the runner sent something that is no frame: {letter!r}")
            if length > LARGEST_FRAME or (length == 0 and kind in _OUTPUTS):  # which would count towards no limit
                raise SandboxLost(f"the runner sent a frame of {length} bytes")
            end = _FRAME.size + length
            if len(self._buffer) < end:
                return
            frame = Frame(kind, bytes(self._buffer[_FRAME.size : end]))
            del self._buffer[:end]
            yield frame


class OutputText:
    """One of a script's outputs as text: decoded as it comes, with what a database cannot hold replaced."""

    def __init__(self, stream: Stream, sink: OutputSink, limit: int) -> None:
        self._stream = stream
        self._sink = sink
        self._limit = limit
        self._left = limit
        self._decoder = _Decoder("replace")
        self._parts: list[str] = []

    def add(self, data: bytes, *, final: bool = False) -> None:
        """Take bytes. Raises `SandboxLost` when they are more than the runner was told to send."""
        self._left -= len(data)
        if self._left < 0:
            raise SandboxLost("the runner sent more output than the limit")
        self._keep(self._decoder.decode(data, final).replace("\x00", "\N{REPLACEMENT CHARACTER}"))

    def finish(self, dropped: int) -> str:
        """The whole text; with a mark at its end when `dropped` bytes of it were cut off."""
        self.add(b"", final=True)
        if dropped:
            kept = self._limit - self._left
            self._keep(f"\n[output cut: the first {kept} of {kept + dropped} bytes are kept]\n")
        return "".join(self._parts)

    def _keep(self, text: str) -> None:
        if text:
            self._parts.append(text)
            self._sink(self._stream, text)
