"""Ranking metrics from a hit matrix, and the interval for a difference of two models.

Definitions (binary relevance; r = rank from 1, rel = number of relevant items of the user):

    recall@k    = hits in the first k / rel                       (RLMRec: not min(k, rel))
    capped_recall@k = hits in the first k / min(k, rel)
    precision@k = hits in the first k / k
    hr@k        = 1 where the first k hold a hit, else 0
    mrr@k       = 1 / rank of the first hit, 0 where that rank is beyond k
    map@k       = sum over hits in the first k of (precision at the hit's rank), divided by
                  min(k, rel)
    ndcg@k      = sum over hits of 1 / log2(r + 1), divided by the same sum for a list
                  that starts with min(k, rel) hits

A user without a single hit counts as 0 and stays in the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

#: Resampled users held in memory at once by `paired_bootstrap`.
_DRAWS_PER_BLOCK = 4_000_000


class Difference(NamedTuple):
    """A mean difference with its 95 % interval."""

    difference: float
    low: float
    high: float


def hit_matrix(items: np.ndarray, relevant: csr_matrix, users: np.ndarray) -> np.ndarray:
    """Look up which recommended items are relevant.

    Args:
        items: (n, K) item rows, best first; -1 fills the end of a short list.
        relevant: (U, I); every stored entry is a relevant pair.
        users: (n,) the user row of each list.

    Returns:
        (n, K) bool.

    Raises:
        ValueError: an item twice in one list: it would be counted twice.
    """
    in_order = np.sort(items, axis=1)
    repeated = ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any(axis=1)
    if repeated.any():
        raise ValueError(f"the list of user row {users[repeated.argmax()]} repeats an item.")
    pairs = relevant[users].tocoo()
    width = relevant.shape[1]
    known = np.sort(pairs.row.astype(np.int64) * width + pairs.col)
    if known.size == 0:
        return np.zeros(items.shape, dtype=bool)
    wanted = np.arange(len(users), dtype=np.int64)[:, None] * width + items
    at = np.minimum(np.searchsorted(known, wanted), known.size - 1)
    # Without the second condition the filler -1 would be the last item of the user before.
    found: np.ndarray = (known[at] == wanted) & (items >= 0)
    return found


def ranking_metrics(
    hits: np.ndarray, relevant: np.ndarray, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Recall, NDCG, hit rate, reciprocal rank, precision and MAP of every user; see the module.

    Args:
        hits: (n, K) bool, whether the item at each rank is relevant; False beyond
            the end of a short list.
        relevant: (n,) int, how many items are relevant to the user, at least 1.
        ks: cut-offs, each from 1 to K.

    Returns:
        Keys such as `recall@20`, values (n,) float64; see the module for the definitions.

    Raises:
        ValueError: shapes that do not match, a cut-off outside 1..K, a user without
            relevant items, or more hits than relevant items.
    """
    _check(hits, relevant, ks)
    users, depth = hits.shape
    discount = 1.0 / np.log2(np.arange(2, depth + 2))  # (K,)
    ideal = np.cumsum(discount)  # (K,) the best gain with 1..K relevant items
    found = np.cumsum(hits, axis=1)  # (n, K)
    gain = np.cumsum(hits * discount, axis=1)  # (n, K)
    at_rank = np.arange(1, depth + 1)
    precise = np.cumsum(hits * (found / at_rank), axis=1)  # (n, K)
    first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, depth + 1)  # (n,) from 1
    result: dict[str, np.ndarray] = {}
    for k in dict.fromkeys(ks):
        result[f"recall@{k}"] = found[:, k - 1] / relevant
        result[f"capped_recall@{k}"] = found[:, k - 1] / np.minimum(relevant, k)
        result[f"ndcg@{k}"] = gain[:, k - 1] / ideal[np.minimum(relevant, k) - 1]
        result[f"hr@{k}"] = (first <= k).astype(np.float64)
        result[f"mrr@{k}"] = np.divide(1.0, first, out=np.zeros(users), where=first <= k)
        result[f"precision@{k}"] = found[:, k - 1] / k
        result[f"map@{k}"] = precise[:, k - 1] / np.minimum(relevant, k)
    return result


def mean_metrics(per_user: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean over users of each metric, as plain floats.

    Raises:
        ValueError: no users, so there is nothing to average.
    """
    for name, values in per_user.items():
        if values.size == 0:
            raise ValueError(f"{name} has no users to average over.")
    return {name: float(values.mean()) for name, values in per_user.items()}


def paired_bootstrap(a: np.ndarray, b: np.ndarray, seed: int, resamples: int = 2000) -> Difference:
    """Mean of a - b over users with a 95 % percentile interval from resampled users.

    Pairing keeps the two figures of one user together, so that what makes a user easy
    or hard for both models does not widen the interval. It says how far the difference
    depends on which users were measured, not on the random start of the training.

    Args:
        a: (n,) a metric of one model, one value a user.
        b: (n,) the same metric and users for the other model.
        seed: the same seed gives the same interval.
        resamples: how many times n users are drawn with replacement.

    Raises:
        ValueError: shapes differ, or there are no users or resamples.
    """
    if a.ndim != 1 or a.shape != b.shape or a.size == 0 or resamples < 1:
        raise ValueError(
            f"two equally long, non-empty arrays of users are needed, got {a.shape} and {b.shape}"
            f" with {resamples} resamples."
        )
    difference = np.asarray(a, dtype=np.float64) - b
    n = difference.size
    generator = np.random.default_rng(seed)
    block = max(1, _DRAWS_PER_BLOCK // n)
    means = np.empty(resamples)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        means[start:stop] = difference[generator.integers(0, n, (stop - start, n))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(difference.mean()), float(low), float(high))


def intervals(
    per_user: Mapping[str, np.ndarray], less: Mapping[str, np.ndarray] | None, seed: int
) -> dict[str, dict[str, float]]:
    """Mean and 95 % interval of each metric as `mean`, `low`, `high`; see `paired_bootstrap`.

    Args:
        per_user: metric → (n,).
        less: the same of another model, whose figures are subtracted; None: nothing is.
        seed: the same seed gives the same intervals.
    """
    found = {}
    for name, values in per_user.items():
        other = np.zeros_like(values) if less is None else less[name]
        difference, low, high = paired_bootstrap(values, other, seed)
        found[name] = {"mean": difference, "low": low, "high": high}
    return found


def _check(hits: np.ndarray, relevant: np.ndarray, ks: Sequence[int]) -> None:
    if hits.ndim != 2 or hits.dtype != np.bool_:
        raise ValueError(f"hits must be a bool matrix, got {hits.dtype} with shape {hits.shape}.")
    if relevant.shape != (hits.shape[0],):
        raise ValueError(f"relevant has shape {relevant.shape}, expected ({hits.shape[0]},).")
    wrong = [k for k in ks if not 1 <= k <= hits.shape[1]]
    if wrong or not ks:
        raise ValueError(f"cut-offs must be from 1 to {hits.shape[1]}, got {list(ks)}.")
    if (relevant < 1).any():
        raise ValueError(
            f"row {(relevant < 1).argmax()} has no relevant item: leave such users out."
        )
    over = hits.sum(axis=1) > relevant
    if over.any():
        raise ValueError(f"row {over.argmax()} has more hits than relevant items.")
