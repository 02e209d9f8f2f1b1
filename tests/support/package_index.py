"""A package index of the test's own, inside the test's world: the simple API and the few small wheels that it serves."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import secrets
import tarfile
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from continuum.requirements import BadRequirements, parse_requirements
from continuum.sandbox import docker_builder, docker_layers
from continuum.sandbox.docker import DockerBackend, DockerSandbox
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_network import restrict
from continuum.sandbox.docker_owner import Owner
from continuum.sandbox.network import EgressPolicy
from tests.support import docker as lab
from tests.support import world as roles
from tests.support.world import World

_SERVE = """
import collections, http.server, json, pathlib, sys, threading
port, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
files = {file.name: file.read_bytes() for file in folder.iterdir()}
hashes = json.loads(files.pop("hashes.json"))

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        kind, _, name = self.path.strip("/").partition("/")
        with (folder / "asked").open("a") as log:
            log.write(f"{self.command} {self.path}\\n")
        if name == "hanging":
            threading.Event().wait()
        if name == "broken":
            return self.answer(503, b"", "text/plain")
        if kind == "simple":
            found = [file for file in files if file.partition("-")[0] == name]
            links = "".join(f'<a href="/files/{file}#sha256={hashes[file]}">{file}</a>' for file in found)
            return self.answer(200 if found else 404, links.encode(), "text/html")
        self.answer(200 if name in files else 404, files.get(name, b""), "application/octet-stream")

    do_HEAD = do_GET

    def answer(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("", port), Handler)
(folder / "asked").touch()
server.serve_forever()
"""
PORT = 8000


@dataclass(frozen=True)
class Package:
    """A file of an index: its name, and what is in it."""

    file: str
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def wheel(
    name: str, version: str, files: Mapping[str, str | bytes], requires: Sequence[str] = (), script: str = ""
) -> Package:
    """A wheel of pure Python. requires: its dependencies. script: a console script, as `command = module:function`."""
    information = f"{name}-{version}.dist-info"
    metadata = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {each}" for each in requires),
    ]
    members: dict[str, str | bytes] = {
        **files,
        f"{information}/METADATA": "\n".join(metadata) + "\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if script:
        members[f"{information}/entry_points.txt"] = f"[console_scripts]\n{script}\n"
    record, file = [], io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in members.items():
            content = text if isinstance(text, bytes) else text.encode()
            archive.writestr(path, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(content)}")
        archive.writestr(f"{information}/RECORD", "\n".join([*record, f"{information}/RECORD,,"]) + "\n")
    return Package(f"{name}-{version}-py3-none-any.whl", file.getvalue())


GREET = wheel(
    "greet",
    "1.0",
    {
        "greet/__init__.py": "def main():\n    print('hello from greet')\n",
        "greet.pth": "import os; os.environ['PTH'] = 'ran'\n",
    },
    script="say-hello = greet:main",
)
NEEDY = wheel("needy", "2.0", {"needy.py": "import greet\n"}, requires=["greet>=1.0"])
LARGE = wheel("large", "1.0", {"large/data": bytes(24 * 1024 * 1024)})
SMALL = [
    wheel(f"small{n}", "1.0", {f"small{n}.py": f"number = {n}\n", f"small{n}.data": secrets.token_bytes(2**20)})
    for n in (1, 2, 3)
]
SOURCE = Package("source-1.0.tar.gz", b"never read")
PACKAGES = (GREET, NEEDY, LARGE, *SMALL, SOURCE)


@dataclass(frozen=True)
class Index:
    """A running index. url: as REQUIREMENTS_INDEX takes it."""

    url: str
    container: str
    folder: str

    def asked(self) -> list[str]:
        """What it was asked for, as `GET /simple/name/`, in order."""
        with lab.api() as client:
            made = client.exec_create(self.container, ["cat", f"{self.folder}/asked"])
            printed: bytes = client.exec_start(made["Id"])
        return printed.decode().splitlines()


@contextmanager
def open_index(world: World) -> Iterator[Index]:
    """Serve the packages at the address INTERNET of a world, which must have no other index."""
    folder = f"/index-{secrets.token_hex(4)}"
    hashes = {package.file: package.sha256 for package in PACKAGES}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in [*((p.file, p.content) for p in PACKAGES), ("hashes.json", json.dumps(hashes).encode())]:
            entry = tarfile.TarInfo(f"{folder[1:]}/{name}")
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    with lab.api() as client:
        client.put_archive(world.container, "/", file.getvalue())
        serve = ["python3", "-I", "-c", _SERVE, str(PORT), folder]
        client.exec_start(client.exec_create(world.container, serve)["Id"], detach=True)
    index = Index(f"http://{roles.INTERNET}:{PORT}/simple", world.container, folder)
    trio.run(lab.eventually, lambda: not index.asked())
    yield index


def builders(worker: str) -> list[str]:
    """The names of the builders that a worker has now."""
    found = [each for each in lab.containers(worker) if each["Labels"]["continuum.role"] == "builder"]
    return [name.lstrip("/") for each in found for name in each["Names"]]


def volumes() -> dict[str, dict[str, str]]:
    """The volumes whose names say that they belong to this test, with their labels."""
    with lab.api() as client:
        listed = client.volumes(filters={"name": docker_layers.PREFIX})["Volumes"] or []
    return {each["Name"]: each["Labels"] or {} for each in listed}


def layers() -> list[str]:
    """The complete layers of this test."""
    marked = {labels.get("continuum.layer.complete") for labels in volumes().values()}
    return [name for name in volumes() if name in marked]


@contextmanager
def layers_of_its_own() -> Iterator[None]:
    """A test's own place for layers beside those of others on the same daemon; emptied at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker_layers, "PREFIX", f"continuum-{lab.new_worker()}-")
        try:
            yield
        finally:
            with lab.api() as client:
                for name in volumes():
                    client.remove_volume(name, force=True)


@contextmanager
def builders_in(world: World) -> Iterator[None]:
    """From every builder all routes lead into a world, before anything happens in it."""

    async def led(engine: Engine, owner: Owner, image: str, sandbox: str, policy: EgressPolicy) -> None:
        await trio.to_thread.run_sync(world.lead, sandbox)
        await restrict(engine, owner, image, sandbox, policy)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker_builder, "restrict", led)
        yield


def settings_for(index: Index, **values: Any) -> dict[str, Any]:
    """Settings of a backend that installs from an index of the test's own, small and quick."""
    return {"requirements_index": index.url, "requirements_max_mb": 32, "container_cpu_limit": 2.0, **values}


@asynccontextmanager
async def installing(index: Index, **values: Any) -> AsyncIterator[DockerBackend]:
    """A backend that installs from an index of the test's own."""
    async with lab.open_backend(**settings_for(index, **values)) as backend:
        yield backend


@asynccontextmanager
async def sandbox_with(backend: DockerBackend, text: str) -> AsyncIterator[DockerSandbox]:
    """A sandbox that has what a list requires."""
    async with backend.layer(parse_requirements(text)) as layer:
        sandbox = await backend.start(layer)
        try:
            yield sandbox
        finally:
            await sandbox.aclose()


async def refusal(backend: DockerBackend, text: str) -> str:
    """Why a list is refused for good."""
    with pytest.raises(BadRequirements) as refused:
        async with backend.layer(parse_requirements(text)):
            pass
    return str(refused.value)
