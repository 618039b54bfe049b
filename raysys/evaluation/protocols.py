"""How lists are judged: all-rank, every item of the catalogue competes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from raysys.errors import UserError
from raysys.evaluation.metrics import hit_matrix, mean_metrics, ranking_metrics
from raysys.graph.bipartite import distinct_pairs
from raysys.models.base import ScoreBlock
from raysys.ranking.retrieve import retrieve


@dataclass(frozen=True)
class RankingResult:
    """Metrics of one model on one split.

    Attributes:
        metrics: mean over the evaluated users, keys such as `recall@20`.
        per_user: the same keys, (n,) float64, aligned with `users`.
        users: (n,) rows of the evaluated users: those with at least one relevant item.
        items: (n, K) their lists, best first; -1 fills the end of a short one.
    """

    metrics: dict[str, float]
    per_user: dict[str, np.ndarray]
    users: np.ndarray
    items: np.ndarray


def all_rank(
    score_block: ScoreBlock,
    train_mask: csr_matrix,
    relevant: csr_matrix,
    ks: Sequence[int],
    block: int = 1024,
) -> RankingResult:
    """Rank the whole catalogue for each user with a relevant item and measure the lists.

    Source: RLMRec, section 4.1.2 (all-rank protocol). What is masked is the caller's choice;
    the paper masks train only, so items of the validation split compete with those of test.

    Args:
        score_block: user rows (b,) -> scores (b, I).
        train_mask: (U, I); every stored non-zero pair is left out of the lists. A pair that is
            also relevant counts neither as a hit nor as a relevant item: no list could hold it.
        relevant: (U, I); every stored non-zero pair is relevant.
        ks: cut-offs.
        block: users scored at once; it does not change the result.

    Raises:
        UserError: no user has a relevant item.
        ValueError: shapes differ, or scores hold a NaN.
    """
    if train_mask.shape != relevant.shape:
        raise ValueError(f"mask {train_mask.shape} and relevant {relevant.shape} differ in shape.")
    mask = _pattern(train_mask)
    wanted = _pattern(relevant)
    wanted = _pattern(wanted - wanted.multiply(mask))
    counts = np.diff(wanted.indptr).astype(np.int64)
    users = np.flatnonzero(counts)
    if users.size == 0:
        raise UserError(
            "no user has a relevant item outside the mask, so there is nothing to evaluate: "
            "check the split."
        )
    items, _ = retrieve(score_block, users, mask, max(ks), block)
    per_user = ranking_metrics(hit_matrix(items, wanted, users), counts[users], ks)
    return RankingResult(mean_metrics(per_user), per_user, users, items)


def _pattern(matrix: csr_matrix) -> csr_matrix:
    """The pairs of a matrix as 0/1: repeated entries once, stored zeros gone."""
    pattern = distinct_pairs(matrix)
    pattern.data = np.ones(pattern.nnz, dtype=np.int8)
    return pattern
