"""The status application: its endpoints, its errors and its headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio
from quart import Response, render_template, request
from quart.typing import ResponseTypes
from quart.wrappers import Request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from continuum.config import Settings
from continuum.db.protocol import Database
from continuum.nursery.state import WorkerState
from continuum.status.access import may_see_contents
from continuum.status.bodies import LazyConnection, LazyRequest
from continuum.status.overview import Overview, OverviewUnavailable
from continuum.status.views import Json, worker_status
from continuum.telemetry import Telemetry

log = structlog.get_logger(__name__)

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


LARGEST_BODY = 16 * 1024
"""Bytes of a request's body, where an endpoint allows no more."""
BODY_TIMEOUT = 30
"""Seconds for a request's body to arrive."""


class StatusApp(QuartTrio):
    """The application, and the services that run beside it while it serves."""

    asgi_http_class = LazyConnection
    request_class = LazyRequest

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.services: list[Callable[[], Awaitable[None]]] = []

    async def handle_request(self, request: Request) -> ResponseTypes:
        response = await super().handle_request(request)
        assert isinstance(request, LazyRequest)
        await request.body.drop()
        return response


def create_app(
    settings: Settings,
    state: WorkerState,
    database: Database,
    telemetry: Telemetry,
    ending: trio.Event | None = None,
) -> StatusApp:
    """The application of one worker.

    ending: set when the server is about to end, for answers that would go on until then.
    """
    ending = trio.Event() if ending is None else ending
    app = StatusApp(__name__)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY
    app.config["BODY_TIMEOUT"] = BODY_TIMEOUT
    app.json.sort_keys = False  # type: ignore[attr-defined]
    overview = Overview(database)

    @app.get("/status")
    async def status() -> Json:
        return worker_status(state, contents=_contents_allowed(settings))

    @app.get("/global-status")
    async def global_status() -> Json | tuple[Json, int]:
        try:
            return await overview.read()
        except OverviewUnavailable as error:
            return _error("database unavailable", str(error)), 503

    @app.get("/healthz")
    async def healthz() -> Json:
        return {"alive": True}

    @app.get("/readyz")
    async def readyz() -> tuple[Json, int]:
        answer = {"ready": state.health.ready, "problems": state.health.problems}
        return answer, 200 if state.health.ready else 503

    @app.get("/metrics")
    async def metrics() -> Response | tuple[Json, int]:
        exposition = await telemetry.metrics_text(request.headers.get("Accept", ""))
        if exposition is None:
            return _error("no metrics", telemetry.no_metrics), 501
        text, content_type = exposition
        return Response(text, content_type=content_type)

    @app.get("/")
    async def first_page() -> str:
        totals, problem = None, None
        try:
            totals = await overview.read()
        except OverviewUnavailable as error:
            problem = str(error)
        worker = worker_status(state, contents=False)
        return await render_template("index.html", worker=worker, totals=totals, problem=problem)

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        body = app.json.dumps(_error(error.name, error.description or ""))
        response = Response(body, status=error.code or 500, content_type="application/json")
        for name, value in error.get_headers():
            if name.lower() not in ("content-type", "content-length"):
                response.headers[name] = value
        return response

    @app.after_request
    async def secure(response: Response) -> Response:
        response.headers.update(SECURITY_HEADERS)
        return response

    return app


def _contents_allowed(settings: Settings) -> bool:
    # The client comes from the socket: `request.remote_addr` is a header, which a request could carry as well.
    client: Any = request.scope.get("client")
    return may_see_contents(client[0] if client else None, request.headers, settings.api_token)


def _error(error: str, message: str) -> Json:
    return {"error": error, "message": message}
