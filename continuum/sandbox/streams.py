"""Byte streams of which it can be told, without a turn of Trio's, what they take and what has come.

A short script costs the worker little more than its request and its answer; a wait for what is there already, and a task
for what is sent at once, would be most of that.
"""

from __future__ import annotations

import errno
import operator
import socket
from abc import abstractmethod

import trio

_READ_SIZE = 64 * 1024


class PromptStream(trio.abc.HalfCloseableStream):
    """A stream that can also be asked to do what it can at once. Its methods raise what `trio.abc.Stream` has them raise."""

    @abstractmethod
    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send as much as is taken without waiting; return how many bytes that was."""

    @abstractmethod
    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """What has come: at least one byte, `b""` at the end of the stream; None when a receive would have to wait."""


class PromptSocketStream(PromptStream):
    """A connected socket, which is this stream's from now on."""

    def __init__(self, connected: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
        self._socket = connected

    @classmethod
    def of(cls, stream: trio.SocketStream) -> PromptSocketStream:
        """What another stream was, which is used no more."""
        return cls(socket.socket(fileno=stream.socket.detach()))

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _failure(error) from error

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        try:
            return self._socket.recv(max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _failure(error) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        # Trio's own tries first, and an answer has hardly ever come already.
        size = _READ_SIZE if max_bytes is None else operator.index(max_bytes)
        if size < 1:
            raise ValueError("a receive is for one byte at least")
        while True:
            if self._socket.fileno() == -1:
                await trio.lowlevel.checkpoint()
                raise trio.ClosedResourceError("this stream was closed")
            await trio.lowlevel.wait_readable(self._socket)
            if (data := self.receive_nowait(size)) is not None:
                return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _failure(error: OSError) -> trio.BrokenResourceError | trio.ClosedResourceError:
    if error.errno == errno.EBADF:
        return trio.ClosedResourceError("this stream was closed")
    return trio.BrokenResourceError(f"the connection broke: {error}")
