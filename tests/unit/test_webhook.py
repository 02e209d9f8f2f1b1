"""What a webhook says, how it is signed, and which URLs can be one."""

from __future__ import annotations

import base64
import datetime as dt
import json
import secrets
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuum.webhook import (
    LONGEST_NAME,
    LONGEST_URL,
    event,
    format_secret,
    keys_for,
    origin_of,
    parse_secrets,
    parse_url,
    sign,
    tenant_secret,
    webhook_id,
)
from tests.support.receivers import delivery, verify

OLD, NEW = (format_secret(bytes([number]) * 32) for number in (1, 2))
NOW = 1_674_087_231


def signed(configured: str, body: bytes, tenant: str | None = None, identity: str = "task_7_2") -> dict[str, str]:
    keys = keys_for(parse_secrets(configured), tenant)
    return {
        "webhook-id": identity,
        "webhook-timestamp": str(NOW),
        "webhook-signature": sign(keys, identity, NOW, body),
    }


def test_the_signature_is_the_one_that_the_specification_has() -> None:
    # From the reference implementations' tests: this secret, id, time and body have this signature.
    (key,) = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    header = sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert header == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.binary(max_size=2000), st.binary(min_size=24, max_size=64))
def test_a_receiver_verifies_any_body_and_no_other_one(body: bytes, secret: bytes) -> None:
    body = json.dumps({"data": base64.b64encode(body).decode()}).encode()
    headers = signed(format_secret(secret), body)
    assert verify(format_secret(secret), headers, body, NOW)
    for forged in (
        {"webhook-id": "task_7_3"},
        {"webhook-timestamp": str(NOW + 1)},
        {"webhook-signature": headers["webhook-signature"].replace("v1,", "v1,A", 1)},
    ):
        with pytest.raises(AssertionError, match="forged"):
            verify(format_secret(secret), headers | forged, body, NOW)
    with pytest.raises(AssertionError, match="forged"):
        verify(format_secret(secret), headers, body + b" ", NOW)
    with pytest.raises(AssertionError, match="too old"):
        verify(format_secret(secret), headers, body, NOW + 301)


def test_while_a_secret_is_replaced_receivers_with_either_one_verify() -> None:
    headers = signed(f"{NEW}, {OLD}", b"{}")
    for secret in (OLD, NEW):
        verify(secret, headers, b"{}", NOW)
    with pytest.raises(AssertionError, match="forged"):
        verify(format_secret(bytes(32)), headers, b"{}", NOW)


def test_a_tenant_verifies_with_a_secret_of_its_own_and_forges_nothing_for_others() -> None:
    (key,) = parse_secrets(NEW)
    acme, other = (format_secret(tenant_secret(key, tenant)) for tenant in ("acme", "other"))
    headers = signed(NEW, b"{}", tenant="acme")
    for secret in (NEW, acme):
        verify(secret, headers, b"{}", NOW)
    with pytest.raises(AssertionError, match="forged"):
        verify(other, headers, b"{}", NOW)
    assert tenant_secret(key, "") != key


@pytest.mark.parametrize("text", [NEW, NEW.removeprefix("whsec_"), f" {NEW},{OLD} ", f"{NEW}\n{OLD}", f"{NEW},{NEW}"])
def test_secrets_are_read_in_every_form_in_which_people_write_them(text: str) -> None:
    found = [format_secret(secret) for secret in parse_secrets(text)]
    assert found == ([NEW, OLD] if OLD in text else [NEW])


@pytest.mark.parametrize(
    "text",
    ["", " , ", "hunter2", "whsec_", "whsec_hunter2", "whsec_" + base64.b64encode(b"x" * 23).decode(),
     "whsec_" + base64.b64encode(b"x" * 65).decode(), f"{NEW},short", "whsec_ü" + NEW[7:],
     ",".join(format_secret(bytes([n]) * 32) for n in range(5))],
)  # fmt: skip
def test_a_bad_secret_is_explained_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_secrets(text)
    assert "openssl rand -base64 32" in str(caught.value)
    assert not any(
        part and part in str(caught.value) for part in text.removeprefix("whsec_").split(",") if len(part) > 3
    )


def test_an_event_says_how_a_task_ended_and_nothing_of_what_it_was_given() -> None:
    sent = event(delivery(task_id=2**60, status="failed", exit_code=3, error="ValueError: é", name="n" * 1000))
    assert json.loads(sent) == {
        "type": "task.failed",
        "timestamp": "2026-11-29T12:00:00.250000Z",
        "data": {
            "id": 2**60,
            "id_str": str(2**60),
            "name": "n" * LONGEST_NAME,
            "status": "failed",
            "attempt": 2,
            "exit_code": 3,
            "error": "ValueError: é",
            "started": "2026-11-29T12:00:00.250000Z",
            "finished": "2026-11-29T12:00:00.250000Z",
            "tenant": None,
        },
    }
    assert event(delivery(started=None)) == event(delivery(started=None))


def test_repeats_have_one_id_and_a_later_attempt_another() -> None:
    assert webhook_id(delivery(tries=1)) == webhook_id(delivery(tries=5)) == "task_7_2"
    assert webhook_id(delivery(attempt=3)) == "task_7_3"


def test_times_of_other_zones_are_told_in_utc() -> None:
    moment = dt.datetime(2026, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    assert json.loads(event(delivery(finished=moment)))["timestamp"] == "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("text", "authority", "target"),
    [
        ("https://hooks.example/done", "hooks.example", "/done"),
        ("HTTPS://Hooks.Example.:443", "hooks.example", "/"),
        ("http://hooks.example:8080?a=b&c=%20#part", "hooks.example:8080", "/?a=b&c=%20"),
        ("https://203.0.113.7:8443/x//../y", "203.0.113.7:8443", "/x//../y"),
        ("https://[2001:DB8::7]/", "[2001:db8::7]", "/"),
        ("http://[2001:db8::7]:443/", "[2001:db8::7]:443", "/"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", "/"),
        ("https://a_b.example/@x:y", "a_b.example", "/@x:y"),
    ],
)
def test_a_url_is_read_in_one_way(text: str, authority: str, target: str) -> None:
    url = parse_url(text)
    assert (url.authority, url.target) == (authority, target)


@pytest.mark.parametrize(
    "text",
    [
        "", "hooks.example", "//hooks.example/", "https:hooks.example", "https:///done", "https:/hooks.example", "https://",
        "ftp://hooks.example/", "file:///etc/passwd", "gopher://hooks.example/", "unix:///run/docker.sock",
        "https://hooks.example:0/", "https://hooks.example:65536/", "https://hooks.example:+80/", "https://hooks.example:80:80",
        "https://hooks.example:٨٠/", "https://-a.example/", "https://a..example/", f"https://{'a' * 64}.example/",
        # A user or a password, also where one reader would see a host.
        "https://user@hooks.example/", "https://user:password@hooks.example/", "https://hooks.example@169.254.169.254/",
        "https://hooks.example:443@10.0.0.1/", "https://@hooks.example/", "https://a@b@c.example/", "https://%40@x.example",
        # What readers make different hosts of.
        "https://hooks.example\\@10.0.0.1/", "https:\\\\hooks.example\\", "https://hooks.example%2f@10.0.0.1/",
        "https://hooks.example;10.0.0.1/", "https://hooks.example,10.0.0.1/", "https://hooks%2eexample/", "https://ⓗooks.example/",
        "https://10.0.0.1\u3002/", "https://hooks.example\t/", "https://hooks.example/\r\nHost: evil", "https://hooks.example /",
        "https://hooks.example/ü", "https://hooks.example/\x00", "https://hooks.example/\x7f", "https://hooks.example/a b",
        # Old forms of IPv4 addresses, and zones.
        "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.1/", "https://0x7f.1/", "https://0/",
        "https://010.0.0.1/", "https://1.2.3.4.5/", "https://300.1.1.1/", "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/",
        "https://[127.0.0.1]/", "https://[::1/", "https://::1/", "https://[]/", "https://[hooks.example]/", "https://[v1.x]/",
        "https://[::ffff:1.2.3.4.5]/",
    ],
)  # fmt: skip
def test_what_readers_might_understand_in_other_ways_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_url(text)
    assert "hooks.example/" not in str(caught.value).replace("https://hooks.example.com/done", "")


def test_a_url_has_an_end() -> None:
    parse_url("https://hooks.example/".ljust(LONGEST_URL, "x"))
    with pytest.raises(ValueError, match=f"at most {LONGEST_URL}"):
        parse_url("https://hooks.example/".ljust(LONGEST_URL + 1, "x"))


@given(st.text(max_size=60) | st.from_regex(r"https?://[^/]{0,30}(/.{0,10})?", fullmatch=True))
def test_no_text_crashes_the_reader_and_what_it_reads_can_be_a_header(text: str) -> None:
    with suppress(ValueError):
        url = parse_url(text)
        assert (url.authority + url.target).isascii()
        assert (url.authority + url.target).isprintable()
        assert " " not in url.authority + url.target
        assert "@" not in url.authority


def test_what_is_logged_of_a_url_holds_neither_path_nor_query() -> None:
    token = secrets.token_hex()
    assert origin_of(f"https://hooks.example:8443/{token}?key={token}") == "https://hooks.example:8443"
    assert token not in origin_of(f"https://user:{token}@hooks.example/")
