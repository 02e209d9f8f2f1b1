"""`continuum` and its commands, each in the module of its group. Each imports what it needs when it runs, so that `--help`
waits for none of it."""

from __future__ import annotations

import typer

from continuum.cli import archive, codes, limits, operating, schedules, submitting, tasks, workers

GREETING = """\
Continuum runs Python tasks from a SQL table in hardened sandboxes.

Start with one of these:
  continuum run FILE.py    run a script in a sandbox, now; needs no database of yours
  continuum doctor         see what is here, and what to do about what is not
  continuum worker         run the tasks of your database (DATABASE_URL), one after another

continuum --help lists all commands, and continuum COMMAND --help says what each takes.
"""

app = typer.Typer(
    help="Run Python tasks from a SQL table in hardened sandboxes.\n\n"
    "Exit codes: 0 done, 1 the task failed, 2 wrong usage or configuration, 3 no database, 4 no sandbox, "
    "5 no such thing, 6 waited too long, 7 queue full, 130 Ctrl-C, 143 SIGTERM.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)


@app.callback(invoke_without_command=True)
def greet(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(GREETING, nl=False)


app.command()(submitting.run)
app.command()(submitting.submit)
app.command("wait")(tasks.wait_for)
app.command()(tasks.logs)
app.command("tasks")(tasks.list_tasks)
app.command()(tasks.batch)
app.command()(tasks.show)
app.command()(tasks.cancel)
app.command()(tasks.retry)
app.add_typer(codes.app, name="codes")
app.add_typer(limits.app, name="limits")
app.add_typer(schedules.app, name="schedules")
app.add_typer(workers.app, name="workers")
app.command()(operating.status)
app.command()(operating.top)
app.command()(operating.worker)
app.command()(operating.migrate)
app.command()(archive.archive)
app.command()(operating.doctor)
app.command()(operating.demo)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    operating.bench
)
app.command("socket-proxy")(operating.socket_proxy)
app.command("webhook-secret")(operating.webhook_secret)


def main(arguments: list[str] | None = None) -> None:
    """The console script."""
    app(arguments, prog_name="continuum")
