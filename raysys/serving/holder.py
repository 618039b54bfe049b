"""What is served now, and the answers that are kept of it."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysys.errors import UserError
from raysys.observe import get_logger
from raysys.serving.limit import AdaptiveLimit
from raysys.serving.published import served_run, verified
from raysys.serving.reranking import Reranker
from raysys.serving.settings import ServeSettings
from raysys.serving.shelf import Shelf
from raysys.text.online import Online

logger = get_logger(__name__)


@dataclass(frozen=True)
class Served:
    """A version, its shelf, and what reranks it, if there is a language model."""

    version: str
    shelf: Shelf
    reranker: Reranker | None

    @property
    def named(self) -> str:
        """The version as callers are told: of what was published, or of the run's data."""
        return self.version or self.shelf.version


class Holder:
    """The model that is served now; another one is swapped in between two requests.

    Args:
        settings: whose run, or folder of published models, is served.
        model: the language model; none: nothing is reranked.

    Attributes:
        limit: how many lists the language model is asked for at once.

    Raises:
        UserError: there is no model that can be served.
    """

    def __init__(self, settings: ServeSettings, model: Online | None = None) -> None:
        self._settings, self._model = settings, model
        self.limit = AdaptiveLimit(settings.rerank_at_once)
        self._refused = ""
        self.served = self._load(*served_run(settings.run))

    def _load(self, version: str, run: Path) -> Served:
        if version:
            verified(run)
        shelf, rerank = Shelf(run, self._settings.index_above), self._settings.rerank
        if rerank is None or self._model is None:
            return Served(version, shelf, None)
        return Served(version, shelf, Reranker(rerank, shelf, run, self._model, self.limit))

    def look(self) -> bool:
        """Swap in what was published since; whether there was something. Never raises.

        A version that cannot be loaded is refused once, and the one before goes on.
        """
        try:
            version, run = served_run(self._settings.run)
        except UserError as error:
            logger.error("the model stays as it is: %s", error)
            return False
        if version in (self.served.version, self._refused):
            return False
        try:
            self.served = self._load(version, run)
        except Exception as error:
            self._refused = version
            logger.error("version %s is not served: %s", version, error)
            return False
        logger.info("version %s is served", version)
        return True


class ListCache:
    """The latest answers as JSON, until they are too old or another model is served."""

    def __init__(self, size: int, seconds: float) -> None:
        self._size, self._seconds = size, seconds
        self._kept: OrderedDict[tuple[Any, ...], tuple[float, bytes]] = OrderedDict()

    def get(self, key: tuple[Any, ...]) -> bytes | None:
        """What is kept under a key."""
        found = self._kept.get(key)
        if found is None or found[0] < time.monotonic():
            return None
        self._kept.move_to_end(key)
        return found[1]

    def put(self, key: tuple[Any, ...], value: bytes) -> None:
        """Keep an answer; the one asked for longest ago makes room."""
        if self._size:
            self._kept[key] = (time.monotonic() + self._seconds, value)
            self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
