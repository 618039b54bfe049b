"""Exact retrieval: order, ties, masks and blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_matrix

from raysys.ranking.retrieve import NO_ITEM, best_of, mask_seen, retrieve, top_k

INF = np.inf


def slow_top_k(scores: np.ndarray, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """The definition, one user at a time."""
    items, best = [], []
    for row in scores.tolist():
        ranked = sorted((-score, item) for item, score in enumerate(row) if score > -INF)[:k]
        short = k - len(ranked)
        items.append([item for _, item in ranked] + [NO_ITEM] * short)
        best.append([-score for score, _ in ranked] + [-INF] * short)
    return items, best


def test_descending_scores_ties_by_lower_row() -> None:
    scores = np.array([[0.5, 2.0, 0.5, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0, 3.0]], dtype=np.float32)
    items, best = top_k(scores, 4)
    # Row 0: 2.0 at items 1 and 3, 1.0 at item 4, then 0.5 at items 0 and 2: only 0 fits.
    assert items.tolist() == [[1, 3, 4, 0], [0, 1, 2, 3]]
    assert best.tolist() == [[2.0, 2.0, 1.0, 0.5], [3.0, 3.0, 3.0, 3.0]]
    assert items.dtype == np.int64
    assert best.dtype == np.float32


def test_minus_infinity_never_appears_and_short_lists_are_filled() -> None:
    scores = np.array([[-INF, 1.0, -INF], [-INF, -INF, -INF]], dtype=np.float32)
    items, best = top_k(scores, 5)
    assert items.tolist() == [[1, -1, -1, -1, -1], [-1, -1, -1, -1, -1]]
    assert best.tolist() == [[1.0, -INF, -INF, -INF, -INF], [-INF] * 5]


def test_many_tied_rows_are_settled_in_more_than_one_pass() -> None:
    # 300 rows of 0, 1, 2, 0, 1, 2, …: the 2s are at items 2, 5, 8, … and fill the list.
    scores = np.tile(np.arange(60, dtype=np.float32) % 3, (300, 1))
    items, _ = top_k(scores, 7)
    assert (items == np.array([2, 5, 8, 11, 14, 17, 20])).all()


def test_top_k_leaves_its_input_alone() -> None:
    scores = np.array([[1.0, 1.0, 0.0]], dtype=np.float32)
    top_k(scores, 1)
    assert scores.tolist() == [[1.0, 1.0, 0.0]]


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.sampled_from([-INF, -1.5, -0.0, 0.0, 0.25, 0.5, 3.0, INF]),
    ),
    st.integers(1, 14),
)
def test_equals_the_definition(scores: np.ndarray, k: int) -> None:
    items, best = top_k(scores, k)
    expected_items, expected_best = slow_top_k(scores, k)
    assert items.tolist() == expected_items
    assert best.tolist() == expected_best


def test_nan_names_the_row() -> None:
    scores = np.zeros((3, 4), dtype=np.float32)
    scores[2, 1] = np.nan
    with pytest.raises(ValueError, match="row 2 has a NaN"):
        top_k(scores, 2)


def test_k_and_shape_are_checked() -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_k(np.zeros((1, 2), dtype=np.float32), 0)
    with pytest.raises(ValueError, match="matrix"):
        top_k(np.zeros(3, dtype=np.float32), 1)


def test_mask_seen_uses_the_users_own_rows() -> None:
    seen = csr_matrix(np.array([[1, 0, 0], [0, 0, 0], [0, 1, 1]]))
    scores = np.ones((3, 3), dtype=np.float32)
    mask_seen(scores, seen, np.array([2, 1, 2]))
    assert scores.tolist() == [[1, -INF, -INF], [1, 1, 1], [1, -INF, -INF]]


def test_retrieve_is_the_same_for_every_block_size_and_reports_progress() -> None:
    generator = np.random.default_rng(0)
    table = generator.integers(0, 5, (11, 17)).astype(np.float32)
    seen = csr_matrix(generator.random((11, 17)) < 0.3)
    users = np.array([9, 0, 3, 3, 10, 7, 1])
    masked = np.where(seen.toarray(), -INF, table)[users]
    expected = slow_top_k(masked, 6)
    before = table.copy()
    for block in (1, 2, 3, 7, 100):
        told: list[int] = []
        items, best = retrieve(
            lambda rows: table[rows[0] : rows[0] + 1] if len(rows) == 1 else table[rows],
            users,
            seen,
            6,
            block,
            told.append,
        )
        assert items.tolist() == expected[0]
        assert best.tolist() == expected[1]
        assert told == [*range(block, 7, block), 7]
    # With one user a block the scorer hands out a view: masking must not write through it.
    assert (table == before).all()


def test_retrieve_accepts_a_read_only_broadcast() -> None:
    popularity = np.array([3.0, 1.0, 2.0])
    seen = csr_matrix(([True], ([0], [0])), shape=(2, 3))
    items, _ = retrieve(
        lambda rows: np.broadcast_to(popularity, (len(rows), 3)), np.array([0, 1]), seen, 2
    )
    assert items.tolist() == [[2, 1], [0, 2]]


def test_retrieve_names_the_user_of_a_nan_even_at_a_seen_item() -> None:
    table = np.zeros((5, 3), dtype=np.float32)
    table[4, 0] = np.nan
    seen = csr_matrix(([True], ([4], [0])), shape=(5, 3))
    with pytest.raises(ValueError, match="user row 4"):
        retrieve(lambda rows: table[rows], np.array([1, 4]), seen, 1, block=1)


def test_retrieve_checks_shapes_and_sizes() -> None:
    seen = csr_matrix((2, 3), dtype=bool)
    users = np.array([0, 1])
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        retrieve(lambda rows: np.zeros((len(rows), 4)), users, seen, 1)
    with pytest.raises(ValueError, match="at least 1"):
        retrieve(lambda rows: np.zeros((len(rows), 3)), users, seen, 1, block=0)


def test_no_users_gives_empty_lists() -> None:
    items, best = retrieve(
        lambda rows: np.zeros((len(rows), 3)), np.array([], dtype=int), csr_matrix((2, 3)), 4
    )
    assert items.shape == best.shape == (0, 4)


@pytest.mark.parametrize("seed", range(20))
def test_one_row_alone_has_the_same_list(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, 40).astype(np.float32)
    scores[rng.random(40) < 0.3] = -np.inf
    k = int(rng.integers(1, 50))
    items, best = top_k(scores[None], k)
    filled = items[0] != NO_ITEM
    found = best_of(scores, k)
    np.testing.assert_array_equal(found[0], items[0][filled])
    np.testing.assert_array_equal(found[1], best[0][filled])
