"""Measure anybody's lists: a file of user_id, item_id and rank against a data set's test rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_matrix

from raysys.data import columns
from raysys.data.sources import Source, read_source
from raysys.data.tables import interactions_of
from raysys.errors import UserError
from raysys.evaluation.metrics import hit_matrix, ranking_metrics
from raysys.ranking.retrieve import NO_ITEM
from raysys.schema import (
    INTERACTIONS_FILE,
    ITEM_ID,
    LIKED,
    OPINION,
    RANK,
    RATING,
    SPLIT,
    TEST,
    USER_ID,
)

PROTOCOLS = ("all-rank", "condensed")
METRICS = ("precision", "recall", "ndcg", "map", "mrr")


@dataclass(frozen=True)
class Held:
    """What was held out of a data set.

    Attributes:
        users, items: ids, text.
        rated: (U, I) all test pairs.
        relevant: (U, I) those that count as hits.
    """

    users: pa.Array
    items: pa.Array
    rated: csr_matrix
    relevant: csr_matrix


@dataclass(frozen=True)
class ListFigures:
    """Figures of lists.

    Attributes:
        metrics: precision, recall, ndcg, map, mrr: means over `users` users.
        users: how many were measured.
        without_list: how many of them had no list, and so count as 0.
        unknown: rows of the file whose user or item is not in the data set's interactions; an
            unknown item keeps its place in the list and is no hit.
    """

    metrics: dict[str, float]
    users: int
    without_list: int
    unknown: int


def held_out(folder: Path, fold: str | None, relevance: float | None) -> Held:
    """Read the test rows of a data set folder.

    Args:
        folder: holds `interactions.parquet`; imported by raysys or not.
        fold: name of the boolean column that is true for test; None: `split` says test.
        relevance: ratings from here on are relevant; None: the likes, if the data set was
            imported with `liked_from`, else every test row.

    Raises:
        UserError: naming the file and the column that is missing or wrong.
    """
    source = read_source(folder / INTERACTIONS_FILE)
    split = None if fold else source.require(SPLIT, {})
    if fold and fold not in source.table.column_names:
        raise source.lacks(fold, "--fold")
    if relevance is not None:
        source.require(RATING, {})
    table = interactions_of(source, {}, split=split, fold=fold)
    test = table[fold] if fold else pc.equal(table[SPLIT], TEST)
    if relevance is not None:
        relevant = pc.greater_equal(table[RATING], relevance)
    elif OPINION in source.table.column_names:
        relevant = pc.equal(source.table[OPINION], LIKED)
    else:
        relevant = pa.chunked_array([pa.repeat(True, len(table))])
    users, items = table[USER_ID].unique(), table[ITEM_ID].unique()
    places = _places(table[USER_ID], users), _places(table[ITEM_ID], items)
    held = np.asarray(test)
    hits = held & np.asarray(pc.fill_null(relevant, False))
    shape = (len(users), len(items))
    return Held(users, items, _pairs(places, held, shape), _pairs(places, hits, shape))


def measure_lists(path: Path, held: Held, k: int, protocol: str = "all-rank") -> ListFigures:
    """Measure the first `k` entries of each user's list.

    `all-rank`: every user with a relevant item counts, zero hits and missing lists too.
    `condensed`, for comparison with End-to-End Personalization's code alone: what the user did
    not rate in test is first deleted from the k, precision is over what is left, and users with
    nothing left are skipped. It flatters: a list of unknown items is not measured at all.

    Args:
        protocol: one of `PROTOCOLS`.
        path: a file with user_id, item_id and rank (whole numbers; lower is better).

    Raises:
        UserError: the file is broken, an item or a rank stands twice in a list, nobody is left.
    """
    items, unknown = _read_lists(path, held, k)
    relevant = np.diff(held.relevant.indptr).astype(np.int64)
    users = np.flatnonzero(relevant)
    listed = (items[users] != NO_ITEM).any(axis=1)
    if protocol == "condensed":
        rated = _known(items, held.rated)
        order = np.argsort(~rated, axis=1, kind="stable")
        items = np.where(
            np.take_along_axis(rated, order, axis=1), np.take_along_axis(items, order, axis=1), -1
        )
        users = users[(items[users] >= 0).any(axis=1)]
    if not users.size:
        raise UserError(
            f"{path}: no user with a relevant test item is left to measure ({len(relevant)} users "
            "in the data set): check --fold, --relevance and that ids are the same text."
        )
    kept = items[users]
    hits = hit_matrix(np.where(kept >= 0, kept, NO_ITEM), held.relevant, users)
    found = ranking_metrics(hits, relevant[users], [k])
    if protocol == "condensed":
        found[f"precision@{k}"] = hits.sum(axis=1) / (kept >= 0).sum(axis=1)
    return ListFigures(
        {name: float(found[f"{name}@{k}"].mean()) for name in METRICS},
        len(users),
        int((~listed).sum()) if protocol == "all-rank" else 0,
        unknown,
    )


#: Stands in a list for an item that the data set does not have.
_UNKNOWN = -2


def _read_lists(path: Path, held: Held, k: int) -> tuple[np.ndarray, int]:
    """(U, k) item places, `NO_ITEM` where there is none; and how many rows name unknown ids."""
    source = read_source(path)
    users, items = (
        columns.ids(source.column(source.require(name, {}))) for name in (USER_ID, ITEM_ID)
    )
    ranks = np.asarray(columns.integers(source.column(source.require(RANK, {}))))
    _refuse_repeats(source, users, items, ITEM_ID)
    _refuse_repeats(source, users, pa.chunked_array([pa.array(ranks)]), RANK)
    user_places, item_places = _places(users, held.users), _places(items, held.items)
    unknown = (user_places < 0) | (item_places < 0)
    item_places[item_places < 0] = _UNKNOWN
    mine = user_places >= 0
    order = np.lexsort((ranks[mine], user_places[mine]))
    owners, entries = user_places[mine][order], item_places[mine][order]
    starts = np.searchsorted(owners, np.arange(len(held.users)))
    place = np.arange(len(owners)) - starts[owners]
    found = np.full((len(held.users), k), NO_ITEM, dtype=np.int64)
    first = place < k
    found[owners[first], place[first]] = entries[first]
    return found, int(unknown.sum())


def _refuse_repeats(
    source: Source, users: pa.ChunkedArray, values: pa.ChunkedArray, name: str
) -> None:
    pairs = pa.table({"user": users, "value": values})
    counts = pairs.group_by(["user", "value"]).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    if len(twice):
        row = twice.slice(0, 1).to_pylist()[0]
        raise UserError(
            f"{source.path}: the list of user '{row['user']}' has {name} '{row['value']}' "
            f"{row['count_all']} times."
        )


def _known(items: np.ndarray, rated: csr_matrix) -> np.ndarray:
    """(U, k) bool: whether the user rated the item in test."""
    return hit_matrix(np.where(items >= 0, items, NO_ITEM), rated, np.arange(len(items)))


def _places(values: pa.ChunkedArray, ids: pa.Array) -> np.ndarray:
    found = pc.fill_null(pc.index_in(values, value_set=ids), -1)
    places: np.ndarray = pc.cast(found, pa.int64()).to_numpy().copy()
    return places


def _pairs(
    places: tuple[np.ndarray, np.ndarray], chosen: np.ndarray, shape: tuple[int, int]
) -> csr_matrix:
    users, items = (part[chosen] for part in places)
    return csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape)
