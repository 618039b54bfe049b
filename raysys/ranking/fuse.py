"""The language model's scores and the graph's become one order, within bounds.

Source: End-to-End Personalization §2.3 (weights 0.8 and 0.2). The paper adds scores of different
scales; here both are first brought to 0 … 1.
"""

from __future__ import annotations

import numpy as np


def min_max(scores: np.ndarray) -> np.ndarray:
    """Scores from 0 to 1, (n,); all 0 where they are all the same."""
    low, high = (scores.min(), scores.max()) if scores.size else (0.0, 0.0)
    if high <= low:
        return np.zeros(len(scores))
    scaled: np.ndarray = (scores - low) / (high - low)
    return scaled


def fuse(llm: np.ndarray, graph: np.ndarray, weight: float) -> np.ndarray:
    """weight · LLM + (1 − weight) · graph, both min-max scaled.

    Args:
        llm, graph: (n,) scores of the pool, higher is better.
        weight: from 0, the graph alone, to 1.

    Raises:
        ValueError: a score is not finite, or lengths differ.
    """
    if llm.shape != graph.shape or not (np.isfinite(llm).all() and np.isfinite(graph).all()):
        raise ValueError("both need one finite score for each candidate.")
    return weight * min_max(llm) + (1 - weight) * min_max(graph)


def order_of(scores: np.ndarray, max_rank_shift: int | None = None) -> np.ndarray:
    """Places of the pool, best first; equals stay in the graph's order.

    Args:
        scores: (n,) of the candidates in the graph's order.
        max_rank_shift: nobody moves up or down by more places than this, whatever item text
            made the model say; None: no bound.

    Returns:
        (n,) int64, a permutation.
    """
    pool = len(scores)
    wanted: np.ndarray = np.argsort(-scores, kind="stable")
    if max_rank_shift is None:
        return wanted
    left, order = list(wanted), []
    for rank in range(pool):
        # At most one candidate has to be placed now; all that may be are in `left`.
        late = rank - max_rank_shift
        chosen = late if late in left else next(one for one in left if one <= rank + max_rank_shift)
        left.remove(chosen)
        order.append(chosen)
    return np.array(order, dtype=np.int64)
