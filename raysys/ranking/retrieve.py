"""Exact retrieval: the k best items of every user, in blocks of users.

The order is fully determined: descending score, equal scores by lower item row. An item
whose score is -inf is never returned; where fewer than k items are left, the end of the
list is filled with item -1 and score -inf.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import csr_matrix

from raysys.models.base import ScoreBlock

#: Fills the end of a list that has fewer than k items.
NO_ITEM = -1

#: Rows of `_settle_ties` worked on at once: its temporaries take several times their scores.
_ROWS_PER_REPAIR = 128


def top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each row.

    Args:
        scores: (b, I), compared as float32; -inf marks an item that must not appear.
        k: list length, may exceed I.

    Returns:
        items (b, k) int64 and scores (b, k) float32; see the module for order and filling.

    Raises:
        ValueError: k below 1, scores that are not a matrix, or a NaN (its row is named).
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    if scores.ndim != 2:
        raise ValueError(f"scores must be a matrix, got shape {scores.shape}.")
    _refuse_nan(scores, np.arange(len(scores)), "row")
    values = np.ascontiguousarray(scores, dtype=np.float32)
    rows, width = values.shape
    items = np.full((rows, k), NO_ITEM, dtype=np.int64)
    best = np.full((rows, k), -np.inf, dtype=np.float32)
    depth = min(k, width)
    if depth == 0 or rows == 0:
        return items, best
    found, chosen = (part.numpy() for part in torch.topk(torch.from_numpy(values), depth))
    _settle_ties(values, found, chosen)
    chosen.sort(axis=1)
    found = np.take_along_axis(values, chosen, axis=1)
    # Columns are in item order, so a stable sort by score leaves equal scores in item order.
    order = np.argsort(-found, axis=1, kind="stable")
    best[:, :depth] = np.take_along_axis(found, order, axis=1)
    items[:, :depth] = np.take_along_axis(chosen, order, axis=1)
    items[np.isneginf(best)] = NO_ITEM
    return items, best


def best_of(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`top_k` of a single row, with less around it: for one caller who waits.

    Args:
        scores: (I,) float32 without NaN; -inf marks an item that must not appear.
        k: list length, at least 1.

    Returns:
        items (n,) int64 and scores (n,) float32, n at most k: there is no filling.
    """
    chosen = np.arange(len(scores))
    if k < len(scores):
        last = np.partition(scores, len(scores) - k)[len(scores) - k]
        chosen = np.flatnonzero(scores >= last)
    chosen = chosen[scores[chosen] > -np.inf]
    # Rows ascend, so that a stable sort by score leaves equal scores in item order.
    items = chosen[np.argsort(-scores[chosen], kind="stable")[:k]]
    return items, scores[items]


def mask_seen(scores: np.ndarray, seen: csr_matrix, rows: np.ndarray) -> None:
    """Set the score of every seen item to -inf, in place.

    Args:
        scores: (b, I) float.
        seen: (U, I); every stored entry is a seen pair.
        rows: (b,) user row of each row of `scores`.
    """
    part = seen[rows]
    scores[np.repeat(np.arange(len(rows)), np.diff(part.indptr)), part.indices] = -np.inf


def retrieve(
    score_block: ScoreBlock,
    users: np.ndarray,
    seen: csr_matrix,
    k: int,
    block: int = 1024,
    on_block: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best unseen items of each user; memory is bounded by `block` rows of scores.

    Args:
        score_block: user rows (b,) -> scores (b, I); its result is copied, never changed.
        users: (n,) user rows.
        seen: (U, I); every stored entry is left out of the user's list.
        k: list length.
        block: users scored at once.
        on_block: told the number of finished users after each block.

    Returns:
        items (n, k) int64 and scores (n, k) float32; see the module for order and filling.

    Raises:
        ValueError: block or k below 1, scores of a wrong shape, or a NaN score (the user
            row is named).
    """
    if block < 1 or k < 1:
        raise ValueError(f"block and k must be at least 1, got {block} and {k}.")
    items = np.empty((len(users), k), dtype=np.int64)
    best = np.empty((len(users), k), dtype=np.float32)
    for start in range(0, len(users), block):
        rows = users[start : start + block]
        scores = np.array(score_block(rows), dtype=np.float32)
        if scores.shape != (len(rows), seen.shape[1]):
            raise ValueError(
                f"scores have shape {scores.shape}, expected {(len(rows), seen.shape[1])}."
            )
        # Before masking, which would hide a NaN at a seen item.
        _refuse_nan(scores, rows, "user row")
        mask_seen(scores, seen, rows)
        stop = start + len(rows)
        items[start:stop], best[start:stop] = top_k(scores, k)
        if on_block is not None:
            on_block(stop)
    return items, best


def _settle_ties(values: np.ndarray, found: np.ndarray, chosen: np.ndarray) -> None:
    """Where more items share the last score than fit, choose those with the lowest rows.

    `torch.topk` takes any of them. `found` and `chosen` are (b, depth); rows of `chosen`
    are rewritten in place.
    """
    last = found[:, -1:]
    crowded = np.flatnonzero(
        ((values == last).sum(axis=1) > (found == last).sum(axis=1)) & ~np.isneginf(last[:, 0])
    )
    for start in range(0, len(crowded), _ROWS_PER_REPAIR):
        row = crowded[start : start + _ROWS_PER_REPAIR]
        above = values[row] > last[row]
        level = values[row] == last[row]
        room = chosen.shape[1] - above.sum(axis=1, keepdims=True)
        keep = above | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= room))
        chosen[row] = np.nonzero(keep)[1].reshape(len(row), -1)


def _refuse_nan(scores: np.ndarray, rows: np.ndarray, name: str) -> None:
    bad = np.isnan(scores).any(axis=1)
    if bad.any():
        raise ValueError(f"{name} {rows[bad.argmax()]} has a NaN score: the model is broken.")
