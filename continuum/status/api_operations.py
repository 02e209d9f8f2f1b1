"""The operations of the HTTP API: who may, with what, and what can come of it. Routes and OpenAPI document are made of these."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quart import Blueprint, Response, request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from continuum.config import Settings
from continuum.db.errors import DatabaseError, DatabaseUnavailable, InvalidTask, OutcomeUnknown, QueueFull
from continuum.status.access import may_change, may_see_contents
from continuum.status.api_errors import Refusal
from continuum.status.api_inputs import Input
from continuum.status.api_parsing import parse_query
from continuum.status.api_pressure import SOON

Handler = Callable[..., Awaitable[Response]]

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    path: with `{id}` where it has one, or `{name}`, which may have slashes. changes: whether it needs the token from everywhere,
    or only reads. body: what it takes; several where it may be any of them. query: its parameters.
    headers: its own, each with its description and schema. answers: what it answers when all is well: for each status
    the model (None for no body), or for other media types a model for each. failures: beside those that all have.
    """

    name: str
    method: str
    path: str
    summary: str
    answers: Mapping[int, Any]
    path_model: type[Input] | None = None
    query: type[Input] | None = None
    body: tuple[Any, ...] = ()
    changes: bool = False
    headers: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)


class Operations:
    """What the API can do, and the blueprint that does it."""

    def __init__(self, settings: Settings) -> None:
        self.blueprint = Blueprint("api", __name__)
        self.all: list[Operation] = []
        self._settings = settings

    def add(self, operation: Operation, handler: Handler) -> None:
        """Serve an operation by a function that is given the id or name of the path, and the query, where there are any."""

        async def serve(**path: str) -> Response:
            try:
                self._authorise(operation)
                return await handler(*_arguments(operation, path))
            except Exception as error:
                return _refusal(error, self._settings).response()

        rule = operation.path.replace("{id}", "<id>").replace("{name}", "<path:name>")
        self.blueprint.add_url_rule(
            rule, operation.name, serve, methods=[operation.method], provide_automatic_options=False
        )
        self.all.append(operation)

    def _authorise(self, operation: Operation) -> None:
        token = self._settings.api_token
        if operation.changes:
            if token is None or not token.get_secret_value():
                raise Refusal(403, "forbidden", "this worker takes nothing over HTTP: set API_TOKEN, and restart it")
            allowed = may_change(request.headers, token)
        else:
            client = request.scope.get("client")
            allowed = may_see_contents(client[0] if client else None, request.headers, token)
        if not allowed:
            message = "send the header `Authorization: Bearer`, followed by the value of the worker's API_TOKEN"
            raise Refusal(401, "unauthorized", message, headers={"WWW-Authenticate": 'Bearer realm="continuum"'})


def _arguments(operation: Operation, path: dict[str, str]) -> list[object]:
    arguments: list[object] = []
    if operation.path_model is not None:
        arguments += vars(parse_query(MultiDict(path), operation.path_model)).values()
    if operation.query is not None:
        arguments.append(parse_query(request.args, operation.query))
    return arguments


def _refusal(error: Exception, settings: Settings) -> Refusal:
    """What a request is told of a failure. Raises what is none of the client's business."""
    match error:
        case Refusal():
            return error
        case InvalidTask():
            return Refusal(422, "invalid", str(error))
        case QueueFull():
            return Refusal(429, "queue full", str(error), retry_after=math.ceil(error.retry_after))
        case OutcomeUnknown():  # where that matters, the operation has said more
            message = f"it is not known whether this was done, and it does no harm to repeat it: {error}"
            return Refusal(503, "outcome unknown", message, retry_after=SOON, repeat=True)
        case DatabaseUnavailable():
            return Refusal(503, "database unavailable", str(error), retry_after=SOON)
        case DatabaseError():
            return Refusal(503, "database unusable", str(error), retry_after=60)
        case RequestEntityTooLarge():
            message = (
                f"the body is larger than API_MAX_BODY_MB={settings.api_max_body_mb} allows; split it, or raise that"
            )
            return Refusal(413, "body too large", message)
        case RequestTimeout():
            return Refusal(408, "body too slow", "the body did not arrive in time", headers={"Connection": "close"})
    raise error
