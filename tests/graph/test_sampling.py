from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random_array

from raysys.errors import UserError
from raysys.graph.sampling import NegativeSampler, with_fake_pairs


def test_never_a_positive_and_in_range() -> None:
    train = csr_matrix(random_array((50, 20), density=0.6, rng=0, dtype=np.float32))
    users = np.repeat(np.flatnonzero(np.diff(train.indptr) < 20), 200)
    items = NegativeSampler(train).sample(users, np.random.default_rng(0))
    assert items.dtype == np.int64
    assert items.min() >= 0
    assert items.max() < 20
    assert not np.asarray(train[users, items]).any()


def test_uniform_over_the_negatives() -> None:
    train = csr_matrix(np.array([[1, 0, 1, 0, 0]], dtype=np.float32))
    items = NegativeSampler(train).sample(np.zeros(30_000, int), np.random.default_rng(1))
    counts = np.bincount(items, minlength=5)
    # Expected 10,000 each with standard deviation 82.
    assert counts[[0, 2]].sum() == 0
    np.testing.assert_allclose(counts[[1, 3, 4]], 10_000, atol=330)


def test_negatives_that_share_a_remainder_with_a_positive_are_drawn() -> None:
    train = csr_matrix(([1.0], ([0], [0])), shape=(1, 40), dtype=np.float32)
    items = NegativeSampler(train).sample(np.zeros(4000, int), np.random.default_rng(0))
    np.testing.assert_array_equal(np.unique(items), np.arange(1, 40))


def test_seeded() -> None:
    train = csr_matrix(random_array((30, 20), density=0.3, rng=0, dtype=np.float32))
    sampler, users = NegativeSampler(train), np.arange(30)
    first = sampler.sample(users, np.random.default_rng(5))
    np.testing.assert_array_equal(first, sampler.sample(users, np.random.default_rng(5)))
    assert (first != sampler.sample(users, np.random.default_rng(6))).any()


def test_user_with_one_item_left_gets_that_item() -> None:
    row = np.ones((2, 4000), dtype=np.float32)
    row[1, 1234] = row[0, 7] = 0
    items = NegativeSampler(csr_matrix(row)).sample(np.array([1, 0, 1]), np.random.default_rng(0))
    np.testing.assert_array_equal(items, [1234, 7, 1234])


def test_user_with_all_items_is_refused() -> None:
    train = csr_matrix(np.array([[1, 0], [1, 1]], dtype=np.float32))
    with pytest.raises(UserError, match="user row 1 has all 2 items"):
        NegativeSampler(train).sample(np.array([0, 1]), np.random.default_rng(0))
    # Only users that are asked for matter.
    assert NegativeSampler(train).sample(np.array([0]), np.random.default_rng(0))[0] == 1


def test_no_positives_at_all() -> None:
    sampler = NegativeSampler(csr_matrix((2, 3), dtype=np.float32))
    assert len(sampler.sample(np.array([0, 1]), np.random.default_rng(0))) == 2


def test_fake_interactions_are_new_seeded_and_of_the_right_number() -> None:
    train = csr_matrix(random_array((50, 20), density=0.3, rng=0, dtype=np.float32))
    noisy = with_fake_pairs(train, 0.25, np.random.default_rng(3))
    assert noisy.nnz == train.nnz + round(0.25 * train.nnz)
    assert noisy.data.tolist() == [1.0] * noisy.nnz
    assert ((train != 0) > (noisy != 0)).nnz == 0
    again = with_fake_pairs(train, 0.25, np.random.default_rng(3))
    assert (noisy != again).nnz == 0


def test_fake_interactions_take_half_of_what_is_left_at_most() -> None:
    train = csr_matrix(np.eye(4, 5, dtype=np.float32) + np.eye(4, 5, k=1, dtype=np.float32))
    assert with_fake_pairs(train, 6 / 8, np.random.default_rng(0)).nnz == 8 + 6
    with pytest.raises(UserError, match="12 of all 20 are not in train: lower it"):
        with_fake_pairs(train, 7 / 8, np.random.default_rng(0))
