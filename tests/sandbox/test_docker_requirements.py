"""What tasks require, installed for real: from an index of the test's own, in a world of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from continuum.model import Ending
from continuum.requirements import BadRequirements, parse_requirements
from continuum.sandbox.docker import DockerBackend, DockerSandbox
from continuum.sandbox.protocol import Layer, LayerGone, RequirementsFailed
from tests.support import docker as lab
from tests.support import package_index as shop
from tests.support.package_index import Index, open_index
from tests.support.world import World

pytestmark = pytest.mark.usefixtures("network_of_the_world")


@pytest.fixture(autouse=True)
def _apart(world: World) -> Iterator[None]:
    with shop.layers_of_its_own(), shop.builders_in(world):
        yield


@pytest.fixture(scope="module")
def index(world: World) -> Iterator[Index]:
    with open_index(world) as index:
        yield index


@asynccontextmanager
async def installing(index: Index, **values: Any) -> AsyncIterator[DockerBackend]:
    """A backend that installs from the test's index."""
    async with lab.open_backend(**{"requirements_index": index.url, "requirements_max_mb": 32, **values}) as backend:
        yield backend


@asynccontextmanager
async def sandbox_with(backend: DockerBackend, text: str) -> AsyncIterator[DockerSandbox]:
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


async def test_a_script_imports_what_it_requires_and_what_that_requires(index: Index) -> None:
    async with installing(index) as backend, sandbox_with(backend, "needy==2.0") as sandbox:
        assert await lab.output_of(sandbox, "import needy, greet; greet.main()") == "hello from greet\n"
        assert (
            await lab.output_of(sandbox, "import greet; print(greet.__file__)") == "/requirements/greet/__init__.py\n"
        )
        run = "import subprocess; print(subprocess.run(['say-hello'], capture_output=True, text=True))"
        assert "hello from greet" in await lab.output_of(sandbox, run)


async def test_bytecode_is_there_and_pth_files_do_nothing(index: Index) -> None:
    async with installing(index) as backend, sandbox_with(backend, "greet==1.0") as sandbox:
        look = "import greet, os, pathlib; print(pathlib.Path(greet.__cached__).exists(), os.environ.get('PTH'))"
        assert await lab.output_of(sandbox, look) == "True None\n"


async def test_a_sandbox_without_a_layer_has_no_trace_of_any(index: Index) -> None:
    async with installing(index) as backend:
        sandbox = await backend.start()
        try:
            look = (
                "import os, sys; print(os.path.exists('/requirements'), os.environ.get('PYTHONPATH'), "
                "any('requirements' in place for place in (*sys.path, os.environ['PATH'])))"
            )
            assert await lab.output_of(sandbox, look) == "False None False\n"
        finally:
            await sandbox.aclose()


async def test_nobody_in_the_sandbox_can_write_to_the_layer(index: Index) -> None:
    async with installing(index) as backend, sandbox_with(backend, "greet==1.0") as sandbox:
        write = "open('/requirements/greet/__init__.py', 'a')"
        outcome = await sandbox.run(lab.request(write), lab.ignore_output)
        assert outcome.ending is Ending.FAILED
        assert "Read-only file system" in outcome.message
        assert "Read-only file system" in await lab.execute(sandbox.name, write, user="0:0")


async def test_one_list_is_built_once_however_many_ask_for_it_at_once(index: Index) -> None:
    async with installing(index) as backend:
        before = index.downloads(shop.SMALL[0])
        layers: list[Layer] = []

        async def ask(text: str) -> None:
            async with backend.layer(parse_requirements(text)) as layer:
                layers.append(layer)

        async with trio.open_nursery() as nursery:
            for text in ("small1==1.0", "# the same\nSmall1 == 1.0\n", "small1==1.0\n\n"):
                nursery.start_soon(ask, text)
        assert len(set(layers)) == 1
        assert index.downloads(shop.SMALL[0]) == before + 1


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


async def test_hashes_that_fit_are_taken_and_others_refused(index: Index) -> None:
    async with installing(index) as backend:
        async with sandbox_with(backend, f"greet==1.0 --hash=sha256:{shop.GREET.sha256}") as sandbox:
            assert await lab.output_of(sandbox, "import greet") == ""
        assert "Hash mismatch for `greet==1.0`" in await refusal(backend, f"greet==1.0 --hash=sha256:{'0' * 64}")
        alone = f"needy==2.0 --hash=sha256:{shop.NEEDY.sha256}"
        assert "no trusted hash was provided for: `greet`" in await refusal(backend, alone)


async def test_what_cannot_be_installed_is_refused_in_the_resolvers_own_words(index: Index) -> None:
    async with installing(index) as backend:
        assert "there is no version of greet==7.0" in await refusal(backend, "greet==7.0")
        assert "absent was not found in the package registry" in await refusal(backend, "absent==1.0")
        # A source distribution would have to be built, which runs its code with the builder's network.
        assert "source==1.0 has no usable wheels" in await refusal(backend, "source==1.0")


async def test_a_refused_list_is_not_tried_again_at_once(index: Index) -> None:
    async with installing(index) as backend:
        await refusal(backend, "greet==7.0")
        before = index.asked()
        await refusal(backend, "greet==7.0")
        assert index.asked() == before


async def test_a_list_that_is_too_large_is_refused(index: Index) -> None:
    async with installing(index, requirements_max_mb=16) as backend:
        assert "more than the 16 MB of REQUIREMENTS_MAX_MB" in await refusal(backend, "large==1.0")


async def test_an_index_in_trouble_is_a_failure_that_may_pass(index: Index) -> None:
    async with installing(index) as backend:
        with pytest.raises(RequirementsFailed, match="503 Service Unavailable"):
            async with backend.layer(parse_requirements("broken==1.0")):
                pass


async def test_an_index_that_does_not_answer_costs_no_longer_than_the_timeout(index: Index) -> None:
    async with installing(index, requirements_timeout=6.0) as backend:
        began = trio.current_time()
        with pytest.raises(RequirementsFailed, match="REQUIREMENTS_TIMEOUT"):
            async with backend.layer(parse_requirements("hanging==1.0")):
                pass
        assert trio.current_time() - began < 12


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
