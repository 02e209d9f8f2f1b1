"""Whether a request to Docker is one that a worker makes: each of its calls is looked into here, and its body made again.

A container must be one that this code would have made, with the same settings, to the letter. Names are patterns that only
what Continuum makes has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from docker.utils import parse_repository_tag

from continuum.config import Settings
from continuum.egress import REDIRECTED_HOSTS
from continuum.sandbox.channel import BOOTSTRAP
from continuum.sandbox.docker_builder import REPOSITORY as BUILDERS
from continuum.sandbox.docker_builder import builder_image_specification, builder_settings, builder_specification
from continuum.sandbox.docker_engine import Engine
from continuum.sandbox.docker_image import IPTABLES_LABEL, REPOSITORY, SandboxImage, addition_specification
from continuum.sandbox.docker_isolation import Isolation, isolation_of
from continuum.sandbox.docker_layers import PREFIX as LAYERS
from continuum.sandbox.docker_network import (
    NETWORK,
    NETWORK_LABEL,
    NETWORK_OPTIONS,
    addresses_specification,
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
TAG = r"[0-9a-f]{12}"
IMAGES = rf"(?:{REPOSITORY}|{BUILDERS}):{TAG}"
IMAGE_ID = r"(sha256:[0-9a-f]{64})"
_FALSE = ("", "0", "false", "False", "no", "none")


class Refused(Exception):
    """A request that no worker with these settings makes; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the daemon. path: unquoted, without the version; body: its JSON, None where there is none."""

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
        self._isolation: Isolation | None = None

    async def list_networks(self, request: Request, _: str) -> None:
        _must_be_json(request.parameter("filters"), {"name": [NETWORK]})

    async def list_containers(self, request: Request, _: str) -> None:
        _must_be_json(request.parameter("filters"), {"label": [WORKER_LABEL]})

    async def list_events(self, request: Request, _: str) -> None:
        try:
            (container,) = json.loads(request.parameter("filters"))["container"]
        except (ValueError, TypeError, KeyError):
            raise Refused("workers ask for the events of one container") from None
        _must_be_json(request.parameter("filters"), {"container": [container], "event": ["oom", "die"]})
        if not isinstance(container, str) or not re.fullmatch(SANDBOX, container):
            raise Refused("workers ask for the events of sandboxes")
        if not re.fullmatch(r"[0-9]{1,12}\.[0-9]{6}", request.parameter("until")):
            raise Refused("workers ask for events of the past")

    async def make_network(self, request: Request, _: str) -> Any:
        specification = {
            "Name": NETWORK,
            "Driver": "bridge",
            "Options": NETWORK_OPTIONS,
            "CheckDuplicate": True,
            "Labels": {NETWORK_LABEL: str(POLICY_VERSION)},
        }
        return _same(specification, request.body)

    async def inspect_image(self, _: Request, reference: str) -> None:
        if reference != self._settings.container_image and not re.fullmatch(IMAGES, reference):
            await self._made_here(reference)

    async def pull_image(self, request: Request, _: str) -> None:
        repository, tag = parse_repository_tag(self._settings.container_image)
        if (request.parameter("fromImage"), request.parameter("tag")) != (repository, tag or "latest"):
            raise Refused(f"workers pull CONTAINER_IMAGE alone, {self._settings.container_image}")

    async def tag_image(self, request: Request, image: str) -> None:
        if request.parameter("repo") not in (REPOSITORY, BUILDERS) or not re.fullmatch(TAG, request.parameter("tag")):
            raise Refused(f"workers tag images as {REPOSITORY} or {BUILDERS}:<12 hexadecimal digits>")
        await self._made_here(image)

    async def remove_image(self, request: Request, image: str) -> None:
        if request.parameter("force") not in _FALSE:
            raise Refused("workers remove no image by force")
        await self._made_here(image)

    async def commit(self, request: Request, _: str) -> Any:
        if not re.fullmatch(ADDITION, request.parameter("container")):
            raise Refused("workers commit no container but the one in which an image is made")
        named = (request.parameter("repo"), request.parameter("tag"))
        if named != ("", "") and (named[0] != BUILDERS or not re.fullmatch(TAG, named[1])):
            raise Refused(f"workers commit images without a name, or as {BUILDERS}:<12 hexadecimal digits>")
        return {}

    async def put_archive(self, request: Request, container: str) -> None:
        """Only into a container that has not been started: nobody is in there to play tricks with the paths."""
        try:
            state = (await self._engine.inspect(container))["State"]["Status"]
        except EngineNotFound as error:
            raise Refused(str(error)) from None
        if request.parameter("path") != "/" or state != "created":
            raise Refused("workers put nothing into a container but uv, before it is started")

    async def list_volumes(self, request: Request, _: str) -> None:
        _must_be_json(request.parameter("filters"), {"name": [LAYERS]})

    async def make_volume(self, request: Request, _: str) -> Any:
        try:
            name, labels = request.body["Name"], request.body["Labels"]
            labels = {key: _text(value) for key, value in labels.items() if key.startswith("continuum.")}
        except (TypeError, KeyError, AttributeError) as error:
            raise Refused(f"this is no volume of a worker: {error!r}") from None
        if not re.fullmatch(LAYER, _text(name)):
            raise Refused(f"workers call no volume {name!r}")
        return _same({"Name": name, "Labels": labels}, request.body)

    async def make_container(self, request: Request, _: str) -> Any:
        """Its specification is made once more from these settings, with what may differ taken over after a look."""
        name, body = request.parameter("name"), request.body
        try:
            labels, host, image = body["Labels"], body["HostConfig"], body["Image"]
            role, network = labels[ROLE_LABEL], host["NetworkMode"]
            labels = Owner.from_labels({name: _text(value) for name, value in labels.items()}).labels(role)
        except (TypeError, KeyError, AttributeError) as error:
            raise Refused(f"this is no container of a worker: {error!r}") from None
        if role == "sandbox" and re.fullmatch(SANDBOX, name):
            await self._check_network(network)
            found = await self._made_here(image)
            expected = sandbox_specification(
                self._settings,
                found,
                BOOTSTRAP,
                labels,
                network,
                await self._find_isolation(),
                hosts=_allowed_hosts(host.get("ExtraHosts")),
                resolvers=() if network == "none" else self._settings.egress_dns,
                layer=_layer(host) if host.get("Mounts") else None,
            )
        elif role == "builder" and re.fullmatch(BUILDER, name):
            await self._check_network(network)
            found = await self._made_here(image)
            info = await self._engine.call(lambda api: api.info())
            try:
                settings = builder_settings(self._settings, info)
            except PolicyError as error:
                raise Refused(str(error)) from None
            isolation = isolation_of(info, settings.container_runtime)
            hosts = _allowed_hosts(host.get("ExtraHosts"))
            expected = builder_specification(settings, found, image, labels, network, isolation, hosts, _layer(host))
        elif role == "image" and re.fullmatch(ADDITION, name) and str(image).startswith(REPOSITORY):
            await self._made_here(image)
            expected = builder_image_specification(labels, image)
        elif role == "network-policy" and re.fullmatch(POLICY, name):
            await self._made_here(image)
            command = _policy_command(body.get("Entrypoint"))
            expected = policy_specification(labels, image, name.rpartition("-")[0], command)
        elif role == "network-policy" and re.fullmatch(ADDRESSES, name):
            await self._made_here(image)
            expected = addresses_specification(labels, image)
        elif role == "image" and re.fullmatch(ADDITION, name):
            if network != "none":
                await self._check_network(network)
            base = await self._engine.call(lambda api: api.inspect_image(self._settings.container_image))
            expected = addition_specification(labels, base["Id"], None if network == "none" else network)
        else:
            raise Refused(f"no container of a worker is called {name!r} with the role {role!r}")
        return _same(expected, body)

    async def _find_isolation(self) -> Isolation:
        if self._isolation is None:
            info = await self._engine.call(lambda api: api.info())
            self._isolation = isolation_of(info, self._settings.container_runtime)
        return self._isolation

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

    async def _made_here(self, reference: object) -> SandboxImage:
        """An image that a worker made, by tag or id."""
        if not isinstance(reference, str) or not re.fullmatch(rf"{IMAGES}|{IMAGE_ID}", reference):
            raise Refused(
                f"workers use no image {reference!r} here; CONTAINER_IMAGE is {self._settings.container_image}"
            )
        try:
            found = await self._engine.call(lambda api: api.inspect_image(reference))
        except EngineNotFound as error:
            raise Refused(str(error)) from None
        if IPTABLES_LABEL not in (found["Config"].get("Labels") or {}):
            raise Refused(f"no worker made the image {reference}")
        return SandboxImage(reference, has_iptables=True, volumes=tuple(found["Config"].get("Volumes") or ()))


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


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused(f"{value!r} is no text")
    return value


def _must_be_json(text: str, expected: object) -> None:
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    if found != expected:
        raise Refused(f"workers list with the filter {json.dumps(expected)} alone")


def _same(expected: Any, found: Any) -> Any:
    """What was expected, when that is what was found. Raises `Refused` naming the first difference."""
    expected = json.loads(json.dumps(expected))
    if difference := _difference("", expected, found):
        raise Refused(difference)
    return expected


def _difference(where: str, expected: Any, found: Any) -> str:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys(), key=str):
            place = f"{where}.{key}" if where else str(key)
            if key not in expected:
                return f"{place} is not part of what a worker asks for"
            if key not in found:
                return f"{place} is missing"
            if difference := _difference(place, expected[key], found[key]):
                return difference
        return ""
    if type(expected) is type(found) and expected == found:
        return ""
    return f"{where or 'the body'} is {json.dumps(found)[:200]} where {json.dumps(expected)[:200]} should be"
