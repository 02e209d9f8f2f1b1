"""What a person can do from a page: sign in and out, have a task tried again, cancel one, drain a worker, pause and resume.

Each is a form with a token of its session in it. It is obeyed when the token is right and the browser says that the form came
from a page of ours; the session's cookie is not sent by other sites' pages in the first place (SameSite=Strict).
"""

from __future__ import annotations

import datetime as dt
import math
from urllib.parse import urlencode

import structlog
from quart import Blueprint, Response, abort, request
from werkzeug.exceptions import Forbidden, NotFound, ServiceUnavailable

from continuum.db.dead_letters import DeadLetters, retry_failed
from continuum.db.errors import DatabaseError, InvalidLimit
from continuum.db.limiting import pause_limit
from continuum.db.protocol import Database
from continuum.model import Cancellation, DeadLetterFilter, Retry, Scope
from continuum.status.board import FAILED_WITHIN
from continuum.status.pages import Dashboard, task_number
from continuum.status.sessions import LIFETIME, Guesses, Session
from continuum.status.viewer import client_of, is_own_page

log = structlog.get_logger(__name__)

SIGN_IN = "/ui/sign-in"
LONGEST_RETRYING = 5.0
"""Seconds after which a form that tries many tasks again answers, and says that there are more."""


def actions(dashboard: Dashboard, database: Database) -> Blueprint:
    """The routes of all forms."""
    blueprint = Blueprint("actions", __name__)
    sessions, guesses = dashboard.sessions, Guesses()

    @blueprint.get(SIGN_IN)
    async def sign_in_page() -> Response:
        return await dashboard.page("sign_in", next=local_path(request.args.get("next", "")))

    @blueprint.post(SIGN_IN)
    async def sign_in() -> Response:
        form = await request.form
        onward = local_path(form.get("next", ""))
        client = client_of(request) or ""
        if not is_own_page(request.headers):
            raise Forbidden("This form was not sent by a page of this worker.")
        if wait := guesses.wait(client):
            log.warning("too many attempts to sign in", client=client)
            answer = await dashboard.page(
                "sign_in", 429, next=onward, problem=f"Too many attempts. Try again in {wait:.0f} s."
            )
            answer.headers["Retry-After"] = str(math.ceil(wait))
            return answer
        if not sessions.is_token(form.get("token", "")):
            guesses.wrong(client)
            return await dashboard.page(
                "sign_in", 403, next=onward, problem="That is not the API_TOKEN of this worker."
            )
        guesses.right(client)
        answer = _see(onward)
        set_cookie(answer, sessions.begin(), LIFETIME)
        return answer

    @blueprint.post("/ui/sign-out")
    async def sign_out() -> Response:
        sessions.end(await obeyed())
        answer = _see("/")
        set_cookie(answer, "", 0)
        return answer

    @blueprint.post("/ui/tasks/<task_id>/retry")
    async def retry(task_id: str) -> Response:
        await obeyed()
        number = task_number(task_id)
        try:
            retried = await database.retry(number)
        except DatabaseError as error:
            raise ServiceUnavailable(f"It is not known whether the task was submitted: {error}") from None
        log.info("a task was tried again from the dashboard", task_id=number, outcome=retried.outcome.value)
        if retried.outcome is Retry.UNKNOWN:
            raise NotFound(f"There is no task {number}, or its retention is over.")
        dashboard.board.forget(number)
        return _see(f"/ui/tasks/{retried.task_id or number}?said={retried.outcome.value}")

    @blueprint.get("/ui/failures/retry")
    async def confirm_retries() -> Response:
        error = _group(request.args.get("error", ""))
        if dashboard.viewer().session is None:
            return _see(f"{SIGN_IN}?{urlencode({'next': '/ui/failures'})}")
        return await dashboard.page("retry_failures", error=error, done=await _retry_failures(error, dry_run=True))

    @blueprint.post("/ui/failures/retry")
    async def retry_failures() -> Response:
        await obeyed()
        error = _group((await request.form).get("error", ""))
        done = await _retry_failures(error, dry_run=False)
        log.info("failed tasks were tried again from the dashboard", found=done.found, retried=done.retried)
        return _see(f"/ui/failures?retried={done.retried}{'&more' if done.next else ''}")

    async def _retry_failures(error: str, *, dry_run: bool) -> DeadLetters:
        wanted = DeadLetterFilter(error=error, since=dt.datetime.now(dt.UTC) - FAILED_WITHIN)
        try:
            return await retry_failed(database, wanted, dry_run=dry_run, seconds=LONGEST_RETRYING)
        except DatabaseError as problem:
            raise ServiceUnavailable(
                f"It is not known how many were submitted; it may be repeated: {problem}"
            ) from None

    @blueprint.post("/ui/tasks/<task_id>/cancel")
    async def cancel(task_id: str) -> Response:
        await obeyed()
        number = task_number(task_id)
        try:
            cancelled = await database.cancel(number)
        except DatabaseError as error:
            raise ServiceUnavailable(f"It is not known whether the task was cancelled: {error}") from None
        log.info("a task was cancelled from the dashboard", task_id=number, outcome=cancelled.value)
        if cancelled is Cancellation.UNKNOWN:
            raise NotFound(f"There is no task {number}, or its retention is over.")
        dashboard.board.forget(number)
        return _see(f"/ui/tasks/{number}?said={cancelled.value}")

    @blueprint.get("/ui/workers/drain")
    async def confirm_drain() -> Response:
        if dashboard.viewer().session is None:
            return _see(f"{SIGN_IN}?{urlencode({'next': '/ui/workers'})}")
        return await dashboard.page("drain_worker", worker=_worker(request.args.get("id", "")))

    @blueprint.post("/ui/workers/drain")
    async def drain() -> Response:
        await obeyed()
        form = await request.form
        worker_id, draining = _worker(form.get("id", "")), "undrain" not in form
        try:
            found = await database.drain(worker_id, draining)
        except DatabaseError as error:
            raise ServiceUnavailable(f"It is not known whether the worker was asked: {error}") from None
        log.info("a worker was asked from the dashboard to drain", worker_id=worker_id, draining=draining, found=found)
        if not found:
            raise NotFound("That worker does not run any more.")
        return _see(f"/ui/workers?said={'drain' if draining else 'undrain'}")

    @blueprint.post("/ui/limits/pause")
    async def pause() -> Response:
        await obeyed()
        form = await request.form
        scope, name, paused = form.get("scope", ""), form.get("name", ""), "resume" not in form
        try:
            limit = await pause_limit(database, Scope(scope), name, paused)
        except (ValueError, InvalidLimit):
            raise NotFound("That cannot be paused.") from None
        except DatabaseError as error:
            raise ServiceUnavailable(f"It is not known whether it was done: {error}") from None
        log.info("paused from the dashboard" if paused else "resumed from the dashboard", scope=scope, name=limit.name)
        dashboard.board.forget_limits()
        return _see("/ui/limits")

    async def obeyed() -> Session:
        """The session that sent this form. Without one it leads to the sign-in page; raises `Forbidden`."""
        if not sessions.possible:
            raise Forbidden("Nothing can be changed from here: set API_TOKEN, and sign in with it.")
        session = dashboard.viewer().session
        if session is None:
            abort(_see(SIGN_IN))
        form = await request.form
        if not is_own_page(request.headers) or not sessions.is_form_token(session, form.get("form_token", "")):
            raise Forbidden("This form is not one of your session's. Go back, reload the page and try again.")
        return session

    def set_cookie(answer: Response, value: str, seconds: int) -> None:
        behind_tls = request.headers.get("X-Forwarded-Proto") == "https" or request.scheme == "https"
        answer.set_cookie(
            sessions.cookie, value, max_age=seconds, path="/", secure=behind_tls, httponly=True, samesite="Strict"
        )

    return blueprint


def _group(error: str) -> str:
    """The group of an error, as a page names it."""
    return error.replace("\0", "")[:300]


def _worker(worker_id: str) -> str:
    """The id of a worker, as a page names it."""
    return worker_id.replace("\0", "")[:300]


def local_path(wanted: str) -> str:
    """A path of ours to go on to, and never another site's."""
    harmless = wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and wanted.isprintable()
    return wanted if harmless and "\\" not in wanted else "/"


def _see(path: str) -> Response:
    return Response("", 303, {"Location": path})
