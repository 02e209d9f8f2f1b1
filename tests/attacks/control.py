"""The unprotected sandbox: where every attack must succeed, in a throwaway container that bounds what it does.

It is a container with nearly every right that this kind of machine can give one, a writable root, the host's files and a
Docker socket (both made for the purpose) and a runner that takes no care; see `unprotected.py`.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from continuum.model import Ending, Outcome, RunRequest, Stream
from continuum.requirements import Requirements
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_stream import ContainerStream, Endpoint
from continuum.sandbox.frames import FrameKind, FrameParser
from continuum.sandbox.protocol import BackendUnavailable, Layer, OutputSink, SandboxLost
from tests.attacks.attack import VICTIM_MARK
from tests.attacks.prelude import VICTIM_SCRIPT
from tests.support import docker as lab

CAPABILITIES = (
    "SYS_ADMIN", "SYS_PTRACE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PACCT", "SYS_NICE", "SYS_TIME", "SYSLOG", "IPC_LOCK",
    "NET_ADMIN", "NET_RAW", "MKNOD", "SETFCAP", "SETPCAP", "SETUID", "SETGID", "KILL", "CHOWN", "FOWNER", "FSETID",
    "DAC_OVERRIDE", "DAC_READ_SEARCH", "LINUX_IMMUTABLE", "SYS_MODULE", "IPC_OWNER",
)  # fmt: skip
"""All that attacks try to have, but for the right to restart a machine and SYS_RESOURCE, which machines that are virtual
themselves often cannot give."""
PATIENCE = 1.0
"""Seconds beyond a timeout after which the unprotected runner is taken for lost."""
MOST_OUTPUT = 1 << 20
"""Characters of output after which the point is proven, and the worker's memory spared."""

_HEADER = struct.Struct("!IIQ")
_STREAMS = {FrameKind.OUTPUT: Stream.OUTPUT, FrameKind.ERROR: Stream.ERROR}


class ControlBackend:
    """Makes unprotected sandboxes.

    network: which network they join, `none` for most. host: a directory that stands for the host's.
    environment: what the worker was careless with.
    """

    name = "control"
    description = "no protection (a throwaway container)"

    def __init__(self, network: str, host: Path, environment: Mapping[str, str], gateway: str = "127.0.0.1") -> None:
        self._engine = Engine(Endpoint.from_environment({}))
        self._network = network
        self._host = host
        self._environment = environment
        self._gateway = gateway

    async def check(self) -> None:
        await self._engine.ping()

    async def prepare(self) -> None:
        await self.check()

    def layer(self, requirements: Requirements) -> AbstractAsyncContextManager[Layer]:
        raise BackendUnavailable("no attack requires packages")

    async def start(self, layer: Layer | None = None) -> ControlSandbox:
        name = f"continuum-attack-control-{secrets.token_hex(6)}"
        stream: ContainerStream | None = None
        try:
            await self._engine.create(name, self._specification())
            stream = await self._engine.attach(name, stdin=True)
            await self._engine.start(name)
            return ControlSandbox(self._engine, name, stream)
        except BaseException:
            await self._engine.remove(name)
            if stream is not None:
                await trio.aclose_forcefully(stream)
            raise

    def _specification(self) -> dict[str, Any]:
        victim = VICTIM_SCRIPT.replace("VICTIM_MARK", repr(VICTIM_MARK))
        program = Path(__file__).with_name("unprotected.py").read_text()
        ipv6 = {} if self._network == "none" else {"net.ipv6.conf.all.disable_ipv6": "0"}
        return {
            "Image": lab.IMAGE,
            "Hostname": "sandbox",
            "User": "0:0",
            "Entrypoint": ["python3", "-I", "-c", program],
            "Cmd": [],
            "Env": [f"{name}={value}" for name, value in self._environment.items()] + [f"VICTIM={victim}"],
            "Labels": {"continuum.attack": "control"},
            "OpenStdin": True,
            "StdinOnce": True,
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "StopSignal": "SIGKILL",
            "HostConfig": {
                "AutoRemove": True,
                "CapAdd": list(CAPABILITIES),
                "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined", "label=disable"],
                "Binds": [f"{self._host}:/host", f"{self._host}/docker.sock:/var/run/docker.sock"],
                "Devices": [{"PathOnHost": "/dev/kmsg", "PathInContainer": "/dev/kmsg", "CgroupPermissions": "r"}],
                "DeviceCgroupRules": ["b *:* rm", "c *:* rwm"],
                "Memory": 512 << 20,
                "MemorySwap": 512 << 20,
                "PidsLimit": 256,
                "Tmpfs": {"/tmp": "exec,mode=1777,size=64m", "/dev/shm": "mode=1777,size=64m"},
                "Ulimits": [
                    {"Name": "core", "Soft": 0, "Hard": 1 << 20},
                    {"Name": "nofile", "Soft": 1024, "Hard": 8192},
                ],
                "Sysctls": ipv6,
                "NetworkMode": self._network,
                "IpcMode": "private",
                "ExtraHosts": [f"{name}.docker.internal:{self._gateway}" for name in ("host", "gateway")],
                "LogConfig": {"Type": "none"},
            },
        }

    async def sweep(self, live_workers: Set[str]) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    async def aclose(self) -> None:
        self._engine.close()
        await trio.lowlevel.checkpoint()


class ControlSandbox:
    """One unprotected container, and a worker's end of it that believes what it is told."""

    reusable = True

    def __init__(self, engine: Engine, name: str, stream: ContainerStream) -> None:
        self.name = name
        self._engine = engine
        self._stream = stream
        self._frames = FrameParser()

    async def run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        with trio.move_on_after(request.timeout + PATIENCE):
            return await self._run(request, sink)
        raise SandboxLost("the runner did not end a script at its timeout")

    async def _run(self, request: RunRequest, sink: OutputSink) -> Outcome:
        meta = json.dumps({"environment": {**request.environment, "CONTINUUM_TASK_ID": str(request.task_id)}})
        parts = [text.encode("utf-8", "surrogatepass") for text in (meta, request.code, request.payload)]
        body = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        texts = {Stream.OUTPUT: "", Stream.ERROR: ""}
        try:
            await self._stream.send_all(_HEADER.pack(math.ceil(request.timeout * 1000), 0, len(body)) + body)
            async for data in self._stream:
                for frame in self._frames.feed(bytes(data)):
                    if frame.kind is FrameKind.EXIT:
                        return _outcome(json.loads(frame.data), texts)
                    if frame.kind in _STREAMS:
                        text = frame.data.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
                        texts[_STREAMS[frame.kind]] += text
                        sink(_STREAMS[frame.kind], text)
                        if len(texts[_STREAMS[frame.kind]]) > MOST_OUTPUT:
                            raise SandboxLost("it floods the worker, which would take it all")
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise SandboxLost(f"the sandbox ended: {error}") from error
        raise SandboxLost("the sandbox ended")

    async def aclose(self) -> None:
        await self._engine.remove(self.name)
        await trio.aclose_forcefully(self._stream)


def _outcome(told: dict[str, Any], texts: Mapping[Stream, str]) -> Outcome:
    code = os.waitstatus_to_exitcode(told["status"])
    if told["timed_out"]:
        ending, message = Ending.TIMED_OUT, "Timeout"
    else:
        ending = Ending.FAILED if code else Ending.COMPLETED
        message = f"exit code {code}" if code else ""
    return Outcome(ending, abs(code), texts[Stream.OUTPUT], texts[Stream.ERROR], message)


@contextmanager
def careless_host(folder: Path, marker: str) -> Iterator[Path]:
    """A directory that stands for a host's: with a file of its own, and a socket on which something answers as Docker."""
    (folder / marker).write_text("this is the host's")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "docker.sock"))
        server.listen(16)

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.recv(4096)
                    connection.sendall(b'HTTP/1.0 200 OK\r\n\r\n{"Version": "made for the purpose"}')

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield folder
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
