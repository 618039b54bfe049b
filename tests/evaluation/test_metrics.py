"""Ranking metrics: by hand, against pytrec_eval, by property, and on published lists."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from raysys.evaluation.metrics import (
    hit_matrix,
    mean_metrics,
    paired_bootstrap,
    ranking_metrics,
)

LOG3 = math.log2(3)


def test_golden_five_items() -> None:
    """A catalogue of five items, three users, worked by hand.

    user 0: list 4 2 0 1 3, relevant {2, 3}    -> hits at ranks 2 and 5
    user 1: list 0 1 2 3 4, relevant {0, 1, 2} -> hits at ranks 1, 2 and 3
    user 2: list 1 3 only,  relevant {0}       -> no hit, counted as 0
    """
    items = np.array([[4, 2, 0, 1, 3], [0, 1, 2, 3, 4], [1, 3, -1, -1, -1]])
    relevant = csr_matrix(np.array([[0, 0, 1, 1, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]))
    hits = hit_matrix(items, relevant, np.arange(3))
    assert hits.astype(int).tolist() == [[0, 1, 0, 0, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    got = ranking_metrics(hits, np.array([2, 3, 1]), [2, 5])
    expected = {
        # 1 of 2; 2 of 3 (divided by all three, not by min(2, 3)); 0 of 1
        "recall@2": [1 / 2, 2 / 3, 0],
        "capped_recall@2": [1 / 2, 1, 0],
        "precision@2": [1 / 2, 1, 0],
        # user 0: precision 1/2 at the hit on rank 2, two could have been found
        "map@2": [1 / 4, 1, 0],
        "hr@2": [1, 1, 0],
        "mrr@2": [1 / 2, 1, 0],
        # DCG 1/log2(3); ideal of two hits 1/log2(2) + 1/log2(3). User 1: the ideal has
        # min(2, 3) = 2 hits, so 1.
        "ndcg@2": [(1 / LOG3) / (1 + 1 / LOG3), 1, 0],
        "recall@5": [1, 1, 0],
        "capped_recall@5": [1, 1, 0],
        "precision@5": [2 / 5, 3 / 5, 0],
        "map@5": [(1 / 2 + 2 / 5) / 2, 1, 0],
        "hr@5": [1, 1, 0],
        "mrr@5": [1 / 2, 1, 0],
        # DCG 1/log2(3) + 1/log2(6), the ideal still has two hits
        "ndcg@5": [(1 / LOG3 + 1 / math.log2(6)) / (1 + 1 / LOG3), 1, 0],
    }
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=0, atol=1e-12, err_msg=name)
    # (1/2 + 2/3 + 0) / 3: the user without a hit stays in the mean.
    assert mean_metrics(got)["recall@2"] == pytest.approx(7 / 18)


def test_first_hit_beyond_the_cut_off_counts_nothing() -> None:
    got = ranking_metrics(np.array([[False, False, True]]), np.array([1]), [1, 2, 3])
    assert [got[f"mrr@{k}"][0] for k in (1, 2, 3)] == [0, 0, 1 / 3]
    assert [got[f"hr@{k}"][0] for k in (1, 2, 3)] == [0, 0, 1]


def test_filler_is_not_the_last_item_of_the_user_before() -> None:
    # Pair numbers are row * 3 + item: (1, -1) would give 2, which is (0, 2), a relevant pair.
    relevant = csr_matrix(np.array([[0, 0, 1], [1, 0, 0]]))
    hits = hit_matrix(np.array([[2, 1], [1, -1]]), relevant, np.array([0, 1]))
    assert hits.tolist() == [[True, False], [False, False]]


def test_hit_matrix_follows_the_order_of_users() -> None:
    relevant = csr_matrix(np.array([[1, 0], [0, 0], [0, 1]]))
    hits = hit_matrix(np.array([[0, 1], [0, 1], [1, 0]]), relevant, np.array([2, 0, 2]))
    assert hits.tolist() == [[False, True], [True, False], [True, False]]
    nothing = hit_matrix(np.array([[0, 1]]), relevant, np.array([1]))
    assert nothing.tolist() == [[False, False]]


def test_repeated_item_is_refused() -> None:
    relevant = csr_matrix(np.ones((8, 3)))
    with pytest.raises(ValueError, match="user row 7 repeats"):
        hit_matrix(np.array([[0, 1, -1], [2, 0, 2]]), relevant, np.array([3, 7]))


def test_agrees_with_pytrec_eval() -> None:
    generator = np.random.default_rng(7)
    users, items, cuts = 80, 40, [1, 5, 10, 40]
    relevant = csr_matrix(generator.random((users, items)) < 0.15)
    relevant = relevant[np.diff(relevant.indptr) > 0]
    users = relevant.shape[0]
    order = np.array([generator.permutation(items) for _ in range(users)])
    got = ranking_metrics(
        hit_matrix(order, relevant, np.arange(users)), np.diff(relevant.indptr), cuts
    )
    judged = {
        str(u): {str(i): 1 for i in relevant.indices[relevant.indptr[u] : relevant.indptr[u + 1]]}
        for u in range(users)
    }
    run = {str(u): {str(i): float(-rank) for rank, i in enumerate(order[u])} for u in range(users)}
    depths = ",".join(map(str, cuts))
    names = {f"{name}.{depths}" for name in ("recall", "ndcg_cut", "success", "P")}
    theirs = pytrec_eval.RelevanceEvaluator(judged, names | {"recip_rank"}).evaluate(run)
    pairs = [("mrr@40", "recip_rank")]
    for k in cuts:
        pairs += [(f"recall@{k}", f"recall_{k}"), (f"ndcg@{k}", f"ndcg_cut_{k}")]
        pairs += [(f"hr@{k}", f"success_{k}"), (f"precision@{k}", f"P_{k}")]
    for ours, name in pairs:
        expected = [theirs[str(u)][name] for u in range(users)]
        np.testing.assert_allclose(got[ours], expected, rtol=0, atol=1e-6, err_msg=ours)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_properties(data: st.DataObject) -> None:
    users, depth = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    flags = data.draw(st.lists(st.booleans(), min_size=users * depth, max_size=users * depth))
    hits = np.array(flags).reshape(users, depth)
    extra = data.draw(st.lists(st.integers(0, 5), min_size=users, max_size=users))
    relevant = np.maximum(hits.sum(axis=1) + np.array(extra), 1)
    ks = list(range(1, depth + 1))
    got = ranking_metrics(hits, relevant, ks)
    for values in got.values():
        assert (values >= 0).all()
        assert (values <= 1 + 1e-12).all()
    for k in ks[1:]:
        for growing in ("recall", "hr", "mrr"):
            assert (got[f"{growing}@{k}"] >= got[f"{growing}@{k - 1}"]).all()
    for k in ks:
        # A list that starts with all its hits is ideal where nothing relevant was missed.
        moved = ranking_metrics(np.sort(hits, axis=1)[:, ::-1], relevant, [k])
        assert (moved[f"ndcg@{k}"] >= got[f"ndcg@{k}"] - 1e-12).all()
        np.testing.assert_allclose(got[f"precision@{k}"] * k, got[f"recall@{k}"] * relevant)
        complete = hits.sum(axis=1) == relevant
        np.testing.assert_allclose(moved[f"ndcg@{k}"][complete], 1.0)


@pytest.mark.parametrize(
    ("hits", "relevant", "ks", "message"),
    [
        (np.zeros((2, 3), bool), np.array([1, 0]), [1], "row 1 has no relevant item"),
        (np.ones((1, 3), bool), np.array([2]), [1], "row 0 has more hits"),
        (np.zeros((1, 3), bool), np.array([1]), [4], "from 1 to 3"),
        (np.zeros((1, 3), bool), np.array([1]), [0], "from 1 to 3"),
        (np.zeros((1, 3), bool), np.array([1]), [], "cut-offs"),
        (np.zeros((1, 3), bool), np.array([1, 1]), [1], r"expected \(1,\)"),
        (np.zeros((1, 3)), np.array([1]), [1], "bool matrix"),
    ],
)
def test_wrong_input(hits: np.ndarray, relevant: np.ndarray, ks: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranking_metrics(hits, relevant, ks)


def test_mean_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="no users"):
        mean_metrics({"recall@1": np.array([])})


def test_bootstrap_of_a_constant_difference_is_exact() -> None:
    b = np.array([0.0, 0.25, 0.5])
    assert paired_bootstrap(b + 0.125, b, seed=1) == (0.125, 0.125, 0.125)


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    generator = np.random.default_rng(3)
    noise = generator.random(4000)
    # b swings far more than a - b does: only the paired interval is this narrow.
    a, b = noise + generator.normal(0.02, 0.1, 4000), noise
    got = paired_bootstrap(a, b, seed=5)
    half = 1.96 * (a - b).std(ddof=1) / math.sqrt(4000)
    assert got.difference == pytest.approx((a - b).mean())
    assert got.low == pytest.approx(got.difference - half, abs=0.1 * half)
    assert got.high == pytest.approx(got.difference + half, abs=0.1 * half)
    assert got == paired_bootstrap(a, b, seed=5)
    assert got != paired_bootstrap(a, b, seed=6)


def test_bootstrap_swaps_sign_with_its_arguments() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random(50), generator.random(50)
    there, back = paired_bootstrap(a, b, seed=2), paired_bootstrap(b, a, seed=2)
    np.testing.assert_allclose(there, [-back.difference, -back.high, -back.low])


def test_bootstrap_refuses_arrays_that_are_not_paired() -> None:
    with pytest.raises(ValueError, match="equally long"):
        paired_bootstrap(np.zeros(3), np.zeros(4), seed=0)
    with pytest.raises(ValueError, match="non-empty"):
        paired_bootstrap(np.zeros(0), np.zeros(0), seed=0)
    with pytest.raises(ValueError, match="0 resamples"):
        paired_bootstrap(np.zeros(3), np.zeros(3), seed=0, resamples=0)
    assert paired_bootstrap(np.ones(3), np.zeros(3), seed=0, resamples=1) == (1, 1, 1)


@pytest.mark.skipif("RAYSYS_DATA" not in os.environ, reason="RAYSYS_DATA is not set")
@pytest.mark.parametrize(
    ("name", "precision", "recall", "ndcg"),
    [
        # The published `gat` list is the paper's row "GAT without text": with profiles the
        # paper reports .361 / .217 / .424, for which no list is at hand.
        ("gat", 0.2754, 0.1489, 0.3026),
        ("lightgcn", 0.2583, 0.1530, 0.3046),
        ("als", 0.2447, 0.1629, 0.2809),
    ],
)
def test_published_lists(name: str, precision: float, recall: float, ndcg: float) -> None:
    """The figures of design/methods.md section 2, from the lists published with the paper."""
    folder = Path(os.environ["RAYSYS_DATA"]) / "ml-100k"
    ratings = pq.read_table(folder / "interactions.parquet")
    user, item = ratings["user_id"].to_numpy(), ratings["item_id"].to_numpy()
    liked = ratings["u1_test"].to_numpy() & (ratings["rating"].to_numpy() >= 4)
    relevant = csr_matrix((np.ones(liked.sum()), (user[liked], item[liked])), shape=(944, 1683))
    lists = pq.read_table(folder / "published_recommendations" / f"{name}.parquet")
    items = np.full((944, 50), -1)
    items[lists["user_id"].to_numpy(), lists["rank"].to_numpy() - 1] = lists["item_id"].to_numpy()
    counts = np.diff(relevant.indptr)
    users = np.flatnonzero(counts)
    assert len(users) == 456
    hits = hit_matrix(items[users], relevant, users)
    got = mean_metrics(ranking_metrics(hits, counts[users], [10]))
    rounded = [round(got[f"{key}@10"], 4) for key in ("precision", "recall", "ndcg")]
    assert rounded == [precision, recall, ndcg]
