"""EASE and ItemKNN by hand on three users and three items."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix, issparse

from raysys.errors import UserError
from raysys.models import linear
from raysys.models.als import AlsSettings, als
from raysys.models.linear import Blend, Ease, EaseSettings, ItemKNN, ItemKNNSettings

# u0: a b; u1: a b; u2: b c.
TRAIN = csr_matrix(np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1]], dtype=np.float32))
ALL = np.arange(3)


def random_train(users=60, items=25, seed=0):
    return csr_matrix(np.random.default_rng(seed).random((users, items)) < 0.2, dtype=np.float32)


def test_ease_by_hand():
    # XᵀX + I = [[3, 2, 0], [2, 4, 1], [0, 1, 2]], determinant 3·7 − 2·4 = 13,
    # inverse·13 = [[7, −4, 2], [−4, 6, −3], [2, −3, 8]]; column j is divided by −P_jj.
    weights = Ease(TRAIN, EaseSettings(reg=1.0)).weights
    expected = [[0, 4 / 6, -2 / 8], [4 / 7, 0, 3 / 8], [-2 / 7, 3 / 6, 0]]
    assert weights == pytest.approx(np.array(expected), abs=1e-6)


SOLVERS = ("dense", "sparse")
# Texts of 25 items, the fourth without one.
VECTORS = np.random.default_rng(1).normal(size=(25, 6)).astype(np.float32)
HAS_VECTOR = np.arange(25) != 3


def dense(weights):
    return weights.toarray() if issparse(weights) else weights


def gram_with_texts(train, text_weight):
    """XᵀX + αTTᵀ in 64-bit numbers: the texts as more rows under X."""
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True) * HAS_VECTOR[:, None]
    stacked = np.vstack([train.toarray(), np.sqrt(text_weight) * unit.T]).astype(np.float64)
    return stacked.T @ stacked


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("text_weight", [0.0, 3.0])
def test_ease_minimises_its_loss_column_by_column(solver, text_weight):
    """An independent way: ridge regression of each column on the others."""
    train = random_train()
    settings = EaseSettings(reg=2.0, text_weight=text_weight, solver=solver, neighbours=24)
    model = Ease(train, settings, VECTORS, HAS_VECTOR)
    weights, gram = dense(model.weights), gram_with_texts(train, text_weight)
    assert not weights.diagonal().any()
    for item in range(25):
        others = np.delete(np.arange(25), item)
        best = np.linalg.solve(gram[np.ix_(others, others)] + 2.0 * np.eye(24), gram[others, item])
        assert weights[others, item] == pytest.approx(best, abs=1e-4)
    assert model.score_block(np.array([5, 2])) == pytest.approx(
        train.toarray()[[5, 2]] @ weights, abs=1e-5
    )


@pytest.mark.parametrize("text_weight", [0.0, 3.0])
def test_sparse_ease_regresses_each_item_on_its_nearest(text_weight):
    train = random_train()
    settings = EaseSettings(reg=2.0, text_weight=text_weight, solver="sparse", neighbours=5)
    weights = dense(Ease(train, settings, VECTORS, HAS_VECTOR).weights)
    gram = gram_with_texts(train, text_weight)
    closeness = np.abs(gram) / np.sqrt(gram.diagonal() + 2.0)[:, None]
    np.fill_diagonal(closeness, -1.0)
    for item in range(25):
        near = np.flatnonzero(weights[:, item])
        assert len(near) == 5
        left_out = np.setdiff1d(np.arange(25), near)
        assert closeness[near, item].min() >= closeness[left_out, item].max() - 1e-6
        best = np.linalg.solve(gram[np.ix_(near, near)] + 2.0 * np.eye(5), gram[near, item])
        assert weights[near, item] == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_ease_is_repeatable_and_blocks_do_not_matter(solver, monkeypatch):
    settings = EaseSettings(reg=2.0, text_weight=3.0, solver=solver, neighbours=5)

    def weights():
        return dense(Ease(random_train(), settings, VECTORS, HAS_VECTOR).weights)

    whole = weights()
    assert np.array_equal(whole, weights())
    monkeypatch.setattr(linear, "_FLOATS_AT_ONCE", 7 * 30)  # 7 items of 5 · 6 floats at once
    assert weights() == pytest.approx(whole, abs=1e-6)


def test_a_large_catalogue_is_solved_sparsely(monkeypatch):
    assert isinstance(Ease(TRAIN, EaseSettings()).weights, np.ndarray)
    monkeypatch.setattr(linear, "MAX_DENSE_ITEMS", 3)
    assert isinstance(Ease(TRAIN, EaseSettings(solver="dense")).weights, np.ndarray)
    assert isinstance(Ease(TRAIN, EaseSettings()).weights, np.ndarray)
    monkeypatch.setattr(linear, "MAX_DENSE_ITEMS", 2)
    assert issparse(Ease(TRAIN, EaseSettings()).weights)
    with pytest.raises(UserError, match=r"3 x 3 items.*'sparse'"):
        Ease(TRAIN, EaseSettings(solver="dense"))


def test_a_catalogue_of_one_item_predicts_nothing():
    only = csr_matrix(np.ones((2, 1), dtype=np.float32))
    for solver in SOLVERS:
        assert not Ease(only, EaseSettings(solver=solver)).score_block(np.array([0])).any()


def test_item_neighbours_by_hand():
    # |U_a| = 2, |U_b| = 3, |U_c| = 1; a∩b = 2, b∩c = 1, a∩c = 0.
    model = ItemKNN(TRAIN, ItemKNNSettings(neighbours=2, shrink=1.0))
    ab, bc = 2 / (6**0.5 + 1), 1 / (3**0.5 + 1)
    expected = np.array([[0, ab, 0], [ab, 0, bc], [0, bc, 0]])
    assert model.weights.toarray() == pytest.approx(expected, abs=1e-6)
    assert model.score_block(ALL)[2] == pytest.approx([ab, bc, bc], abs=1e-6)


def test_only_the_nearest_neighbours_are_kept_and_blocks_do_not_matter(monkeypatch):
    train = random_train()
    whole = ItemKNN(train, ItemKNNSettings(neighbours=4, shrink=0.0)).weights.toarray()
    assert (np.count_nonzero(whole, axis=1) <= 4).all()
    monkeypatch.setattr(linear, "_FLOATS_AT_ONCE", 7 * 25)
    assert np.array_equal(
        whole, ItemKNN(train, ItemKNNSettings(neighbours=4, shrink=0.0)).weights.toarray()
    )
    everything = ItemKNN(train, ItemKNNSettings(neighbours=99, shrink=0.0)).weights.toarray()
    dense = train.toarray()
    norms = np.linalg.norm(dense, axis=0)
    cosine = dense.T @ dense / np.maximum(np.outer(norms, norms), 1e-12)
    np.fill_diagonal(cosine, 0)
    assert everything == pytest.approx(cosine, abs=1e-6)
    assert np.sort(whole, axis=1)[:, -4:] == pytest.approx(np.sort(cosine, axis=1)[:, -4:])


def test_users_without_history_score_zero():
    cold = csr_matrix((2, 3), dtype=np.float32)
    for solver in SOLVERS:
        assert not Ease(cold, EaseSettings(solver=solver)).score_block(np.array([0])).any()
    assert not ItemKNN(cold, ItemKNNSettings()).score_block(np.array([1])).any()


def test_a_blend_standardises_each_user():
    first = np.array([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    second = np.array([[30.0, 20.0, 10.0], [1.0, 2.0, 3.0]])
    z = 1.5**0.5  # (2 − 1) / √(2/3)
    blend = Blend(lambda rows: first[rows], lambda rows: second[rows], 0.75)
    assert blend.score_block(np.array([0, 1])) == pytest.approx(
        np.array([[-z / 2, 0, z / 2], [-z / 4, 0, z / 4]]), abs=1e-6
    )


def test_what_cannot_be_done_is_refused():
    with pytest.raises(UserError, match="needs 3 item vectors, found none"):
        Ease(TRAIN, EaseSettings(text_weight=1.0))
    with pytest.raises(UserError, match="needs 3 item vectors, found 2"):
        Ease(TRAIN, EaseSettings(text_weight=1.0), np.zeros((2, 4)))
    alike = csr_matrix(np.ones((4, 3), dtype=np.float32))
    for solver in SOLVERS:
        with pytest.raises(UserError, match="reg 1e-12"):
            Ease(alike, EaseSettings(reg=1e-12, solver=solver))


def test_als_minimises_its_loss():
    """The factors of users are the closed-form answer to those of items (Hu 2008, equation 4)."""
    train = random_train(users=30, items=12, seed=4)
    settings = AlsSettings(width=4, reg=0.5, confidence=3.0, iterations=50)
    users, items = als(train, settings)
    assert (users.shape, items.shape) == ((30, 4), (12, 4))
    for user in range(30):
        wanted = train[user].toarray().ravel()
        weights = np.where(wanted > 0, 1 + settings.confidence, 1.0)
        left = items.T @ (weights[:, None] * items) + settings.reg * np.eye(4)
        expected = np.linalg.solve(left, items.T @ (weights * wanted))
        np.testing.assert_allclose(users[user], expected, atol=0.05)
    again, _ = als(train, settings)
    assert np.array_equal(again, users)
