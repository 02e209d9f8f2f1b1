"""Answers of the HTTP API that refuse something: `{"error", "message"}`, and more where a program can use it."""

from __future__ import annotations

from collections.abc import Sequence

from quart import Response

from continuum.status.api_outputs import Failure, Problem

MOST_PROBLEMS = 20
"""Problems of one request that are told."""


class Refusal(Exception):
    """A request is not answered as it was meant to be.

    retry_after: seconds after which it may be tried again. problems, repeat: as in `Failure`. headers: further ones.
    """

    def __init__(
        self,
        status: int,
        error: str,
        message: str,
        *,
        retry_after: int | None = None,
        problems: Sequence[Problem] | None = None,
        repeat: bool | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self._status = status
        self._failure = Failure(
            error=error, message=message, problems=None if problems is None else list(problems), repeat=repeat
        )
        self._headers = (headers or {}) | ({} if retry_after is None else {"Retry-After": str(retry_after)})

    def response(self) -> Response:
        text = self._failure.model_dump_json(exclude_none=True)
        return Response(text, self._status, self._headers, content_type="application/json")


def bad_fields(problems: Sequence[Problem]) -> Refusal:
    """What was given cannot be used."""
    shown = problems[:MOST_PROBLEMS]
    lines = [
        f"{problem.field or 'the whole'}: {problem.given} was given; allowed: {problem.allowed}" for problem in shown
    ]
    if len(problems) > len(shown):
        lines.append(f"and {len(problems) - len(shown)} more")
    return Refusal(422, "invalid", "\n".join(lines), problems=shown)


def no_task(task_id: int) -> Refusal:
    return Refusal(404, "no such task", f"there is no task {task_id}")


def no_code(code_id: str, *, status: int = 404) -> Refusal:
    """status: 404 where it was asked for, 409 where a task wants it."""
    return Refusal(status, "no such code", f"there is no code {code_id}; POST /codes stores one")


def no_webhooks() -> Refusal:
    message = "this worker signs no webhooks: set WEBHOOK_SECRET (`continuum webhook-secret` makes one)"
    return Refusal(403, "no webhooks", message)
