import pytest
from pydantic import SecretStr
from werkzeug.datastructures import Headers

from continuum.status.access import may_see_contents

TOKEN = SecretStr("correct horse")


def asked(client: str | None, token: SecretStr | None = None, **headers: str) -> bool:
    given = Headers({"Host": "127.0.0.1:8080"})
    for name, value in headers.items():
        given[name.replace("_", "-")] = value
    return may_see_contents(client, given, token)


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_a_client_on_loopback_may_see_contents(client: str) -> None:
    assert asked(client)


@pytest.mark.parametrize("client", ["192.168.1.5", "8.8.8.8", "fe80::1", "::ffff:10.0.0.1", "", "<local>", None])
def test_a_client_from_elsewhere_may_not(client: str | None) -> None:
    assert not asked(client)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "[::1]:8080", "127.0.0.1:1"])
def test_this_machine_is_known_by_each_of_its_names(host: str) -> None:
    assert asked("127.0.0.1", Host=host)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.evil", ""])
def test_a_foreign_name_that_was_rebound_to_loopback_shows_nothing(host: str) -> None:
    assert not asked("127.0.0.1", Host=host)


@pytest.mark.parametrize("header", ["X_Forwarded_For", "Forwarded", "X_Real_IP", "Via", "X_Forwarded_Host"])
def test_a_request_through_a_proxy_on_this_machine_is_not_local(header: str) -> None:
    assert not asked("127.0.0.1", None, **{header: "127.0.0.1"})


def test_a_forwarding_header_never_makes_a_client_local() -> None:
    assert not asked("192.168.1.5", X_Forwarded_For="127.0.0.1")
    assert not asked("192.168.1.5", Remote_Addr="127.0.0.1")


def test_the_token_opens_from_anywhere() -> None:
    assert asked("192.168.1.5", TOKEN, Authorization="Bearer correct horse")
    assert asked("192.168.1.5", TOKEN, Authorization="bearer correct horse")
    assert asked("127.0.0.1", TOKEN, Authorization="Bearer correct horse", X_Forwarded_For="8.8.8.8")


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic correct horse", "Bearer ü"])
def test_a_wrong_token_opens_nothing(authorization: str) -> None:
    assert not asked("192.168.1.5", TOKEN, Authorization=authorization)


@pytest.mark.parametrize("token", [None, SecretStr("")])
def test_without_a_token_set_none_is_right(token: SecretStr | None) -> None:
    assert not asked("192.168.1.5", token, Authorization="Bearer ")
