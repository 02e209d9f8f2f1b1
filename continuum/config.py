"""Configuration: environment variables and a `.env` file, read once at the start.

The names and defaults of the first version are kept; the rest are listed in README.md and `.env.example`, which a test
holds against this module. Every bad value is reported, all of them at once, in one line each; no message and no `repr`
shows a secret.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
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
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from continuum.cpus import usable_cpus
from continuum.egress import Address, AllowEntry, parse_allow, parse_resolvers

ENV_FILE = ".env"
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
    database_url: Annotated[SecretStr | None, AfterValidator(_connection_string)] = None
    db_user: str = "user"
    db_password: SecretStr = SecretStr("password")
    db_name: str = "continuum"
    db_host: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_not_empty)] = (
        "localhost",
    )
    db_port: Annotated[tuple[int, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_not_empty)] = (5432,)
    # The first version left this to libpq, which reads PGSSLMODE.
    db_sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        default="prefer", validation_alias=AliasChoices("DB_SSLMODE", "PGSSLMODE")
    )
    db_sslrootcert: Path | None = None
    db_sslcert: Path | None = None
    db_sslkey: Path | None = None
    embedded_dir: Path = Path(".continuum/postgres")

    # What this worker takes, and how
    slots: int = Field(default=1, ge=1, le=MOST_SLOTS)  # chosen by _choose_slots unless it is set
    min_priority: int = 0
    max_priority: int = 0
    polling_interval: Duration = Field(default=5.0, gt=0)
    wakeup: Literal["auto", "changefeed", "poll"] = "auto"
    wakeup_feeds: int = Field(default=8, ge=0, le=80)
    lease_seconds: Duration = Field(default=30.0, ge=1)
    task_timeout: Duration = Field(default=3600.0, gt=0)
    task_cpu_seconds: Duration = 0.0
    shutdown_grace: Duration = 25.0
    retention_days: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    # Sandboxes
    sandbox: Literal["auto", "docker", "bubblewrap"] = "auto"
    container_image: str = SEED_IMAGE
    container_memory_mb: int = Field(default=512, ge=32)
    container_cpu_limit: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    container_idle_timeout: Duration = 300.0
    container_pids_limit: int = Field(default=128, ge=8)
    container_disk_mb: int = Field(default=64, ge=1)
    container_runtime: str = ""
    max_tasks_per_sandbox: int = Field(default=1000, ge=0)
    egress: Literal["public", "none", "allowlist"] = "public"
    egress_allow: Annotated[tuple[AllowEntry, ...], NoDecode, BeforeValidator(_parsed_list(parse_allow))] = ()
    egress_dns: Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_parsed_list(parse_resolvers))] = ()
    requirements_index: Annotated[SecretStr, AfterValidator(_package_index)] = SecretStr(PYPI)
    requirements_max_mb: int = Field(default=512, ge=1)
    requirements_cache_mb: int = Field(default=4096, ge=0)
    requirements_timeout: Duration = Field(default=300.0, gt=0)
    output_limit: int = Field(default=1024 * 1024, ge=1024, le=64 * 1024 * 1024)

    # Screening of code
    code_policy: Annotated[Literal["off", "warn", "reject"], BeforeValidator(_lower)] = "off"
    code_policy_config: Path | None = None
    code_policy_severity: Annotated[Literal["low", "medium", "high"], BeforeValidator(_lower)] = "high"
    code_policy_confidence: Annotated[Literal["low", "medium", "high"], BeforeValidator(_lower)] = "low"

    # Status server and logs
    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8080, ge=0, le=65535)
    api_token: SecretStr | None = None
    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    log_payloads: bool = False

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
    """Read the environment and `.env`. Raises `ConfigurationError` with a line for each bad value."""
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_explain(error, overrides))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{ENV_FILE} cannot be read: {error}") from None
    problems = list(_contradictions(settings))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return settings


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


def _explain(error: ValidationError, overrides: dict[str, Any]) -> list[str]:
    """A line for each bad value. A bad item of a list is shown as the whole list."""
    given = {name.upper(): value for name, value in (dotenv_values(ENV_FILE) | os.environ | overrides).items()}
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
