"""Whether a request to Docker is one that a worker makes: each of its calls is looked into here, and its body made again.

A container must be one that this code would have made, with the same settings, to the letter. Names are patterns that only
what Continuum makes has.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from docker.utils import parse_repository_tag

from continuum.config import Settings
from continuum.egress import REDIRECTED_HOSTS
from continuum.sandbox.channel import BOOTSTRAP
from continuum.sandbox.docker_builder import REPOSITORY as BUILDERS
from continuum.sandbox.docker_builder import builder_image_specification, builder_settings, builder_specification
from continuum.sandbox.docker_comparison import Refused, must_be_json, same, text
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_image import REPOSITORY, addition_specification
from continuum.sandbox.docker_isolation import isolation_of
from continuum.sandbox.docker_judge_images import Images
from continuum.sandbox.docker_layers import BYTES_LABEL, LAYER_LABEL, MARKED_LABEL
from continuum.sandbox.docker_layers import PREFIX as LAYERS
from continuum.sandbox.docker_network import (
    NETWORK,
    NETWORK_LABEL,
    NETWORK_OPTIONS,
    addresses_specification,
    enforceable,
    isolates_members,
    policy_specification,
)
from continuum.sandbox.docker_owner import ROLE_LABEL, WORKER_LABEL, Owner
from continuum.sandbox.docker_specification import sandbox_specification
from continuum.sandbox.docker_stream import EngineNotFound
from continuum.sandbox.network import POLICY_VERSION, EgressPolicy, PolicyError

SANDBOX = r"continuum-[0-9a-f]{12}"
BUILDER = r"continuum-builder-[0-9a-f]{12}"
POLICY = rf"(?:{SANDBOX}|{BUILDER})-[0-9a-f]{{6}}"
ADDITION = r"continuum-image-[0-9a-f]{12}"
ADDRESSES = r"continuum-addresses-[0-9a-f]{12}"
CONTAINER = rf"({SANDBOX}|{BUILDER}|{POLICY}|{ADDITION}|{ADDRESSES})"
LAYER = rf"{LAYERS}[0-9a-f]{{32}}-[0-9a-f]{{8}}(?:-complete)?"
IMAGES = rf"(?:{REPOSITORY}|{BUILDERS}):[0-9a-f]{{12}}"
IMAGE_ID = r"(sha256:[0-9a-f]{64})"
_FALSE = ("", "0", "false", "False", "no", "none")


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the daemon. path: unquoted, without the version; body: its JSON, None where there is none;
    for an upload, its SHA-256."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    body: Any = None

    def parameter(self, name: str) -> str:
        """The one value of a parameter, empty when it is not given. Raises `Refused` when there are several."""
        values = self.query.get(name, [""])
        if len(values) != 1:
            raise Refused(f"the parameter {name} is given {len(values)} times")
        return values[0]


class Judge:
    """Compares requests with what a worker with `settings` would ask the daemon behind `engine`."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._images = Images(settings, engine)

    async def list_networks(self, request: Request, _: str) -> None:
        must_be_json(request.parameter("filters"), {"name": [NETWORK]})

    async def list_containers(self, request: Request, _: str) -> None:
        must_be_json(request.parameter("filters"), {"label": [WORKER_LABEL]})

    async def list_events(self, request: Request, _: str) -> None:
        try:
            (container,) = json.loads(request.parameter("filters"))["container"]
        except (ValueError, TypeError, KeyError):
            raise Refused("workers ask for the events of one container") from None
        must_be_json(request.parameter("filters"), {"container": [container], "event": ["oom", "die"]})
        if not isinstance(container, str) or not re.fullmatch(SANDBOX, container):
            raise Refused("workers ask for the events of sandboxes")
        if not re.fullmatch(r"[0-9]{1,12}\.[0-9]{6}", request.parameter("until")):
            raise Refused("workers ask for events of the past")
        if float(request.parameter("until")) > time.time():
            raise Refused("workers wait for no event that is to come")

    async def make_network(self, request: Request, _: str) -> Any:
        specification = {
            "Name": NETWORK,
            "Driver": "bridge",
            "Options": NETWORK_OPTIONS,
            "CheckDuplicate": True,
            "Labels": {NETWORK_LABEL: str(POLICY_VERSION)},
        }
        return same(specification, request.body)

    async def inspect_image(self, _: Request, reference: str) -> None:
        if reference != self._settings.container_image and not re.fullmatch(IMAGES, reference):
            raise Refused(f"workers look at no image {reference!r}")

    async def pull_image(self, request: Request, _: str) -> None:
        repository, tag = parse_repository_tag(self._settings.container_image)
        if (request.parameter("fromImage"), request.parameter("tag")) != (repository, tag or "latest"):
            raise Refused(f"workers pull CONTAINER_IMAGE alone, {self._settings.container_image}")

    async def remove_image(self, request: Request, image: str) -> None:
        if request.parameter("force") not in _FALSE:
            raise Refused("workers remove no image by force")
        await self._images.check_replaced(image)

    async def commit(self, request: Request, _: str) -> Any:
        """Under the one name that is right for what is in the container; of that nothing is left to the worker."""
        container = request.parameter("container")
        if not re.fullmatch(ADDITION, container):
            raise Refused("workers commit no container but the one in which an image is made")
        name = f"{request.parameter('repo')}:{request.parameter('tag')}"
        await self._images.check_commit(container, name, request.query.get("changes", []))
        return {}

    async def put_archive(self, request: Request, container: str) -> bytes:
        if request.parameter("path") != "/":
            raise Refused("workers put uv at its place in / alone")
        return await self._images.archive_for(container, request.body)

    async def list_volumes(self, request: Request, _: str) -> None:
        must_be_json(request.parameter("filters"), {"name": [LAYERS]})

    async def make_volume(self, request: Request, _: str) -> Any:
        """A layer or its mark. Workers believe what is written on them, and so nothing is that does not belong there."""
        try:
            name, labels = text(request.body["Name"]), request.body["Labels"]
            labels = {key: text(value) for key, value in labels.items() if key.startswith("continuum.")}
        except (TypeError, KeyError, AttributeError) as error:
            raise Refused(f"this is no volume of a worker: {error!r}") from None
        if not re.fullmatch(LAYER, name):
            raise Refused(f"workers call no volume {name!r}")
        marked = name.removesuffix("-complete")
        expected = {LAYER_LABEL: marked.removeprefix(LAYERS).partition("-")[0]}
        if name == marked:
            expected |= Owner.from_labels(labels).labels("layer")
        else:
            size = labels.get(BYTES_LABEL, "")
            if not re.fullmatch(r"[0-9]{1,15}", size):
                raise Refused(f"Labels.{BYTES_LABEL} is {size[:50]!r}, and no number of bytes")
            expected |= {MARKED_LABEL: marked, BYTES_LABEL: size}
        return same({"Name": name, "Labels": expected}, request.body)

    async def make_container(self, request: Request, _: str) -> Any:
        """Its specification is made once more from these settings, with what may differ taken over after a look."""
        name, body = request.parameter("name"), request.body
        try:
            labels, host, image = body["Labels"], body["HostConfig"], text(body["Image"])
            role, network = labels[ROLE_LABEL], host["NetworkMode"]
            labels = Owner.from_labels({name: text(value) for name, value in labels.items()}).labels(role)
        except (TypeError, KeyError, AttributeError) as error:
            raise Refused(f"this is no container of a worker: {error!r}") from None
        if not labels[WORKER_LABEL]:  # whom nobody would ever take for dead
            raise Refused(f"Labels.{WORKER_LABEL} is empty")
        if role == "sandbox" and re.fullmatch(SANDBOX, name):
            info = await self._engine.call(lambda api: api.info())
            await self._check_network(network)
            if network != "none" and not self._gives_network(info):
                raise Refused(
                    "HostConfig.NetworkMode: sandboxes have no network with EGRESS and CONTAINER_RUNTIME as here"
                )
            expected = sandbox_specification(
                self._settings,
                await self._images.made_here(image),
                BOOTSTRAP,
                labels,
                network,
                isolation_of(info, self._settings.container_runtime),
                hosts=_allowed_hosts(host.get("ExtraHosts")),
                resolvers=() if network == "none" else self._settings.egress_dns,
                layer=_layer(host) if host.get("Mounts") else None,
            )
        elif role == "builder" and re.fullmatch(BUILDER, name):
            self._images.must_install()
            await self._check_network(network)
            found = await self._images.below_builder(image)
            info = await self._engine.call(lambda api: api.info())
            try:
                settings = builder_settings(self._settings, info)
            except PolicyError as error:
                raise Refused(str(error)) from None
            isolation = isolation_of(info, settings.container_runtime)
            hosts = _allowed_hosts(host.get("ExtraHosts"))
            expected = builder_specification(settings, found, image, labels, network, isolation, hosts, _layer(host))
        elif role == "image" and re.fullmatch(ADDITION, name) and str(image).startswith(REPOSITORY):
            self._images.must_install()
            await self._images.made_here(image)
            expected = builder_image_specification(labels, image)
        elif role == "network-policy" and re.fullmatch(POLICY, name):
            await self._images.made_here(image)
            command = _policy_command(body.get("Entrypoint"))
            expected = policy_specification(labels, image, name.rpartition("-")[0], command)
        elif role == "network-policy" and re.fullmatch(ADDRESSES, name):
            await self._images.made_here(image)
            expected = addresses_specification(labels, image)
        elif role == "image" and re.fullmatch(ADDITION, name):
            if network != "none":
                await self._check_network(network)
            base = await self._images.base()
            expected = addition_specification(labels, base, None if network == "none" else network)
        else:
            raise Refused(f"no container of a worker is called {name!r} with the role {role!r}")
        return same(expected, body)

    def _gives_network(self, info: Mapping[str, Any]) -> bool:
        return self._settings.egress != "none" and enforceable(info, self._settings.container_runtime)

    async def _check_network(self, network: object) -> None:
        if network == "none":
            return
        if not isinstance(network, str) or not re.fullmatch(r"[0-9a-f]{64}", network):
            raise Refused(f"HostConfig.NetworkMode: workers use no network {network!r}")
        try:
            found = await self._engine.call(lambda api: api.inspect_network(network))
        except EngineNotFound as error:
            raise Refused(str(error)) from None
        if found["Name"] != NETWORK or not isolates_members(found):
            raise Refused(f"HostConfig.NetworkMode: the network {found['Name']} is not the sandboxes'")


def _allowed_hosts(hosts: object) -> list[str]:
    """What a sandbox is told of the names in EGRESS_ALLOW. It is a line of a file in it, and opens nothing."""
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        raise Refused("HostConfig.ExtraHosts is no list of names with addresses")
    return hosts[len(REDIRECTED_HOSTS) :]


def _layer(host: Mapping[str, Any]) -> str:
    """The volume that a container mounts."""
    try:
        name = host["Mounts"][0]["Source"]
    except (TypeError, KeyError, IndexError):
        name = None
    if not isinstance(name, str) or not re.fullmatch(LAYER, name):
        raise Refused("HostConfig.Mounts names no layer of requirements")
    return name


def _policy_command(command: object) -> list[str]:
    """The command that sets the rules, whatever rules: they are data, and bind the sandbox alone."""
    usual = EgressPolicy().command()
    rules = len(usual) - 2
    if not isinstance(command, list) or command[:rules] != usual[:rules] or len(command) != len(usual):
        raise Refused("Entrypoint is not the command that sets a sandbox's rules")
    if not all(isinstance(word, str) for word in command):
        raise Refused("Entrypoint holds what is no text")
    return command
