"""What tasks require, installed for real: from an index of the test's own, in a world of the test's own."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from continuum.db.memory import MemoryDatabase
from continuum.model import Ending, NewTask
from continuum.nursery.signals import Shutdown
from continuum.nursery.state import WorkerState
from continuum.nursery.supervisor import supervise
from continuum.requirements import parse_requirements
from continuum.sandbox.docker import DockerBackend
from continuum.sandbox.protocol import RequirementsFailed
from continuum.telemetry import Telemetry
from tests.sandbox.test_docker_image import base_image
from tests.sandbox.test_docker_sweep import worker_of
from tests.support import docker as lab
from tests.support import package_index as shop
from tests.support import world as roles
from tests.support.package_index import Index, installing, sandbox_with
from tests.support.world import World, answered, reach, targets

pytestmark = pytest.mark.usefixtures("network_of_the_world", "layers_apart")


async def test_a_script_imports_what_it_requires_and_what_that_requires(index: Index) -> None:
    async with installing(index) as backend, sandbox_with(backend, "needy==2.0") as sandbox:
        assert await lab.output_of(sandbox, "import needy, greet; greet.main()") == "hello from greet\n"
        assert (
            await lab.output_of(sandbox, "import greet; print(greet.__file__)") == "/requirements/greet/__init__.py\n"
        )
        run = "import subprocess; print(subprocess.run(['say-hello'], capture_output=True, text=True))"
        assert "hello from greet" in await lab.output_of(sandbox, run)


async def test_a_whole_worker_gives_each_task_what_its_code_requires(index: Index) -> None:
    database, shutdown = MemoryDatabase(), Shutdown()
    code = "import greet; greet.main()"
    tasks = [NewTask(code=code, requirements=f"greet=={version}") for version in ("1.0", "1.0", "7.0")]
    async with installing(index, slots=2, max_tasks_per_sandbox=1) as backend, trio.open_nursery() as nursery:
        state = WorkerState(id=worker_of(backend), slots=2)
        nursery.start_soon(supervise, backend._settings, state, database, backend, Telemetry(), shutdown)
        ids = await database.submit(tasks)
        with trio.fail_after(120):
            records = await database.fetch(ids)
            while not all(record.finished_for_good for record in records):
                await trio.sleep(0.05)
                records = await database.fetch(ids)
        shutdown.request()
    ended = [(record.status, record.attempt, record.output) for record in records]
    assert ended == [("completed", 1, "hello from greet\n")] * 2 + [("failed", 1, "")]
    assert "there is no version of greet==7.0" in (records[2].last_error or "")


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
        assert outcome.message.startswith("PermissionError")
        assert "Read-only file system" in await lab.execute(sandbox.name, write, user="0:0")


async def test_hashes_that_fit_are_taken_and_others_refused(index: Index) -> None:
    async with installing(index) as backend:
        async with sandbox_with(backend, f"greet==1.0 --hash=sha256:{shop.GREET.sha256}") as sandbox:
            assert await lab.output_of(sandbox, "import greet") == ""
        assert "Hash mismatch for `greet==1.0`" in await shop.refusal(backend, f"greet==1.0 --hash=sha256:{'0' * 64}")
        alone = f"needy==2.0 --hash=sha256:{shop.NEEDY.sha256}"
        assert "no trusted hash was provided for: `greet`" in await shop.refusal(backend, alone)


async def test_what_cannot_be_installed_is_refused_in_the_resolvers_own_words(index: Index) -> None:
    async with installing(index) as backend:
        assert "there is no version of greet==7.0" in await shop.refusal(backend, "greet==7.0")
        assert "absent was not found in the package registry" in await shop.refusal(backend, "absent==1.0")
        # A source distribution would have to be built, which runs its code with the builder's network.
        assert "source==1.0 has no usable wheels" in await shop.refusal(backend, "source==1.0")


async def test_a_list_that_is_too_large_is_refused(index: Index) -> None:
    async with installing(index, requirements_max_mb=16) as backend:
        assert "more than the 16 MB of REQUIREMENTS_MAX_MB" in await shop.refusal(backend, "large==1.0")


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


async def test_an_image_that_was_pruned_is_made_again_by_the_next_build(index: Index) -> None:
    with base_image() as base:
        async with installing(index, container_image=base) as backend:
            async with backend.layer(parse_requirements("greet==1.0")):
                pass
            with lab.api() as client:
                (image,) = _builder_images(client, base)
                client.remove_image(image["RepoTags"][0])
            async with sandbox_with(backend, "needy==2.0") as sandbox:
                assert await lab.output_of(sandbox, "import needy; print('found')") == "found\n"


async def test_workers_that_make_the_builders_image_at_once_share_one(index: Index) -> None:
    with base_image() as base:
        async with installing(index, container_image=base) as one, installing(index, container_image=base) as other:

            async def build(backend: DockerBackend, text: str) -> None:
                async with backend.layer(parse_requirements(text)):
                    pass

            async with trio.open_nursery() as nursery:
                nursery.start_soon(build, one, "small1==1.0")
                nursery.start_soon(build, other, "small2==1.0")
        with lab.api() as client:
            assert len(_builder_images(client, base)) == 1


def _builder_images(client: Any, base: str) -> list[dict[str, Any]]:
    """The images that builders were given, of a base image of the test's own."""
    found = client.images(filters={"label": f"test={base.partition(':')[0]}"})
    return [each for each in found if any(tag.startswith("continuum-builder:") for tag in each["RepoTags"] or ())]


async def test_a_builder_reaches_the_index_and_nothing_else(index: Index, world: World) -> None:
    everything = world.targets(targets(*roles.PUBLIC, *roles.CLOSED), targets(*roles.PUBLIC_IPV6, *roles.CLOSED_IPV6))
    connect = (
        f"import socket; socket.create_connection(('{roles.INTERNET}', {shop.PORT}), timeout=5); print('connected')"
    )
    with lab.bystander(world.network) as control:
        world.lead(control)
        assert answered(everything, await lab.execute(control, reach(everything))) == set(everything)
    async with installing(index) as backend, trio.open_nursery() as nursery:

        async def build() -> None:
            async with backend.layer(parse_requirements("hanging==1.0")):
                raise AssertionError("it hangs")

        before = len(index.asked())
        nursery.start_soon(build)
        await lab.eventually(lambda: len(index.asked()) > before, 60)
        (builder,) = shop.builders(worker_of(backend))
        for user in (lab.SCRIPT_USER, "0:0"):
            assert answered(everything, await lab.execute(builder, reach(everything), user=user)) == set()
            assert await lab.execute(builder, connect, user=user) == "connected\n"
        resolve = f"import socket; print(socket.gethostbyname('{roles.NAME}'))"
        assert "gaierror" in await lab.execute(builder, resolve)
        nursery.cancel_scope.cancel()


async def test_a_builder_has_the_limits_and_rights_of_a_sandbox(index: Index) -> None:
    async with installing(index) as backend, trio.open_nursery() as nursery:

        async def build() -> None:
            async with backend.layer(parse_requirements("hanging==1.0")):
                raise AssertionError("it hangs")

        sandbox = await backend.start()
        try:
            nursery.start_soon(build)
            await lab.eventually(lambda: bool(shop.builders(worker_of(backend))), 60)
            (builder,) = shop.builders(worker_of(backend))
            with lab.api() as client:
                theirs, its = (client.inspect_container(name)["HostConfig"] for name in (sandbox.name, builder))
        finally:
            await sandbox.aclose()
        for same in (
            "CapDrop",
            "CapAdd",
            "SecurityOpt",
            "ReadonlyRootfs",
            "NanoCpus",
            "PidsLimit",
            "Ulimits",
            "IpcMode",
        ):
            assert its[same] == theirs[same], same
        assert its["Memory"] == its["MemorySwap"] == theirs["Memory"] + 32 * 1024 * 1024
        assert not its["Privileged"]
        nursery.cancel_scope.cancel()
