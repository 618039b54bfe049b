"""Commands that bring files in: init, data import, assets, pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raysys.errors import UserError
from raysys.shown import Json, print_result

data_app = typer.Typer(no_args_is_help=True, help="Bring data sets into raysys.")
assets_app = typer.Typer(no_args_is_help=True, help="Models and data sets that raysys can fetch.")
#: Where `raysys --help` shows them.
_PANEL = "Bring files in"


def add_files(app: typer.Typer) -> None:
    """Add the commands to the table."""
    app.command(rich_help_panel=_PANEL)(init)
    app.add_typer(data_app, name="data", rich_help_panel=_PANEL)
    app.add_typer(assets_app, name="assets", rich_help_panel=_PANEL)
    app.command(rich_help_panel=_PANEL)(pull)


def init(
    name: Annotated[str, typer.Argument(help="A config, such as own_data.")] = "own_data",
    out: Annotated[Path, typer.Option(help="File or folder to write.")] = Path(),
    as_json: Json = False,
) -> None:
    """Copy a config that comes with raysys, to start from."""
    from raysys.starters import command_of, copy_starter, starters

    path = copy_starter(name, out)
    command = f"raysys {command_of(name.removesuffix('.toml'))} {path}"
    others = ", ".join(other for other in starters() if other != path.stem)
    lines = [f"written: {path}", f"next: {command}", f"others: {others}"]
    print_result(as_json, {"path": str(path), "configs": list(starters())}, lines)


@data_app.command("import")
def data_import(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    source: Annotated[str, typer.Argument(help="`ml-100k`, or `files` (the default).")] = "files",
    interactions: Annotated[Path | None, typer.Option(help="CSV or parquet.")] = None,
    items: Annotated[Path | None, typer.Option(help="CSV or parquet.")] = None,
    users: Annotated[Path | None, typer.Option(help="CSV or parquet.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--map", help="ours=theirs, e.g. user_id=reviewerID.")
    ] = None,
    min_rating: Annotated[
        float | None, typer.Option(help="Drop ratings below this; the rest counts as liked.")
    ] = None,
    liked_from: Annotated[
        float | None, typer.Option(help="Ratings from here on are likes; lower ones are kept.")
    ] = None,
    disliked_to: Annotated[
        float | None, typer.Option(help="Ratings up to here are dislikes.")
    ] = None,
    k_core: Annotated[
        int, typer.Option(help="Keep users and items with at least this many interactions.")
    ] = 0,
    unknown_items: Annotated[
        str, typer.Option(help="`error`, or `drop` interactions with items not in the items file.")
    ] = "error",
    split: Annotated[
        str, typer.Option(help="ratio, leave_last_two, time, column or fold.")
    ] = "ratio",
    split_column: Annotated[
        str | None, typer.Option(help="The column that split=column or fold reads.")
    ] = None,
    train: Annotated[float, typer.Option(help="Train share.")] = 0.8,
    valid: Annotated[float, typer.Option(help="Validation share.")] = 0.1,
    test: Annotated[float, typer.Option(help="Test share.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Draws the split.")] = 0,
    as_json: Json = False,
) -> None:
    """Check, filter and split a data set into OUT."""
    from raysys.data.import_settings import ImportSettings
    from raysys.settings import parse_settings
    from raysys.stages.data import import_folder

    values: dict[str, Any] = {
        "source": source,
        "interactions": interactions,
        "items": items,
        "users": users,
        "columns": dict(_pair(word) for word in columns or []),
        "min_rating": min_rating,
        "liked_from": liked_from,
        "disliked_to": disliked_to,
        "k_core": k_core,
        "unknown_items": unknown_items,
        "split": {
            "method": split,
            "column": split_column,
            "train": train,
            "valid": valid,
            "test": test,
            "seed": seed,
        },
    }
    settings = parse_settings(ImportSettings, values, source="raysys data import")
    manifest, skipped = import_folder(settings, out.resolve())
    value = {"out": str(out.resolve()), "skipped": skipped, **manifest.model_dump()}
    lines = [f"{name}: {count}" for name, count in manifest.counts.items()]
    lines += [f"dropped, {name}: {count}" for name, count in manifest.dropped.items() if count]
    print_result(as_json, value, [*lines, f"written to {out.resolve()}"])


def _pair(word: str) -> tuple[str, str]:
    ours, equals, theirs = word.partition("=")
    if not (ours and equals and theirs):
        raise UserError(f"--map '{word}' must look like ours=theirs, e.g. user_id=reviewerID.")
    return ours, theirs


@assets_app.command("list")
def assets_list(as_json: Json = False) -> None:
    """List the assets and where they are."""
    from raysys.asset_sources import ASSETS
    from raysys.assets import cached

    found = {name: cached(name) for name in ASSETS}
    value = {
        name: {
            "kind": asset.kind,
            "license": asset.license,
            "path": str(found[name]) if found[name] else None,
        }
        for name, asset in ASSETS.items()
    }
    lines = [
        f"{name}  ({asset.kind}, {asset.license}): {found[name] or 'not fetched'}"
        for name, asset in ASSETS.items()
    ]
    print_result(as_json, value, lines)


@assets_app.command("fetch")
def assets_fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Names; none: all.")] = None,
    path: Annotated[
        Path | None, typer.Option(help="A file or folder of yours that holds the asset.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring assets into RAYSYS_HOME; what is there already is left alone."""
    from raysys.asset_sources import ASSETS
    from raysys.assets import fetch

    if path is not None and len(names or []) != 1:
        raise UserError("--path goes with exactly one asset name.")
    found = {name: str(fetch(name, path)) for name in names or list(ASSETS)}
    print_result(as_json, found, [f"{name}: {folder}" for name, folder in found.items()])


def pull(
    mirror: Annotated[str, typer.Argument(help="The `mirror` of a run: s3://, gs://, file://.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder to write the stages into.")],
    as_json: Json = False,
) -> None:
    """Copy a run's finished stages from an object store, to serve or to go on with."""
    from raysys.runs import pull_run

    stages = pull_run(mirror, run)
    print_result(as_json, {"run": str(run.resolve()), "stages": stages}, stages)
