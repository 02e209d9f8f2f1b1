"""`continuum socket-proxy` on a real daemon: a worker lives behind it, and whoever took the worker gets nothing more."""

from __future__ import annotations

import copy
import io
import json
import re
import secrets
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import docker.errors
import httpx
import pytest
import structlog
import trio

from continuum.config import Settings
from continuum.sandbox import docker_judge, docker_network, docker_proxy
from continuum.sandbox.channel import BOOTSTRAP
from continuum.sandbox.docker import DockerBackend
from continuum.sandbox.docker_builder import BUILDER_CHANGES, archive_of_uv, builder_image_specification, builder_tag
from continuum.sandbox.docker_calls import CALLS, Call, check, path_filter
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_image import SandboxImage, addition_changes, addition_specification, ensure_image
from continuum.sandbox.docker_isolation import isolation_of
from continuum.sandbox.docker_judge import Judge, Request
from continuum.sandbox.docker_network import addresses_specification, ensure_network, policy_specification
from continuum.sandbox.docker_owner import Owner
from continuum.sandbox.docker_proxy import serve_proxy
from continuum.sandbox.docker_specification import sandbox_specification
from continuum.sandbox.docker_stream import Endpoint, EngineRefused
from continuum.sandbox.network import EgressPolicy
from continuum.sandbox.protocol import BackendUnavailable, SandboxLost
from continuum.sandbox.requirements_build import UV
from tests.sandbox.test_docker_image import FAKE_APT, base_image
from tests.support import docker as lab
from tests.support.package_index import Index, builders_in, installing, open_index, sandbox_with, settings_for
from tests.support.registry import registry
from tests.support.world import World

REAL = Endpoint.from_environment({})
SLEEP = "import time; print('on', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True, scope="module")
def _docker() -> None:
    lab.require_docker()


@asynccontextmanager
async def proxied(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> AsyncIterator[Path]:
    """A proxy for workers with these settings; what uses DOCKER_HOST goes through it."""
    path = folder / "docker.sock"
    with monkeypatch.context() as patch:
        patch.setenv("DOCKER_HOST", f"unix://{path}")
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_proxy, settings, REAL, path)
            yield path
            nursery.cancel_scope.cancel()


@pytest.fixture
async def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    async with proxied(tmp_path, monkeypatch, lab.settings()) as path:
        yield path


@pytest.fixture
async def body(socket: Path) -> dict[str, Any]:
    """The creation of a sandbox, as a worker asks for it."""
    async with lab.open_backend() as backend:
        assert backend._prepared is not None
        image = backend._prepared.image
        labels, isolation = backend._owner.labels("sandbox"), backend._prepared.isolation
    return copy.deepcopy(sandbox_specification(lab.settings(), image, BOOTSTRAP, labels, "none", isolation))


async def ask(socket: Path | None, method: str, target: str, body: Any = None) -> httpx.Response:
    """Ask the daemon through the proxy, or without it; a version in front unless the target has one."""
    path = str(socket or REAL.path)
    target = target if re.match(r"/v\d|/_ping|/version", target) else f"/v1.41{target}"
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path), base_url="http://docker") as client:
        return await client.request(method, target, json=body, timeout=20)


# -- a worker's life -----------------------------------------------------------------------------------------------------


REQUIREMENTS = {(call.method, call.path) for call in CALLS if call.uploads or call.path.startswith("/volumes")}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """The calls that have come through a proxy; all of them pass a filter by path, too."""
    seen: set[tuple[str, str]] = set()

    async def recording(judge: Judge, request: Request) -> tuple[Call, Any]:
        call, content = await check(judge, request)
        seen.add((call.method, call.path))
        assert re.fullmatch(path_filter(request.method), f"{'/v1.41' if call.versioned else ''}{request.path}")
        return call, content

    monkeypatch.setattr(docker_proxy, "check", recording)
    return seen


async def test_a_worker_lives_its_whole_life_behind_the_proxy_and_needs_every_call_of_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: set[tuple[str, str]]
) -> None:
    network = f"continuum-{lab.new_worker()}"
    for module in (docker_judge, docker_network):
        monkeypatch.setattr(module, "NETWORK", network)
    worker = lab.new_worker()
    owner = Owner.current(lab.settings(), worker)
    with base_image(FAKE_APT) as base, registry() as host, lab.api() as client:
        pulled = f"{host}/continuum/{worker}:1"
        try:
            async with proxied(tmp_path, monkeypatch, lab.settings(container_image=base)) as path:
                engine = Engine(Endpoint.from_environment({"DOCKER_HOST": f"unix://{path}"}))
                # First without a network, then with one: the second image replaces the first.
                assert not (await ensure_image(engine, owner, base, network=None)).has_iptables
                bridge = (await ensure_network(engine)).id
                assert (await ensure_image(engine, owner, base, network=bridge)).has_iptables
                engine.close()
            async with (
                proxied(tmp_path, monkeypatch, lab.settings(egress="public")),
                lab.open_backend(worker, egress="public") as backend,
            ):
                sandbox = await backend.start()
                assert "egress public" in backend.description, "the rules were set and read back"
                assert await lab.output_of(sandbox, "print('hello')") == "hello\n"
                await backend.sweep({worker})
                assert await backend._engine.events(sandbox.name, ("oom", "die"), since=0) == set()
                client.kill(sandbox.name)
                with pytest.raises(SandboxLost):
                    while True:
                        await lab.output_of(sandbox, "print('hello')")
                await sandbox.aclose()
            async with proxied(tmp_path, monkeypatch, lab.settings(container_image=pulled)):
                backend = DockerBackend(lab.settings(container_image=pulled), worker)
                with pytest.raises(BackendUnavailable, match=r"cannot be used|could not be prepared"):
                    await backend.prepare()
                await backend.aclose()
            client.remove_image(pulled)
        finally:
            for found in client.networks(names=[network]):
                client.remove_network(found["Id"])
    assert used | REQUIREMENTS == {(call.method, call.path) for call in CALLS}


@pytest.fixture
def index(world: World) -> Iterator[Index]:
    with open_index(world) as index, builders_in(world):
        yield index


@pytest.mark.usefixtures("network_of_the_world")
async def test_requirements_are_installed_through_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: set[tuple[str, str]], index: Index
) -> None:
    for name in ("NETWORK", "NETWORK_OPTIONS"):
        monkeypatch.setattr(docker_judge, name, getattr(docker_network, name))
    with base_image() as base:
        values = settings_for(index, container_image=base, requirements_cache_mb=0)
        async with proxied(tmp_path, monkeypatch, lab.settings(**values)), installing(index, **values) as backend:
            async with sandbox_with(backend, "greet==1.0") as sandbox:
                assert await lab.output_of(sandbox, "import greet; greet.main()") == "hello from greet\n"
            await backend.sweep({backend._owner.worker})
    assert used >= REQUIREMENTS


async def test_a_sandbox_ends_with_the_proxy_and_with_its_worker(socket: Path, tmp_path: Path) -> None:
    async with lab.open_backend() as backend:
        sandbox = await backend.start()
        seen = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sandbox.run, lab.request(SLEEP), lambda *_: seen.set())
            with trio.fail_after(20):
                await seen.wait()
            nursery.cancel_scope.cancel()
        # As when the worker is killed: its end of the connection is closed, and nobody removes anything.
        await trio.aclose_forcefully(sandbox._stream)
        await lab.none_left(backend._owner.worker)


async def test_what_dead_workers_left_is_swept_through_the_proxy(socket: Path, body: dict[str, Any]) -> None:
    with lab.api() as client:
        host = {"NetworkMode": "none"}
        labels = Owner.current(lab.settings(), "dead").labels("sandbox") | {
            "continuum.pid": "1",
            "continuum.pid-started": "1",
        }
        name = f"continuum-{secrets.token_hex(6)}"
        client.create_container_from_config({"Image": lab.IMAGE, "Labels": labels, "HostConfig": host}, name)
        try:
            async with lab.open_backend() as backend:
                assert await backend.sweep(set()) >= 1
            with pytest.raises(docker.errors.NotFound):
                client.inspect_container(name)
        finally:
            lab.remove(client, name)


# -- what whoever took the worker would want ------------------------------------------------------------------------------


HOST_CONFIGURATIONS: dict[str, Any] = {
    "Privileged": True,
    "Binds": ["/:/host"],
    "Mounts": [{"Type": "bind", "Source": "/", "Target": "/host"}],
    "VolumesFrom": ["anything"],
    "NetworkMode": "host",
    "PidMode": "host",
    "IpcMode": "host",
    "UsernsMode": "host",
    "CgroupParent": "/",
    "CapAdd": ["ALL"],
    "CapDrop": [],
    "SecurityOpt": ["seccomp=unconfined"],
    "Devices": [{"PathOnHost": "/dev/mem", "PathInContainer": "/dev/mem", "CgroupPermissions": "rwm"}],
    "DeviceCgroupRules": ["a *:* rwm"],
    "Sysctls": {"kernel.core_pattern": "|/bin/sh"},
    "Runtime": "io.containerd.runc.v2",
    "Memory": 0,
    "PidsLimit": -1,
    "NanoCpus": 0,
    "ReadonlyRootfs": False,
    "MaskedPaths": [],
    "PortBindings": {"80/tcp": [{"HostPort": "80"}]},
    "LogConfig": {"Type": "syslog"},
    "OomKillDisable": True,
    "AutoRemove": False,
}


@pytest.mark.parametrize("name", HOST_CONFIGURATIONS)
async def test_a_container_that_reaches_for_the_host_is_refused(socket: Path, body: dict[str, Any], name: str) -> None:
    body["HostConfig"][name] = HOST_CONFIGURATIONS[name]
    await refused_creation(socket, body, name)


CONFIGURATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another image": lambda body: body.update(Image=lab.IMAGE),
    "an image that was never made here": lambda body: body.update(Image="continuum-sandbox:0123456789ab"),
    "another program": lambda body: body.update(Entrypoint=["/bin/sh"]),
    "arguments": lambda body: body.update(Cmd=["-c", "id"]),
    "a variable": lambda body: body.update(Env=["LD_PRELOAD=/tmp/x"]),
    "a volume": lambda body: body.update(Volumes={"/data": {}}),
    "a terminal": lambda body: body.update(Tty=True),
    "no label": lambda body: body.update(Labels={}),
    "a label more": lambda body: body["Labels"].update({"com.docker.compose.project": "x"}),
    "a label that is no text": lambda body: body["Labels"].update({"continuum.worker": ["x"]}),
    "an unknown role": lambda body: body["Labels"].update({"continuum.role": "x"}),
    "the part of the policy": lambda body: body["Labels"].update({"continuum.role": "network-policy"}),
    "the part of the image": lambda body: body["Labels"].update({"continuum.role": "image"}),
    "a name in lower case, as the daemon reads it too": lambda body: body.update(hostconfig={"Privileged": True}),
    "a networking configuration": lambda body: body.update(NetworkingConfig={"EndpointsConfig": {"bridge": {}}}),
    "a network of others": lambda body: body["HostConfig"].update(NetworkMode=foreign_network()),
    "a volume of others": lambda body: body["HostConfig"].update(Mounts=[{"Type": "volume", "Source": "postgres"}]),
    "a layer that is a folder of the host": lambda body: body["HostConfig"].update(
        Mounts=[{"Type": "bind", "Source": "continuum-layer-" + "0" * 32 + "-00000000", "Target": "/requirements"}]
    ),
    "the default network": lambda body: body["HostConfig"].update(NetworkMode="bridge"),
    "another's network": lambda body: body["HostConfig"].update(NetworkMode="container:postgres"),
    "no object": lambda body: body.clear(),
}


def foreign_network() -> str:
    with lab.api() as client:
        found: str = next(network["Id"] for network in client.networks() if network["Name"] == "bridge")
    return found


@pytest.mark.parametrize("change", CONFIGURATIONS)
async def test_a_container_that_differs_from_a_sandbox_in_anything_is_refused(
    socket: Path, body: dict[str, Any], change: str
) -> None:
    CONFIGURATIONS[change](body)
    await refused_creation(socket, body)


async def refused_creation(socket: Path, body: dict[str, Any], reason: str = "") -> None:
    """The proxy refuses what, but for one change, it takes."""
    name = f"continuum-{secrets.token_hex(6)}"
    answer = await ask(socket, "POST", f"/containers/create?name={name}", body)
    assert answer.status_code == 403, answer.text
    assert reason in answer.json()["message"]
    with lab.api() as client, pytest.raises(docker.errors.NotFound):
        client.inspect_container(name)


async def test_what_is_refused_is_refused_by_the_proxy_and_not_by_the_daemon(
    socket: Path, body: dict[str, Any]
) -> None:
    """Nothing made here is ever started."""
    wanted = copy.deepcopy(body)
    wanted["HostConfig"] |= {"Privileged": True, "Binds": ["/:/host"], "NetworkMode": "host", "PidMode": "host"}
    for through, content in ((socket, body), (None, wanted)):
        name = f"continuum-{secrets.token_hex(6)}"
        answer = await ask(through, "POST", f"/containers/create?name={name}", content)
        assert answer.status_code == 201, answer.text
        with lab.api() as client:
            lab.remove(client, name)


async def test_keys_given_twice_reach_the_daemon_as_they_were_judged(socket: Path, body: dict[str, Any]) -> None:
    text = json.dumps(body)
    wanted = json.dumps(body["HostConfig"] | {"Privileged": True})
    name = f"continuum-{secrets.token_hex(6)}"
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://docker") as client:
        answer = await client.post(
            f"/v1.41/containers/create?name={name}", content=f'{{"HostConfig": {wanted}, {text[1:]}', timeout=20
        )
    try:
        with lab.api() as api:
            assert answer.status_code == 201, answer.text
            assert not api.inspect_container(name)["HostConfig"]["Privileged"]
    finally:
        with lab.api() as api:
            lab.remove(api, name)


PAST = '{"container":["continuum-0123456789ab"],"event":["oom","die"]}'
LAYER = "continuum-layer-" + "0" * 32 + "-00000000"
NO_CALLS: list[tuple[str, str, Any]] = [
    ("POST", "/containers/OTHER/exec", {"Cmd": ["id"]}),
    ("POST", "/containers/OTHER/start", None),
    ("POST", "/containers/OTHER/attach?stream=1&stdin=1", None),
    ("POST", "/containers/OTHER/kill", None),
    ("POST", "/containers/OTHER/update", {"Memory": 0}),
    ("GET", "/containers/OTHER/json", None),
    ("GET", "/containers/OTHER/logs?stdout=1", None),
    ("GET", "/containers/OTHER/archive?path=/", None),
    ("PUT", "/containers/OTHER/archive?path=/", None),
    ("DELETE", "/containers/OTHER?force=1", None),
    ("POST", "/containers/SANDBOX/exec", {"Cmd": ["id"]}),
    ("PUT", "/containers/SANDBOX/archive?path=/", None),
    ("PUT", "/containers/continuum-image-0123456789ab/archive?path=/", None),
    ("POST", "/containers/SANDBOX/rename?name=x", None),
    ("POST", "/containers/SANDBOX/start?checkpoint=x", None),
    ("POST", "/v1.20/containers/SANDBOX/start", {"Privileged": True, "Binds": ["/:/host"]}),
    ("POST", "/v1.41/containers/create?name=postgres", {}),
    ("GET", "/containers/json", None),
    ("GET", "/containers/json?all=1&filters={}", None),
    ("GET", "/networks", None),
    ("POST", "/networks/create", {"Name": "continuum", "Driver": "macvlan", "Options": {"parent": "eth0"}}),
    ("POST", "/networks/bridge/connect", {"Container": "SANDBOX"}),
    ("DELETE", "/networks/bridge", None),
    ("GET", "/images/json", None),
    ("GET", "/images/IMAGE-OF-OTHERS/json", None),
    ("POST", "/images/create?fromImage=evil&tag=latest", None),
    ("POST", "/images/create?fromSrc=-&repo=continuum-sandbox", None),
    ("POST", "/images/create?fromImage=python&tag=3.9-slim&platform=x", None),
    ("POST", "/images/IMAGE-OF-OTHERS/tag?repo=continuum-sandbox&tag=0123456789ab", None),
    ("POST", "/images/IMAGE-OF-OTHERS/tag?repo=python&tag=3.9-slim", None),
    ("DELETE", "/images/IMAGE-OF-OTHERS", None),
    ("DELETE", "/images/python:3.9-slim", None),
    ("POST", "/images/load", None),
    ("POST", "/commit?container=SANDBOX&repo=python&tag=3.9-slim", None),
    ("POST", "/commit?container=SANDBOX", None),
    ("POST", "/commit?container=OTHER", None),
    ("POST", "/build?remote=http://evil/Dockerfile", None),
    ("POST", "/session", None),
    ("GET", "/volumes", None),
    ("POST", "/volumes/create", {"DriverOpts": {"type": "none", "o": "bind", "device": "/"}}),
    ("POST", "/volumes/create", {"Name": "continuum-layer-" + "0" * 32 + "-00000000", "Labels": {"other": "x"}}),
    ("POST", "/volumes/create", {"Name": "continuum-layer-" + "0" * 32 + "-00000000", "Labels": {}, "Driver": "local"}),
    ("GET", "/volumes/postgres", None),
    ("DELETE", "/volumes/postgres", None),
    ("POST", "/commit?container=continuum-image-0123456789ab&repo=python&tag=3.9-slim", None),
    ("GET", "/secrets", None),
    ("POST", "/swarm/init", {}),
    ("POST", "/plugins/pull?remote=evil", []),
    ("GET", "/events", None),
    ("GET", "/events?since=0&until=1.000000", None),
    ("GET", '/events?since=0&until=1.000000&filters={"container":["postgres"],"event":["oom","die"]}', None),
    ("GET", '/events?since=0&filters={"container":["SANDBOX"],"event":["oom","die"]}', None),
    ("GET", '/events?until=9999999999&filters={"container":["SANDBOX"],"event":["oom","die"]}', None),
    ("GET", f"/events?since=0&until=99999999999.000000&filters={PAST}", None),
    ("GET", "/system/df", None),
    ("POST", "/auth", {}),
    ("HEAD", "/info", None),
    ("GET", "/v1.41/_ping", None),
    ("GET", "/info?verbose=1", None),
    ("GET", "/v1.41/containers/SANDBOX/../OTHER/json", None),
    ("GET", "/v1.41/containers/SANDBOX%2f..%2fOTHER/json", None),
    ("GET", "/v1.41//containers/OTHER/json", None),
    ("GET", "/v1.41/containers/SANDBOX%0a/json", None),
    ("GET", "/V1.41/CONTAINERS/JSON", None),
]


@pytest.mark.parametrize(
    ("method", "target", "body"), NO_CALLS, ids=lambda value: value if isinstance(value, str) else ""
)
async def test_a_call_that_no_worker_makes_is_refused(socket: Path, method: str, target: str, body: Any) -> None:
    with lab.api() as client:
        foreign: str = client.inspect_image(lab.IMAGE)["Id"]
    target = target.replace("SANDBOX", "continuum-0123456789ab").replace("OTHER", "postgres")
    with structlog.testing.capture_logs() as logs:
        answer = await ask(socket, method, target.replace("IMAGE-OF-OTHERS", foreign), body)
    assert answer.status_code == 403, answer.text
    assert [entry["event"] for entry in logs] == ["a request was refused"]


async def test_the_other_containers_of_a_worker_are_compared_too(socket: Path, body: dict[str, Any]) -> None:
    tag, owner = body["Image"], Owner.current(lab.settings(), lab.new_worker())
    sandbox = f"continuum-{secrets.token_hex(6)}"
    usual = EgressPolicy().command()
    base = (await ask(None, "GET", f"/images/{lab.IMAGE}/json")).json()["Id"]
    policy = policy_specification(owner.labels("network-policy"), tag, sandbox, usual)
    addition = addition_specification(owner.labels("image"), base, None)
    image, listing = f"continuum-image-{secrets.token_hex(6)}", f"continuum-addresses-{secrets.token_hex(6)}"
    addresses = addresses_specification(owner.labels("network-policy"), tag)
    for name, given, place, value in (
        (f"{sandbox}-0a1b2c", policy, "Entrypoint", ["/bin/sh", "-c", "id", *usual[3:]]),
        (f"{sandbox}-0a1b2c", policy, "Entrypoint", [*usual, "more"]),
        (f"{sandbox}-0a1b2c", policy, "Entrypoint", None),
        (f"{sandbox}-0a1b2c", policy, "HostConfig", policy["HostConfig"] | {"NetworkMode": "host"}),
        (f"{sandbox}-0a1b2c", policy, "HostConfig", policy["HostConfig"] | {"NetworkMode": "container:postgres"}),
        (f"{sandbox}-0a1b2c", policy, "HostConfig", policy["HostConfig"] | {"CapAdd": ["SYS_ADMIN"]}),
        (listing, addresses, "Entrypoint", ["/bin/sh", "-c", "id"]),
        (listing, addresses, "HostConfig", addresses["HostConfig"] | {"CapAdd": ["NET_ADMIN"]}),
        (f"{sandbox}-0a1b2c", addresses, "Cmd", []),
        (image, addition, "Cmd", ["/bin/sh", "-c", "id"]),
        (image, addition, "Image", tag),
        (image, addition, "HostConfig", addition["HostConfig"] | {"Binds": ["/:/host"]}),
        (image, addition, "HostConfig", {"NetworkMode": foreign_network(), "LogConfig": {"Type": "none"}}),
    ):
        answer = await ask(socket, "POST", f"/containers/create?name={name}", given | {place: value})
        assert answer.status_code == 403, (place, value, answer.text)
    answer = await ask(socket, "POST", f"/containers/create?name={image}", addition)
    with lab.api() as client:
        lab.remove(client, image)
    assert answer.status_code == 201, answer.text


@pytest.fixture
def made_here(body: dict[str, Any]) -> str:
    """The tag of the sandboxes' image, which is there."""
    return str(body["Image"])


@contextmanager
def created(name: str, specification: dict[str, Any]) -> Iterator[str]:
    """A container made past the proxy, as a worker makes it."""
    with lab.api() as client:
        client.create_container_from_config(specification, name)
        try:
            yield name
        finally:
            lab.remove(client, name)


def archive(**files: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.replace("_", "/"))
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content.encode()))
    return file.getvalue()


async def put(socket: Path, container: str, content: bytes) -> httpx.Response:
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://docker") as client:
        return await client.put(f"/v1.41/containers/{container}/archive?path=/", content=content, timeout=20)


def image_container() -> str:
    return f"continuum-image-{secrets.token_hex(6)}"


async def test_nothing_but_uv_gets_into_an_image_and_that_only_into_the_builders(socket: Path, made_here: str) -> None:
    labels = Owner.current(lab.settings(), lab.new_worker()).labels("image")
    evil, uv = archive(bin_sh="#!/bin/evil\n"), archive_of_uv()
    with lab.api() as client:
        base = client.inspect_image(lab.IMAGE)["Id"]
        with (
            created(image_container(), addition_specification(labels, base, None)) as addition,
            created(image_container(), builder_image_specification(labels, made_here)) as builder,
        ):
            for container, content in ((addition, evil), (addition, uv), (builder, evil), (builder, uv + b"0")):
                answer = await put(socket, container, content)
                assert answer.status_code == 403, answer.text
                assert not client.diff(container)
            answer = await put(socket, builder, uv)
            assert answer.status_code == 200, answer.text
            assert UV in [change["Path"] for change in client.diff(builder)]


async def test_an_image_is_committed_of_the_right_container_under_the_right_name_as_it_is(
    socket: Path, made_here: str
) -> None:
    labels = Owner.current(lab.settings(), lab.new_worker()).labels("image")
    changes, builder_changes = addition_changes("yes"), BUILDER_CHANGES
    with lab.api() as client:
        before = client.inspect_image(made_here)["Id"]
        base = client.inspect_image(lab.IMAGE)["Id"]
        specification = addition_specification(labels, base, None)
        fails = specification | {"Cmd": ["/bin/sh", "-c", "exit 0"]}
        with (
            created(image_container(), specification) as complete,
            created(image_container(), specification) as unstarted,
            created(image_container(), fails) as other,
            created(image_container(), builder_image_specification(labels, made_here)) as empty,
        ):
            for name in (complete, other):
                client.start(name)
                client.wait(name)
            for container, tag, given in (
                (complete, made_here, [*changes, 'ENTRYPOINT ["/bin/evil"]']),
                (complete, made_here, []),
                (complete, made_here, ["LABEL continuum.iptables=yes\nUSER root"]),
                (complete, "continuum-sandbox:0123456789ab", changes),
                (complete, "continuum-builder:0123456789ab", changes),
                (complete, builder_tag(made_here), builder_changes),
                (complete, ":", changes),
                (complete, lab.IMAGE, changes),
                (unstarted, made_here, changes),
                (other, made_here, changes),
                (empty, made_here, changes),
                (empty, builder_tag(made_here), builder_changes),
            ):
                repository, _, version = tag.partition(":")
                query = {"container": container, "repo": repository, "tag": version, "changes": given}
                answer = await ask(socket, "POST", f"/commit?{urlencode(query, doseq=True)}", {})
                assert answer.status_code == 403, (tag, given, answer.text)
        assert client.inspect_image(made_here)["Id"] == before


async def test_an_image_with_the_label_of_ours_and_a_name_like_ours_is_not_run(socket: Path, made_here: str) -> None:
    tag = f"continuum-sandbox:{secrets.token_hex(6)}"
    owner = Owner.current(lab.settings(), lab.new_worker())
    with lab.api() as client:
        with created(image_container(), {"Image": lab.IMAGE, "Cmd": ["true"]}) as name:
            made = client.commit(name, *tag.split(":"), changes=addition_changes("yes"))["Id"]
        try:
            for image in (tag, made):
                specification = addresses_specification(owner.labels("network-policy"), image)
                name = f"continuum-addresses-{secrets.token_hex(6)}"
                answer = await ask(socket, "POST", f"/containers/create?name={name}", specification)
                assert answer.status_code == 403, answer.text
            assert (await ask(socket, "DELETE", f"/images/{made}")).status_code == 403
            assert client.inspect_image(tag)["Id"] == made
        finally:
            client.remove_image(tag)


async def test_workers_that_install_nothing_get_no_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], made_here: str
) -> None:
    owner = Owner.current(lab.settings(), lab.new_worker())
    uv = archive_of_uv()
    specification = builder_image_specification(owner.labels("image"), made_here)
    builder = body | {"Labels": owner.labels("builder"), "Image": builder_tag(made_here)}
    (tmp_path / "none").mkdir()
    async with proxied(tmp_path / "none", monkeypatch, lab.settings(requirements_index="none")) as path:
        with created(image_container(), specification) as name:
            repository, _, version = builder_tag(made_here).partition(":")
            query = {"container": name, "repo": repository, "tag": version, "changes": BUILDER_CHANGES}
            answers = [
                await put(path, name, uv),
                await ask(path, "POST", f"/commit?{urlencode(query, doseq=True)}", {}),
                await ask(path, "POST", f"/containers/create?name={image_container()}", specification),
                await ask(path, "POST", f"/containers/create?name=continuum-builder-{secrets.token_hex(6)}", builder),
            ]
    for answer in answers:
        assert answer.status_code == 403, answer.text
        assert "REQUIREMENTS_INDEX" in answer.text


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (LAYER, {"continuum.layer": "1" * 32}),
        (LAYER, {"continuum.layer.complete": LAYER}),
        (LAYER, {"continuum.layer.bytes": "1"}),
        (LAYER, {"continuum.role": "sandbox"}),
        (f"{LAYER}-complete", {"continuum.layer.bytes": "many"}),
        (f"{LAYER}-complete", {"continuum.layer.bytes": "9" * 5000}),
        (f"{LAYER}-complete", {"continuum.layer.complete": LAYER[:-1] + "1"}),
        (f"{LAYER}-complete", {"continuum.worker": "x"}),
    ],
)
async def test_the_labels_of_a_volume_say_what_belongs_there(socket: Path, name: str, change: dict[str, str]) -> None:
    labels = {"continuum.layer": "0" * 32}
    if name == LAYER:
        labels |= Owner.current(lab.settings(), lab.new_worker()).labels("layer")
    else:
        labels |= {"continuum.layer.complete": LAYER, "continuum.layer.bytes": "10"}
    answer = await ask(socket, "POST", "/volumes/create", {"Name": name, "Labels": labels | change})
    assert answer.status_code == 403, answer.text
    answer = await ask(socket, "POST", "/volumes/create", {"Name": name, "Labels": labels})
    with lab.api() as client:
        client.remove_volume(name)
    assert answer.status_code == 201, answer.text


async def test_no_sandbox_gets_a_network_where_egress_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, socket: Path, made_here: str
) -> None:
    engine = Engine(REAL)
    network = (await ensure_network(engine)).id
    engine.close()
    (tmp_path / "public").mkdir()
    async with proxied(tmp_path / "public", monkeypatch, lab.settings(egress="public")) as public:
        with lab.api() as client:
            isolation = isolation_of(client.info(), "")
        labels = Owner.current(lab.settings(), lab.new_worker()).labels("sandbox")
        image = SandboxImage(made_here, has_iptables=True, volumes=())
        body = sandbox_specification(lab.settings(), image, BOOTSTRAP, labels, network, isolation)
        await refused_creation(socket, body, "EGRESS")
        name = f"continuum-{secrets.token_hex(6)}"
        answer = await ask(public, "POST", f"/containers/create?name={name}", body)
        with lab.api() as client:
            lab.remove(client, name)
        assert answer.status_code == 201, answer.text


# -- HTTP ------------------------------------------------------------------------------------------------------------------


async def raw(socket: Path, data: bytes, *, patience: float = 10) -> bytes:
    """All that is answered to some bytes, until the end or for so many seconds."""
    answer = b""
    async with await trio.open_unix_socket(str(socket)) as stream:
        with trio.fail_after(patience) if patience == 10 else trio.move_on_after(patience):
            await stream.send_all(data)
            while piece := await stream.receive_some():
                answer += piece
    return answer


async def test_a_second_request_on_a_connection_is_heard_by_nobody(socket: Path) -> None:
    ping, volumes = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /v1.41/volumes HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await raw(socket, ping + volumes)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"Volumes" not in answer


@pytest.mark.parametrize("version", ["v1.99", "v1.41"])
async def test_nothing_follows_a_request_for_streams_that_the_daemon_does_not_grant(
    socket: Path, tmp_path: Path, version: str
) -> None:
    """Whatever the reason: a daemon that refuses goes on to read requests."""
    attach = f"POST /{version}/containers/continuum-000000000000/attach?stream=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    plugins = f"GET /{version}/plugins HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    heard = bytearray()

    async def refuse(stream: trio.SocketStream) -> None:
        with trio.move_on_after(1):
            while piece := await stream.receive_some():
                if not heard:
                    await stream.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}")
                heard.extend(piece)

    assert b"plugins" not in (answer := await raw(socket, attach + plugins, patience=2)), answer
    assert answer.count(b"HTTP/1.1 ") == 1
    async with trio.open_nursery() as nursery:
        path, refusing = tmp_path / "proxied.sock", str(tmp_path / "refusing.sock")
        listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await listener.bind(refusing)
        listener.listen()
        nursery.start_soon(trio.serve_listeners, refuse, [trio.SocketListener(listener)])
        endpoint = Endpoint.from_environment({"DOCKER_HOST": f"unix://{refusing}"})
        await nursery.start(serve_proxy, lab.settings(), endpoint, path)
        assert b"403 Forbidden" in await raw(path, attach + plugins, patience=2)
        assert b"attach" in heard
        assert b"plugins" not in heard
        nursery.cancel_scope.cancel()


async def test_odd_values_cost_no_more_than_their_own_connection(socket: Path, body: dict[str, Any]) -> None:
    odd: Any
    for odd in ([], {}, None, 1.5, True, {"Id": []}):
        body["Image"] = odd
        await refused_creation(socket, body)
    assert (
        await ask(socket, "POST", "/v1.41/containers/continuum-000000000000/attach?stream=1&stream=1")
    ).status_code == 403
    long = {"Name": "\x7f" * 200_000, "Labels": {}}
    assert len((await ask(socket, "POST", "/v1.41/volumes/create", long)).text) < 2000


async def test_a_bug_costs_one_connection(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(docker_proxy, "check", stumble)
    for _ in range(2):
        assert (await ask(socket, "GET", "/_ping")).status_code == 500


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /_ping HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"GET /_ping HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost : x\r\n\r\n",
        b"POST /v1.41/commit HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{",
        b"POST /v1.41/commit HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
        b"GET /_ping?%zz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00" * 10 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_clear_request_is_answered_by_the_proxy(socket: Path, request_: bytes) -> None:
    assert (await raw(socket, request_)).startswith(b"HTTP/1.1 400 ")


async def test_a_request_that_is_too_large_or_never_ends_is_given_up(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = b"POST /v1.41/commit HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b" " * 300_000
    assert (await raw(socket, large)).startswith(b"HTTP/1.1 403 ")
    monkeypatch.setattr(docker_proxy, "REQUEST_DEADLINE", 0.2)
    assert (await raw(socket, b"GET /_ping HTTP/1.1\r\nHost: x\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_daemon_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    nowhere = Endpoint.from_environment({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_proxy, lab.settings(), nowhere, path)
        assert b"502" in (await raw(path, b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")).split(b"\r\n")[0]
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_a_refusal_is_told_to_the_worker_in_words(socket: Path) -> None:
    engine = Engine(Endpoint.from_environment({"DOCKER_HOST": f"unix://{socket}"}))
    try:
        with pytest.raises(EngineRefused, match=r"refused by continuum socket-proxy: workers make no such call"):
            await engine.call(lambda api: api.plugins())
        # A proxy with other settings than the worker's says which differ.
        async with lab.open_backend(container_memory_mb=33) as backend:
            with pytest.raises(EngineRefused, match=r"HostConfig\.Memory is 34603008 where 536870912 should be"):
                await backend.start()
    finally:
        engine.close()
