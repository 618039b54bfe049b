from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data.splits import TEST, TRAIN, VALID, by_time, fold, leave_last_two, ratio, time_order

users_lists = st.lists(st.integers(0, 6), min_size=1, max_size=60)
fractions = st.sampled_from(
    [
        (0.8, 0.1, 0.1),
        (0.1, 0.45, 0.45),
        (0.9, 0.0, 0.1),
        (0.1, 0.7, 0.2),
        (0.1, 0.2, 0.7),
        (0.05, 0.95, 0.0),
    ]
)


def rows(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def sizes(labels: np.ndarray) -> list[int]:
    return [int((labels == label).sum()) for label in (TRAIN, VALID, TEST)]


def test_leave_last_two_by_hand() -> None:
    # User 0 at times 30 10 20 40: order 10 20 30 40, so 40 is test and 30 valid.
    # User 1 has two rows only: both train. User 2: equal times go by place in the file.
    users = rows([0, 0, 0, 0, 1, 1, 2, 2, 2])
    times = rows([30, 10, 20, 40, 1, 2, 7, 7, 7])
    expected = [VALID, TRAIN, TRAIN, TEST, TRAIN, TRAIN, TRAIN, VALID, TEST]
    assert leave_last_two(users, [times]).tolist() == expected


def test_leave_last_two_breaks_ties_by_the_second_key() -> None:
    users, day, position = rows([0, 0, 0]), rows([5, 5, 4]), rows([1, 0, 2])
    assert leave_last_two(users, [day, position]).tolist() == [TEST, VALID, TRAIN]
    assert leave_last_two(users, [position, day]).tolist() == [VALID, TRAIN, TEST]


@settings(deadline=None)
@given(data=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=50))
def test_leave_last_two_never_trains_on_what_comes_after(data: list[tuple[int, int]]) -> None:
    users, times = rows([u for u, _ in data]), rows([t for _, t in data])
    labels = leave_last_two(users, [times])
    for user in set(users.tolist()):
        mine, when = labels[users == user], times[users == user]
        if len(mine) < 3:
            assert sizes(mine) == [len(mine), 0, 0]
            continue
        assert sizes(mine) == [len(mine) - 2, 1, 1]
        assert when[mine == TRAIN].max() <= when[mine == VALID][0] <= when[mine == TEST][0]


def test_ratio_sizes_by_hand() -> None:
    # 10 rows at 0.1 each: 1 and 1. 26 rows: 2.6 -> 3 each. 3 rows: 0.3 -> at least 1 each.
    # 2 rows: too few, all train.
    users = np.repeat(rows([0, 1, 2, 3]), [10, 26, 3, 2])
    labels = ratio(users, 0.1, 0.1, seed=1)
    found = [sizes(labels[users == user]) for user in range(4)]
    assert found == [[8, 1, 1], [20, 3, 3], [1, 1, 1], [2, 0, 0]]


@settings(deadline=None)
@given(values=users_lists, parts=fractions, seed=st.integers(0, 5))
def test_ratio_keeps_its_promises(
    values: list[int], parts: tuple[float, float, float], seed: int
) -> None:
    users, (_, valid, test) = rows(values), parts
    labels = ratio(users, valid, test, seed)
    assert np.isin(labels, [TRAIN, VALID, TEST]).all()
    assert (labels == ratio(users, valid, test, seed)).all()
    for user in set(values):
        train_n, valid_n, test_n = sizes(labels[users == user])
        count = train_n + valid_n + test_n
        assert count == values.count(user)
        if count < 3:
            assert train_n == count
            continue
        assert train_n >= 1
        assert (valid_n >= 1) == (valid > 0)
        assert (test_n >= 1) == (test > 0)
        # Rounding moves a part by at most 0.5; the row that train must keep takes one more,
        # and the row that each part must have adds less than one.
        assert abs(valid_n - valid * count) < 1.5
        assert abs(test_n - test * count) < 1.5


def test_ratio_is_random_by_seed_and_spread_over_the_rows() -> None:
    users = np.zeros(1000, dtype=np.int64)
    one, two = ratio(users, 0.1, 0.2, seed=1), ratio(users, 0.1, 0.2, seed=2)
    assert sizes(one) == [700, 100, 200]
    assert (one != two).any()
    # 500 draws without replacement from 1000 rows, 200 of them test: mean 100, sd 6.3.
    assert 70 < (one[:500] == TEST).sum() < 130


def test_by_time_cuts_at_the_quantiles() -> None:
    times = rows([90, 10, 20, 30, 40, 50, 60, 70, 80, 100])
    expected = [VALID, TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, TEST]
    assert by_time(times, 0.8, 0.1).tolist() == expected


def test_by_time_keeps_a_moment_whole_on_the_older_side() -> None:
    # Half of 4 rows would cut between the two rows at time 2.
    assert by_time(rows([1, 2, 2, 3]), 0.5, 0.0).tolist() == [TRAIN, TRAIN, TRAIN, TEST]


@settings(deadline=None)
@given(
    values=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    parts=st.sampled_from([(0.8, 0.1), (0.5, 0.25), (0.7, 0.0), (0.6, 0.4)]),
)
def test_by_time_never_trains_on_the_future(values: list[int], parts: tuple[float, float]) -> None:
    times = rows(values)
    labels = by_time(times, *parts)
    present = [label for label in (TRAIN, VALID, TEST) if (labels == label).any()]
    assert present[0] == TRAIN
    for older, newer in pairwise(present):
        assert times[labels == older].max() < times[labels == newer].min()
    train_n, valid_n, _ = sizes(labels)
    assert train_n >= np.floor(parts[0] * len(values) + 0.5)
    assert train_n + valid_n >= np.floor(sum(parts) * len(values) + 0.5 - 1e-9)


@settings(deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=50),
    valid=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_fold_is_exactly_the_published_test_set(data: list[tuple[int, bool]], valid: float) -> None:
    users, test = rows([u for u, _ in data]), np.array([t for _, t in data], dtype=bool)
    labels = fold(users, test, valid, seed=3)
    assert ((labels == TEST) == test).all()
    for user in set(users.tolist()):
        train_n, valid_n, _ = sizes(labels[(users == user) & ~test])
        assert (valid_n >= 1) == (valid > 0 and train_n + valid_n >= 3)
        assert train_n >= 1 or train_n + valid_n == 0


def test_time_order_sorts_by_user_then_time_then_row() -> None:
    users, times = rows([1, 0, 1, 0, 1]), rows([5, 9, 4, 9, 4])
    assert time_order(users, [times]).tolist() == [1, 3, 2, 4, 0]


@settings(deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1)), max_size=6)
)
def test_time_order_agrees_with_sorted(data: list[tuple[int, int, int]]) -> None:
    keys = [rows([row[place] for row in data]) for place in range(3)]
    expected = sorted(range(len(data)), key=data.__getitem__)
    assert time_order(keys[0], keys[1:]).tolist() == expected
