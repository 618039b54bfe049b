from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data.filters import k_core, latest_of_pair

pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40)


def arrays(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def test_k_core_of_five_nodes_by_hand() -> None:
    # Users 0 1 2, items 0 1; edges 0-0 0-1 1-0 1-1 2-0. For k = 2:
    # user 2 has one edge and goes; then item 0 has 2 edges, item 1 has 2: the square stays.
    users, items = arrays([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)])
    assert k_core(users, items, 2).tolist() == [True, True, True, True, False]


def test_k_core_takes_several_rounds() -> None:
    # The path u0 - i0 - u1 - i1 - u2 for k = 2: the end users go, which leaves i0 and i1
    # with one edge each; they go, and nothing is left.
    users, items = arrays([(0, 0), (1, 0), (1, 1), (2, 1)])
    assert not k_core(users, items, 2).any()


def test_k_core_zero_and_one_keep_everything() -> None:
    users, items = arrays([(0, 4), (3, 2)])
    assert k_core(users, items, 0).all()
    assert k_core(users, items, 1).all()


@settings(deadline=None)
@given(rows=pairs, k=st.integers(1, 4))
def test_k_core_is_the_largest_such_set(rows: list[tuple[int, int]], k: int) -> None:
    # The plain algorithm: take away one poor row after another.
    rows = list(dict.fromkeys(rows))
    kept = {row for row, keep in zip(rows, k_core(*arrays(rows), k), strict=True) if keep}
    left = list(rows)
    while poor := [
        (u, i)
        for u, i in left
        if sum(a == u for a, _ in left) < k or sum(b == i for _, b in left) < k
    ]:
        left.remove(poor[0])
    assert kept == set(left)


def test_latest_of_pair_goes_by_time_then_by_place_in_the_file() -> None:
    #         pair (0,0) at 5, 9, 9; pair (1,0) at 3, 2
    users, items = arrays([(0, 0), (0, 0), (0, 0), (1, 0), (1, 0)])
    times = np.array([5, 9, 9, 3, 2])
    assert latest_of_pair(users, items, [times]).tolist() == [False, False, True, True, False]
    assert latest_of_pair(users, items, []).tolist() == [False, False, True, False, True]


def test_latest_of_pair_uses_the_first_key_first() -> None:
    users, items = arrays([(0, 0), (0, 0)])
    early_late, late_early = np.array([1, 2]), np.array([2, 1])
    assert latest_of_pair(users, items, [early_late, late_early]).tolist() == [False, True]
    assert latest_of_pair(users, items, [late_early, early_late]).tolist() == [True, False]


@settings(deadline=None)
@given(rows=pairs)
def test_latest_of_pair_keeps_each_pair_once(rows: list[tuple[int, int]]) -> None:
    keep = latest_of_pair(*arrays(rows), [])
    kept = [row for row, stays in zip(rows, keep, strict=True) if stays]
    assert sorted(kept) == sorted(set(rows))
    assert kept == [row for at, row in enumerate(rows) if row not in rows[at + 1 :]]
