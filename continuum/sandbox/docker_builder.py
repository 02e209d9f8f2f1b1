"""The builder: a sandbox that installs one list of requirements with uv, and reaches nothing but the package index.

Its image is the sandboxes' own with uv put in, once per host. It has a sandbox's limits and rights; what it writes to is a
tmpfs that is as large as a list may become, which counts as memory, and the volume that becomes the layer.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import structlog
import trio

from continuum.config import Settings
from continuum.requirements import Requirements
from continuum.sandbox.channel import BOOTSTRAP
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_image import SANDBOX_UIDS, SandboxImage, ensure_image
from continuum.sandbox.docker_isolation import Isolation, isolation_of
from continuum.sandbox.docker_network import SandboxNetwork, close_host, enforceable, ensure_network, restrict
from continuum.sandbox.docker_owner import ROLE_LABEL, WORKER_LABEL, Owner
from continuum.sandbox.docker_specification import FILES_PER_MEBIBYTE, MEBIBYTE, sandbox_specification
from continuum.sandbox.docker_stream import EngineNotFound, EngineRefused
from continuum.sandbox.network import PolicyError
from continuum.sandbox.network_names import resolve
from continuum.sandbox.protocol import BackendUnavailable, RequirementsFailed
from continuum.sandbox.requirements_build import UV, Installation

log = structlog.get_logger(__name__)

REPOSITORY = "continuum-builder"
# A container of the image is nobody's unless it says so.
BUILDER_CHANGES = [f'LABEL {WORKER_LABEL}="" {ROLE_LABEL}=""', 'CMD ["python3"]']
FEWEST_PROCESSES = 64
"""What uv's threads need, where sandboxes have less."""
_INSTALL_UV = "`pip install 'continuum-worker[requirements]'` brings it"


@dataclass(frozen=True, slots=True)
class _Ready:
    """What all builds of this worker share. image: the sandboxes' own; `tag`: the one with uv in it. runtime: see
    `builder_settings`. The network's policy is still without what may be reached."""

    image: SandboxImage
    tag: str
    runtime: str
    isolation: Isolation
    network: SandboxNetwork


class DockerBuilder:
    """Runs builders. Every method may raise `EngineError`, too."""

    def __init__(self, settings: Settings, engine: Engine, owner: Owner) -> None:
        self._settings = settings
        self._engine = engine
        self._owner = owner
        self._index = settings.package_index
        self._preparing = trio.Lock()
        self._ready: _Ready | None = None

    def key(self, requirements: Requirements, image: SandboxImage) -> str:
        """What stands for all that decides what comes of a list: 32 hex digits."""
        index = self._index.url if self._index else ""
        parts = (requirements.digest, image.tag, _uv_version(), index)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    async def install(self, requirements: Requirements, image: SandboxImage, volume: str) -> int:
        """Install a list, for sandboxes of an image, into an empty volume; return the bytes that it takes.

        Raises `BadRequirements`, `RequirementsFailed`, and `BackendUnavailable` when sandboxes must be prepared anew first.
        """
        if self._index is None:
            raise RequirementsFailed("this worker installs none (REQUIREMENTS_INDEX=none)")
        installation = Installation(
            requirements, self._index, SANDBOX_UIDS.start, self._settings.requirements_max_mb, _own_certificates()
        )
        try:
            ready = await self._prepare(image)
            try:
                return await self._run(installation, ready, volume)
            except EngineRefused as error:
                # Images and networks that nothing uses at the moment are removed behind a worker's back (`docker image prune`).
                log.info("a builder was refused; what builders need is looked for anew", error=str(error))
                if self._ready is ready:
                    self._ready = None
            return await self._run(installation, await self._prepare(image), volume)
        except EngineRefused as error:
            # The daemon is well, and sandboxes need not be worse off: this costs the task a try, not the worker its readiness.
            raise RequirementsFailed(f"no builder can be had on this host: {error}") from error
        except PolicyError as error:
            raise RequirementsFailed(
                f"a builder that reaches the index alone (REQUIREMENTS_INDEX) cannot be had: {error}"
            ) from error

    async def _run(self, installation: Installation, ready: _Ready, volume: str) -> int:
        """Raises `EngineRefused` only while the volume is still empty."""
        engine, name = self._engine, f"continuum-builder-{secrets.token_hex(6)}"
        policy = replace(ready.network.policy, allowlist=await resolve(installation.index.reached))
        try:
            specification = builder_specification(
                self._settings.model_copy(update={"container_runtime": ready.runtime}),
                ready.image,
                ready.tag,
                self._owner.labels("builder"),
                ready.network.id,
                ready.isolation,
                policy.extra_hosts,
                volume,
            )
            await engine.create(name, specification)
            async with await engine.attach(name, stdin=True) as stream:
                await engine.start(name)
                # The installer waits for its own text: nothing happens in there before the policy is in force.
                await restrict(engine, self._owner, ready.image.tag, name, policy)
                try:
                    return await installation.run(stream)
                except RequirementsFailed as failure:
                    raise RequirementsFailed(f"{failure}{stream.last_words}") from None
        finally:
            await engine.remove(name)

    async def _prepare(self, wanted: SandboxImage) -> _Ready:
        """What builds for sandboxes of an image need, found or made once while that stays the same."""
        async with self._preparing:
            if self._ready is None or self._ready.image.tag != wanted.tag:
                engine = self._engine
                info: dict[str, Any] = await engine.call(lambda api: api.info())
                settings = builder_settings(self._settings, info)
                isolation = isolation_of(info, settings.container_runtime)
                network = await ensure_network(engine)
                image = await ensure_image(engine, self._owner, settings.container_image, network=network.id)
                if image.tag != wanted.tag:
                    raise BackendUnavailable(
                        f"{settings.container_image} (CONTAINER_IMAGE) names another image than the sandboxes here were made from"
                    )
                network = await close_host(engine, self._owner, network, image, settings.container_image)
                tag = await _ensure_builder_image(engine, self._owner, image)
                self._ready = _Ready(image, tag, settings.container_runtime, isolation, network)
            return self._ready


def builder_specification(
    settings: Settings,
    image: SandboxImage,
    tag: str,
    labels: Mapping[str, str],
    network: str,
    isolation: Isolation,
    hosts: Sequence[str],
    volume: str,
) -> dict[str, Any]:
    """The container, in the words of Docker's API, that fills a volume: a sandbox with room to write and uv in its image.

    image: the sandboxes'; tag: the one made of it.
    """
    specification = sandbox_specification(settings, image, BOOTSTRAP, labels, network, isolation, hosts=hosts)
    specification["Image"] = tag
    host = specification["HostConfig"]
    size = settings.requirements_max_mb
    host["Tmpfs"]["/build"] = f"noexec,nosuid,nodev,mode=1777,size={size}m,nr_inodes={size * FILES_PER_MEBIBYTE}"
    host["Memory"] = host["MemorySwap"] = host["Memory"] + size * MEBIBYTE
    host["PidsLimit"] = max(host["PidsLimit"], FEWEST_PROCESSES)
    host["Mounts"] = [
        {"Type": "volume", "Source": volume, "Target": "/layer", "VolumeOptions": {"NoCopy": True}},
    ]
    return specification


def builder_image_specification(labels: Mapping[str, str], base: str) -> dict[str, Any]:
    """The container that uv is put into, to be committed; it is never started."""
    return {
        "Image": base,
        "Cmd": ["true"],
        "Labels": dict(labels),
        "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": "none"}},
    }


def builder_settings(settings: Settings, info: Mapping[str, Any]) -> Settings:
    """The sandboxes' settings with a runtime whose containers iptables rules bind, where they do not bind those of
    CONTAINER_RUNTIME (gVisor): a builder runs nothing of what it installs. info: what the daemon says of itself. Raises
    `PolicyError`."""
    for runtime in (settings.container_runtime, "", "runc"):
        if enforceable(info, runtime) and (not runtime or runtime in info["Runtimes"]):
            return settings.model_copy(update={"container_runtime": runtime})
    raise PolicyError("iptables rules bind the containers of no runtime here")


async def _is_there(engine: Engine, image: str) -> bool:
    try:
        await engine.call(lambda api: api.inspect_image(image))
    except EngineNotFound:
        return False
    return True


async def _ensure_builder_image(engine: Engine, owner: Owner, base: SandboxImage) -> str:
    """The sandboxes' image with uv in it, found or made, whatever other workers do at the same time."""
    tag = builder_tag(base.tag)
    if await _is_there(engine, tag):
        return tag
    log.info("preparing the image that installs requirements, once on this host", image=tag)
    archive = await trio.to_thread.run_sync(archive_of_uv)
    name = f"continuum-image-{secrets.token_hex(6)}"
    specification = builder_image_specification(owner.labels("image"), base.tag)
    repository, _, version = tag.partition(":")
    try:
        await engine.create(name, specification)
        await engine.call(lambda api: api.put_archive(name, "/", archive))
        if not await _is_there(engine, tag):  # another worker may have been quicker
            await engine.call(lambda api: api.commit(name, repository, version, changes=BUILDER_CHANGES))
    finally:
        await engine.remove(name)
    return tag


def builder_tag(base: str) -> str:
    """The name of the image that is made of the sandboxes' image `base` and the uv of this installation."""
    version = hashlib.sha256(f"{base}\n{_uv_version()}".encode()).hexdigest()[:12]
    return f"{REPOSITORY}:{version}"


def _uv_version() -> str:
    try:
        return metadata.version("uv")
    except metadata.PackageNotFoundError:
        return ""


def archive_of_uv() -> bytes:
    """A tar file with the uv of this installation at its place in a builder; always the same. Raises
    `RequirementsFailed`."""
    try:
        from uv import find_uv_bin

        binary = Path(find_uv_bin()).read_bytes()
    except (ImportError, OSError) as error:
        raise RequirementsFailed(f"this worker has no uv ({error}): {_INSTALL_UV}") from error
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        entry = tarfile.TarInfo(UV.lstrip("/"))
        entry.size, entry.mode = len(binary), 0o755
        tar.addfile(entry, io.BytesIO(binary))
    return file.getvalue()


def _own_certificates() -> str:
    """What TLS is to trust where the worker was told so: a network whose proxy has certificates of its own."""
    path = os.environ.get("SSL_CERT_FILE")
    try:
        return Path(path).read_text() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        log.warning("SSL_CERT_FILE cannot be read; builders trust what uv trusts", error=str(error))
        return ""
