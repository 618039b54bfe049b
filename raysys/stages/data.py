"""Stage `data`: check, filter and split the interactions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raysys.assets import fetch
from raysys.data.import_settings import ImportSettings
from raysys.data.importers import import_data
from raysys.manifest import Manifest
from raysys.mirror import Mirror
from raysys.runs import run_stage
from raysys.stages.context import RunContext
from raysys.store import sha256_file

#: Settings that name a file.
FILES = ("interactions", "items", "users")


def run(context: RunContext) -> tuple[Manifest, bool]:
    """Import the run's data into `RUN/data`."""
    run = context.run
    return import_folder(context.settings.data, run.path("data"), run.reuse, run.mirror)


def import_folder(
    settings: ImportSettings,
    target: Path,
    reuse: Sequence[Path] = (),
    mirror: Mirror | None = None,
) -> tuple[Manifest, bool]:
    """Import into `target`, unless it holds the same import of the same files already.

    Args:
        reuse: see `RunDirectory`, and so `mirror`.
    """
    movielens = fetch("ml-100k") if settings.source == "ml-100k" else None
    given = {name: path for name in FILES if (path := getattr(settings, name)) is not None}
    files = {one.name: one for one in movielens.glob("ml-100k.*")} if movielens else given
    return run_stage(
        target,
        "data",
        # What the files hold counts, not where they lie: on another machine it is the same work.
        settings.model_dump(mode="json", exclude=set(FILES)),
        {name: sha256_file(files[name]) for name in sorted(files)},
        lambda output: import_data(settings, output, movielens),
        reuse,
        mirror,
    )
