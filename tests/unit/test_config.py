"""Settings: where they are read from, what they may be, and what is said of those that are wrong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from continuum.config import ENV_FILE, ConfigurationError, Settings, default_slots, load_settings, parse_duration
from continuum.cpus import usable_cpus
from continuum.db import conninfo_of
from continuum.retention import parse_retention

SECRET = "hunter2-and-more"


@pytest.fixture(autouse=True)
def _bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and none of our variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Settings.model_config, "env_file", ENV_FILE)
    for name in [*Settings.model_fields, "pgsslmode"]:
        monkeypatch.delenv(name.upper(), raising=False)


def env_file(*lines: str) -> None:
    Path(".env").write_text("\n".join([*lines, ""]))


def complaints() -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    return str(caught.value).splitlines()


def test_the_defaults_are_those_of_the_first_version_and_the_design() -> None:
    found = load_settings().model_dump(exclude={"slots", "db_password"})
    assert found == {
        "db_dialect": "auto",
        "database_url": None,
        "db_user": "user",
        "db_name": "continuum",
        "db_host": ("localhost",),
        "db_port": (5432,),
        "db_sslmode": "prefer",
        "db_sslrootcert": None,
        "db_sslcert": None,
        "db_sslkey": None,
        "embedded_dir": Path(".continuum/postgres"),
        "min_priority": 0,
        "max_priority": 0,
        "priority_share": 0.0,
        "worker_tags": (),
        "polling_interval": 5.0,
        "wakeup": "auto",
        "wakeup_feeds": 8,
        "lease_seconds": 30.0,
        "task_timeout": 3600.0,
        "task_cpu_seconds": 0.0,
        "quarantine_after": 2,
        "shutdown_grace": 25.0,
        "retention_days": "0",
        "archive_dir": None,
        "sandbox": "auto",
        "container_image": "python:3.9-slim",
        "container_memory_mb": 512,
        "container_cpu_limit": 0.5,
        "container_idle_timeout": 300.0,
        "container_pids_limit": 128,
        "container_disk_mb": 64,
        "container_runtime": "",
        "max_tasks_per_sandbox": 1000,
        "egress": "public",
        "egress_allow": (),
        "egress_dns": (),
        "requirements_index": SecretStr("https://pypi.org/simple,https://files.pythonhosted.org"),
        "requirements_max_mb": 512,
        "requirements_cache_mb": 4096,
        "requirements_timeout": 300.0,
        "output_limit": 1024 * 1024,
        "webhook_secret": None,
        "code_policy": "off",
        "code_policy_config": None,
        "code_policy_severity": "high",
        "code_policy_confidence": "low",
        "api_host": "127.0.0.1",
        "api_port": 8080,
        "api_token": None,
        "api_max_body_mb": 16,
        "api_max_pending": 100_000,
        "log_format": "auto",
        "log_level": "info",
        "log_payloads": False,
    }
    assert load_settings().slots == default_slots(usable_cpus(), 0.5)
    assert load_settings().db_password.get_secret_value() == "password"


def test_an_env_file_of_the_first_version_works_unchanged() -> None:
    env_file(
        "DB_USER=worker",
        f"DB_PASSWORD={SECRET}",
        "DB_NAME=tasks",
        "DB_HOST=postgres",
        "DB_PORT=5433",
        "PGSSLMODE=disable",
        "CONTAINER_MEMORY_MB=256",
        "CONTAINER_CPU_LIMIT=1.5",
        "CONTAINER_IDLE_TIMEOUT=5m",
        "POLLING_INTERVAL=7",
        "MIN_PRIORITY=1",
        "MAX_PRIORITY=9",
        "CONTAINER_IMAGE=python:3.12-slim",
        "SOMETHING_ELSE=left alone",
    )
    settings = load_settings()
    assert (settings.polling_interval, settings.container_idle_timeout) == (7.0, 300.0)
    assert (settings.container_memory_mb, settings.container_cpu_limit) == (256, 1.5)
    assert (settings.min_priority, settings.max_priority) == (1, 9)
    conninfo = conninfo_of(settings, "test")
    for part in ("host=postgres", "port=5433", "user=worker", "dbname=tasks", "sslmode=disable", SECRET):
        assert part in conninfo


def test_the_environment_wins_over_the_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    env_file("SLOTS=3", "LEASE_SECONDS=20")
    monkeypatch.setenv("SLOTS", "5")
    assert (load_settings().slots, load_settings().lease_seconds) == (5, 20.0)
    assert load_settings(slots=7).slots == 7


def test_our_name_for_the_tls_mode_wins_over_libpqs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "disable")
    assert load_settings().db_sslmode == "disable"
    monkeypatch.setenv("DB_SSLMODE", "verify-full")
    assert load_settings().db_sslmode == "verify-full"


@pytest.mark.parametrize("name", ["API_TOKEN", "DATABASE_URL", "CONTAINER_RUNTIME", "DB_SSLCERT", "SLOTS", "DB_HOST"])
def test_an_empty_variable_is_as_good_as_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_settings()
    monkeypatch.setenv(name, "")
    assert load_settings() == before


def test_hosts_and_ports_are_lists() -> None:
    env_file("DB_HOST=one, two,three", "DB_PORT=1,2,3")
    assert (load_settings().db_host, load_settings().db_port) == (("one", "two", "three"), (1, 2, 3))


def test_words_for_the_log_level_may_be_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "WARNING")
    assert load_settings().log_level == "warning"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("0.5", 0.5), ("90s", 90), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("1h1m1s", 3661),
        ("1.5h", 5400), ("500ms", 0.5), ("1m30s500ms", 90.5), (" 5M ", 300), ("0", 0), (12, 12), (2.5, 2.5),
    ],
)  # fmt: skip
def test_a_duration_is_seconds_or_has_units(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "-1", "soon", "5 minutes", "m5", "1m1h", "nan", "inf", "1e12", "5d", "\u0665m", None]
)
def test_anything_else_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="use a duration such as"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("0", {}),
        (" 7 ", {"completed": 7, "failed": 7, "cancelled": 7, "malicious": 7}),
        ("7, failed=90", {"completed": 7, "failed": 90, "cancelled": 7, "malicious": 7}),
        ("0.5,failed=0,malicious=0", {"completed": 0.5, "cancelled": 0.5}),
        ("Completed=1", {"completed": 1}),
    ],
)
def test_a_retention_is_for_all_or_by_status(text: str, days: dict[str, float]) -> None:
    assert parse_retention(text) == {status: each * 86_400 for status, each in days.items()}


@pytest.mark.parametrize(
    "text", ["", "a week", "-1", "inf", "nan", "7,", "7,8", "pending=7", "failed=1,failed=2", "failed", "=7", "1e9"]
)
def test_anything_else_is_no_retention(text: str) -> None:
    with pytest.raises(ValueError, match="use a number of days"):
        parse_retention(text)


@given(st.text(max_size=12))
def test_no_text_crashes_the_duration_parser(text: str) -> None:
    with suppress(ValueError):
        assert 0 <= parse_duration(text) < 1e9


BAD = {
    "DB_DIALECT": ("mysql", "use 'auto', 'postgres', 'cockroach' or 'embedded'"),
    "DB_HOST": (",", "name at least one"),
    "DB_PORT": ("5432,x", "use a whole number"),
    "DB_SSLMODE": ("on", "use 'disable', 'allow', 'prefer', 'require', 'verify-ca' or 'verify-full'"),
    "SLOTS": ("many", "use a whole number, at least 1 and at most 1024"),
    "MAX_PRIORITY": ("99999999999", "use a whole number from -2147483648 to 2147483647"),
    "POLLING_INTERVAL": ("0", "use a number, more than 0"),
    "LEASE_SECONDS": ("-3", "use a duration such as 90, 90s, 5m or 1h30m"),
    "RETENTION_DAYS": (
        "inf",
        "use a number of days, at least 0, and others by status (cancelled, completed, failed, malicious), as in 7,failed=90",
    ),
    "SANDBOX": ("podman", "use 'auto', 'docker' or 'bubblewrap'"),
    "CONTAINER_CPU_LIMIT": ("half", "use a number, more than 0"),
    "EGRESS": ("open", "use 'public', 'none' or 'allowlist'"),
    "EGRESS_ALLOW": (
        "one,10.1.2.3/24",
        "10.1.2.3/24 is no network: write 10.1.2.0/24, or 10.1.2.3 for the one address",
    ),
    "EGRESS_DNS": ("dns.example", "use IP addresses of name servers, separated by commas, such as 9.9.9.9"),
    "OUTPUT_LIMIT": ("3", "use a whole number, at least 1024 and at most 67108864"),
    "API_PORT": ("65536", "use a whole number, at least 0 and at most 65535"),
    "LOG_FORMAT": ("xml", "use 'auto', 'json' or 'console'"),
}


@pytest.mark.parametrize("source", ["environment", "env file"])
def test_all_bad_values_are_told_at_once_each_in_a_line_with_what_is_allowed(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "environment":
        for name, (value, _) in BAD.items():
            monkeypatch.setenv(name, value)
    else:
        env_file(*(f"{name}={value}" for name, (value, _) in BAD.items()))
    assert sorted(complaints()) == sorted(f"{name}={value!r}: {allowed}" for name, (value, allowed) in BAD.items())


def test_the_line_names_the_variable_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "on")
    (line,) = complaints()
    assert line.startswith("PGSSLMODE='on': use 'disable'")


def test_a_port_outside_the_range_is_refused() -> None:
    env_file("DB_PORT=5432,0")
    assert complaints() == ["DB_PORT='5432,0': use port numbers from 1 to 65535"]


def test_values_that_contradict_each_other_are_told() -> None:
    env_file("MIN_PRIORITY=9", "MAX_PRIORITY=3", "DB_HOST=a,b,c", "DB_PORT=1,2")
    first, second = complaints()
    assert "MAX_PRIORITY=3 is below MIN_PRIORITY=9" in first
    assert "DB_PORT lists 2 ports for 3 hosts" in second


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["EGRESS_ALLOW=example.com"], "EGRESS_ALLOW is set, and EGRESS=public does not read it"),
        (["EGRESS=none", "EGRESS_ALLOW=example.com"], "EGRESS_ALLOW is set, and EGRESS=none does not read it"),
        (["EGRESS=allowlist"], "EGRESS=allowlist and EGRESS_ALLOW names nothing"),
        (["EGRESS=allowlist", "EGRESS_ALLOW=,"], "EGRESS=allowlist and EGRESS_ALLOW names nothing"),
        (["EGRESS=allowlist", "EGRESS_ALLOW=a.example", "EGRESS_DNS=9.9.9.9"], "EGRESS_DNS is set, and with"),
        (["EGRESS=none", "EGRESS_DNS=9.9.9.9"], "EGRESS_DNS is set, and with"),
    ],
)
def test_settings_of_the_network_that_would_do_nothing_are_told(lines: list[str], complaint: str) -> None:
    env_file(*lines)
    (line,) = complaints()
    assert line.startswith(complaint)


def test_what_sandboxes_may_reach_is_a_list() -> None:
    env_file("EGRESS=allowlist", "EGRESS_ALLOW=api.example.com:443, 10.1.2.0/24")
    assert [str(entry) for entry in load_settings().egress_allow] == ["api.example.com:443", "10.1.2.0/24"]


def test_a_value_without_end_is_shown_in_part() -> None:
    env_file(f"SANDBOX={'x' * 5000}")
    (line,) = complaints()
    assert len(line) < 150


def test_an_env_file_that_is_no_text_is_one_line() -> None:
    Path(".env").write_bytes(b"SLOTS=\xff\xfe\n")
    (line,) = complaints()
    assert line.startswith(".env cannot be read: ")


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{SECRET}%zz@localhost/continuum",
        f"postgresql://user:{SECRET}@localhost:port/continuum",
        f"postgresql+psycopg://user:{SECRET}@localhost/continuum",
        f"user={SECRET} pass",
    ],
)
def test_a_bad_database_url_is_told_without_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    (line,) = complaints()
    assert line.startswith("DATABASE_URL=(hidden): use a ")
    assert "postgresql://user:password@localhost:5432/continuum" in line
    assert SECRET not in line


def test_no_representation_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://user:{SECRET}@localhost/continuum")
    monkeypatch.setenv("DB_PASSWORD", SECRET)
    monkeypatch.setenv("API_TOKEN", SECRET)
    settings = load_settings()
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == SECRET
    monkeypatch.setenv("SLOTS", "0")
    assert SECRET not in "".join(complaints())
    with pytest.raises(ValueError, match="validation error") as raw:
        Settings()
    assert SECRET not in str(raw.value)


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().slots = 3


def test_a_heartbeat_may_fail_twice_before_the_lease_expires() -> None:
    assert load_settings(lease_seconds=30).heartbeat_interval == 10


@pytest.mark.parametrize("hosts", ["one,two", "one:26257,two", "one:26257,two:26258", "[::1],two"])
def test_a_database_url_names_several_hosts_with_or_without_ports(hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://user@{hosts}/continuum")
    assert load_settings().database_url is not None


def test_a_webhook_secret_is_checked_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (SECRET, "whsec_" + "A" * 20, f"whsec_{'A' * 32},{SECRET}"):
        monkeypatch.setenv("WEBHOOK_SECRET", text)
        (line,) = complaints()
        assert line.startswith("WEBHOOK_SECRET=(hidden): use whsec_")
        assert SECRET not in line
    monkeypatch.setenv("WEBHOOK_SECRET", f"whsec_{'A' * 32}, {'B' * 32}")
    assert len(load_settings().webhook_secrets) == 2
    assert "AAAA" not in repr(load_settings())
    monkeypatch.setenv("WEBHOOK_SECRET", "")
    assert load_settings().webhook_secrets == ()
