"""The layers of a Docker host: what lists of requirements became, each built once and kept while there is room.

A layer is a volume that a builder has filled. That it is complete, and how large, is said by the labels of a second volume,
its mark, made last: labels never change, so nothing half done can look finished, whoever was killed when. Any number of
workers share what is on a host, and none needs to ask another: at worst two build the same list at the same time.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio

from continuum.config import Settings
from continuum.requirements import BadRequirements, Requirements
from continuum.sandbox.docker_builder import DockerBuilder
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_image import SandboxImage
from continuum.sandbox.docker_owner import Owner
from continuum.sandbox.docker_specification import MEBIBYTE
from continuum.sandbox.docker_stream import EngineNotFound, EngineRefused
from continuum.sandbox.protocol import BackendUnavailable, Layer, LayerGone, RequirementsFailed

log = structlog.get_logger(__name__)

PREFIX = "continuum-layer-"
LAYER_LABEL = "continuum.layer"
MARKED_LABEL = "continuum.layer.complete"
BYTES_LABEL = "continuum.layer.bytes"
BUILDS_AT_ONCE = 2
"""For each worker: a builder may take REQUIREMENTS_MAX_MB and CONTAINER_MEMORY_MB of memory beside the sandboxes."""
REFUSED_FOR = 60.0
"""Seconds for which a list that no attempt can install is not tried again: many tasks may name it."""
REMOVE_DEADLINE = 10.0


@dataclass(frozen=True, slots=True)
class _Volume:
    """A volume whose name says that it belongs here. created: seconds since the epoch. marks: the name of the volume
    that this one calls complete."""

    name: str
    labels: Mapping[str, str]
    created: float

    @classmethod
    def from_listed(cls, listed: dict[str, Any]) -> _Volume:
        created = dt.datetime.fromisoformat(listed.get("CreatedAt") or "1970-01-01T00:00:00Z").timestamp()
        return cls(listed["Name"], listed.get("Labels") or {}, created)

    @property
    def key(self) -> str:
        """Empty for a volume that the daemon made by itself, for a sandbox whose layer had gone."""
        return self.labels.get(LAYER_LABEL, "")

    @property
    def marks(self) -> str:
        return self.labels.get(MARKED_LABEL, "")

    @property
    def size(self) -> int | None:
        """What a mark says of its volume's size, in bytes; None where that is not what a worker writes there."""
        text = self.labels.get(BYTES_LABEL, "")
        return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


@dataclass(slots=True)
class _List:
    """What this worker knows of one list. `failed_at` is on Trio's clock, `used_at` is in seconds since the epoch."""

    one_at_a_time: trio.Lock = field(default_factory=trio.Lock)
    holders: int = 0
    layer: Layer | None = None
    failure: BadRequirements | RequirementsFailed | None = None
    failed_at: float = 0.0
    used_at: float = 0.0


class DockerLayers:
    """Finds, builds and removes layers. Every method may raise `EngineError`, too."""

    def __init__(self, settings: Settings, engine: Engine, owner: Owner) -> None:
        self._cache_bytes = settings.requirements_cache_mb * MEBIBYTE
        self._timeout = settings.requirements_timeout
        self._engine = engine
        self._owner = owner
        self._builder = DockerBuilder(settings, engine, owner)
        self._lists: dict[str, _List] = {}
        self._building: set[str] = set()
        self._builds = trio.CapacityLimiter(BUILDS_AT_ONCE)

    @asynccontextmanager
    async def hold(self, requirements: Requirements, image: SandboxImage) -> AsyncIterator[Layer]:
        """See `continuum.sandbox.protocol.Backend.layer`."""
        key = self._builder.key(requirements, image)
        known = self._lists.setdefault(key, _List())
        known.holders += 1
        try:
            yield await self._find_or_build(key, known, requirements, image)
        finally:
            known.holders -= 1
            known.used_at = time.time()
            self._forget_what_is_stale()

    async def see_that_it_is_there(self, layer: Layer) -> None:
        """Raise `LayerGone` unless a container that mounts the layer mounts the real one: where the volume had been
        removed, the daemon has made another one of the same name, empty and without labels."""
        try:
            found = await self._engine.call(lambda api: api.inspect_volume(layer.name))
        except EngineNotFound:
            found = {}
        if (found.get("Labels") or {}).get(LAYER_LABEL) != layer.key:
            if (known := self._lists.get(layer.key)) is not None and known.layer == layer:
                known.layer = None
            raise LayerGone(f"the layer {layer.name} was removed from this host")

    async def _find_or_build(self, key: str, known: _List, requirements: Requirements, image: SandboxImage) -> Layer:
        asked = trio.current_time()
        async with known.one_at_a_time:
            if known.layer is None:
                if known.failure is not None and (known.failed_at >= asked or _still_refused(known)):
                    raise type(known.failure)(str(known.failure))
                try:
                    known.layer = await self._find(key) or await self._build(key, requirements, image)
                except (BadRequirements, RequirementsFailed) as failure:
                    known.failure, known.failed_at = failure, trio.current_time()
                    raise
            return known.layer

    async def _find(self, key: str) -> Layer | None:
        """A complete layer that somebody built."""
        complete = [volume for volume, _ in _complete(await self._list()) if volume.key == key]
        return Layer(min(volume.name for volume in complete), key) if complete else None

    async def _build(self, key: str, requirements: Requirements, image: SandboxImage) -> Layer:
        volume = f"{PREFIX}{key}-{secrets.token_hex(4)}"
        self._building.add(volume)
        try:
            async with self._builds:
                began = trio.current_time()
                size = await self._fill(volume, key, requirements, image)
                seconds = trio.current_time() - began
            if (finished_before := await self._find(key)) is not None:  # by another worker
                await self._remove(volume)
                return finished_before
            mark = {LAYER_LABEL: key, MARKED_LABEL: volume, BYTES_LABEL: str(size)}
            await self._engine.call(lambda api: api.create_volume(f"{volume}-complete", labels=mark))
        except EngineRefused as error:
            await self._remove(volume)
            raise RequirementsFailed(f"the Docker daemon refuses a volume for them: {error}") from error
        except BaseException:
            await self._remove(volume)
            raise
        finally:
            self._building.discard(volume)
        log.info("installed requirements", layer=volume, packages=len(requirements.lines), bytes=size, seconds=seconds)
        await self._evict()
        return Layer(volume, key)

    async def _fill(self, volume: str, key: str, requirements: Requirements, image: SandboxImage) -> int:
        labels = self._owner.labels("layer") | {LAYER_LABEL: key}
        try:
            with trio.fail_after(self._timeout):
                await self._engine.call(lambda api: api.create_volume(volume, labels=labels))
                return await self._builder.install(requirements, image, volume)
        except trio.TooSlowError:
            raise RequirementsFailed(
                f"it took longer than REQUIREMENTS_TIMEOUT ({self._timeout:g} s); is the index reachable?"
            ) from None

    async def sweep(self, live_workers: Set[str]) -> None:
        """Remove what builds that were cut short have left, and what there is no more room for."""
        volumes = await self._list()
        # Builds end while the daemon answers. Whatever of these volumes is not being built here now either has its mark in the
        # second answer or never gets one.
        building = frozenset(self._building)
        complete = {volume.name for volume, _ in _complete(await self._list())}
        for volume in volumes:
            kept = volume.marks in complete if volume.marks else volume.name in complete
            if not kept and (volume.marks or not volume.key or self._is_abandoned(volume, building, live_workers)):
                await self._remove(volume.name)
        await self._evict()

    def _is_abandoned(self, volume: _Volume, building: Set[str], live_workers: Set[str]) -> bool:
        """Whether nobody will complete a volume. building: those that this worker is still at."""
        owner = Owner.from_labels(volume.labels)
        if owner.worker == self._owner.worker:
            return volume.name not in building
        return owner.is_dead(self._owner, live_workers, time.time() - volume.created)

    async def _evict(self) -> None:
        """Remove the least recently used layers until the others fit REQUIREMENTS_CACHE_MB, but none that is in use
        here; one that any container has mounted, the daemon keeps."""
        layers = _complete(await self._list())
        total = sum(size for _, size in layers)
        for volume, size in sorted(layers, key=lambda layer: self._used_at(layer[0])):
            if total <= self._cache_bytes:
                return
            known = self._lists.get(volume.key)
            if known is not None and known.holders:
                continue
            if await self._remove(volume.name):
                total -= size
                log.info("removed a layer to make room", layer=volume.name, bytes=size)
                if known is not None and known.layer is not None and known.layer.name == volume.name:
                    known.layer = None
                await self._remove(f"{volume.name}-complete")

    def _used_at(self, volume: _Volume) -> float:
        """When a layer was last used here, or else made, in seconds since the epoch."""
        known = self._lists.get(volume.key)
        ours = known is not None and known.layer is not None and known.layer.name == volume.name
        return max(volume.created, known.used_at) if known is not None and ours else volume.created

    async def _list(self) -> list[_Volume]:
        listed = await self._engine.call(lambda api: api.volumes(filters={"name": PREFIX}))
        return [_Volume.from_listed(each) for each in listed.get("Volumes") or [] if each["Name"].startswith(PREFIX)]

    async def _remove(self, volume: str) -> bool:
        """Remove a volume that no container mounts; False when it stays. Never raises, and is not cut short."""
        with trio.move_on_after(REMOVE_DEADLINE, shield=True):
            try:
                await self._engine.call(lambda api: api.remove_volume(volume))
            except EngineNotFound:
                return True
            except EngineRefused as error:
                log.debug("a volume is in use", volume=volume, error=str(error))
                return False
            except BackendUnavailable as error:
                log.warning(
                    "a volume could not be removed; the next sweep tries again", volume=volume, error=str(error)
                )
                return False
            return True
        return False

    def _forget_what_is_stale(self) -> None:
        """A worker may see any number of lists in its life."""
        for key, known in list(self._lists.items()):
            if not known.holders and known.layer is None and not _still_refused(known):
                del self._lists[key]


def _complete(volumes: list[_Volume]) -> list[tuple[_Volume, int]]:
    """The volumes that a builder made and a mark calls complete, with their sizes in bytes."""
    sizes = {volume.marks: volume.size for volume in volumes if volume.marks and volume.size is not None}
    return [(volume, sizes[volume.name]) for volume in volumes if volume.name in sizes and volume.key]


def _still_refused(known: _List) -> bool:
    return isinstance(known.failure, BadRequirements) and trio.current_time() < known.failed_at + REFUSED_FOR
