"""What is sent when a task has ended, to where, and how a receiver knows that it is genuine.

The signature is that of Standard Webhooks 1.0 (https://www.standardwebhooks.com), symmetric. Nothing here does I/O.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from continuum.egress import Address, host_name
from continuum.model import WebhookDelivery

LONGEST_URL = 2048
SECRET_PREFIX = "whsec_"  # noqa: S105 - the word before a secret
SECRET_BYTES = (24, 64)
MOST_SECRETS = 4
"""A secret and those that it replaces; each makes a signature in a header."""
LONGEST_NAME = 300
"""Characters of a task's name that are sent."""

_URL = re.compile(
    r"(?P<scheme>[a-z]+)://(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<host>[a-z0-9_.-]+))(?::(?P<port>\d{1,5}))?(?P<rest>[/?].*)?",
    re.ASCII | re.IGNORECASE,
)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class WebhookUrl:
    """Where to deliver. host: a name in lower case, or an address. target: path and query, as sent."""

    scheme: str
    host: str | Address
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in str(self.host) else str(self.host)
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """All of it that may be logged: paths and queries hold secrets."""
        return f"{self.scheme}://{self.authority}"


def parse_url(text: str) -> WebhookUrl:
    """Read a URL, strictly: what different readers would understand differently is refused. Raises ValueError with a text
    that quotes none of it."""
    if len(text) > LONGEST_URL:
        raise ValueError(f"has {len(text)} characters; at most {LONGEST_URL} are allowed")
    if not text.isascii() or not text.isprintable() or any(character in ' "<>\\^`{|}' for character in text):
        raise ValueError("holds what no URL does: escape it, a space as %20, and write names in their xn-- form")
    whole, _, _ = text.partition("#")  # never sent
    match = _URL.fullmatch(whole)
    if match is None:
        if re.match(r"[a-z]+://[^/?]*@", whole, re.ASCII | re.IGNORECASE):
            raise ValueError("holds a user name or a password: deliveries are signed, so leave them out")
        raise ValueError(_ALLOWED)
    scheme = match["scheme"].lower()
    port = int(match["port"] or _PORTS.get(scheme, 0))
    if scheme not in _PORTS or not 0 < port < 65536:
        raise ValueError(_ALLOWED)
    rest = match["rest"] or ""
    return WebhookUrl(scheme, _host(match["v6"], match["host"]), port, rest if rest.startswith("/") else f"/{rest}")


def origin_of(text: str) -> str:
    """What may be logged of a URL."""
    try:
        return parse_url(text).origin
    except ValueError:
        return "(unusable)"


_ALLOWED = "is no URL to deliver to: use https://, a host name or address and perhaps a port, such as https://hooks.example.com/done"


def _host(v6: str | None, host: str) -> str | Address:
    try:
        return ipaddress.IPv6Address(v6) if v6 is not None else ipaddress.IPv4Address(host)
    except ValueError:
        name = None if v6 is not None else host_name(host)
    if name is None:
        raise ValueError(_ALLOWED)
    return name


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Read WEBHOOK_SECRET: one secret, or several with commas or spaces between. Raises ValueError, quoting none."""
    secrets = tuple(dict.fromkeys(_secret(part) for part in re.split(r"[,\s]+", text.strip()) if part))
    if not 0 < len(secrets) <= MOST_SECRETS:
        raise ValueError(
            f"{_SECRETS}; name one, and besides it only those that it replaces, {MOST_SECRETS} in all at most"
        )
    return secrets


_SECRETS = f"use {SECRET_PREFIX} and the base64 of {SECRET_BYTES[0]} to {SECRET_BYTES[1]} random bytes (openssl rand -base64 32)"


def _secret(text: str) -> bytes:
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        raise ValueError(_SECRETS) from None
    if not SECRET_BYTES[0] <= len(secret) <= SECRET_BYTES[1]:
        raise ValueError(_SECRETS)
    return secret


def tenant_secret(secret: bytes, tenant: str) -> bytes:
    """The secret that a tenant may be given: from it nobody learns `secret` or that of another tenant."""
    return hmac.digest(secret, b"continuum webhooks of tenant " + tenant.encode(), hashlib.sha256)


def format_secret(secret: bytes) -> str:
    """A secret as receivers are given it."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def keys_for(secrets: Sequence[bytes], tenant: str | None) -> tuple[bytes, ...]:
    """All that a delivery is signed with: the operator verifies with any of the `secrets`, a tenant with its own."""
    return (*secrets, *(tenant_secret(secret, tenant) for secret in secrets if tenant is not None))


def sign(keys: Sequence[bytes], webhook_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: a signature with each of the keys."""
    content = f"{webhook_id}.{timestamp}.".encode() + body
    return " ".join(f"v1,{base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()}" for key in keys)


def webhook_id(delivery: WebhookDelivery) -> str:
    """The same whenever the end of an attempt is told: a receiver tells repeats by it."""
    return f"task_{delivery.task_id}_{delivery.attempt}"


def event(delivery: WebhookDelivery) -> bytes:
    """The body: how a task ended, without what went in and what came out."""
    data = {
        "id": delivery.task_id,
        "id_str": str(delivery.task_id),
        "name": delivery.name[:LONGEST_NAME],
        "status": delivery.status,
        "attempt": delivery.attempt,
        "exit_code": delivery.exit_code,
        "error": delivery.error,
        "started": _time(delivery.started),
        "finished": _time(delivery.finished),
        "tenant": delivery.tenant,
    }
    content = {"type": f"task.{delivery.status}", "timestamp": _time(delivery.finished), "data": data}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _time(moment: dt.datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
