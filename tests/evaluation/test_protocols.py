"""The all-rank protocol: who is evaluated, what is masked, and hand-worked figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from raysys.errors import UserError
from raysys.evaluation.protocols import all_rank

# Five users and items. Popularity of items 0..4 in train: 3, 2, 2, 1, 0.
TRAIN = csr_matrix(
    np.array(
        [
            [1, 1, 0, 0, 0],
            [1, 0, 1, 0, 0],
            [1, 0, 0, 1, 0],
            [0, 1, 1, 0, 0],
            [0, 0, 0, 0, 0],
        ]
    )
)
TEST = csr_matrix(
    np.array(
        [
            [0, 0, 1, 0, 0],
            [0, 1, 0, 0, 1],
            [0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1],
            [1, 1, 1, 0, 0],
        ]
    )
)


def popularity(rows: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.asarray(TRAIN.sum(axis=0), dtype=np.float32), (len(rows), 5))


def test_popularity_by_hand() -> None:
    """Lists with train items left out; items 1 and 2 tie and go by row.

    user 0: 2 3 4 -> relevant {2}:       hit at 1
    user 1: 1 3 4 -> relevant {1, 4}:    hits at 1 and 3
    user 2: nothing relevant, not evaluated
    user 3: 0 3 4 -> relevant {4}:       hit at 3
    user 4: 0 1 2 3 4 -> relevant {0, 1, 2}: hits at 1, 2, 3
    """
    result = all_rank(popularity, TRAIN, TEST, [1, 2])
    assert result.users.tolist() == [0, 1, 3, 4]
    assert result.per_user["recall@2"].tolist() == pytest.approx([1, 1 / 2, 0, 2 / 3])
    assert result.metrics["recall@2"] == pytest.approx((1 + 1 / 2 + 0 + 2 / 3) / 4)
    assert result.metrics["recall@1"] == pytest.approx((1 + 1 / 2 + 0 + 1 / 3) / 4)
    assert result.metrics["hr@2"] == pytest.approx(3 / 4)
    assert result.metrics["precision@2"] == pytest.approx((1 / 2 + 1 / 2 + 0 + 1) / 4)
    # User 1: one hit at rank 1, the ideal has two: 1 / (1 + 1/log2(3)).
    ndcg = [1, 1 / (1 + 1 / math.log2(3)), 0, 1]
    assert result.per_user["ndcg@2"].tolist() == pytest.approx(ndcg)
    deep = all_rank(popularity, TRAIN, TEST, [5])
    assert deep.metrics["recall@5"] == 1
    assert deep.metrics["mrr@5"] == pytest.approx((1 + 1 + 1 / 3 + 1) / 4)


def test_masked_items_never_count() -> None:
    # The scorer puts train items first; they may neither hit nor push others down.
    def loves_train(rows: np.ndarray) -> np.ndarray:
        return 100 * TRAIN[rows].toarray() + popularity(rows)

    plain = all_rank(popularity, TRAIN, TEST, [1, 2, 5])
    assert all_rank(loves_train, TRAIN, TEST, [1, 2, 5]).metrics == plain.metrics
    # Masked pairs that are also called relevant change nothing, whatever the scorer thinks.
    both = all_rank(loves_train, TRAIN, csr_matrix(TEST + TRAIN), [1, 2, 5])
    assert both.metrics == plain.metrics
    assert both.users.tolist() == plain.users.tolist()


def test_the_caller_chooses_the_mask() -> None:
    # Without a mask user 0 is shown item 0 first, and the hit moves to rank 3.
    result = all_rank(popularity, csr_matrix((5, 5)), TEST, [5])
    assert result.per_user["mrr@5"][0] == pytest.approx(1 / 3)


def test_block_size_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    table = generator.integers(0, 6, (40, 30)).astype(np.float32)
    mask = csr_matrix(generator.random((40, 30)) < 0.2)
    relevant = csr_matrix(generator.random((40, 30)) < 0.1)
    results = [
        all_rank(lambda rows: table[rows], mask, relevant, [3, 10], block)
        for block in (1, 7, 40, 1024)
    ]
    for other in results[1:]:
        assert other.metrics == results[0].metrics
        for name, values in results[0].per_user.items():
            np.testing.assert_array_equal(other.per_user[name], values)


def test_repeated_entries_and_stored_zeros_do_not_count() -> None:
    # (0, 2) twice and a stored zero at (2, 0): the same data as the clean matrix.
    row, column = [0, 0, 1, 1, 3, 4, 4, 4, 2], [2, 2, 1, 4, 4, 0, 1, 2, 0]
    untidy = csr_matrix(([1] * 8 + [0], (row, column)), shape=(5, 5))
    raw = csr_matrix((5, 5), dtype=np.int64)
    raw.data, raw.indices = np.array([1, 1, 0]), np.array([2, 2, 0])
    raw.indptr = np.array([0, 2, 2, 3, 3, 3])
    assert all_rank(popularity, TRAIN, untidy, [2]).metrics == (
        all_rank(popularity, TRAIN, TEST, [2]).metrics
    )
    assert all_rank(popularity, csr_matrix((5, 5)), raw, [5]).metrics["recall@5"] == 1
    assert raw.nnz == 3  # the caller's matrix is left as it was


def test_nobody_to_evaluate_is_a_user_error() -> None:
    with pytest.raises(UserError, match="check the split"):
        all_rank(popularity, TRAIN, TRAIN, [2])


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        all_rank(popularity, csr_matrix((4, 5)), TEST, [2])
