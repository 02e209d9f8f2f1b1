"""What else runs a hello script: a bare fork, a new interpreter, and Docker once for each task.

Each is given its best: loops of the first three are in a bare interpreter with no event loop, calls of Docker's API are made by
kept connections and no program `docker` is started.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from benchmarks.sandboxes import Driven, WrongOutcome
from benchmarks.setting import HELLO
from continuum.config import Settings
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_stream import Endpoint

FORK = "fork and exit"
BARE_INTERPRETER = "python3 -S -c"
INTERPRETER = "python3 -c"
EXEC = "docker exec"
RUN = "docker run"

_LOOP = """
import json, os, sys, time
seconds, arguments = float(sys.argv[1]), sys.argv[2:]
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
times = []
began = time.perf_counter()
while time.perf_counter() - began < seconds:
    one = time.perf_counter()
    if arguments:
        child = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ, file_actions=quiet)
    else:
        child = os.fork()
        if child == 0:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    times.append(time.perf_counter() - one)
print(json.dumps([time.perf_counter() - began, times]))
"""
_LOOPS = {FORK: (), BARE_INTERPRETER: ("-S", "-c", HELLO), INTERPRETER: ("-c", HELLO)}

Way = Callable[[int, float], Awaitable[Driven]]
"""Runs hello so many at a time, over and over for so many seconds."""


def local_ways() -> dict[str, Way]:
    """Those that isolate nothing."""

    def way(arguments: tuple[str, ...]) -> Way:
        async def loop(parallel: int, seconds: float) -> Driven:
            found: list[tuple[float, list[float]]] = []

            async def one() -> None:
                command = [_plain_interpreter(), "-I", "-S", "-c", _LOOP, str(seconds), *arguments]
                done = await trio.run_process(command, capture_stdout=True, stdin=subprocess.DEVNULL, env={})
                found.append(json.loads(done.stdout))

            async with trio.open_nursery() as nursery:
                for _ in range(parallel):
                    nursery.start_soon(one)
            return Driven([each for _, times in found for each in times], max(elapsed for elapsed, _ in found))

        return loop

    return {name: way(arguments) for name, arguments in _LOOPS.items()}


@dataclass(frozen=True, slots=True)
class DockerWays:
    """Docker once for each task, `docker exec` as the first version of Continuum did it: in warm containers, one for
    each task that runs at a time, the script is put in as an archive and an exec is created, started and asked for its exit
    code. Its clean-up, which it did not wait for, is left out."""

    containers: tuple[str, ...]
    http: httpx.AsyncClient
    engine: Engine
    specification: Mapping[str, Any]

    async def exec(self, parallel: int, seconds: float) -> Driven:
        """Hello by an exec for each, each in a container of its own."""
        assert parallel <= len(self.containers)
        return await _repeat([self._executor(name) for name in self.containers[:parallel]], seconds)

    async def run(self, parallel: int, seconds: float) -> Driven:
        """Hello by a container for each, created, attached to, started and removed."""
        return await _repeat([self._run_one] * parallel, seconds)

    def _executor(self, container: str) -> Callable[[], Awaitable[None]]:
        archive = _archive({"script.py": HELLO, "payload.json": "null"})
        command = ["python3", "/task/script.py", "/task/payload.json"]
        description = {"AttachStdout": True, "AttachStderr": True, "User": "65534", "Cmd": command}

        async def run() -> None:
            await self._call("PUT", f"/containers/{container}/archive?path=/", content=archive)
            created = await self._call("POST", f"/containers/{container}/exec", json=description)
            number = created.json()["Id"]
            printed = await self._call("POST", f"/exec/{number}/start", json={"Detach": False, "Tty": False})
            ended = await self._call("GET", f"/exec/{number}/json")
            if ended.json()["ExitCode"] != 0 or b"hello\n" not in printed.content:
                raise WrongOutcome(f"an exec ended with {ended.json()['ExitCode']} and printed {printed.content!r}")

        return run

    async def _run_one(self) -> None:
        description = {**self.specification, "Cmd": ["python3", "-c", HELLO]}
        printed = await self.engine.run(_container_name(), description, deadline=60)
        if printed.output != "hello\n":
            raise WrongOutcome(f"a container printed {printed}")

    async def _call(self, method: str, path: str, **body: Any) -> httpx.Response:
        answer = await self.http.request(method, path, **body)
        if answer.is_error:
            raise WrongOutcome(f"Docker: {method} {path}: {answer.text}")
        return answer


@asynccontextmanager
async def docker_ways(settings: Settings, containers: int) -> AsyncIterator[DockerWays]:
    """The daemon that DOCKER_HOST names, with warm containers of the sandboxes' image, runtime and limits."""
    endpoint = Endpoint.from_environment(os.environ)
    engine = Engine(endpoint)
    memory = settings.container_memory_mb * 1024 * 1024
    specification = {
        "Image": settings.container_image,
        "HostConfig": {
            "AutoRemove": True,
            "NetworkMode": "none",
            "Memory": memory,
            "MemorySwap": memory,
            "NanoCpus": round(settings.container_cpu_limit * 1e9),
            "Runtime": settings.container_runtime,
        },
    }
    transport = httpx.AsyncHTTPTransport(uds=endpoint.path)
    base = f"http://{endpoint.host or 'docker'}:{endpoint.port or 80}"
    names = tuple(_container_name() for _ in range(containers))
    async with AsyncExitStack() as stack:
        stack.callback(engine.close)
        http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url=base, timeout=60))
        for name in names:
            stack.push_async_callback(engine.remove, name)
            # Signal 15 does not end a process 1 that has no handler for it: removal kills.
            await engine.create(name, {**specification, "Cmd": ["sleep", "infinity"]})
            await engine.start(name)
        yield DockerWays(names, http, engine, specification)


async def _repeat(runs: list[Callable[[], Awaitable[None]]], seconds: float) -> Driven:
    times: list[float] = []
    began = time.perf_counter()

    async def repeat(run: Callable[[], Awaitable[None]]) -> None:
        while time.perf_counter() - began < seconds:
            one = time.perf_counter()
            await run()
            times.append(time.perf_counter() - one)

    async with trio.open_nursery() as nursery:
        for run in runs:
            nursery.start_soon(repeat, run)
    return Driven(times, time.perf_counter() - began)


def _plain_interpreter() -> str:
    """The system's own where there is one. What others installed into ours may have it import much at each start."""
    system = "/usr/bin/python3"
    return system if os.path.exists(system) else os.path.realpath(sys.executable)


def _archive(files: Mapping[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"task/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


def _container_name() -> str:
    return f"continuum-bench-{secrets.token_hex(6)}"
