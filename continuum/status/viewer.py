"""Who looks at a page, and what that allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from quart import Request
from werkzeug.datastructures import Headers

from continuum.config import Settings
from continuum.status.access import may_see_contents
from continuum.status.sessions import Session, Sessions


@dataclass(frozen=True, slots=True)
class Viewer:
    """contents: whether payloads, code, outputs and errors may be shown. may_sign_in: whether there is an API_TOKEN to sign in
    with. form_token: what the forms of a session carry; empty without a session, which may change nothing."""

    session: Session | None
    contents: bool
    may_sign_in: bool
    form_token: str = ""


def client_of(request: Request) -> str | None:
    """The address at the other end of the socket: `request.remote_addr` is a header, which a request could carry as well."""
    client: Any = request.scope.get("client")
    return client[0] if client else None


def viewer_of(request: Request, settings: Settings, sessions: Sessions) -> Viewer:
    session = sessions.read(request.cookies.get(sessions.cookie))
    allowed = session is not None or may_see_contents(client_of(request), request.headers, settings.api_token)
    return Viewer(session, allowed, sessions.possible, sessions.form_token(session) if session else "")


def is_own_page(headers: Headers) -> bool:
    """Whether a form was sent by a page of ours, as far as the browser says; the form's token must be right in any case."""
    if headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == headers.get("Host", "")
