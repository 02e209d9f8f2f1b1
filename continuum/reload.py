"""SIGHUP: settings that were changed while a process runs are taken over, as far as they can be.

All who hold the process's `Settings` read them at each turn, so that taking over is one step in which nothing else runs. What
is read is judged as a whole first: one bad value, and nothing changes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from continuum import systemd
from continuum.config import ConfigurationError, Settings, read_env_file

log = structlog.get_logger(__name__)

RELOADABLE = frozenset(
    {
        "slots",
        "min_priority",
        "max_priority",
        "priority_share",
        "worker_tags",
        "polling_interval",
        "task_timeout",
        "task_cpu_seconds",
        "quarantine_after",
        "shutdown_grace",
        "retention_days",
        "archive_dir",
        "output_limit",
        "container_memory_mb",
        "container_cpu_limit",
        "container_pids_limit",
        "container_disk_mb",
        "container_idle_timeout",
        "max_tasks_per_sandbox",
        "api_max_body_mb",
        "api_max_pending",
        "log_level",
    }
)
"""What can be changed in a running process; all else needs a restart."""
READ_DEADLINE = 10.0
"""Seconds for the file to be read, which may lie on a disk that hangs."""
PAUSE = 0.1
"""Seconds between two reloads: a storm of signals is a few of them, and loses none that matters."""


def _ignore(_: frozenset[str]) -> None:
    pass


@dataclass(slots=True)
class Reloads:
    """The reload service of one process.

    settings: what the process works by. load: reads settings anew; raises `ConfigurationError`.
    changed: called with the names of the settings that have just changed.
    stop: ends the process in order; called when a SIGHUP means that the process has lost its terminal.
    stopping: whether that is under way, and nothing is to change any more.
    """

    settings: Settings
    load: Callable[[], Settings]
    stop: Callable[[], None]
    changed: Callable[[frozenset[str]], None] = _ignore
    stopping: Callable[[], bool] = lambda: False
    _file: dict[str, str] | None = field(default_factory=lambda: _last_read())
    _one_at_a_time: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reload at each SIGHUP; never return. Reports that it has started once no SIGHUP ends the process."""
        terminal = Terminal.of_this_process()
        with trio.open_signal_receiver(signal.SIGHUP) as hangups:
            task_status.started()
            async for _ in hangups:
                if terminal is not None and terminal.is_gone():
                    terminal.let_go()
                    terminal = None  # kernel and shell both tell of it, and asked twice a worker stops without grace
                    log.info("the terminal is gone: stopping")
                    self.stop()
                else:
                    await self.reload()
                    await trio.sleep(PAUSE)

    async def reload(self) -> None:
        """Read the settings and take over what can be; say what has changed, or what is wrong."""
        if self.stopping():
            log.info("settings are not reloaded: shutting down")
            return
        systemd.tell_reloading()
        try:
            with trio.fail_after(READ_DEADLINE):
                found, file = await self._read()
        except ConfigurationError as error:
            for line in str(error).splitlines():
                log.error("settings are not reloaded, and stay as they are", problem=line)
        except trio.TooSlowError:
            log.error("settings are not reloaded, and stay as they are", problem=f"not read within {READ_DEADLINE:g} s")
        else:
            if not self.stopping():
                self._take_over(found, file)
        finally:
            systemd.tell_ready()

    async def _read(self) -> tuple[Settings, dict[str, str] | None]:
        """In a thread, so that heartbeats go on whatever the disk does; where that hangs, it holds one thread and no more."""
        return await trio.to_thread.run_sync(self._read_file, abandon_on_cancel=True, limiter=self._one_at_a_time)

    def _read_file(self) -> tuple[Settings, dict[str, str] | None]:
        """A file that was there and is gone, or has a line that is none, is more likely a mistake than a wish for defaults."""
        file = read_env_file()
        if file is None and self._file is not None:
            raise ConfigurationError("the file of settings is gone; an empty one asks for the defaults")
        return self.load(), file

    def _take_over(self, found: Settings, file: dict[str, str] | None) -> None:
        self._warn_of_what_is_not_read(file)
        self._file = file
        different = {name for name in Settings.model_fields if getattr(found, name) != getattr(self.settings, name)}
        changed = frozenset(different & RELOADABLE)
        values = {name.upper(): f"{getattr(self.settings, name)} -> {getattr(found, name)}" for name in sorted(changed)}
        self.settings.take_over(found, changed)
        self.changed(changed)  # before it is told: at the new LOG_LEVEL
        log.info("settings reloaded", changed=values)
        if late := sorted(name.upper() for name in different - RELOADABLE):
            log.warning("some settings have changed that take effect at a restart only", settings=late)

    def _warn_of_what_is_not_read(self, file: dict[str, str] | None) -> None:
        """`.env` is below the environment, which nobody can change from outside: what is written there is in vain."""
        before = self._file or {}
        shadowed = sorted(
            name
            for name, value in (file or {}).items()
            if value != before.get(name)
            and os.environ.get(name)
            and name.lower() in Settings.model_fields
            and os.environ[name] != value
        )
        if shadowed and "CONTINUUM_ENV_FILE" not in os.environ:
            log.warning("the environment wins over what has changed in .env", settings=shadowed)


def _last_read() -> dict[str, str] | None:
    with suppress(ConfigurationError):
        return read_env_file(strictly=False)
    return None


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal that controls this process. descriptors: those of the standard ones that lead there."""

    descriptors: tuple[int, ...]

    @classmethod
    def of_this_process(cls) -> Terminal | None:
        """None without one, and for a process that is to outlive it (nohup)."""
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN or not _opens():
            return None
        return cls(tuple(descriptor for descriptor in (0, 1, 2) if os.isatty(descriptor)))

    def is_gone(self) -> bool:
        return not _opens()

    def let_go(self) -> None:
        """Write to it no more: each line of the log would be an error."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in self.descriptors:
            os.dup2(nothing, descriptor)
        os.close(nothing)


def _opens() -> bool:
    try:
        os.close(os.open(Path("/dev/tty"), os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
