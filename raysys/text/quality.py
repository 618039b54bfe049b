"""Figures that tell whether an LLM's texts can be used, beside whether they could be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_matrix

#: A text is copied when so large a share of its word sequences is in the question.
COPIED_SHARE, _SEQUENCE = 0.8, 4


def text_figures(texts: Sequence[str]) -> dict[str, float]:
    """Lengths and repeats.

    Returns:
        `words_p5`, `words_median`, `words_p95`; `duplicate_rate`: the share of texts that an
        earlier one repeats word for word. Nothing where there is no text.
    """
    if not texts:
        return {}
    words = [_words(text) for text in texts]
    lengths = np.array([len(found) for found in words])
    low, middle, high = np.percentile(lengths, (5, 50, 95))
    return {
        "words_p5": float(low),
        "words_median": float(middle),
        "words_p95": float(high),
        "duplicate_rate": round(1 - len({" ".join(found) for found in words}) / len(words), 4),
    }


def _words(text: str) -> list[str]:
    return "".join(
        character if character.isalnum() else " " for character in text.casefold()
    ).split()


def _sequences(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + _SEQUENCE]) for start in range(len(words) - _SEQUENCE + 1)}


def is_copied(text: str, question: str) -> bool:
    """Whether a text's sequences of four words stand, to at least 80 %, in the question."""
    words = _words(text)
    if len(words) < _SEQUENCE:
        return False
    mine = _sequences(words)
    return len(mine & _sequences(_words(question))) >= COPIED_SHARE * len(mine)


def vector_figures(vectors: np.ndarray, seed: int = 0, pairs: int = 20_000) -> dict[str, float]:
    """How different vectors are from each other.

    Args:
        vectors: (n, s), one a text.

    Returns:
        `distinctness`: 1 − the mean cosine of random pairs; 0 where all are alike.
    """
    if len(vectors) < 2:
        return {}
    draw = np.random.default_rng(seed)
    first = draw.integers(0, len(vectors), pairs)
    second = (first + draw.integers(1, len(vectors), pairs)) % len(vectors)
    lengths = np.linalg.norm(vectors, axis=1).clip(min=1e-12)
    cosines = np.einsum("ij,ij->i", vectors[first], vectors[second])
    return {
        "distinctness": round(1 - float((cosines / lengths[first] / lengths[second]).mean()), 4)
    }


def heldout_auc(
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    users: np.ndarray,
    items: np.ndarray,
    known: csr_matrix,
    seed: int = 0,
) -> dict[str, float]:
    """How often a held-out item scores above a random item that its user lacks.

    Args:
        score: (n,) user rows and (n,) item rows to (n,) scores.
        users, items: (n,) rows of the held-out interactions.
        known: (U, I), the train interactions; a draw among their items is left out.

    Returns:
        `auc`: the area under the ROC curve, ties counting half; nothing where there is no pair.
    """
    if not len(users):
        return {}
    negatives = np.random.default_rng(seed).integers(0, known.shape[1], len(users))
    seen = np.asarray(known[users, negatives]).ravel() > 0
    keep = ~seen & (negatives != items)
    if not keep.any():
        return {}
    positive = score(users[keep], items[keep])
    negative = score(users[keep], negatives[keep])
    wins = (positive > negative) + 0.5 * (positive == negative)
    return {"auc": round(float(wins.mean()), 4)}


def tfidf_scores(
    texts: Sequence[str | None], known: csr_matrix
) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """Scores by the words of the items' texts: users are the sum of their train items.

    Args:
        texts: (I,), None where an item has none.
        known: (U, I), the train interactions.

    Returns:
        What `heldout_auc` takes; None where no text has a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        vectors = TfidfVectorizer(sublinear_tf=True).fit_transform([text or "" for text in texts])
    except ValueError:
        return None
    mine = (known @ vectors).tocsr()

    def score(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.asarray(mine[users].multiply(vectors[items]).sum(axis=1)).ravel()
        return found

    return score
