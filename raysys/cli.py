"""The one table of commands.

Results go to standard output (`--json`: one JSON object), logs and progress to
standard error. Exit code 0: done; 2: a mistake the user can mend; 1: a fault of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from rich.markup import escape
from rich.table import Table

from raysys.cli_files import add_files
from raysys.cli_serving import add_serving
from raysys.cli_stages import add_stages
from raysys.cli_sweeps import add_sweeps
from raysys.errors import UserError
from raysys.observe import configure_logging
from raysys.shown import Json, print_result
from raysys.version import VERSION

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Language models and user-item graphs recommend together, on Ray.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    configure_logging()
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except (NotADirectoryError, FileExistsError, IsADirectoryError, PermissionError) as error:
        print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)  # noqa: T201
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on.", file=sys.stderr)  # noqa: T201
        return 130
    return 0


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    print_result(as_json, {"version": VERSION}, [VERSION])


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, what is missing, and the command that mends it."""
    from raysys.doctor import as_json as describe
    from raysys.doctor import examine

    checks = examine()
    table = Table("", "check", "found", "what to do")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[red]no[/]"
        table.add_row(mark, check.name, escape(check.found), "" if check.ok else check.mend)
    print_result(as_json, describe(checks), table)
    if not all(check.ok for check in checks):
        raise typer.Exit(2)


add_files(app)
add_stages(app)
add_sweeps(app)
add_serving(app)
