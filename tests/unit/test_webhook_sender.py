"""One delivery by HTTP: what is sent, what is made of answers, and how little a hostile receiver can do to a worker."""

from __future__ import annotations

import gzip
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import MockClock

from continuum.egress import Address, Reach, parse_allow
from continuum.nursery.webhook_network import ANSWER_LIMIT, GuardedNetwork
from continuum.nursery.webhook_sender import (
    DEADLINE,
    DRAIN_DEADLINE,
    KEEP_ALIVE,
    HttpSender,
    open_sender,
    trusted_authorities,
)
from continuum.nursery.webhooks import Answer, DeliveryFailed, Unusable
from continuum.webhook import event, format_secret, parse_secrets
from continuum.worker import sender_of
from tests.support.fake_sandbox import FakeBackend
from tests.support.harness import settings
from tests.support.receivers import (
    Host,
    Internet,
    Receiver,
    answer,
    delivery,
    internet,
    over_tls,
    read_request,
    verify,
)
from tests.support.tls import Authority

SECRET = format_secret(b"s" * 32)
ADDRESS = "203.0.113.7"
HTTP = "http://hooks.example/done?key=1"
HTTPS = "https://hooks.example/done?key=1"
OPEN = Reach(parse_allow(["hooks.example"]))


@pytest.fixture
async def net() -> AsyncIterator[Internet]:
    async with internet() as made:
        yield made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


def secure(authority: Authority, host: Host, *names: str) -> tuple[Host, list[str | None]]:
    """A host with a certificate for these names, and the names that it is asked for (SNI)."""
    identity = authority.issue(names[0].rpartition(":")[2].replace("*", "any"), *names)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(identity.certificate, identity.key)
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    return over_tls(host, context), asked


def sender(net: Internet, host: Host | None = None, *, trust: Path | None = None, reach: Reach = OPEN) -> HttpSender:
    """A sender to a host with the name hooks.example, by HTTP and by HTTPS."""
    if host is not None:
        net.hosts.update({(ADDRESS, 80): host, (ADDRESS, 443): host})

    async def resolve(name: str) -> list[Address]:
        return [ipaddress.ip_address(ADDRESS)]

    network = GuardedNetwork(lambda: reach, resolve, net)
    return HttpSender(
        parse_secrets(SECRET),
        network,
        plain=reach.allow is not None,
        trust=lambda: ssl.create_default_context(cafile=trust) if trust else ssl.create_default_context(),
    )


async def test_a_delivery_is_a_signed_post_of_the_event(autojump_clock: MockClock, net: Internet) -> None:
    receiver = Receiver()
    sent = delivery(HTTP, tenant="acme")
    assert await sender(net, receiver).send(sent) == Answer(200)
    (request,) = receiver.requests
    assert (request.method, request.target, request.body) == ("POST", "/done?key=1", event(sent))
    assert request.headers["host"] == "hooks.example"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "task_7_2"
    assert verify(SECRET, request.headers, request.body, time.time())["data"]["tenant"] == "acme"


async def test_each_try_has_a_time_of_its_own_and_the_same_id(
    autojump_clock: MockClock, net: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver()
    made = sender(net, receiver)
    for moment in (1000.9, 2000.0):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        await made.send(delivery(HTTP))
    assert [request.headers["webhook-timestamp"] for request in receiver.requests] == ["1000", "2000"]
    assert {request.headers["webhook-id"] for request in receiver.requests} == {"task_7_2"}


async def test_a_connection_is_used_again_and_let_go_at_rest(autojump_clock: MockClock, net: Internet) -> None:
    made = sender(net, Receiver())
    await made.send(delivery(HTTP))
    await made.send(delivery(HTTP))
    assert len(net.connections) == 1
    await made.rest()
    await made.send(delivery(HTTP))
    assert len(net.connections) == 2
    await trio.sleep(KEEP_ALIVE + 1)


@pytest.mark.parametrize("status", [200, 204, 301, 308, 400, 410, 429, 500, 503, 999])
async def test_the_status_is_told_and_no_redirect_followed(
    status: int, autojump_clock: MockClock, net: Internet
) -> None:
    receiver = Receiver([answer(f"{status} Whatever", "Location: http://169.254.169.254/latest", "Retry-After: 7")])
    assert await sender(net, receiver).send(delivery(HTTP)) == Answer(status, "7")
    assert net.connections == [(ADDRESS, 80)]


async def test_neither_proxies_nor_credentials_of_the_environment_are_used(
    autojump_clock: MockClock, net: Internet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://198.51.100.1:3128")
    (tmp_path / "netrc").write_text("machine hooks.example login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    receiver = Receiver()
    await sender(net, receiver).send(delivery(HTTP))
    assert net.connections == [(ADDRESS, 80)]
    assert "authorization" not in receiver.requests[0].headers


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://hooks.example/", "no URL to deliver to"),
        ("https://me:pw@hooks.example/", "password"),
        ("x" * 9999, "2048"),
    ],
)
async def test_what_is_no_url_is_never_tried(url: str, why: str, net: Internet) -> None:
    with pytest.raises(Unusable, match=why):
        await sender(net).send(delivery(url))
    assert not net.connections


async def test_plain_http_is_for_receivers_that_were_named(net: Internet) -> None:
    with pytest.raises(Unusable, match="use https://"):
        await sender(net, Receiver(), reach=Reach()).send(delivery(HTTP))
    assert not net.connections


async def test_what_may_not_be_reached_is_a_delivery_that_failed(autojump_clock: MockClock, net: Internet) -> None:
    with pytest.raises(DeliveryFailed, match=r"10\.0\.0\.1"):
        await sender(net, Receiver()).send(delivery("http://10.0.0.1/"))
    with pytest.raises(DeliveryFailed, match=r"other\.example may not be reached"):
        await sender(net, Receiver()).send(delivery("http://other.example/"))
    assert not net.connections


# -- receivers that mean harm ------------------------------------------------------------------------


async def silent(stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


async def ends_at_once(stream: trio.abc.Stream) -> None:
    await stream.aclose()


async def ends_after_the_request(stream: trio.abc.Stream) -> None:
    await read_request(stream)


async def trickles_headers(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"X: y\r\n")
        await trio.sleep(1)


async def endless_headers(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"X: " + b"y" * 10_000 + b"\r\n")


async def endless_line(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    while True:
        await stream.send_all(b"HTTP/1.1 200 " + b"y" * 10_000)


async def endless_interim_answers(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    while True:
        await stream.send_all(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100)


async def switches_protocols(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: evil\r\nConnection: upgrade\r\n\r\n")
    await trio.sleep_forever()


async def no_http(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"SSH-2.0-OpenSSH_9.9\r\n")
    await trio.sleep_forever()


async def bad_chunks(stream: trio.abc.Stream) -> None:
    await read_request(stream)
    await stream.send_all(b"HTTP/1.1 \xff\xfe\r\nContent-Length: -1\r\nTransfer-Encoding: x\r\n\r\n")
    await trio.sleep_forever()


@pytest.mark.parametrize(
    "host",
    [silent, ends_at_once, ends_after_the_request, trickles_headers, endless_headers, endless_line,
     endless_interim_answers, switches_protocols, no_http, bad_chunks],
)  # fmt: skip
@pytest.mark.parametrize("url", [HTTP, HTTPS])
async def test_a_receiver_that_gives_no_answer_costs_a_deadline_at_the_most(
    host: Host, url: str, autojump_clock: MockClock, net: Internet, authority: Authority
) -> None:
    served = host if url == HTTP else secure(authority, host, "DNS:hooks.example")[0]
    made = sender(net, served, trust=authority.certificate)
    began = trio.current_time()
    with pytest.raises(DeliveryFailed) as caught:
        await made.send(delivery(url))
    assert trio.current_time() - began <= DEADLINE + 0.1
    assert str(caught.value)
    assert "key=1" not in str(caught.value)


async def test_once_the_status_is_known_it_stands_whatever_follows(autojump_clock: MockClock, net: Internet) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = 0

    async def trickles(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(head)
        while True:
            await stream.send_all(b"1\r\nx\r\n")
            await trio.sleep(0.5)

    async def floods(stream: trio.abc.Stream) -> None:
        nonlocal sent
        await read_request(stream)
        await stream.send_all(head)
        while True:
            await stream.send_all(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            sent += 10_000

    async def lies(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        await stream.send_all(head + b"no chunk at all\r\n")

    for host in (trickles, floods, lies):
        began = trio.current_time()
        assert await sender(net, host).send(delivery(HTTP)) == Answer(200)
        assert trio.current_time() - began <= DRAIN_DEADLINE + 0.1
    assert sent < ANSWER_LIMIT + 50_000


async def test_nothing_is_unpacked(autojump_clock: MockClock, net: Internet) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    receiver = Receiver([answer("200 OK", "Content-Encoding: gzip", body=bomb)])
    assert await sender(net, receiver).send(delivery(HTTP)) == Answer(200)


# -- TLS ---------------------------------------------------------------------------------------------


async def test_the_certificate_is_held_against_the_name_though_the_address_was_connected_to(
    autojump_clock: MockClock, net: Internet, authority: Authority
) -> None:
    receiver = Receiver()
    host, asked = secure(authority, receiver, "DNS:hooks.example")
    assert await sender(net, host, trust=authority.certificate).send(delivery(HTTPS)) == Answer(200)
    assert asked == ["hooks.example"]
    assert net.connections == [(ADDRESS, 443)]
    assert receiver.requests[0].headers["host"] == "hooks.example"


async def test_an_address_needs_a_certificate_for_the_address(
    autojump_clock: MockClock, net: Internet, authority: Authority
) -> None:
    reach = Reach(parse_allow([ADDRESS]))
    host, _ = secure(authority, Receiver(), f"IP:{ADDRESS}")
    made = sender(net, host, trust=authority.certificate, reach=reach)
    assert await made.send(delivery(f"https://{ADDRESS}/")) == Answer(200)


@pytest.mark.parametrize("name", ["DNS:other.example", f"IP:{ADDRESS}", "DNS:*.hooks.example"])
async def test_a_certificate_for_another_name_will_not_do(
    name: str, autojump_clock: MockClock, net: Internet, authority: Authority
) -> None:
    receiver = Receiver()
    host, _ = secure(authority, receiver, name)
    with pytest.raises(DeliveryFailed, match="certificate verify failed"):
        await sender(net, host, trust=authority.certificate).send(delivery(HTTPS))
    assert not receiver.requests


async def test_a_certificate_of_a_stranger_will_not_do(
    autojump_clock: MockClock, net: Internet, authority: Authority
) -> None:
    receiver = Receiver()
    host, _ = secure(authority, receiver, "DNS:hooks.example")
    with pytest.raises(DeliveryFailed, match="certificate verify failed"):
        await sender(net, host).send(delivery(HTTPS))
    assert not receiver.requests


def test_authorities_are_the_systems_or_those_that_the_environment_names(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    context = trusted_authorities()
    assert len(context.get_ca_certs()) > 50
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    assert len(trusted_authorities().get_ca_certs()) == 1


# -- what the settings ask for -----------------------------------------------------------------------


async def test_the_settings_say_what_may_be_reached() -> None:
    public = open_sender(settings(webhook_secret=SECRET))
    with pytest.raises(Unusable, match="use https://"):
        await public.send(delivery(HTTP))
    for url in ("https://127.0.0.1/", "https://10.0.0.1/", "https://localhost/"):
        with pytest.raises(DeliveryFailed, match=r"loopback|private"):
            await public.send(delivery(url))
    listed = open_sender(settings(webhook_secret=SECRET, egress="allowlist", egress_allow="10.1.2.0/24"))
    with pytest.raises(DeliveryFailed, match=r"EGRESS_ALLOW does not name 203\.0\.113\.7, port 80"):
        await listed.send(delivery(f"http://{ADDRESS}/"))


async def test_the_machine_that_runs_the_sandboxes_is_closed_though_the_worker_has_other_addresses() -> None:
    made = open_sender(settings(webhook_secret=SECRET), lambda: [ipaddress.ip_address(ADDRESS)])
    with pytest.raises(DeliveryFailed, match="this machine"):
        await made.send(delivery(f"https://{ADDRESS}/"))


def test_without_a_secret_or_without_any_way_out_no_deliveries_are_made_and_the_worker_says_so() -> None:
    assert sender_of(settings(), FakeBackend()) is None
    with structlog.testing.capture_logs() as logs:
        assert sender_of(settings(webhook_secret=SECRET, egress="none"), FakeBackend()) is None
    assert ["EGRESS=none" in line["event"] for line in logs] == [True]
    assert sender_of(settings(webhook_secret=SECRET), FakeBackend()) is not None
