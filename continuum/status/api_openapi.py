"""The OpenAPI document, made of the operations and their models, so that it says what the code does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from continuum.status.api_operations import JSON, Operation
from continuum.status.api_outputs import Failure

Json = dict[str, Any]

FAILURES = {
    400: "The body is no JSON.",
    401: "The token is missing or wrong.",
    403: "The worker has no API_TOKEN: it takes nothing over HTTP.",
    404: "There is none with this id.",
    408: "The body did not arrive in time.",
    413: "The body is larger than API_MAX_BODY_MB allows.",
    415: "The body is not `application/json`.",
    422: "Something that was given cannot be used; `problems` names it.",
    429: "Too much at once; `Retry-After` says when to try again.",
    503: "The database is away; `Retry-After` says when to try again. After a submission `repeat` says whether it does no harm.",
}
_HEADERS = {
    "Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    "WWW-Authenticate": {"schema": {"type": "string"}},
    "Location": {"description": "Where the new one is.", "schema": {"type": "string"}},
}
_HEADERS_OF = {201: ("Location",), 401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}


def document(operations: Sequence[Operation], version: str) -> Json:
    """The whole document."""
    paths: Json = {}
    used = list(_bodies_and_answers(operations))
    schemas, definitions = TypeAdapter.json_schemas(
        [(each, mode, TypeAdapter(each)) for each, mode in used], ref_template="#/components/schemas/{model}"
    )
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Continuum",
            "version": version,
            "description": "Submit tasks to a Continuum worker, and read what came of them. Ids are given as numbers and, in "
            "`id_str` and the like, as texts: they may be larger than 2^53.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "The worker's API_TOKEN."}
            },
        },
    }


def _bodies_and_answers(operations: Sequence[Operation]) -> Iterator[tuple[Any, Any]]:
    seen = set()
    for operation in operations:
        answers = [model for answer in operation.answers.values() for model in _media(answer).values()]
        for each, mode in [
            *((body, "validation") for body in operation.body),
            *((one, "serialization") for one in answers),
        ]:
            if (each, mode) not in seen:
                seen.add((each, mode))
                yield each, mode
    yield Failure, "serialization"


def _media(answer: Any) -> Mapping[str, Any]:
    if answer is None:
        return {}
    return answer if isinstance(answer, Mapping) else {JSON: answer}


def _operation(operation: Operation, schemas: Mapping[Any, Json]) -> Json:
    made: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "security": [{"token": []}] if operation.changes else [{"token": []}, {}],
        "parameters": list(_parameters(operation)),
        "responses": {str(status): each for status, each in _responses(operation, schemas)},
    }
    if operation.body:
        each = [schemas[body, "validation"] for body in operation.body]
        schema = each[0] if len(each) == 1 else {"anyOf": each}
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return made


def _parameters(operation: Operation) -> Iterator[Json]:
    for place, model in (("path", operation.path_model), ("query", operation.query)):
        for name, schema in (model.model_json_schema()["properties"] if model else {}).items():
            # A parameter that may be left out is not sent as null.
            bare = {key: value for key, value in schema.items() if key not in ("title", "description")}
            if bare.get("default", "") is None:
                del bare["default"]
            if "anyOf" in bare:
                bare["anyOf"] = [one for one in bare["anyOf"] if one != {"type": "null"}]
                if len(bare["anyOf"]) == 1:
                    bare |= bare.pop("anyOf")[0]
            yield {
                "name": name,
                "in": place,
                "required": place == "path",
                "schema": bare,
                **({"description": schema["description"]} if "description" in schema else {}),
            }
    for name, (description, schema) in operation.headers.items():
        yield {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


def _responses(operation: Operation, schemas: Mapping[Any, Json]) -> Iterator[tuple[int, Json]]:
    for status, answer in operation.answers.items():
        content = {media: {"schema": schemas[model, "serialization"]} for media, model in _media(answer).items()}
        described = {200: "Done.", 201: "Made.", 204: "Not yet."}[status]
        yield status, _response(status, described, content)
    statuses = {401, 422, 503}
    statuses |= {403} if operation.changes else set()
    statuses |= {404} if operation.path_model else set()
    statuses |= {400, 408, 413, 415, 429} if operation.body else set()
    failure = {JSON: {"schema": schemas[Failure, "serialization"]}}
    for status in sorted(statuses | operation.failures.keys()):
        yield status, _response(status, operation.failures.get(status, FAILURES.get(status, "")), failure)


def _response(status: int, description: str, content: Json) -> Json:
    headers = {name: _HEADERS[name] for name in _HEADERS_OF.get(status, ())}
    return {
        "description": description,
        **({"headers": headers} if headers else {}),
        **({"content": content} if content else {}),
    }
