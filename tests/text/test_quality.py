from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from raysys.text.quality import (
    heldout_auc,
    is_copied,
    text_figures,
    tfidf_scores,
    vector_figures,
)


def test_lengths_and_repeats():
    found = text_figures(["One two three.", "one two, THREE", "a b c d", "e"])
    assert found["words_median"] == 3
    assert found["duplicate_rate"] == 0.25
    assert text_figures([]) == {}


@pytest.mark.parametrize(
    ("text", "question", "copied"),
    [
        ("a tale of two brave cities", 'description: "A tale of two brave cities"', True),
        ("fans of tales about brave cities", "a tale of two brave cities", False),
        ("a tale", "a tale", False),
    ],
)
def test_copies_are_seen(text, question, copied):
    assert is_copied(text, question) is copied


def test_distinctness_of_equal_and_of_orthogonal_vectors():
    assert vector_figures(np.ones((9, 4)))["distinctness"] == pytest.approx(0, abs=1e-6)
    assert vector_figures(np.eye(500))["distinctness"] == 1
    assert vector_figures(np.ones((1, 4))) == {}


def test_auc_worked_by_hand_and_by_words():
    known = csr_matrix(np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32))
    users, items = np.array([0] * 50 + [1] * 50), np.array([2] * 50 + [3] * 50)
    perfect = heldout_auc(lambda u, i: (i == u + 2).astype(float), users, items, known)
    assert perfect == {"auc": 1.0}
    assert heldout_auc(lambda u, i: np.zeros(len(u)), users, items, known) == {"auc": 0.5}
    scores = tfidf_scores(["red ships", "blue cars", "red ships sail", "blue cars race"], known)
    assert heldout_auc(scores, users, items, known) == {"auc": 1.0}
    assert tfidf_scores([None, "", "."], csr_matrix((1, 3))) is None
    assert heldout_auc(lambda u, i: u, users[:0], items[:0], known) == {}
