"""Which interactions stay: one a pair, ratings above a threshold, the k-core.

All functions work on row numbers of users and items (int64, one entry an
interaction) and return a boolean array: true = the interaction stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def has_repeats(values: Rows) -> bool:
    """Whether a value is there twice; sorting plain integers is numpy's quickest way to tell."""
    return bool((np.diff(np.sort(values)) == 0).any())


def latest_of_pair(users: Rows, items: Rows, times: Sequence[Rows]) -> Mask:
    """Keep the latest interaction of every (user, item) pair.

    Args:
        users: user rows, shape (n,).
        items: item rows, shape (n,).
        times: sort keys of shape (n,), the most important first; where all are
            equal, or none is given, the later row is the later interaction.
    """
    pairs = users * (int(items.max(initial=0)) + 1) + items
    if not has_repeats(pairs):
        return np.ones(len(pairs), dtype=np.bool_)
    # lexsort takes its main key last and is stable: rows stay in order where all keys are equal.
    order = np.lexsort((*reversed(times), pairs))
    last = np.append(np.diff(pairs[order]) != 0, True)
    keep = np.zeros(len(pairs), dtype=np.bool_)
    keep[order[last]] = True
    return keep


def k_core(users: Rows, items: Rows, k: int) -> Mask:
    """Keep the largest set in which every user and every item has at least k interactions.

    Dropping a user may bring an item below k and the other way round, so both
    are dropped in turn until nothing changes.
    """
    rows = np.arange(len(users))
    while True:
        rich_users = np.bincount(users[rows]) >= k
        rich_items = np.bincount(items[rows]) >= k
        kept = rows[rich_users[users[rows]] & rich_items[items[rows]]]
        if len(kept) == len(rows):
            keep = np.zeros(len(users), dtype=np.bool_)
            keep[kept] = True
            return keep
        rows = kept
