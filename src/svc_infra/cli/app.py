"""`svc-infra` itself: its commands, its options, and how errors are shown."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from svc_infra import __version__
from svc_infra._optional import need
from svc_infra.errors import SvcInfraError, UnavailableError

if TYPE_CHECKING:
    import typer

DEBUG = "--debug"
REFUSED = 2
UNAVAILABLE = 69
"""EX_UNAVAILABLE of BSD's sysexits.h: a server that is needed does not answer; the same command may work later."""


def main() -> None:
    """Run the command line. An error of the library is one line on stderr; `--debug` shows where.

    The exit code is then 69 when a server does not answer, which may pass, and 2 for all else.
    """
    try:
        need("rich")
        need("typer")
        commands()()
    except SvcInfraError as error:
        if DEBUG in sys.argv:
            raise
        print("error:", " ".join(error.detail.split()), file=sys.stderr)
        raise SystemExit(UNAVAILABLE if isinstance(error, UnavailableError) else REFUSED) from None


def commands() -> typer.Typer:
    """Every command."""
    import typer

    from svc_infra.cli import audit, flows, jobs, schedules, secrets, sql
    from svc_infra.cli.config import config
    from svc_infra.cli.demo import demo

    app = typer.Typer(name="svc-infra", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.command()(config)
    app.command()(demo)
    app.add_typer(audit.app, name="audit")
    app.add_typer(flows.app, name="flows")
    app.add_typer(jobs.app, name="jobs")
    app.add_typer(schedules.app, name="schedules")
    app.add_typer(secrets.app, name="secrets")
    app.add_typer(sql.app, name="sql")

    @app.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", is_eager=True, callback=_show_version, help="Print the version."
        ),
        debug: bool = typer.Option(False, DEBUG, help="Show the traceback of an error."),
    ) -> None:
        """Everything between a FastAPI developer's handlers and production."""

    return app


def _show_version(wanted: bool) -> None:
    import typer

    if wanted:
        print("svc-infra", __version__)
        raise typer.Exit
