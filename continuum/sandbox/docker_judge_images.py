"""Which images are a worker's own, and what may become one.

Labels anybody may write, and tags too. So the names are computed here, and nothing gets one but the outcome of the
fixed script on CONTAINER_IMAGE, and that with the uv of this installation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from continuum.config import Settings
from continuum.sandbox.docker_builder import BUILDER_CHANGES, archive_of_uv, builder_tag
from continuum.sandbox.docker_comparison import Refused
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_image import (
    IPTABLES,
    IPTABLES_LABEL,
    SandboxImage,
    addition_changes,
    addition_specification,
    sandbox_tag,
)
from continuum.sandbox.docker_stream import EngineNotFound
from continuum.sandbox.protocol import RequirementsFailed
from continuum.sandbox.requirements_build import UV


class Images:
    """The images of workers with `settings`. Every method raises `Refused`, and `EngineError`."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._bases: dict[str, str] = {}
        self._reading = trio.Lock()
        self._archive: bytes | None = None

    def must_install(self) -> None:
        """Refuse what only those need who install requirements, where nothing is installed."""
        if self._settings.package_index is None:
            raise Refused("workers install no requirements (REQUIREMENTS_INDEX=none)")

    async def base(self) -> str:
        """The id of CONTAINER_IMAGE."""
        return str((await self._inspect(self._settings.container_image))["Id"])

    async def made_here(self, reference: object) -> SandboxImage:
        """The sandboxes' image, by its tag."""
        if reference not in await self._find_bases():
            raise Refused(
                f"workers use no image {reference!r} here; CONTAINER_IMAGE is {self._settings.container_image}"
            )
        tag = str(reference)
        found = await self._inspect(tag)
        return SandboxImage(tag, has_iptables=True, volumes=tuple(found["Config"].get("Volumes") or ()))

    async def below_builder(self, reference: object) -> SandboxImage:
        """The sandboxes' image of which the builders' image `reference` was made."""
        for tag in await self._find_bases():
            if builder_tag(tag) == reference:
                return await self.made_here(tag)
        raise Refused(f"builders do not run the image {reference!r}")

    async def check_replaced(self, image: str) -> None:
        """An image made here whose name another has taken over."""
        found = await self._inspect(image)
        if found.get("RepoTags") or IPTABLES_LABEL not in (found["Config"].get("Labels") or {}):
            raise Refused("workers remove no image but one that they replaced")

    async def check_commit(self, container: str, name: str, changes: Sequence[str]) -> None:
        """A container that holds what belongs into the image `name`, and nothing else."""
        bases = await self._find_bases()
        builders = {builder_tag(tag): tag for tag in bases}
        if name in bases:
            await self._check_addition(container, bases[name])
            known = [addition_changes(iptables) for iptables in IPTABLES]
        elif name in builders:
            self.must_install()
            await self._check_unstarted(container, [builders[name]])
            added = await self._engine.call(lambda api: api.diff(container)) or []
            if not any(change["Path"] == UV for change in added):
                raise Refused(f"uv has not been put into {container}")
            known = [BUILDER_CHANGES]
        else:
            raise Refused(f"what workers make of CONTAINER_IMAGE is not called {name!r}")
        if changes not in known:
            raise Refused(f"changes is {changes} where {known} should be")

    async def archive_for(self, container: str, digest: object) -> bytes:
        """What is put into the container that becomes the builders' image, if that is what a worker sent: this
        installation's uv.

        Such a container has never been started: nobody is in there to play tricks with the paths. digest: the SHA-256
        of what was sent.
        """
        self.must_install()
        await self._check_unstarted(container, list(await self._find_bases()))
        async with self._reading:
            if self._archive is None:
                try:
                    self._archive = await trio.to_thread.run_sync(archive_of_uv)
                except RequirementsFailed as error:
                    raise Refused(str(error)) from None
        if digest != hashlib.sha256(self._archive).hexdigest():
            raise Refused("workers put nothing into a container but the uv of this installation")
        return self._archive

    async def _find_bases(self) -> dict[str, str]:
        """By the tag of the image made of it, the id of CONTAINER_IMAGE, and those that it had since this proxy started:
        when it is pulled anew, workers go on with what they have."""
        base = await self.base()
        self._bases[sandbox_tag(base)] = base
        return dict(self._bases)

    async def _check_addition(self, name: str, base: str) -> None:
        """A container that made the addition to a base image, to its end."""
        container = await self._inspect_container(name)
        state = container["State"]
        commands = [addition_specification({}, base, network)["Cmd"] for network in (None, "any")]
        if container["Image"] != base or container["Config"]["Cmd"] not in commands:
            raise Refused(f"{name} is not the container in which CONTAINER_IMAGE is completed")
        if state["Status"] != "exited" or state["ExitCode"] != 0:
            raise Refused(f"{name}, in which CONTAINER_IMAGE is completed, has not come to its end")

    async def _check_unstarted(self, name: str, tags: Sequence[str]) -> None:
        """A container of one of the sandboxes' images that has never been started."""
        container = await self._inspect_container(name)
        for tag in tags:
            try:
                image = await self._inspect(tag)
            except Refused:
                continue
            if container["Image"] == image["Id"] and container["State"]["Status"] == "created":
                return
        raise Refused(f"{name} is no new container of the sandboxes' image")

    async def _inspect(self, reference: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = await self._engine.call(lambda api: api.inspect_image(reference))
        except EngineNotFound as error:
            raise Refused(str(error)) from None
        return found

    async def _inspect_container(self, name: str) -> Mapping[str, Any]:
        try:
            return await self._engine.inspect(name)
        except EngineNotFound as error:
            raise Refused(str(error)) from None
