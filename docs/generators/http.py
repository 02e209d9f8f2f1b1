"""The HTTP API's operations and models, as Markdown, from the OpenAPI document that workers serve."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import trio
from quart_trio import QuartTrio

from continuum.config import Settings
from continuum.db.memory import MemoryDatabase
from continuum.nursery.state import WorkerState
from continuum.status.app import create_app
from continuum.telemetry import Telemetry
from docs.generators.source import cell

Json = Mapping[str, Any]


def render(document: Json) -> str:
    """A heading for each operation, then one for what goes wrong, then one for each model that is taken or answered with."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    usual = _usual_failures(operation for _, _, operation in operations)
    parts = [_operation(*each, usual) for each in operations]
    parts.append("## Errors\n\n| status | meaning |\n|---|---|")
    parts.append("\n".join(f"| {status} | {cell(meaning)} |" for status, meaning in sorted(usual.items())) + "\n")
    schemas = document.get("components", {}).get("schemas", {})
    parts += [_model(name, schema) for name, schema in sorted(schemas.items())]
    return "\n".join(parts)


def _usual_failures(operations: Iterable[Json]) -> dict[str, str]:
    """What each status that tells of an error means for most."""
    meanings: dict[str, list[str]] = {}
    for operation in operations:
        for status, answer in operation["responses"].items():
            if status >= "400":
                meanings.setdefault(status, []).append(answer["description"])
    likely = {status: statistics.mode(said) for status, said in meanings.items()}
    return {status: meaning for status, meaning in likely.items() if meanings[status].count(meaning) > 1}


def _operation(method: str, path: str, operation: Json, usual: Mapping[str, str]) -> str:
    security = operation.get("security", [])
    who = (
        "Needs API_TOKEN." if security and {} not in security else "Needs API_TOKEN, unless the client is on this host."
    )
    lines = [f"## `{method} {path}`\n", f"{operation['summary']}. {who}\n"]
    if parameters := operation.get("parameters", []):
        lines += ["| parameter | in | type | meaning |", "|---|---|---|---|"]
        for each in parameters:
            kind = cell(_kind(each["schema"]))
            lines.append(f"| `{each['name']}` | {each['in']} | {kind} | {cell(each.get('description', ''))} |")
        lines.append("")
    if body := operation.get("requestBody"):
        lines.append(f"Takes {_content(body)}.\n")
    answers = operation["responses"]
    lines += ["| answer | | with |", "|---|---|---|"]
    for status, answer in answers.items():
        if answer["description"] != usual.get(status):
            lines.append(f"| {status} | {cell(answer['description'])} | {cell(_content(answer))} |")
    alike = [status for status, answer in answers.items() if answer["description"] == usual.get(status)]
    lines.append(f"| {', '.join(alike)} | [Errors](#errors) | |" if alike else "")
    return "\n".join([*lines, ""])


def _content(holder: Json) -> str:
    return ", or ".join(
        _kind(media.get("schema", {})) + ("" if kind == "application/json" else f" as `{kind}`")
        for kind, media in holder.get("content", {}).items()
    )


def _model(name: str, schema: Json) -> str:
    lines = [f"## {name}\n"]
    if "description" in schema:
        lines.append(f"{' '.join(schema['description'].split())}\n")
    if "enum" in schema:
        lines.append("One of " + ", ".join(f"`{each}`" for each in schema["enum"]) + ".\n")
    if properties := schema.get("properties"):
        required = schema.get("required", ())
        lines += ["| field | type | | meaning |", "|---|---|---|---|"]
        for field, each in properties.items():
            need = "required" if field in required else ""
            if each.get("default") is not None:
                need = f"`{each['default']}` by default"
            lines.append(f"| `{field}` | {cell(_kind(each))} | {need} | {cell(each.get('description', ''))} |")
    return "\n".join([*lines, ""])


_BOUNDS = {"minimum": "from", "maximum": "to", "minLength": "at least", "maxLength": "at most"}


def _kind(schema: Json) -> str:
    """A type in words: `string`, `integer or null`, a link to a model."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_kind(each) for each in schema[key]))
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any JSON")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if isinstance(kind, list):
        return " or ".join(kind)
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    about = [schema["format"]] if "format" in schema else []
    return f"{kind} ({', '.join([*about, *bounds])})" if about or bounds else str(kind)


def generate() -> str:
    """What a worker with a token serves."""

    async def document() -> Json:
        answer: Json = await (await application().test_client().get("/openapi.json")).get_json()
        return answer

    return render(trio.run(document))


def application() -> QuartTrio:
    """The application of a worker that runs nothing. Called within Trio."""
    settings = Settings.model_validate({"api_token": "of nobody"})
    return create_app(settings, WorkerState(id="", slots=1), MemoryDatabase(), Telemetry())
