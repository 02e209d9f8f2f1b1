"""One POST to one receiver: by httpcore, over the guarded network, within a deadline, with next to nothing read of the answer.

httpcore is the client that httpx is made of, without what must not happen here: proxies and credentials from the environment,
redirects, cookies, and decompression.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence

import certifi
import httpcore
import trio

from continuum.config import Settings
from continuum.egress import Address, Reach
from continuum.model import WebhookDelivery
from continuum.nursery.webhook_network import GuardedNetwork
from continuum.nursery.webhooks import Answer, DeliveryFailed, Unusable
from continuum.sandbox.network_host import own_addresses
from continuum.webhook import event, keys_for, parse_url, sign, webhook_id

DEADLINE = 15.0
"""Seconds for a delivery, from the look-up of the name to the answer's status."""
CONNECT_DEADLINE = 4.0
"""Seconds for each address of the name, and again for TLS."""
DRAIN_DEADLINE = 1.0
"""Seconds for the rest of an answer whose status is known, so that its connection can be used again."""
KEEP_ALIVE = 5.0
"""Seconds for which a connection is kept for the next delivery to the same receiver."""
MOST_KEPT = 16
"""Connections kept so."""


def open_sender(settings: Settings, host: Callable[[], Sequence[Address]] = tuple) -> HttpSender:
    """The sender that the settings ask for. Without WEBHOOK_SECRET, or with EGRESS=none, they ask for none.

    host: addresses, besides this process's own, of the machine that runs the sandboxes.
    """
    allow = settings.egress_allow if settings.egress == "allowlist" else None
    network = GuardedNetwork(lambda: Reach(allow, (*own_addresses(), *host())))
    return HttpSender(settings.webhook_secrets, network, plain=allow is not None)


class HttpSender:
    """Delivers. secrets: what deliveries are signed with. network: connects, a `GuardedNetwork` outside tests. plain: whether
    http:// will do. trust: who may vouch for a receiver."""

    def __init__(
        self,
        secrets: Sequence[bytes],
        network: httpcore.AsyncNetworkBackend,
        *,
        plain: bool,
        trust: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._secrets = secrets
        self._network = network
        self._plain = plain
        self._trust = trust or trusted_authorities
        self._opened: httpcore.AsyncConnectionPool | None = None
        self._opening = trio.Lock()

    async def send(self, delivery: WebhookDelivery) -> Answer:
        """Make a delivery once. Raises `Unusable` for a URL that is none, `DeliveryFailed` where no answer came.

        Whatever else a receiver may bring about is a failed delivery, too: no stranger ends a worker.
        """
        body = event(delivery)
        try:
            url = parse_url(delivery.url)
        except ValueError as error:
            raise Unusable(f"the URL {error}") from None
        if url.scheme == "http" and not self._plain:
            raise Unusable("http:// is for receivers that EGRESS_ALLOW names; use https://")
        identity, now = webhook_id(delivery), int(time.time())
        headers = {
            "Host": url.authority,
            "User-Agent": "Continuum",
            "Accept": "*/*",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "webhook-id": identity,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(keys_for(self._secrets, delivery.tenant), identity, now, body),
        }
        return await self._post(
            httpcore.URL(scheme=url.scheme, host=str(url.host), port=url.port, target=url.target), headers, body
        )

    async def _post(self, url: httpcore.URL, headers: dict[str, str], body: bytes) -> Answer:
        client = await self._client()
        extensions = {"timeout": {"connect": CONNECT_DEADLINE}}
        answer: Answer | None = None
        try:
            with trio.move_on_after(DEADLINE) as scope:
                async with client.stream(
                    "POST", url, headers=list(headers.items()), content=_Body(body), extensions=extensions
                ) as response:
                    answer = Answer(response.status, _header(response, b"retry-after"))
                    # The connection ends with the block unless all was read. Nothing more is asked of the receiver.
                    scope.deadline = trio.current_time() + DRAIN_DEADLINE
                    async for _ in response.aiter_stream():
                        pass
        except Exception as error:
            if answer is None:
                raise DeliveryFailed(_reason(error)) from error
        if answer is None:
            raise DeliveryFailed(f"no answer within {DEADLINE:g} s")
        return answer

    async def _client(self) -> httpcore.AsyncConnectionPool:
        async with self._opening:
            if self._opened is None:
                self._opened = httpcore.AsyncConnectionPool(
                    ssl_context=await trio.to_thread.run_sync(self._trust),
                    max_connections=None,  # who calls has a bound
                    max_keepalive_connections=MOST_KEPT,
                    keepalive_expiry=KEEP_ALIVE,
                    network_backend=self._network,
                )
            return self._opened

    async def rest(self) -> None:
        """Let go of connections that are kept; the next delivery opens one."""
        if self._opened is not None:
            await self._opened.aclose()


class _Body:
    """A body for httpcore, which makes bytes a generator; one that an error leaves half read would be closed by the garbage
    collector, with a warning."""

    def __init__(self, body: bytes) -> None:
        self._left = [body]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


def trusted_authorities() -> ssl.SSLContext:
    """Who may vouch for receivers: whom SSL_CERT_FILE and SSL_CERT_DIR name; without them the system's and Mozilla's."""
    context = ssl.create_default_context()
    if not {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys():
        context.load_verify_locations(certifi.where())
    return context


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)


def _reason(error: BaseException) -> str:
    """An error in a few words: those of its first cause that has any, where TLS and the system say what was wrong."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    first = next((each for each in reversed(chain) if str(each)), error)
    return f"{type(first).__name__}: {first}"[:300].removesuffix(": ")
