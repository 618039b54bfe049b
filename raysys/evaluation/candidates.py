"""Ranking one positive among a few sampled negatives, ties by expected rank (LLM-TRSR §5.2).

Users n, negatives m each. The released code puts the positive first among equals, so that a model
which gives everything the same score ranks perfectly. Here such a positive is equally likely at
every place among its equals, and a metric is its mean over these places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: What decides the best epoch and the early stop of models that rank candidates.
WATCHED = "mrr@10"


def question_metrics(
    scores: np.ndarray, targets: Sequence[int], ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """`candidate_metrics` where the positive of each row stands at a place of its own.

    Args:
        scores: (n, 1 + m).
        targets: (n,) place of the positive.
    """
    rows, places = np.arange(len(scores)), np.asarray(targets)
    negatives = np.delete(scores, rows * scores.shape[1] + places).reshape(len(scores), -1)
    return candidate_metrics(scores[rows, places], negatives, ks)


def hit_metrics(
    lists: np.ndarray, targets: Sequence[int], ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """HR and NDCG of lists where one item each is the right one (ELMRec §5.1).

    At rank r (from 1) hr@k = [r ≤ k] and ndcg@k = [r ≤ k] / log₂(r + 1).

    Args:
        lists: (n, K) items, best first, −1 for none; K at least the largest of `ks`.
        targets: (n,) the right items.
        ks: cut-offs.

    Returns:
        `hr@k`, `ndcg@k` → (n,) float64.
    """
    if lists.shape[1] < max(ks):
        raise ValueError(f"lists of {lists.shape[1]} items cannot be measured at {max(ks)}")
    hits = lists == np.asarray(targets)[:, None]
    gains = hits / np.log2(np.arange(2, lists.shape[1] + 2))
    found = {}
    for k in ks:
        found[f"hr@{k}"] = hits[:, :k].any(axis=1).astype(np.float64)
        found[f"ndcg@{k}"] = gains[:, :k].max(axis=1)
    return found


def candidate_metrics(
    positives: np.ndarray, negatives: np.ndarray, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Recall, MRR and NDCG of each user's positive.

    With g negatives above and t beside it, the positive is at a rank r from g + 1 to g + t + 1:
    recall@k = mean of [r ≤ k], mrr@k = mean of [r ≤ k] / r, ndcg@k = mean of [r ≤ k] / log₂(r + 1).

    Args:
        positives: (n,) scores.
        negatives: (n, m) scores.
        ks: cut-offs.

    Returns:
        `recall@k`, `mrr@k`, `ndcg@k` → (n,) float64.

    Raises:
        ValueError: a score is NaN, or shapes do not fit.
    """
    if negatives.ndim != 2 or positives.shape != negatives.shape[:1]:
        raise ValueError(f"positives {positives.shape} and negatives {negatives.shape} do not fit")
    if np.isnan(positives).any() or np.isnan(negatives).any():
        raise ValueError("a score is NaN")
    above = (negatives > positives[:, None]).sum(axis=1)
    beside = (negatives == positives[:, None]).sum(axis=1)
    ranks = np.arange(1, negatives.shape[1] + 2)
    gains = {"recall": np.ones(len(ranks)), "mrr": 1 / ranks, "ndcg": 1 / np.log2(ranks + 1)}
    found = {}
    for k in ks:
        for name, gain in gains.items():
            sums = np.concatenate([[0.0], np.cumsum(np.where(ranks <= k, gain, 0.0))])
            found[f"{name}@{k}"] = (sums[above + beside + 1] - sums[above]) / (beside + 1)
    return found
