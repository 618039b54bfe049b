"""Which interactions train, which choose (valid) and which are measured (test).

Every function takes one entry an interaction and returns its label as int8, the
position of the split in `schema.SPLITS`: 0 train, 1 valid, 2 test. Each
interaction gets exactly one label. Nothing loops over users.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raysys import schema
from raysys.data.filters import Mask, Rows

Labels = npt.NDArray[np.int8]
TRAIN, VALID, TEST = (np.int8(schema.SPLITS.index(s)) for s in schema.SPLITS)
#: Users with fewer interactions than this keep them all in train.
MIN_INTERACTIONS = 3


def time_order(users: Rows, times: Sequence[Rows]) -> Rows:
    """Row numbers sorted by user, then by `times` (main key first), then by row."""
    # A data set folder is in this order already; to see that is far quicker than to sort.
    later, equal = users[1:] > users[:-1], users[1:] == users[:-1]
    for time in times:
        later |= equal & (time[1:] > time[:-1])
        equal &= time[1:] == time[:-1]
    if (later | equal).all():
        return np.arange(len(users))
    # lexsort takes its main key last and is stable.
    order: Rows = np.lexsort((*reversed(times), users))
    return order


def ratio(users: Rows, valid: float, test: float, seed: int) -> Labels:
    """Split each user's interactions at random.

    Args:
        users: user rows, shape (n,).
        valid: fraction of each user's interactions for valid.
        test: fraction for test.
        seed: the same seed and rows give the same split.

    Returns:
        Labels, shape (n,). A user with at least 3 interactions has at least one
        in train, and in valid and test each where their fraction is above 0;
        a user with fewer keeps all in train.
    """
    shuffled = np.random.default_rng(seed).random(len(users))
    back, count = _places(users, np.lexsort((shuffled, users)))
    splittable = count >= MIN_INTERACTIONS
    reserve = 1 if test > 0 else 0
    n_valid = np.where(splittable, _share(count, valid, count - 1 - reserve), 0)
    n_test = np.where(splittable, _share(count, test, count - 1 - n_valid), 0)
    return _label(back, n_valid, n_test)


def leave_last_two(users: Rows, times: Sequence[Rows]) -> Labels:
    """Each user's last interaction is test, the one before it valid, the others train.

    Args:
        users: user rows, shape (n,).
        times: sort keys of shape (n,), main key first; equal times go by row.

    Returns:
        Labels, shape (n,); a user with fewer than 3 interactions keeps all in train.
    """
    back, count = _places(users, time_order(users, times))
    one = (count >= MIN_INTERACTIONS).astype(np.int64)
    return _label(back, one, one)


def by_time(timestamps: Rows, train: float, valid: float) -> Labels:
    """The oldest interactions train, the next choose, the newest are measured.

    One moment is never cut in two: interactions at the time of a cut all go to
    the older side, so that train may be larger than its fraction.

    Args:
        timestamps: int64 seconds, shape (n,).
        train: fraction of all interactions for train.
        valid: fraction for valid; the rest is test.

    Returns:
        Labels, shape (n,).
    """
    ordered = np.sort(timestamps)
    labels = np.full(len(timestamps), TEST, dtype=np.int8)
    for label, fraction in ((VALID, train + valid), (TRAIN, train)):
        rows = int(_share(np.int64(len(ordered)), fraction, np.int64(len(ordered))))
        labels[timestamps <= ordered[rows - 1]] = label
    return labels


def fold(users: Rows, test: Mask, valid: float, seed: int) -> Labels:
    """A published fold: `test` rows are test; valid is drawn at random from each user's rest.

    Args:
        users: user rows, shape (n,).
        test: true = the row is test, shape (n,).
        valid: fraction of each user's other rows for valid; a user with at least
            3 of them has at least one there, a user with fewer has none.
        seed: the same seed and rows give the same split.

    Returns:
        Labels, shape (n,).
    """
    labels = np.full(len(users), TEST, dtype=np.int8)
    labels[~test] = ratio(users[~test], valid, 0.0, seed)
    return labels


def _places(users: Rows, order: Rows) -> tuple[Rows, Rows]:
    """Each row's place counted from its user's last row (0 = last), and its user's row count."""
    counts = np.bincount(users)
    ends = np.cumsum(counts)
    back = np.empty(len(users), dtype=np.int64)
    back[order] = ends[users[order]] - 1 - np.arange(len(users))
    return back, counts[users]


def _share(count: npt.NDArray[np.int64] | np.int64, fraction: float, most: Rows | np.int64) -> Rows:
    """`fraction` of `count` to the nearest whole number, from 1 (0 for no fraction) to `most`."""
    if fraction <= 0:
        return np.zeros_like(count)
    return np.clip(np.floor(count * fraction + 0.5).astype(np.int64), 1, np.maximum(most, 1))


def _label(back: Rows, n_valid: Rows, n_test: Rows) -> Labels:
    """The last `n_test` places are test, the `n_valid` before them valid, the rest train."""
    labels = np.full(len(back), TRAIN, dtype=np.int8)
    labels[back < n_test + n_valid] = VALID
    labels[back < n_test] = TEST
    return labels
