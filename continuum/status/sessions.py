"""Signing in with API_TOKEN: sessions in cookies, tokens against forged forms, and a limit on guesses.

A session is kept nowhere but in its cookie, which is signed with a key that is derived from API_TOKEN: every worker with the
same token takes it, and none does once the token is another. A session that was ended is remembered until it would have
expired, by the worker that ended it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import trio
from pydantic import SecretStr

T = TypeVar("T")

LIFETIME = 12 * 3600
"""Seconds for which a session is good."""
REMEMBERED = 10_000
"""Ended sessions, and clients that guessed, that are remembered; the oldest are forgotten first."""
GUESSES = 5
"""Wrong tokens that a client may send in a row."""
PAUSE = 10.0
"""Seconds after which it may send another one."""


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who has shown API_TOKEN. expires: seconds since 1970."""

    number: str
    expires: int


class Sessions:
    """The sessions of the holders of one token; without a token there are none."""

    def __init__(self, token: SecretStr | None, clock: Callable[[], float] = time.time) -> None:
        text = token.get_secret_value() if token else ""
        self._token = text.encode()
        self._clock = clock
        self._ended: OrderedDict[str, None] = OrderedDict()
        self.possible = bool(text)
        """Whether anybody can sign in."""
        # Cookies do not tell ports apart: two workers on one host with different tokens have cookies of different names.
        self.cookie = f"continuum-{self._sign('cookie')[:8]}"

    def is_token(self, given: str) -> bool:
        """Compared in a time that tells nothing of the token, its length included."""
        digests = (hashlib.sha256(text).digest() for text in (given.encode("utf-8", "replace"), self._token))
        return hmac.compare_digest(*digests) and self.possible

    def begin(self) -> str:
        """A new session, as its cookie's value."""
        number, expires = secrets.token_urlsafe(16), int(self._clock()) + LIFETIME
        return f"{number}.{expires}.{self._sign('session', number, str(expires))}"

    def read(self, cookie: str | None) -> Session | None:
        """The session of a cookie, if it is one of ours, good, and not ended."""
        number, _, rest = (cookie or "").partition(".")
        expires, _, signature = rest.partition(".")
        if not self.possible or not self._is_signed(signature, "session", number, expires):
            return None
        session = Session(number, int(expires))
        return session if session.expires > self._clock() and number not in self._ended else None

    def end(self, session: Session) -> None:
        """Take the session from whoever holds its cookie."""
        _remember(self._ended, session.number, None)

    def form_token(self, session: Session) -> str:
        """What every form of this session carries, and no page of another site can know."""
        return self._sign("form", session.number)

    def is_form_token(self, session: Session, given: str) -> bool:
        return self._is_signed(given, "form", session.number)

    def _sign(self, *parts: str) -> str:
        return hmac.digest(self._token, "\n".join(("continuum", *parts)).encode(), "sha256").hex()

    def _is_signed(self, signature: str, *parts: str) -> bool:
        return hmac.compare_digest(signature.encode("utf-8", "replace"), self._sign(*parts).encode())


class Guesses:
    """How many wrong tokens clients have sent, by address: GUESSES at once, and then one in PAUSE seconds."""

    def __init__(self) -> None:
        self._owed: OrderedDict[str, float] = OrderedDict()  # when, on Trio's clock, a client has all its guesses again

    def wait(self, client: str) -> float:
        """Seconds until this client may try; 0 when it may now."""
        over = self._owed.get(client, 0.0) - trio.current_time() - (GUESSES - 1) * PAUSE
        return max(0.0, over)

    def wrong(self, client: str) -> None:
        """A client sent a wrong token."""
        owed = max(self._owed.get(client, 0.0), trio.current_time()) + PAUSE
        _remember(self._owed, client, owed)

    def right(self, client: str) -> None:
        self._owed.pop(client, None)


def _remember(entries: OrderedDict[str, T], key: str, value: T) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > REMEMBERED:
        entries.popitem(last=False)
