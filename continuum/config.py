"""Configuration: environment variables and a file, read at the start, and again on SIGHUP (`continuum.reload`).

The file is `.env` in the working directory, below the environment; or the one that CONTINUUM_ENV_FILE names, above it.

The names and defaults of the first version are kept; the rest are listed in README.md and `.env.example`, which a test
holds against this module. Every bad value is reported, all of them at once, in one line each; no message and no `repr`
shows a secret.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from dotenv.main import DotEnv
from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from continuum.cpus import usable_cpus
from continuum.egress import Address, AllowEntry, parse_allow, parse_resolvers
from continuum.model import Status
from continuum.retention import parse_retention
from continuum.tags import parse_tags
from continuum.webhook import parse_secrets

ENV_FILE = ".env"
NAMED_FILE = "CONTINUUM_ENV_FILE"
"""The variable that names another file. A process's environment cannot be changed from outside, so that a file which is to be
read again on SIGHUP must win over it; and must at a start as well, or a restart would undo what a reload did."""
SEED_IMAGE = "python:3.9-slim"
PYPI = "https://pypi.org/simple,https://files.pythonhosted.org"
NO_INDEX = "none"

_NUMBER = r"\d+(?:\.\d+)?"
_DURATION = re.compile(rf"(?:({_NUMBER})h)?(?:({_NUMBER})m(?!s))?(?:({_NUMBER})s)?(?:({_NUMBER})ms)?", re.ASCII)
_UNITS = (3600.0, 60.0, 1.0, 0.001)
_LONGEST_SHOWN = 80
"""Characters of a bad value that are shown."""

SLOTS_FOR_EACH_CPU = (2, 8)
"""At the least, since most tasks wait for something now and then, and at the most, however little each may use."""
MOST_SLOTS = 1024


@dataclass(frozen=True, slots=True)
class PackageIndex:
    """Where packages come from. url: may hold a password. reached: all that must be reached for it."""

    url: str = field(repr=False)
    reached: tuple[AllowEntry, ...]


class ConfigurationError(Exception):
    """One or more variables hold a value that cannot be used. `str()` has one line for each."""


def parse_duration(value: object) -> float:
    """Read a length of time: plain seconds (`90`, `0.5`), or hours, minutes and seconds (`1h30m`, `5m`, `90s`, `500ms`).

    Returns seconds. Raises ValueError on anything else, negative and infinite values included.
    """
    allowed = "use a duration such as 90, 90s, 5m or 1h30m"
    text = str(value).strip().lower()
    try:
        seconds = float(text)
    except ValueError:
        match = _DURATION.fullmatch(text)
        if not text or match is None:
            raise ValueError(allowed) from None
        seconds = sum(float(part or 0) * unit for part, unit in zip(match.groups(), _UNITS, strict=True))
    if not 0 <= seconds < 1e9:
        raise ValueError(allowed)
    return seconds


def _split_list(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("name at least one")
    return value


def _parsed_list(parse: Callable[[Any], object]) -> Callable[[object], object]:
    """A validator for a list of texts that a function reads as a whole."""
    return lambda value: parse(_split_list(value))


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _connection_string(value: SecretStr | None) -> SecretStr | None:
    """Checked here because the driver's message may quote a password."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = conninfo_to_dict(value.get_secret_value() if value else "")
        if not all(port.isdecimal() for port in str(parts.get("port", "")).split(",") if port):
            raise ValueError("use a port number, as in postgresql://user:password@localhost:5432/continuum")
    except ProgrammingError:
        raise ValueError(
            "use a connection string such as postgresql://user:password@localhost:5432/continuum, "
            "with what is special in the password escaped (@ is %40)"
        ) from None
    return value


def _retention(value: str) -> str:
    parse_retention(value)
    return value


def _webhook_secret(value: SecretStr | None) -> SecretStr | None:
    """Checked without showing it."""
    if value is not None:
        parse_secrets(value.get_secret_value())
    return value


def _package_index(value: SecretStr) -> SecretStr:
    """Checked without showing it: a private index has its password in the URL."""
    if value.get_secret_value().strip() != NO_INDEX:
        _parse_index(value.get_secret_value())
    return value


def _parse_index(text: str) -> PackageIndex:
    """Raises ValueError with a message that shows no part of the text."""
    first, *others = (part.strip() for part in text.split(","))
    try:
        if urlsplit(first).scheme not in _PORTS:
            raise ValueError
        entries = [_origin(part) if "://" in part else part for part in (first, *others)]
        return PackageIndex(first, parse_allow(entries))
    except ValueError:
        raise ValueError(
            "use the http:// or https:// URL of an index and then, separated by commas, the URLs of other places that its "
            "files are on, or networks as in EGRESS_ALLOW; or none"
        ) from None


def _origin(url: str) -> str:
    """The host and port of a URL as EGRESS_ALLOW would have them."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in _PORTS:
        raise ValueError
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or _PORTS[parts.scheme]}"


_PORTS = {"http": 80, "https": 443}


Duration = Annotated[float, BeforeValidator(parse_duration)]


class Settings(BaseSettings):
    """Every setting of a worker. Attribute `db_host` is the variable DB_HOST, and so on. Durations are in seconds."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
        populate_by_name=True,
    )

    # Database
    db_dialect: Literal["auto", "postgres", "cockroach", "embedded"] = "auto"
    """Which kind of database: `auto` asks the server; `embedded` starts a PostgreSQL of its own in EMBEDDED_DIR, which workers
    and producers on this host share."""
    database_url: Annotated[SecretStr | None, AfterValidator(_connection_string)] = None
    """A whole connection string. It wins over DB_USER, DB_PASSWORD, DB_NAME, DB_HOST and DB_PORT."""
    db_user: str = "user"
    """The user to log in as."""
    db_password: SecretStr = SecretStr("password")
    """Its password."""
    db_name: str = "continuum"
    """The database that holds the tables."""
    db_host: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_not_empty)] = (
        "localhost",
    )
    """One host or several, separated by commas: each connection begins with one at random and goes on to the next."""
    db_port: Annotated[tuple[int, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_not_empty)] = (5432,)
    """One port for all hosts, or one for each."""
    # The first version left this to libpq, which reads PGSSLMODE.
    db_sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        default="prefer", validation_alias=AliasChoices("DB_SSLMODE", "PGSSLMODE")
    )
    """TLS as libpq understands it; without this variable PGSSLMODE counts."""
    db_sslrootcert: Path | None = None
    """The file with the certificates of those who sign the server's."""
    db_sslcert: Path | None = None
    """The client's certificate, where the server asks for one."""
    db_sslkey: Path | None = None
    """The key of the client's certificate."""
    embedded_dir: Path = Path(".continuum/postgres")
    """Where the embedded PostgreSQL keeps its data."""

    # What this worker takes, and how
    slots: int = Field(default=1, ge=1, le=MOST_SLOTS)  # chosen by _choose_slots unless it is set
    """Tasks at once. Unless it is set, as many as keep the worker's CPUs busy at CONTAINER_CPU_LIMIT each, and 2 to 8 for each
    CPU. For tasks that mostly wait set more, such as 64."""
    min_priority: int = 0
    """The least priority number that this worker takes; 0 leaves this end open."""
    max_priority: int = 0
    """The greatest priority number that this worker takes; 0 leaves this end open."""
    priority_share: float = Field(default=0.0, ge=0, le=0.5)
    """The part of its tasks that this worker takes from lower priorities, each of them in its turn, so that they run though there
    is always something more urgent: 0.1 is every tenth. 0 leaves them until nothing more urgent waits."""
    worker_tags: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parsed_list(parse_tags))] = ()
    """What this worker has that tasks may ask for, such as `gpu, eu`: it takes tasks that ask for nothing, and those that ask for
    some of these."""
    polling_interval: Duration = Field(default=5.0, gt=0)
    """The longest that a due task waits when every wake-up is lost."""
    wakeup: Literal["auto", "changefeed", "poll"] = "auto"
    """How a worker learns of work: `auto` listens on PostgreSQL (which takes a session: no pooler of transactions) and uses a
    changefeed on CockroachDB where it may have one. `changefeed` means the same. `poll` looks by the clock only."""
    wakeup_feeds: int = Field(default=8, ge=0, le=80)
    """CockroachDB: how many workers of a cluster hold a changefeed at a time; the others look by the clock."""
    lease_seconds: Duration = Field(default=30.0, ge=1)
    """How long a claim lasts without a heartbeat. Heartbeats come at a third of it."""
    task_timeout: Duration = Field(default=3600.0, gt=0)
    """Wall time of one attempt. A task's own `timeout_s` may be shorter."""
    task_cpu_seconds: Duration = 0.0
    """CPU time of one attempt, all its processes together; 0 leaves it to TASK_TIMEOUT."""
    quarantine_after: int = Field(default=2, ge=0)
    """A task that took down so many sandboxes, or workers that ran it alone, is not tried again, whatever its attempts; a worker
    that ran others as well counts half. 0 tries it as often as any."""
    shutdown_grace: Duration = 25.0
    """How long running tasks may go on after the first SIGTERM or Ctrl-C."""
    retention_days: Annotated[str, BeforeValidator(str), AfterValidator(_retention)] = "0"
    """Finished tasks are deleted after so many days; 0 keeps them. `7,failed=90` keeps those longer that failed: any of
    `completed`, `failed`, `cancelled` and `malicious`. On CockroachDB by row-level TTL, which stays when this is set back to 0
    (`ALTER TABLE tasks RESET (ttl)`)."""
    archive_dir: Path | None = None
    """A directory in which each task is written before RETENTION_DAYS deletes it, as JSON Lines. Several workers may share it."""

    # Sandboxes
    sandbox: Literal["auto", "docker", "bubblewrap"] = "auto"
    """What runs scripts: `auto` takes Docker when its daemon answers, otherwise bubblewrap, with a warning that says what is
    weaker."""
    container_image: str = SEED_IMAGE
    """The image that sandboxes are made of: any with Python 3.8 or newer."""
    container_memory_mb: int = Field(default=512, ge=32)
    """Memory of each sandbox in MiB, without swap."""
    container_cpu_limit: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """CPUs that each sandbox may use; fractions are allowed. Bubblewrap limits none."""
    container_idle_timeout: Duration = 300.0
    """When an unused sandbox is removed."""
    container_pids_limit: int = Field(default=128, ge=8)
    """Processes and threads in each sandbox."""
    container_disk_mb: int = Field(default=64, ge=1)
    """Size in MiB of each place that a script may write to; what is there counts as memory."""
    container_runtime: str = ""
    """The container runtime: empty is Docker's default, `runsc` is gVisor, which has no network here."""
    max_tasks_per_sandbox: int = Field(default=1000, ge=0)
    """After so many tasks a sandbox is replaced; 0 keeps it."""
    egress: Literal["public", "none", "allowlist"] = "public"
    """What sandboxes reach: `public` is the internet without private, link-local and metadata addresses; `allowlist` is only
    what EGRESS_ALLOW names; `none` is nothing."""
    egress_allow: Annotated[tuple[AllowEntry, ...], NoDecode, BeforeValidator(_parsed_list(parse_allow))] = ()
    """Host names and networks, each with or without a port: `api.example.com:443, 10.1.2.0/24:5432`. Names are looked up at each
    cold start. A network inside a private range opens it; loopback, link-local, metadata addresses and the host stay closed."""
    egress_dns: Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_parsed_list(parse_resolvers))] = ()
    """With EGRESS=public: up to three name servers for sandboxes instead of the host's, which may know internal names."""
    requirements_index: Annotated[SecretStr, AfterValidator(_package_index)] = SecretStr(PYPI)
    """Where CODES.requirements are installed from: the URL of a package index, then, separated by commas, where else its files
    are, as URLs or as in EGRESS_ALLOW. `none` installs nothing."""
    requirements_max_mb: int = Field(default=512, ge=1)
    """How large one installed list of requirements may be, in MiB."""
    requirements_cache_mb: int = Field(default=4096, ge=0)
    """Installed lists are kept up to this size in MiB on each host; the least recently used are removed."""
    requirements_timeout: Duration = Field(default=300.0, gt=0)
    """How long installing one list may take."""
    output_limit: int = Field(default=1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    """Bytes that are kept of stdout, and as many of stderr; a visible mark is left where they are cut."""

    # Screening of code
    code_policy: Annotated[Literal["off", "warn", "reject"], BeforeValidator(_lower)] = "off"
    """Screening of code before it runs (extra `screening`): `warn` logs what bandit finds, `reject` ends the task as
    `malicious`. A seat belt, not a wall."""
    code_policy_config: Path | None = None
    """A configuration file of bandit's (.yaml or .toml), which chooses the rules."""
    code_policy_severity: Annotated[Literal["low", "medium", "high"], BeforeValidator(_lower)] = "high"
    """The least severity of a finding that counts."""
    code_policy_confidence: Annotated[Literal["low", "medium", "high"], BeforeValidator(_lower)] = "low"
    """The least confidence of a finding that counts."""

    # Webhooks
    webhook_secret: Annotated[SecretStr | None, AfterValidator(_webhook_secret)] = None
    """What deliveries of webhooks are signed with: `whsec_` and the base64 of 24 to 64 random bytes, or several of them
    while one is replaced. `continuum webhook-secret` makes one. A worker without it makes no deliveries, nor does one with
    EGRESS=none."""

    # Status server and logs
    api_host: str = "127.0.0.1"
    """The address that the status server listens on."""
    api_port: int = Field(default=8080, ge=0, le=65535)
    """Its port; 0 takes a free one."""
    api_token: SecretStr | None = None
    """What a client must show (`Authorization: Bearer ...`) to submit and cancel tasks over HTTP, and a client on another host to
    see payloads, code and outputs. Without one, nothing can be changed over HTTP."""
    api_max_body_mb: int = Field(default=16, ge=1, le=64)
    """The largest body that the HTTP API takes."""
    api_max_pending: int = Field(default=100_000, ge=0)
    """Pending tasks from which on the HTTP API takes no more; 0: no limit."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto` is for people on a terminal and JSON elsewhere."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    """The least level that is logged."""
    log_payloads: bool = False
    """Lets payloads, outputs and what quotes them into logs and traces. Never in production."""

    @field_validator("min_priority", "max_priority")
    @classmethod
    def _fits_integer(cls, value: int) -> int:
        if not -(2**31) <= value < 2**31:
            raise ValueError(f"use a whole number from {-(2**31)} to {2**31 - 1}")
        return value

    @field_validator("db_port")
    @classmethod
    def _ports(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(0 < port < 65536 for port in value):
            raise ValueError("use port numbers from 1 to 65535")
        return value

    @model_validator(mode="after")
    def _choose_slots(self) -> Self:
        if "slots" not in self.model_fields_set:
            vars(self)["slots"] = default_slots(usable_cpus(), self.container_cpu_limit)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given wins, then a named file, the environment, and `.env`."""
        if os.environ.get(NAMED_FILE):
            return init_settings, dotenv_settings, env_settings
        return init_settings, env_settings, dotenv_settings

    def take_over(self, others: Settings, names: Iterable[str]) -> None:
        """Change some settings to what they are in others, for all who hold these: the one way in which they ever change."""
        vars(self).update({name: getattr(others, name) for name in names})

    @property
    def retention(self) -> dict[Status, float]:
        """After how many seconds finished tasks are deleted, for each status of which any are."""
        return parse_retention(self.retention_days)

    @property
    def webhook_secrets(self) -> tuple[bytes, ...]:
        """What deliveries are signed with; empty where none are made."""
        return () if self.webhook_secret is None else parse_secrets(self.webhook_secret.get_secret_value())

    @property
    def package_index(self) -> PackageIndex | None:
        """Where requirements are installed from; None when nothing is to be installed."""
        text = self.requirements_index.get_secret_value().strip()
        return None if text == NO_INDEX else _parse_index(text)

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between two heartbeats: a third of the lease, so that two may fail before it expires."""
        return self.lease_seconds / 3


def default_slots(cpus: float, cpu_limit: float) -> int:
    """How many tasks to run at once on so many processors, of which each may use `cpu_limit`: as many as keep the processors
    busy, within SLOTS_FOR_EACH_CPU."""
    least, most = SLOTS_FOR_EACH_CPU
    return max(1, min(MOST_SLOTS, math.ceil(cpus * min(most, max(least, 1 / cpu_limit)))))


def load_settings(**overrides: Any) -> Settings:
    """Read the environment and the file. Raises `ConfigurationError` with a line for each bad value."""
    named = os.environ.get(NAMED_FILE)
    file = read_env_file(strictly=False) or {}
    source: dict[str, Any] = {"_env_file": named} if named else {}
    try:
        settings = Settings(**source, **overrides)
    except ValidationError as error:
        given = {**os.environ, **file} if named else {**file, **os.environ}
        raise ConfigurationError("\n".join(_explain(error, {**given, **overrides}))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{named or ENV_FILE} cannot be read: {error}") from None
    problems = list(_contradictions(settings))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return settings


def read_env_file(*, strictly: bool = True) -> dict[str, str] | None:
    """The variables that the file sets; None where there is none. strictly: a line that cannot be understood is an error, and
    not as good as none. Raises `ConfigurationError`."""
    named = os.environ.get(NAMED_FILE)
    path = named or Settings.model_config.get("env_file")
    if path is None or not (named or os.path.isfile(str(path))):
        return None
    if Path(str(path)).exists() and not Path(str(path)).is_file():
        raise ConfigurationError(f"{path} cannot be read: it is no regular file, which could be read again")
    try:
        text = Path(str(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    if strictly:
        bad = [each.original.line for each in parse_stream(io.StringIO(text)) if each.error]
        if bad:
            raise ConfigurationError("\n".join(f"{path} line {line} is not NAME=value" for line in bad))
    values = DotEnv(None, stream=io.StringIO(text)).dict()
    return {name.upper(): value for name, value in values.items() if value is not None}


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    if settings.min_priority and settings.max_priority and settings.min_priority > settings.max_priority:
        problems.append(
            f"MAX_PRIORITY={settings.max_priority} is below MIN_PRIORITY={settings.min_priority}: "
            "no task could ever be claimed; use 0 for an open end"
        )
    if len(settings.db_port) not in (1, len(settings.db_host)):
        problems.append(
            f"DB_PORT lists {len(settings.db_port)} ports for {len(settings.db_host)} hosts in DB_HOST: "
            "give one port for all, or one for each"
        )
    if settings.egress_allow and settings.egress != "allowlist":
        problems.append(
            f"EGRESS_ALLOW is set, and EGRESS={settings.egress} does not read it: set EGRESS=allowlist, or unset it"
        )
    if settings.egress == "allowlist" and not settings.egress_allow:
        problems.append("EGRESS=allowlist and EGRESS_ALLOW names nothing: list what sandboxes may reach, or use none")
    if settings.egress_dns and settings.egress != "public":
        problems.append(f"EGRESS_DNS is set, and with EGRESS={settings.egress} sandboxes ask no name server: unset it")
    return problems


def _explain(error: ValidationError, values: dict[str, Any]) -> list[str]:
    """A line for each bad value. A bad item of a list is shown as the whole list."""
    given = {name.upper(): value for name, value in values.items()}
    lines = {}
    for problem in error.errors(include_url=False):
        variable = str(problem["loc"][0]).upper()
        field = Settings.model_fields[variable.lower() if variable != "PGSSLMODE" else "db_sslmode"]
        if variable == "DB_SSLMODE" and variable not in given:
            variable = "PGSSLMODE"
        secret = "SecretStr" in str(field.annotation)
        shown = "(hidden)" if secret else repr(given.get(variable, problem["input"]))
        lines[variable] = f"{variable}={shown[:_LONGEST_SHOWN]}: {_allowed(problem, field)}"
    return list(lines.values())


def _allowed(problem: ErrorDetails, field: FieldInfo) -> str:
    """What may be used instead of a bad value."""
    kind = problem["type"]
    if kind == "literal_error":
        return f"use {problem['ctx']['expected']}"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    limits = {name: getattr(each, name) for each in field.metadata for name in _LIMITS if hasattr(each, name)}
    words = " and ".join(_LIMITS[name].format(limit) for name, limit in limits.items())
    whole = field.annotation is int or "int" in kind
    return f"use a {'whole ' if whole else ''}number{', ' if words else ''}{words}"


_LIMITS = {"gt": "more than {}", "ge": "at least {}", "le": "at most {}"}
