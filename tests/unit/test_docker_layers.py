"""Layers and their builders on a daemon that is only pretended: for what a real one does too seldom or too late."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from continuum.config import Settings
from continuum.requirements import parse_requirements
from continuum.sandbox import docker_builder, docker_layers, docker_network
from continuum.sandbox.docker_image import SandboxImage
from continuum.sandbox.docker_layers import DockerLayers
from continuum.sandbox.docker_network import SandboxNetwork
from continuum.sandbox.docker_owner import Owner
from continuum.sandbox.docker_stream import EngineError, EngineNotFound, EngineRefused
from continuum.sandbox.network import EgressPolicy
from continuum.sandbox.protocol import BackendUnavailable, Layer, RequirementsFailed
from continuum.sandbox.requirements_build import Installation

IMAGE = SandboxImage("continuum-sandbox:000000000000", has_iptables=True, volumes=())
SETTINGS = Settings()


class Stream:
    last_words = ""

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class Daemon:
    """What `Engine` is to layers and builders.

    refusals: what the next creations of containers raise. after_listing: what happens before the next answers that list
    volumes arrive.
    """

    def __init__(self) -> None:
        self.volumes_kept: dict[str, dict[str, str]] = {}
        self.refusals: list[Exception] = []
        self.created: list[str] = []
        self.after_listing: list[Callable[[], Awaitable[None]]] = []

    async def call(self, function: Callable[[Any], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        answer = function(self)
        if isinstance(answer, dict) and "Volumes" in answer and self.after_listing:
            await self.after_listing.pop(0)()
        return answer

    async def create(self, name: str, specification: Any) -> None:
        await trio.lowlevel.checkpoint()
        if self.refusals:
            raise self.refusals.pop(0)
        self.created.append(specification["Image"])

    async def attach(self, name: str, *, stdin: bool = False) -> Stream:
        await trio.lowlevel.checkpoint()
        return Stream()

    async def start(self, name: str) -> None:
        await trio.lowlevel.checkpoint()

    async def remove(self, name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    # What follows are docker-py's methods.

    def info(self) -> dict[str, Any]:
        return {"DefaultRuntime": "runc", "Runtimes": {"runc": {}}}

    def volumes(self, filters: Any) -> dict[str, Any]:
        return {"Volumes": [{"Name": name, "Labels": labels} for name, labels in self.volumes_kept.items()]}

    def create_volume(self, name: str, labels: dict[str, str]) -> None:
        self.volumes_kept[name] = labels

    def remove_volume(self, name: str) -> None:
        if self.volumes_kept.pop(name, None) is None:
            raise EngineNotFound(name)


class Preparations:
    """Counts how often builders are prepared, and says which image CONTAINER_IMAGE means."""

    def __init__(self) -> None:
        self.count = 0
        self.image = IMAGE


@pytest.fixture
def preparations(monkeypatch: pytest.MonkeyPatch) -> Preparations:
    preparations = Preparations()

    async def ensure_network(engine: Any) -> SandboxNetwork:
        return SandboxNetwork("network", EgressPolicy())

    async def ensure_image(*_: Any, **__: Any) -> SandboxImage:
        preparations.count += 1
        return preparations.image

    async def ensure_builder_image(engine: Any, owner: Any, base: SandboxImage) -> str:
        return f"builder of {base.tag}"

    async def find_host_addresses(*_: Any) -> tuple[Any, ...]:
        return ()

    async def nothing(*_: Any) -> None:
        pass

    async def run(self: Installation, stream: Any) -> int:
        return 4096

    for name, replacement in {
        "ensure_network": ensure_network,
        "ensure_image": ensure_image,
        "_ensure_builder_image": ensure_builder_image,
        "restrict": nothing,
        "resolve": nothing,
        "isolation_of": lambda *_: None,
        "builder_specification": lambda settings, image, tag, *_: {"Image": tag},
    }.items():
        monkeypatch.setattr(docker_builder, name, replacement)
    monkeypatch.setattr(docker_network, "find_host_addresses", find_host_addresses)
    monkeypatch.setattr(Installation, "run", run)
    return preparations


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
def layers(daemon: Daemon, preparations: Preparations) -> DockerLayers:
    return DockerLayers(SETTINGS, daemon, Owner.current(SETTINGS, "worker"))  # type: ignore[arg-type]


async def built(layers: DockerLayers, text: str = "a==1", image: SandboxImage = IMAGE) -> Layer:
    async with layers.hold(parse_requirements(text), image) as layer:
        return layer


async def test_what_builders_need_is_prepared_once(layers: DockerLayers, preparations: Preparations) -> None:
    await built(layers, "a==1")
    await built(layers, "b==1")
    assert preparations.count == 1


@pytest.mark.parametrize("refusal", [EngineNotFound("No such image"), EngineRefused("network network not found")])
async def test_what_was_removed_behind_the_workers_back_is_made_again(
    layers: DockerLayers, daemon: Daemon, preparations: Preparations, refusal: Exception
) -> None:
    await built(layers, "a==1")
    daemon.refusals = [refusal]
    await built(layers, "b==1")
    assert preparations.count == 2


async def test_a_builder_that_docker_refuses_costs_a_try_and_not_the_workers_readiness(
    layers: DockerLayers, daemon: Daemon
) -> None:
    daemon.refusals = [EngineRefused("no"), EngineRefused("seccomp is not supported")]
    with pytest.raises(RequirementsFailed, match="no builder can be had on this host: seccomp is not supported"):
        await built(layers)
    assert not daemon.volumes_kept
    await built(layers)


async def test_a_volume_that_docker_refuses_costs_a_try(layers: DockerLayers, daemon: Daemon) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise EngineRefused("no space left on device")

    daemon.create_volume = refuse  # type: ignore[method-assign]
    with pytest.raises(RequirementsFailed, match="no space left on device"):
        await built(layers)


async def test_a_daemon_that_is_gone_is_not_the_tasks_fault(layers: DockerLayers, daemon: Daemon) -> None:
    daemon.refusals = [EngineError("the daemon failed to answer")]
    with pytest.raises(BackendUnavailable, match="failed to answer"):
        await built(layers)


async def test_a_layer_is_built_in_the_image_that_its_key_stands_for(
    layers: DockerLayers, daemon: Daemon, preparations: Preparations
) -> None:
    old = await built(layers)
    preparations.image = SandboxImage("continuum-sandbox:111111111111", has_iptables=True, volumes=())
    new = await built(layers, image=preparations.image)
    assert new.key != old.key
    assert daemon.created == [f"builder of {IMAGE.tag}", f"builder of {preparations.image.tag}"]


async def test_nothing_is_built_for_an_image_that_container_image_no_longer_names(
    layers: DockerLayers, daemon: Daemon, preparations: Preparations
) -> None:
    preparations.image = SandboxImage("continuum-sandbox:111111111111", has_iptables=True, volumes=())
    with pytest.raises(BackendUnavailable, match="CONTAINER_IMAGE"):
        await built(layers)
    assert not daemon.created
    assert not daemon.volumes_kept


@pytest.mark.parametrize("size", ["", "many", "-1", "1.5", "1_000", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 5000, None])
async def test_a_mark_without_a_size_in_plain_digits_marks_nothing(
    layers: DockerLayers, daemon: Daemon, size: str | None
) -> None:
    good = await built(layers)
    mark = daemon.volumes_kept[f"{good.name}-complete"]
    if size is None:
        del mark["continuum.layer.bytes"]
    else:
        mark["continuum.layer.bytes"] = size
    hostile = {"continuum.layer.complete": "continuum-layer-x", "continuum.layer.bytes": size or ""}
    daemon.volumes_kept["continuum-layer-x-complete"] = hostile
    await layers.sweep({"worker"})
    assert not daemon.volumes_kept
    another = DockerLayers(SETTINGS, daemon, Owner.current(SETTINGS, "other"))  # type: ignore[arg-type]
    await built(another)


async def test_a_layer_that_is_completed_while_a_sweep_looks_around_stays(
    layers: DockerLayers, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, finished = trio.Event(), trio.Event()

    async def run(self: Installation, stream: Any) -> int:
        await finish.wait()
        return 4096

    async def let_it_finish() -> None:
        finish.set()
        await finished.wait()

    monkeypatch.setattr(Installation, "run", run)
    found: list[Layer] = []

    async def build() -> None:
        found.append(await built(layers))
        finished.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(build)
        await trio.testing.wait_all_tasks_blocked()
        daemon.after_listing = [let_it_finish]
        await layers.sweep({"worker"})
    assert set(daemon.volumes_kept) == {found[0].name, f"{found[0].name}-complete"}
    assert docker_layers.PREFIX in found[0].name


async def test_what_a_build_of_this_worker_has_left_is_swept(layers: DockerLayers, daemon: Daemon) -> None:
    await built(layers)
    complete = set(daemon.volumes_kept)
    labels = Owner.current(SETTINGS, "worker").labels("layer") | {"continuum.layer": "0" * 32}
    daemon.create_volume("continuum-layer-left", labels)
    await layers.sweep({"worker"})
    assert set(daemon.volumes_kept) == complete
