"""A trained model with what it recommends: everything an answer is made of, in memory.

I items, U users. Exact retrieval over the whole catalogue, or out of an index of a large one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix

from raysys.data.dataset import Dataset
from raysys.models.popularity import Popularity
from raysys.models.saved import Embeddings, Scorer, load_model
from raysys.observe import get_logger
from raysys.ranking.index import ItemIndex
from raysys.ranking.retrieve import best_of
from raysys.runs import RunDirectory
from raysys.schema import SPLITS, TITLE, TRAIN
from raysys.settings import nearest
from raysys.stages.recommend import MODEL_FILE
from raysys.store import read_json

logger = get_logger(__name__)
#: Items that an index is asked for beyond those that are needed, to make up for what it misses.
_SPARE = 100
#: Share of the exact best items that an index must find.
_RECALL = 0.98

#: How a list came about: the user's own model; the history alone; what most users have.
Source = Literal["model", "history", "popularity"]


class UnknownError(Exception):
    """Something a caller named that is not there."""


@dataclass(frozen=True)
class Found:
    """A list.

    Attributes:
        items, scores: (k,) item rows, best first, and their scores.
        source: how it came about.
    """

    items: np.ndarray
    scores: np.ndarray
    source: Source


class Shelf:
    """Loads a run once and answers from memory; safe to ask from several threads.

    Args:
        run: the run directory; its stages `data`, `train` and `recommend` have finished.
        index_above: catalogues of more items are searched by an index (faiss), if the model is one
            of embeddings; none: never.

    Raises:
        UserError: a stage is missing or a file is broken.
    """

    def __init__(self, run: Path, index_above: int | None = None) -> None:
        directory = RunDirectory(run)
        for stage in ("data", "train", "recommend"):
            directory.require(stage, "raysys run CONFIG")
        about = read_json(directory.path("recommend") / MODEL_FILE)
        self.model = str(about["model"])
        # Runs of version 0.1 did not say where the model is.
        folder = directory.path(about.get("stage", "train")) / self.model
        self._scorer = load_model(folder)
        self.dataset = Dataset.load(directory.path("data"))
        self.version = self.dataset.identity()[:12]
        self._users = {user: row for row, user in enumerate(self.dataset.user_ids)}
        self._items = {item: row for row, item in enumerate(self.dataset.item_ids)}
        self.titles: list[str | None] = self.dataset.items[TITLE].to_pylist()
        self._seen = self.dataset.matrix(*SPLITS, opinion=None)
        train = self.dataset.matrix(TRAIN)
        self._liked = np.diff(train.indptr)
        self._popularity = Popularity(train)
        self._columns: dict[str, dict[str, list[int]]] = {}
        self._index: ItemIndex | None = None
        if index_above is not None and len(self.titles) > index_above:
            self._index = _index_of(self._scorer)

    def rows(self, item_ids: Iterable[str]) -> np.ndarray:
        """Rows of items, unknown ones left out."""
        found = (self._items.get(one) for one in item_ids)
        return np.array([row for row in found if row is not None], np.int64)

    def user_row(self, user_id: str | None) -> int | None:
        """Row of a user of the run."""
        return self._users.get(user_id or "")

    def knows(self, user_id: str | None) -> bool:
        """Whether the model has learnt something of this user."""
        row = self._users.get(user_id or "")
        return row is not None and bool(self._liked[row])

    def recommend(
        self, user_id: str | None, history: Sequence[str], k: int, allowed: np.ndarray | None
    ) -> Found:
        """The k best items: by the user's model, else by the history, else what most have.

        Args:
            user_id: who asks; what the run knows them to have seen is left out.
            history: item ids of someone the model does not know; unknown ones count for nothing.
            allowed: (I,) bool, items that may be answered; none: all.
        """
        row = self._users.get(user_id or "")
        own = np.unique(self.rows(history))
        without = own
        if row is not None:
            start, stop = self._seen.indptr[row : row + 2]
            without = np.union1d(own, self._seen.indices[start:stop])
        known = None
        if row is None or not self.knows(user_id):
            ones = np.ones(len(own), np.float32)
            known = csr_matrix((ones, own, [0, len(own)]), (1, len(self.titles)))
            if not len(own):
                values = self._popularity.score_block(np.zeros(1, np.int64))
                return self._best(values, without, k, allowed, "popularity")
        source: Source = "model" if known is None else "history"
        if self._index is not None and allowed is None:
            found = self._out_of_index(self._index, row, known, without, k)
            if found is not None:
                return Found(*found, source)
        if known is not None:
            values = self._scorer.score_histories(known)
        else:
            values = self._scorer.score_block(np.array([row]))
        return self._best(values, without, k, allowed, source)

    def _best(
        self,
        values: np.ndarray,
        without: np.ndarray,
        k: int,
        allowed: np.ndarray | None,
        source: Source,
    ) -> Found:
        scores = np.array(values[0], np.float32)
        scores[without] = -np.inf
        if allowed is not None:
            scores[~allowed] = -np.inf
        return Found(*best_of(scores, k), source)

    def _out_of_index(
        self,
        index: ItemIndex,
        row: int | None,
        known: csr_matrix | None,
        without: np.ndarray,
        k: int,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Items and exact scores; none where the index found too few."""
        scorer = self._scorer
        assert isinstance(scorer, Embeddings)
        vector = scorer.users[row] if known is None else scorer.history_vectors(known)[0]
        found = np.setdiff1d(index.nearest(vector, k + len(without) + _SPARE), without)
        if len(found) < min(k, len(self.titles) - len(without)):
            return None
        places, scores = best_of(scorer.items[found] @ vector, k)
        return found[places], scores

    def similar(self, item_id: str, k: int) -> Found:
        """The k items nearest to one, by cosine of the model's item vectors.

        Raises:
            UnknownError: the run does not have this item.
        """
        row = self._items.get(item_id)
        if row is None:
            raise UnknownError(f"no item '{item_id}'")
        nearness = self._directions @ self._directions[row]
        nearness[row] = -np.inf
        return Found(*best_of(nearness, k), "model")

    def titled(self, words: str, most: int) -> list[int]:
        """Item rows whose title holds the words, case aside; the most liked first.

        Args:
            most: rows at most.
        """
        wanted = words.casefold()
        found = [row for row, title in enumerate(self._folded) if wanted in title]
        return sorted(found, key=lambda row: -self._popularity.counts[row])[:most]

    def allowed(self, excluded: Sequence[str], where: Mapping[str, str]) -> np.ndarray | None:
        """(I,) bool: items that a request's filters leave; none: they leave all.

        Args:
            excluded: item ids.
            where: column → value that one of the item's values must equal, case aside.

        Raises:
            UnknownError: items have no such column of text.
        """
        if not excluded and not where:
            return None
        left = np.ones(len(self.titles), dtype=bool)
        for column, value in where.items():
            rows = self._values(column).get(value.strip().casefold(), [])
            left &= np.isin(np.arange(len(left)), rows)
        left[self.rows(excluded)] = False
        return left

    @cached_property
    def _folded(self) -> list[str]:
        return [(title or "").casefold() for title in self.titles]

    @cached_property
    def _directions(self) -> np.ndarray:
        vectors = np.array(self._scorer.item_vectors(), np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        found: np.ndarray = vectors / np.maximum(lengths, 1e-12)
        return found

    def _values(self, column: str) -> dict[str, list[int]]:
        """Value → item rows of a column; cells are split at | ; and comma."""
        names = [name for name in self.dataset.items.column_names if name != TITLE]
        if column not in names:
            raise UnknownError(f"items have no column '{column}': {nearest(column, names)}")
        if column not in self._columns:
            found: dict[str, list[int]] = {}
            for row, cell in enumerate(self.dataset.items[column].to_pylist()):
                for value in _parts(cell):
                    found.setdefault(value, []).append(row)
            self._columns[column] = found
        return self._columns[column]


def _index_of(scorer: Scorer) -> ItemIndex | None:
    """An index of a model's items; none where it has no embeddings, or faiss is not installed."""
    if not isinstance(scorer, Embeddings):
        return None
    try:
        index = ItemIndex(scorer.items, scorer.users, _RECALL)
    except ImportError:
        logger.warning("every item is scored for each list: pip install 'raysys[faiss]'")
        return None
    text = "index: %d of %d lists are searched, recall %.3f"
    logger.info(text, index.probes, index.lists, index.recall)
    return index


def _parts(cell: Any) -> set[str]:
    if cell is None:
        return set()
    parts = {part.strip().casefold() for part in re.split(r"[|;,]", str(cell))}
    return {str(cell).strip().casefold(), *parts}
