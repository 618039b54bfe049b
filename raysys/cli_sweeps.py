"""Commands that run a config many times over: tune and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from raysys.errors import UserError
from raysys.shown import Json, Overrides, print_result

if TYPE_CHECKING:
    from raysys.settings import Settings

#: Where `raysys --help` shows them.
_PANEL = "Run a config many times over"
_Around = TypeVar("_Around", bound="Settings")
RunKeys = Annotated[
    list[str] | None,
    typer.Option("--set", help="A key of the run's config: data.k_core=5 …; repeatable."),
]


def add_sweeps(app: typer.Typer) -> None:
    """Add the commands to the table."""
    for command in (tune, compare):
        app.command(rich_help_panel=_PANEL)(command)


def tune(
    config: Annotated[Path, typer.Argument(help="A sweep's .toml or .yaml file: see tune/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Single keys to change: trials=20 …")
    ] = None,
    run_keys: RunKeys = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a sweep; refused where there is none.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Try settings of a run on Ray Tune; finished trials and stages are not done again."""
    from raysys.tuning.outcome import BEST_FILE, PAGE_FILE, shown, write_outcome
    from raysys.tuning.settings import TuneSettings
    from raysys.tuning.sweep import run_sweep

    settings = around_a_run(TuneSettings, config, overrides, run_keys)
    sweep = run_sweep(settings, resume=resume)
    results = write_outcome(sweep)
    keys, out = list(settings.space), settings.out.resolve()
    files = f"{out / PAGE_FILE}\nbest config: {out / BEST_FILE}"
    table = Table(*keys, settings.figure, "seconds", "", caption=files)
    for trial in sweep.trials:
        table.add_row(*map(escape, shown(trial, keys)))
    print_result(as_json, {"sweep": str(out), **results}, table)


def compare(
    config: Annotated[Path, typer.Argument(help="A comparison's .toml or .yaml file.")],
    overrides: Overrides = None,
    run_keys: RunKeys = None,
    as_json: Json = False,
) -> None:
    """Methods side by side on one split, with what each costs; finished rows are not run again."""
    from raysys.comparison.page import PAGE_FILE, shown, write_comparison
    from raysys.comparison.settings import CompareSettings
    from raysys.comparison.work import run_rows

    settings = around_a_run(CompareSettings, config, overrides, run_keys)
    found, out = write_comparison(run_rows(settings)), settings.out.resolve()
    head, *rows = shown(found)
    table = Table(*head, caption=f"{found['users']} users, @{found['k']}\n{out / PAGE_FILE}")
    for row in rows:
        table.add_row(*map(escape, row))
    for name, problem in found["failed"].items():
        table.add_row(escape(name), escape(f"failed: {problem}"))
    print_result(as_json, {"comparison": str(out), **found}, table)


def around_a_run(
    model: type[_Around], config: Path, overrides: list[str] | None, run_keys: list[str] | None
) -> _Around:
    """Settings of something that changes a run's config, with `--set` after its own changes.

    That config is looked for beside the file too, where `raysys init` has written both.
    """
    from raysys.settings import load_settings

    settings: Any = load_settings(model, config, overrides or [])
    run, beside = settings.run, config.parent / settings.run.name
    if not run.is_file() and not beside.is_file():
        raise UserError(
            f"{config}: run = '{run}' does not exist, nor does {beside}; say which with run=PATH, "
            f"or write one to start from: raysys init {run.stem}"
        )
    changes = {
        "run": run if run.is_file() else beside,
        "overrides": (*settings.overrides, *(run_keys or [])),
    }
    found: _Around = settings.model_copy(update=changes)
    return found
