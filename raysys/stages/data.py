"""Stage `data`: check, filter and split the interactions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raysys.assets import fetch
from raysys.data.importers import ImportSettings, import_data
from raysys.errors import UserError
from raysys.stages.context import RunContext
from raysys.store import Manifest, run_stage, sha256_file


def run(context: RunContext) -> tuple[Manifest, bool]:
    """Import the run's data into `RUN/data`."""
    return import_folder(context.settings.data, context.run.path("data"), context.run.reuse)


def import_folder(
    settings: ImportSettings, target: Path, reuse: Sequence[Path] = ()
) -> tuple[Manifest, bool]:
    """Import into `target`, unless it holds the same import of the same files already.

    Args:
        reuse: see `RunDirectory`.
    """
    movielens = fetch("ml-100k") if settings.source == "ml-100k" else None
    given = (settings.interactions, settings.items, settings.users)
    files = movielens.glob("ml-100k.*") if movielens else (path for path in given if path)
    hashes = {path.name if movielens else str(path): _hash(path) for path in sorted(files)}
    return run_stage(
        target,
        "data",
        settings.model_dump(mode="json"),
        hashes,
        lambda output: import_data(settings, output, movielens),
        reuse,
    )


def _hash(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file.")
    return sha256_file(path)
