"""The dashboard's pages, and the streams that keep them true. It only reads; `actions` is what changes something."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlencode

from quart import Blueprint, Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, NotFound

from continuum.config import Settings
from continuum.model import Status, TaskFilter
from continuum.schedules import NAME
from continuum.status import assets, task_page, words
from continuum.status.board import Board, Context
from continuum.status.live import Look, Parts, Streams
from continuum.status.sessions import Sessions
from continuum.status.shared import Shared, Unavailable
from continuum.status.viewer import Viewer, viewer_of

PAGE = 50
"""Tasks on a page of a list."""
LARGEST_ID = 2**63 - 1
OVERVIEW = ("problems", "headline", "charts", "running", "failures", "queue", "workers", "sandboxes")
WORKERS = ("problems", "this_worker", "all_workers", "sandboxes")
TASK = ("task_head", "task_error", "task_attempts", "task_output")
"""The parts of the pages that are kept true, each a template in templates/live/."""


@dataclass(slots=True)
class Dashboard:
    """What all pages are made with."""

    app: QuartTrio
    settings: Settings
    board: Board
    sessions: Sessions
    streams: Streams

    def __post_init__(self) -> None:
        words.install(self.app.jinja_env)
        self.app.jinja_env.globals["asset"] = assets.address

    def viewer(self) -> Viewer:
        """Who asks."""
        return viewer_of(request, self.settings, self.sessions)

    async def page(self, template: str, status: int = 200, **context: Any) -> Response:
        """A whole page for who asks."""
        viewer = self.viewer()
        whole = {"viewer": viewer, "path": request.path, "now": int(time.time() * 1000), "host": self.board.state.host}
        html = await self._render(f"{template}.html", {**whole, **context})
        return Response(html, status, content_type="text/html; charset=utf-8")

    async def parts(self, names: tuple[str, ...], context: Context) -> Parts:
        """Parts of a page, as a stream sends them."""
        return {name: await self._render(f"live/{name}.html", {**context, "live": True}) for name in names}

    async def _render(self, template: str, context: Context) -> str:
        return await self.app.jinja_env.get_template(template).render_async(context)

    async def error(self, error: HTTPException) -> Response:
        """An error that a person can read."""
        return await self.page("error", error.code or 500, title=error.name, text=error.description or "")


def is_page(path: str) -> bool:
    """Whether a path is one for people, whose errors are pages as well."""
    return path == "/" or path.startswith("/ui/")


def pages(dashboard: Dashboard) -> Blueprint:
    """The routes of all pages."""
    blueprint = Blueprint("pages", __name__)
    board, streams = dashboard.board, dashboard.streams
    # What is the same for all who may see as much is made once for all of them.
    shared = {
        (names, contents): Shared(partial(_shared_parts, dashboard, names, contents))
        for names in (OVERVIEW, WORKERS)
        for contents in (False, True)
    }

    @blueprint.get("/")
    async def overview() -> Response:
        context = await board.overview(contents=dashboard.viewer().contents)
        return await dashboard.page("overview", **context)

    @blueprint.get("/ui/workers")
    async def workers() -> Response:
        context = await board.overview(contents=dashboard.viewer().contents)
        return await dashboard.page("workers", said=request.args.get("said", ""), **context)

    @blueprint.get("/ui/failures")
    async def failures() -> Response:
        return await dashboard.page("failures", said=_retried(), **await board.failures())

    @blueprint.get("/ui/tasks")
    async def tasks() -> Response:
        viewer = dashboard.viewer()
        wanted = _filter(viewer)
        context: Context = {"problem": None, "found": None}
        try:
            context["found"] = await board.search(wanted)
        except Unavailable as error:
            context["problem"] = str(error)
        older = context["found"][-2].id if context["found"] and len(context["found"]) > PAGE else None
        return await dashboard.page(
            "tasks",
            wanted=wanted,
            statuses=[*Status],
            page=PAGE,
            older=older and _page(older),
            newest=_page(None),
            **context,
        )

    @blueprint.get("/ui/schedules")
    async def schedules() -> Response:
        asked = request.args.get("after", "")
        after = asked if NAME.fullmatch(asked) else None
        context: Context = {"problem": None, "found": None}
        try:
            context["found"] = await board.schedules(PAGE + 1, after)
        except Unavailable as error:
            context["problem"] = str(error)
        further = context["found"][PAGE - 1].name if context["found"] and len(context["found"]) > PAGE else None
        return await dashboard.page("schedules", after=after, further=further, page=PAGE, **context)

    @blueprint.get("/ui/limits")
    async def limits() -> Response:
        return await dashboard.page("limits", **await board.limits())

    @blueprint.get("/ui/tasks/<task_id>")
    async def task(task_id: str) -> Response:
        viewer = dashboard.viewer()
        try:
            context = await _task_context(board, task_number(task_id), viewer)
        except Unavailable as error:
            return await dashboard.page("error", 503, title="The database does not answer", text=str(error))
        context["said"] = request.args.get("said", "")
        return await dashboard.page("task", **context)

    @blueprint.get("/ui/events/<any(overview, workers):name>")
    async def page_events(name: str) -> Response:
        contents = dashboard.viewer().contents
        reading = shared[OVERVIEW if name == "overview" else WORKERS, contents]

        async def look() -> Look:
            return Look(await reading.get())

        return streams.response(look, privileged=contents)

    @blueprint.get("/ui/events/tasks/<task_id>")
    async def task_events(task_id: str) -> Response:
        viewer, number = dashboard.viewer(), task_number(task_id)

        async def look() -> Look:
            context = await _task_context(board, number, viewer, everything=False)
            task = context["task"]
            return Look(await dashboard.parts(TASK, context), task_page.pause_for(task), last=task.finished_for_good)

        return streams.response(look, privileged=viewer.contents)

    return blueprint


async def _shared_parts(dashboard: Dashboard, names: tuple[str, ...], contents: bool) -> Parts:
    return await dashboard.parts(names, await dashboard.board.overview(contents=contents))


async def _task_context(board: Board, task_id: int, viewer: Viewer, *, everything: bool = True) -> Context:
    """What the page of a task shows. everything: what never changes, too. Raises `NotFound`."""
    task = await board.task(task_id)
    if task is None:
        raise NotFound(f"There is no task {task_id}, or its retention is over.")
    context: Context = {
        "task": task,
        "attempts": task_page.attempts(task),
        "waits_for": await board.waits_for(task),
        "batch": await board.batch(task),
        "viewer": viewer,
    }
    if viewer.contents:
        context["output"] = task_page.end_of(task.output)
        context["error_output"] = task_page.end_of(task.error_output)
        context["error"] = task_page.end_of(task.last_error)
        context["culprit"] = task_page.culprit(task)
        if everything:
            code = await board.code(task.code_id)
            context["payload"] = task_page.payload_of(task)
            context["listing"] = task_page.listing(task, code) if code else None
    return context


def _filter(viewer: Viewer) -> TaskFilter:
    """What a search asks for; nothing of what it may not see."""
    asked = {name: value.replace("\x00", "").strip()[:300] for name, value in request.args.items()}
    status = asked.get("status", "")
    before = asked.get("before", "")
    return TaskFilter(
        text=asked.get("q", ""),
        statuses=frozenset({status} if status in [*Status] else ()),
        tenant=asked.get("tenant") or None,
        batch=asked.get("batch") or None,
        worker_id=asked.get("worker") or None,
        error=asked.get("error") or None if viewer.contents else None,
        before=int(before) if before.isascii() and before.isdecimal() and int(before) <= LARGEST_ID else None,
        limit=PAGE + 1,
    )


def _retried() -> str:
    """What was said to have been done by the form that led here."""
    number = request.args.get("retried", "")
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        return ""
    tasks = "1 task was" if int(number) == 1 else f"{int(number)} tasks were"
    return f"{tasks} submitted again." + (" There are more: try again." if "more" in request.args else "")


def _page(before: int | None) -> str:
    """This list's address, for the tasks below an id."""
    asked = {name: value for name, value in {**request.args.to_dict(), "before": before}.items() if value}
    return "/ui/tasks" + ("?" + urlencode(asked) if asked else "")


def task_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= LARGEST_ID):
        raise NotFound(f"{text[:40]} is not the id of a task.")
    return int(text)
