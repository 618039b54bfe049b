from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from raysys.evaluation.candidates import candidate_metrics, hit_metrics, question_metrics


def test_worked_by_hand():
    """Ranks: 1; 3; 2 or 3 with equal chance."""
    found = candidate_metrics(
        np.array([5.0, 1.0, 2.0]),
        np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 0.0], [3.0, 2.0, 1.0]]),
        [1, 2, 3],
    )
    assert found["recall@1"].tolist() == [1, 0, 0]
    assert found["recall@2"].tolist() == [1, 0, 0.5]
    assert found["recall@3"].tolist() == [1, 1, 1]
    assert found["mrr@3"] == pytest.approx([1, 1 / 3, (1 / 2 + 1 / 3) / 2])
    assert found["ndcg@2"] == pytest.approx([1, 0, 0.5 / math.log2(3)])


def test_a_model_that_tells_nothing_apart_scores_as_chance():
    found = candidate_metrics(np.zeros(4), np.zeros((4, 20)), [3, 10])
    assert found["recall@3"] == pytest.approx([3 / 21] * 4)
    assert found["mrr@10"] == pytest.approx([sum(1 / r for r in range(1, 11)) / 21] * 4)


def test_ties_are_the_mean_over_every_order():
    rng = np.random.default_rng(3)
    positives, negatives = rng.integers(0, 3, 30) * 1.0, rng.integers(0, 3, (30, 4)) * 1.0
    found = candidate_metrics(positives, negatives, [2])
    for row in range(30):
        scores = [positives[row], *negatives[row]]
        hits = []
        for order in itertools.permutations(range(5)):
            ranked = sorted(order, key=lambda place: -scores[place])  # stable: keeps the order
            hits.append(ranked.index(0) < 2)
        assert found["recall@2"][row] == pytest.approx(np.mean(hits))


def test_the_positive_may_stand_anywhere_among_the_candidates():
    scores = np.array([[5.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 2.0, 1.0], [0.0, 9.0, 8.0]])
    found = question_metrics(scores, [0, 1, 1, 2], [1, 3])
    assert found["recall@1"].tolist() == [1, 0, 0, 0]
    assert found["mrr@3"] == pytest.approx([1, 1 / 3, 1 / 2, 1 / 2])


def test_nan_and_shapes_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        candidate_metrics(np.array([np.nan]), np.zeros((1, 2)), [1])
    with pytest.raises(ValueError, match="do not fit"):
        candidate_metrics(np.zeros(2), np.zeros((1, 2)), [1])


def test_hits_of_lists_by_hand() -> None:
    lists = np.array([[4, 2, 9], [1, 4, -1], [3, 5, 4]])
    found = hit_metrics(lists, [4, 4, 7], [1, 3])
    assert found["hr@1"].tolist() == [1, 0, 0]
    assert found["hr@3"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(found["ndcg@1"], [1, 0, 0])
    np.testing.assert_allclose(found["ndcg@3"], [1, 1 / math.log2(3), 0])
    with pytest.raises(ValueError, match="lists of 3 items cannot be measured at 5"):
        hit_metrics(lists, [4, 4, 7], [5])
