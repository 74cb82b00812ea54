"""`svc-infra` itself: its commands, its options, and how errors are shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from svc_infra import __version__
from svc_infra._optional import need
from svc_infra.errors import SvcInfraError, UnavailableError

if TYPE_CHECKING:
    import typer

COMMANDS = ("config", "demo", "audit", "flows", "jobs", "schedules", "secrets", "sql")
"""Each is a module of this room: a function of that name, or a group called `app`."""
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
        commands(sys.argv[1:])()
    except SvcInfraError as error:
        if DEBUG in sys.argv:
            raise
        print("error:", " ".join(error.detail.split()), file=sys.stderr)
        raise SystemExit(UNAVAILABLE if isinstance(error, UnavailableError) else REFUSED) from None


def commands(words: Sequence[str] = ()) -> typer.Typer:
    """The command that these words begin with, alone, for each loads what no other needs; else every command."""
    import typer

    app = typer.Typer(name="svc-infra", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    asked = next((word for word in words if not word.startswith("-")), "")
    for name in (asked,) if asked in COMMANDS else COMMANDS:
        module = import_module(f"svc_infra.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, name))

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
