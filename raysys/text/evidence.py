"""What the LLM is shown of items and users: descriptions, sampled reviews, chosen items.

Everything about a user comes from *train* interactions, and so do reviews.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.schema import DISLIKED, ITEM_ID, LIKED, RATING, REVIEW, SPLITS, TITLE, TRAIN
from raysys.settings import nearest
from raysys.text.prompts import Shown

DESCRIPTION = "description"
Rows = np.ndarray[Any, Any]


def item_columns(items: pa.Table, wanted: tuple[str, ...], key: str) -> tuple[str, ...]:
    """The columns that describe items: those that are asked for, else all beside id and title.

    Raises:
        UserError: a column of the settings is not there; `key` is the setting.
    """
    skip = {ITEM_ID, TITLE, DESCRIPTION}
    for name in wanted:
        if name not in items.column_names:
            close = nearest(name, items.column_names)
            raise UserError(f"{key}: items have no column '{name}': {close}")
    return wanted or tuple(name for name in items.column_names if name not in skip)


def shown_items(items: pa.Table, wanted: tuple[str, ...], characters: int, key: str) -> list[Shown]:
    """Each item's title, the columns asked for (none: all) and its description, as far as known.

    Args:
        characters: longer values are cut.
        key: the setting that names the columns.
    """
    columns = item_columns(items, wanted, key)
    if not wanted and DESCRIPTION in items.column_names:
        columns = (*columns, DESCRIPTION)
    return [
        {name: str(value)[:characters] for name, value in row.items() if value not in (None, "")}
        for row in items.select([TITLE, *columns]).to_pylist()
    ]


def describe_items(
    items: pa.Table, wanted: tuple[str, ...], characters: int
) -> tuple[list[str | None], np.ndarray]:
    """One description an item: its `description`, else `column: value; …` over its columns.

    Returns:
        The descriptions, cut after so many characters, and (I,) bool: the description is the
        item's own.
    """
    columns = item_columns(items, wanted, "profiles.description_columns")
    own = items[DESCRIPTION].to_pylist() if DESCRIPTION in items.column_names else None
    found: list[str | None] = []
    is_own = np.zeros(items.num_rows, dtype=bool)
    for row, attributes in enumerate(items.select(list(columns)).to_pylist()):
        text = own[row] if own and not wanted else None
        is_own[row] = bool(text)
        if not text:
            known = {name: value for name, value in attributes.items() if value not in (None, "")}
            text = "; ".join(f"{name.replace('_', ' ')}: {known[name]}" for name in known)
        found.append(text[:characters] or None)
    return found, is_own


def sample_per_row(rows: Rows, values: Rows, n_rows: int, limit: int, seed: int) -> list[Rows]:
    """Draw at most `limit` values for each row, without replacement.

    Args:
        rows: (n,) user or item rows of the interactions, in any order.
        values: (n,) what is drawn.

    Returns:
        `n_rows` arrays of values; a row without interactions gets an empty one.
    """
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    order = shuffled[np.argsort(rows[shuffled], kind="stable")]
    starts = np.searchsorted(rows[order], np.arange(n_rows + 1))
    return [values[order[start : min(end, start + limit)]] for start, end in pairwise(starts)]


def train_rows(dataset: Dataset, opinion: int | None = LIKED) -> Rows:
    """Places of the train interactions, by user and in time order within a user.

    Args:
        opinion: see `Dataset.pairs`.
    """
    chosen = dataset.labels == SPLITS.index(TRAIN)
    if opinion is not None:
        chosen &= dataset.opinions == opinion
    rows: Rows = np.flatnonzero(chosen)
    return rows


def reviews_of(dataset: Dataset, characters: int) -> list[str | None] | None:
    """The review of each interaction, cut after so many characters; None: there are none."""
    if REVIEW not in dataset.interactions.column_names:
        return None
    texts = dataset.interactions[REVIEW].to_pylist()
    return [str(text)[:characters] if text else None for text in texts]


def item_reviews(
    dataset: Dataset, reviews: list[str | None], per_item: int, seed: int
) -> list[list[str]]:
    """Sampled train reviews of each item (RLMRec §3.2.2)."""
    rows = train_rows(dataset, opinion=None)
    rows = rows[[bool(reviews[row]) for row in rows]]
    drawn = sample_per_row(dataset.item_rows[rows], rows, len(dataset.item_ids), per_item, seed)
    return [[reviews[row] or "" for row in mine] for mine in drawn]


def liked_and_disliked(
    dataset: Dataset,
    n_liked: int,
    n_disliked: int,
    *,
    extreme: bool,
) -> tuple[list[Rows], list[Rows]]:
    """Items that each user liked and disliked in train, oldest first.

    Which is which was said at import (`data.liked_from`, `data.disliked_to`); without ratings
    everything was liked.

    Args:
        extreme: the highest and lowest rated ones, later ones first among equals (the paper), not
            the latest ones (its code).

    Returns:
        For each user an array of item rows, liked; the same, disliked.
    """
    rows = train_rows(dataset, opinion=None)
    users, items = dataset.user_rows[rows], dataset.item_rows[rows]
    rated = RATING in dataset.interactions.column_names
    ratings = dataset.interactions[RATING].to_numpy()[rows] if rated else np.full(len(rows), np.inf)
    opinions = dataset.opinions[rows]
    bounds = np.searchsorted(users, np.arange(len(dataset.user_ids) + 1))
    liked, disliked = [], []
    for start, end in pairwise(bounds):
        mine, scores, said = items[start:end], ratings[start:end], opinions[start:end]
        liked.append(_pick(mine, scores, said == LIKED, n_liked, extreme))
        disliked.append(_pick(mine, -scores, said == DISLIKED, n_disliked, extreme))
    return liked, disliked


def _pick(items: Rows, scores: Rows, mask: np.ndarray, limit: int, extreme: bool) -> Rows:
    places = np.flatnonzero(mask)
    if extreme:
        best = sorted(places, key=lambda place: (-scores[place], -place))[:limit]
        places = np.array(sorted(best), dtype=np.int64)
    kept: Rows = items[places[max(0, len(places) - limit) :]]
    return kept
