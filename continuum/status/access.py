"""Who may see what tasks hold: payload, code and output."""

from __future__ import annotations

import hmac
import ipaddress

from pydantic import SecretStr
from werkzeug.datastructures import Headers

FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via")
"""A request that carries one of these came through a proxy: its client is not the one on our socket. Their values are
never used, since anybody can write them."""


def may_see_contents(client: str | None, headers: Headers, token: SecretStr | None) -> bool:
    """Whether a request may see payloads, code and outputs: with the token, or directly from this machine.

    client: the address at the other end of the socket.
    """
    return may_change(headers, token) or _is_local(client, headers)


def may_change(headers: Headers, token: SecretStr | None) -> bool:
    """Whether a request may submit, cancel and store: with the token, wherever it comes from."""
    authorizations = headers.getlist("Authorization")
    scheme, _, given = authorizations[0].partition(" ") if len(authorizations) == 1 else ("", "", "")
    if token is None or not token.get_secret_value() or scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(), token.get_secret_value().encode())


def _is_local(client: str | None, headers: Headers) -> bool:
    if any(name in headers for name in FORWARDING_HEADERS):
        return False
    # A page of a foreign site whose name was rebound to 127.0.0.1 makes a browser here ask, with that site's name.
    return _is_loopback(client) and _names_loopback(headers.get("Host", ""))


def _is_loopback(address: str | None) -> bool:
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def _names_loopback(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower() == "localhost" or _is_loopback(name)
