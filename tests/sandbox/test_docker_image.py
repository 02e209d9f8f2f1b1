"""Finding, pulling and completing the image of the sandboxes, on a real daemon and without any registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import pytest
import structlog
import trio

from continuum.sandbox import docker as docker_backend
from continuum.sandbox import docker_image
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_image import REPOSITORY, SandboxImage, ensure_image
from continuum.sandbox.docker_owner import Owner
from continuum.sandbox.docker_stream import Endpoint
from continuum.sandbox.protocol import BackendUnavailable
from tests.support import docker as lab
from tests.support.registry import registry

WITHOUT_IPTABLES = "rm /usr/sbin/*tables*"
FAKE_APT = (
    WITHOUT_IPTABLES
    + """
cat >/usr/bin/apt-get <<'END'
#!/bin/sh
for word in "$@"; do [ "$word" = install ] && for name in iptables ip6tables; do
    cp /bin/true /usr/sbin/$name-restore
done; done
exit 0
END
"""
)


@pytest.fixture(autouse=True, scope="module")
def _docker() -> None:
    lab.require_docker()


@pytest.fixture
def owner() -> Owner:
    return Owner.current(lab.settings(), lab.new_worker())


@pytest.fixture
async def engine(owner: Owner) -> AsyncIterator[Engine]:
    engine = Engine(Endpoint.from_environment({}))
    yield engine
    engine.close()
    assert not lab.containers(owner.worker)


@contextmanager
def base_image(change: str = "true", changes: Sequence[str] = ()) -> Iterator[str]:
    """An image of the test's own: the usual one after a shell command and Dockerfile instructions."""
    name = f"continuum-{lab.new_worker()}"
    with lab.api() as client:
        specification = {"Image": lab.IMAGE, "Cmd": ["sh", "-ec", change], "HostConfig": {"NetworkMode": "none"}}
        try:
            client.create_container_from_config(specification, name)
            client.start(name)
            assert client.wait(name, timeout=30)["StatusCode"] == 0
            client.commit(name, repository=name, tag="1", changes=[f"LABEL test={name}", *changes])
        finally:
            lab.remove(client, name)
        base = f"{name}:1"
        try:
            yield base
        finally:
            for image in client.images(filters={"label": f"test={name}"}):
                if base not in (image["RepoTags"] or ()):
                    client.remove_image(image["Id"], force=True)
            client.remove_image(base)


async def test_what_sandboxes_need_is_added_once(engine: Engine, owner: Owner) -> None:
    with base_image("rm -f /usr/bin/python3.old; sed -i '$a sandboxuser:x:1:1::/:/bin/sh' /etc/passwd") as base:
        image = await ensure_image(engine, owner, base, network=None)
        again = await ensure_image(engine, owner, base, network=None)
        assert image == again
        assert image.has_iptables
        with lab.api() as client:
            assert len(client.images(name=image.tag)) == 1
            labels = client.inspect_image(image.tag)["Config"]["Labels"]
            assert labels["continuum.worker"] == "", "containers of the image must not look like this worker's"
            name = f"continuum-{lab.new_worker()}"
            host = {"NetworkMode": "none"}
            client.create_container_from_config({"Image": image.tag, "Cmd": ["sleep", "60"], "HostConfig": host}, name)
            try:
                client.start(name)
                look = "import pwd, grp, os; print(pwd.getpwnam('sandboxuser')[2:4], grp.getgrnam('sandboxuser')[2], "
                look += "os.path.isdir('/sandbox'))"
                assert await lab.execute(name, look) == "(58000, 58000) 58000 True\n"
            finally:
                lab.remove(client, name)


async def test_another_base_makes_another_image(engine: Engine, owner: Owner) -> None:
    usual = await ensure_image(engine, owner, lab.IMAGE, network=None)
    with base_image() as base:
        assert (await ensure_image(engine, owner, base, network=None)).tag != usual.tag


async def test_workers_that_prepare_at_once_share_one_image(engine: Engine, owner: Owner) -> None:
    made: list[SandboxImage] = []

    async def prepare(base: str) -> None:
        made.append(await ensure_image(engine, owner, base, network=None))

    with base_image() as base:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(prepare, base)
        assert len(set(made)) == 1
        with lab.api() as client:
            assert len(client.images(name=made[0].tag)) == 1


async def test_iptables_are_installed_where_they_are_missing(engine: Engine, owner: Owner) -> None:
    with base_image(FAKE_APT) as base:
        # Without a network nobody tries, and a worker that has one does not take that for an answer.
        assert not (await ensure_image(engine, owner, base, network=None)).has_iptables
        assert (await ensure_image(engine, owner, base, network="none")).has_iptables


async def test_an_installation_that_failed_is_not_tried_at_every_start(engine: Engine, owner: Owner) -> None:
    with base_image(WITHOUT_IPTABLES + "; ln -sf /bin/false /usr/bin/apt-get") as base:
        image = await ensure_image(engine, owner, base, network="none")
        assert not image.has_iptables
        with lab.api() as client:
            before = client.inspect_image(image.tag)["Id"]
            assert await ensure_image(engine, owner, base, network="none") == image
            assert client.inspect_image(image.tag)["Id"] == before


async def test_an_image_without_python_is_refused_with_the_reason(engine: Engine, owner: Owner) -> None:
    reason = r"CONTAINER_IMAGE cannot be used .*no python3"
    with base_image("rm /usr/bin/python*") as base, pytest.raises(BackendUnavailable, match=reason):
        await ensure_image(engine, owner, base, network=None)


async def test_a_missing_image_is_pulled_with_progress(
    engine: Engine, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_image, "_PROGRESS_EVERY", 0.0)
    with registry() as host, structlog.testing.capture_logs() as logs:
        name = f"{host}/continuum/{owner.worker}:1"
        try:
            # It is there in the end, and the next step finds that it is no use.
            with pytest.raises(BackendUnavailable, match=r"CONTAINER_IMAGE cannot be used|could not be prepared"):
                await ensure_image(engine, owner, name, network=None)
            with lab.api() as client:
                assert client.inspect_image(name)
        finally:
            with lab.api() as client:
                client.remove_image(name)
    assert any(entry.get("layers") == entry.get("layers_done") == 1 for entry in logs)
    assert "pulled the sandbox image" in [entry["event"] for entry in logs]


async def test_a_pull_that_breaks_off_says_how_to_build_the_image(engine: Engine, owner: Owner) -> None:
    with registry() as host, pytest.raises(BackendUnavailable, match="make sandbox-image"):
        await ensure_image(engine, owner, f"{host}/continuum/none@sha256:{'0' * 64}", network=None)


async def test_an_image_that_cannot_be_pulled_says_how_to_build_it(engine: Engine, owner: Owner) -> None:
    # A registry on a port of this machine where nothing listens.
    with pytest.raises(BackendUnavailable) as caught:
        await ensure_image(engine, owner, "127.0.0.1:1/none:1", network=None)
    message = str(caught.value)
    assert message.startswith("the image 127.0.0.1:1/none:1 (CONTAINER_IMAGE) is not on this host")
    assert "connection refused" in message
    assert "make sandbox-image" in message
    assert "docker import root.tar 127.0.0.1:1/none:1" in message


async def test_an_image_name_that_is_none_says_so(engine: Engine, owner: Owner) -> None:
    with pytest.raises(BackendUnavailable, match="invalid reference format"):
        await ensure_image(engine, owner, "NOT/A NAME", network=None)


async def test_volumes_of_the_image_are_no_writable_places(engine: Engine, owner: Owner) -> None:
    with base_image(changes=["VOLUME /data"]) as base:
        async with lab.open_backend(container_image=base) as backend:
            sandbox = await backend.start()
            try:
                write = "open('/data/file', 'w')"
                assert "Read-only file system" in await lab.execute(sandbox.name, write, user="0:0")
            finally:
                await sandbox.aclose()


async def test_without_iptables_there_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    async def without_iptables(*args: object, **named: object) -> SandboxImage:
        return SandboxImage(f"{REPOSITORY}:any", has_iptables=False, volumes=())

    monkeypatch.setattr(docker_backend, "ensure_image", without_iptables)
    async with lab.open_backend(egress="public") as backend:
        assert backend.description.endswith("no network: python:3.9-slim lacks iptables, which could not be installed")
