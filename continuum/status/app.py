"""The status application: its endpoints, its errors and its headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio
from quart import Response, request
from quart.typing import ResponseTypes
from quart.wrappers import Request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from continuum.config import Settings
from continuum.db.protocol import Database
from continuum.nursery.state import WorkerState
from continuum.status import assets
from continuum.status.actions import actions
from continuum.status.api import create_api
from continuum.status.board import Board
from continuum.status.bodies import LazyConnection, LazyRequest
from continuum.status.live import Streams
from continuum.status.overview import Overview
from continuum.status.pages import Dashboard, is_page, pages
from continuum.status.sessions import Sessions
from continuum.status.shared import Unavailable
from continuum.status.views import Json, worker_status
from continuum.telemetry import Telemetry

log = structlog.get_logger(__name__)

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
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
    app.url_map.merge_slashes = False  # no redirect: a path is right or wrong
    app.json.sort_keys = False  # type: ignore[attr-defined]
    overview = Overview(database)
    board = Board(settings, state, database, overview)
    dashboard = Dashboard(app, settings, board, Sessions(settings.api_token), Streams(ending))
    app.register_blueprint(pages(dashboard))
    app.register_blueprint(actions(dashboard, database))
    api, waits = create_api(settings, database, overview, ending)
    app.register_blueprint(api)
    app.services.append(waits.run)

    @app.get("/status")
    async def status() -> Json:
        return worker_status(state, contents=dashboard.viewer().contents)

    @app.get("/global-status")
    async def global_status() -> Json | tuple[Json, int]:
        try:
            return await overview.read()
        except Unavailable as error:
            return _error("database unavailable", str(error)), 503

    @app.get("/healthz")
    async def healthz() -> Json:
        return {"alive": True}

    @app.get("/readyz")
    async def readyz() -> tuple[Json, int]:
        answer = {"ready": state.health.ready, "problems": state.health.problems, "notes": state.notes()}
        return answer, 200 if state.health.ready else 503

    @app.get("/metrics")
    async def metrics() -> Response | tuple[Json, int]:
        exposition = await telemetry.metrics_text(request.headers.get("Accept", ""))
        if exposition is None:
            return _error("no metrics", telemetry.no_metrics), 501
        text, content_type = exposition
        return Response(text, content_type=content_type)

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        if is_page(request.path):
            return await dashboard.error(error)
        body = app.json.dumps(_error(error.name, error.description or ""))
        response = Response(body, status=error.code or 500, content_type="application/json")
        for name, value in error.get_headers():
            if name.lower() not in ("content-type", "content-length"):
                response.headers[name] = value
        return response

    @app.after_request
    async def secure(response: Response) -> Response:
        response.headers.update(SECURITY_HEADERS)
        if response.status_code == 200 and assets.may_be_kept(request.path, request.args.get("v", "")):
            response.headers["Cache-Control"] = assets.FOREVER
        return response

    return app


def _error(error: str, message: str) -> Json:
    return {"error": error, "message": message}
