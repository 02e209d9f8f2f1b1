"""What becomes of layers: shared, kept, evicted, and swept when a worker was killed while it built one."""

from __future__ import annotations

import pytest
import trio

from continuum.requirements import parse_requirements
from continuum.sandbox import docker_layers
from continuum.sandbox.protocol import Layer, LayerGone
from tests.sandbox.test_docker_sweep import worker_of, worker_process
from tests.support import docker as lab
from tests.support import package_index as shop
from tests.support.package_index import Index, installing, sandbox_with, settings_for
from tests.support.world import World

pytestmark = pytest.mark.usefixtures("network_of_the_world", "layers_apart")


async def test_one_list_is_built_once_however_many_ask_for_it_at_once(index: Index) -> None:
    async with installing(index) as backend:
        before = index.asked().count("GET /simple/small1/")
        layers: list[Layer] = []

        async def ask(text: str) -> None:
            async with backend.layer(parse_requirements(text)) as layer:
                layers.append(layer)

        async with trio.open_nursery() as nursery:
            for text in ("small1==1.0", "# the same\nSmall1 == 1.0\n", "small1==1.0\n\n"):
                nursery.start_soon(ask, text)
        assert len(set(layers)) == 1
        assert index.asked().count("GET /simple/small1/") == before + 1


async def test_another_worker_of_the_host_finds_what_one_has_built(index: Index) -> None:
    async with (
        installing(index) as one,
        installing(index) as other,
        one.layer(parse_requirements("small2==1.0")) as built,
    ):
        before = index.asked()
        async with other.layer(parse_requirements("small2==1.0")) as found:
            assert found == built
        assert index.asked() == before


async def test_a_refused_list_is_not_tried_again_at_once(index: Index) -> None:
    async with installing(index) as backend:
        await shop.refusal(backend, "greet==7.0")
        before = index.asked()
        await shop.refusal(backend, "greet==7.0")
        assert index.asked() == before


async def test_a_layer_that_was_removed_is_told_and_built_again(index: Index) -> None:
    async with installing(index) as backend:
        async with backend.layer(parse_requirements("greet==1.0")) as layer:
            with lab.api() as client:
                client.remove_volume(layer.name)
            with pytest.raises(LayerGone):
                await backend.start(layer)
        async with sandbox_with(backend, "greet==1.0") as sandbox:
            assert await lab.output_of(sandbox, "import greet; greet.main()") == "hello from greet\n"
        await backend.sweep(set())
        # The daemon had made an empty volume in its place.
        assert layer.name not in shop.volumes()


async def test_a_build_that_is_cancelled_is_begun_again_by_whoever_else_waits_for_it(index: Index) -> None:
    async with installing(index) as backend, trio.open_nursery() as nursery:
        ready: list[Layer] = []
        cancelled = trio.CancelScope()

        async def ask(scope: trio.CancelScope) -> None:
            with scope:
                async with backend.layer(parse_requirements("greet==1.0")) as layer:
                    ready.append(layer)

        nursery.start_soon(ask, cancelled)
        await lab.eventually(lambda: bool(shop.builders(worker_of(backend))))
        nursery.start_soon(ask, trio.CancelScope())
        cancelled.cancel()
        with trio.fail_after(60):
            while not ready:
                await trio.sleep(0.05)
        assert shop.layers() == [ready[0].name]


async def test_the_layers_that_were_not_used_for_longest_make_room_and_those_in_use_stay(index: Index) -> None:
    # Each of the lists takes a bit more than one megabyte.
    async with installing(index, requirements_cache_mb=3) as backend, sandbox_with(backend, "small1==1.0") as sandbox:
        for number in (2, 3):
            async with backend.layer(parse_requirements(f"small{number}==1.0")) as layer:
                pass
        assert len(shop.layers()) == 2
        assert layer.name in shop.layers()
        assert await lab.output_of(sandbox, "import small1; print(small1.number)") == "1\n"
        before = index.asked()
        async with backend.layer(parse_requirements("small1==1.0")):
            assert index.asked() == before


async def test_a_layer_that_a_sandbox_of_another_worker_has_stays(index: Index) -> None:
    async with installing(index) as other, installing(index, requirements_cache_mb=0) as backend:
        async with sandbox_with(other, "greet==1.0") as sandbox:
            await backend.sweep({worker_of(other)})
            assert await lab.output_of(sandbox, "import greet; greet.main()") == "hello from greet\n"
        assert shop.layers()
        await backend.sweep({worker_of(other)})
        assert not shop.layers()


BUILD = """
    from contextlib import contextmanager
    from continuum.requirements import parse_requirements
    from continuum.sandbox import docker_builder, docker_layers, docker_network
    from tests.support.world import World
    docker_layers.PREFIX, docker_network.NETWORK, docker_network.NETWORK_OPTIONS = {prefix!r}, {world.network!r}, {{}}
    restrict = docker_builder.restrict
    async def led(engine, owner, image, sandbox, policy):
        await trio.to_thread.run_sync({world!r}.lead, sandbox)
        await restrict(engine, owner, image, sandbox, policy)
    docker_builder.restrict = led
    backend = DockerBackend(lab.settings(**{settings!r}), {worker!r})
    await backend.prepare()
    async def build():
        async with backend.layer(parse_requirements("hanging==1.0")):
            pass
    trio.lowlevel.spawn_system_task(build)
"""


async def test_what_a_worker_leaves_that_was_killed_amid_a_build_is_swept_by_the_next(
    index: Index, world: World
) -> None:
    worker = lab.new_worker()
    code = BUILD.format(prefix=docker_layers.PREFIX, world=world, settings=settings_for(index), worker=worker)
    before = len(index.asked())
    with worker_process(worker, code) as process:
        await lab.eventually(lambda: len(index.asked()) > before, 60)
        assert shop.builders(worker)
        assert shop.volumes()
        async with installing(index) as backend:
            await backend.sweep(set())
            assert shop.builders(worker), "a living worker's builder was removed"
            assert shop.volumes(), "a living worker's layer was removed"
            process.kill()
            process.wait()
            await backend.sweep({worker})
            assert not lab.containers(worker)
            assert not shop.volumes()
