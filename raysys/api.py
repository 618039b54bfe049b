"""The Python interface: run a config, open a run, ask it for lists.

Importing it starts nothing and is quick; what a call needs is loaded by the call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from raysys.serving.shelf import Found, Shelf


@dataclass(frozen=True)
class Recommendation:
    """An entry of a list.

    Attributes:
        item_id, title: of the item; some have no title.
        score: by which it is where it is; comparable within one list alone.
        source: `model`: what the user's own model says; `history`: what the given history says;
            `popularity`: what most users have, for want of both.
    """

    item_id: str
    title: str | None
    score: float
    source: Literal["model", "history", "popularity"]


class Run:
    """A finished run, answered from memory: the same lists as `raysys serve` and `recommend`.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).resolve()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.folder / "report.html"

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Model → metric → figure on test.

        Raises:
            UserError: the run has not been measured.
        """
        from raysys.store import read_json

        found: dict[str, dict[str, float]] = read_json(self.folder / "evaluate" / "metrics.json")[
            "models"
        ]
        return found

    def recommend(
        self,
        user_id: str | None = None,
        *,
        history: Sequence[str] = (),
        k: int = 10,
        where: Mapping[str, str] | None = None,
        exclude: Sequence[str] = (),
    ) -> list[Recommendation]:
        """The k best items for a user, or for somebody new with a history.

        Args:
            user_id: of the run; what they are known to have is left out. An unknown one is
                somebody new.
            history: item ids that somebody new likes; left out too.
            where: column of the items → value that an item must have.
            exclude: item ids that are not wanted.

        Raises:
            UserError: the run has no lists yet, or items have no such column.
        """
        with _told():
            allowed = self._shelf.allowed(exclude, where or {})
        return self._listed(self._shelf.recommend(user_id, history, k, allowed))

    def similar(self, item_id: str, k: int = 10) -> list[Recommendation]:
        """The k items nearest to one.

        Raises:
            UserError: the run has no lists yet, or not this item.
        """
        with _told():
            return self._listed(self._shelf.similar(item_id, k))

    @cached_property
    def _shelf(self) -> Shelf:
        from raysys.serving.shelf import Shelf

        return Shelf(self.folder)

    def _listed(self, found: Found) -> list[Recommendation]:
        shelf = self._shelf
        return [
            Recommendation(
                shelf.dataset.item_ids[item], shelf.titles[item], float(score), found.source
            )
            for item, score in zip(found.items.tolist(), found.scores.tolist(), strict=True)
        ]


@contextmanager
def _told() -> Iterator[None]:
    """What a run does not have is a mistake of the caller's."""
    from raysys.errors import UserError
    from raysys.serving.shelf import UnknownError

    try:
        yield
    except UnknownError as error:
        raise UserError(str(error)) from None


def run(
    config: str | os.PathLike[str], *overrides: str, stages: Sequence[str] | None = None
) -> Run:
    """Run all stages of a config, as `raysys run` does; finished ones are skipped.

    Args:
        config: a `.toml` or `.yaml` file.
        overrides: words like `train.epochs=5`.
        stages: only these, such as `["rerank"]`; what they read must have finished. None: all.

    Raises:
        UserError: a mistake in the config or the data, in words.
    """
    from raysys.pipeline import run_stages
    from raysys.settings import load_settings
    from raysys.stages.context import RunSettings

    settings = load_settings(RunSettings, Path(config), overrides)
    run_stages(settings, stages)
    return Run(settings.out)


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Open a run that has finished.

    Raises:
        UserError: there is none, or its lists have not been written.
    """
    found = Run(folder)
    _ = found._shelf
    return found
