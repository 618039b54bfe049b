"""Pairs that are not in train: negatives for an epoch, and fake interactions as a control."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from raysys.errors import UserError
from raysys.graph.bipartite import distinct_pairs

#: Redraws before the few users who have nearly every item are settled one by one.
_ROUNDS = 50
#: Bytes of the table of taken remainders for each train pair: an eighth of all draws is looked up.
_PLACES = 8


def with_fake_pairs(train: csr_matrix, share: float, rng: np.random.Generator) -> csr_matrix:
    """Train with random pairs added that are not in it: how robust is a model to noise?

    Source: RLMRec, section 4.4.1 (noise of 5 to 25 %).

    Args:
        train: (U, I); every stored non-zero entry is one interaction.
        share: fake pairs as a share of the true ones.
        rng: the only source of randomness; nothing of validation or test is looked at.

    Returns:
        (U, I) float32 ones.

    Raises:
        UserError: so many pairs are not left.
    """
    pattern = distinct_pairs(train)
    users, items = pattern.shape
    true = np.repeat(np.arange(users, dtype=np.int64), np.diff(pattern.indptr)) * items
    true += pattern.indices
    wanted = round(share * len(true))
    # Beyond half of what is left, drawing and refusing repeats would take for ever.
    if wanted > (users * items - len(true)) / 2:
        raise UserError(
            f"train_noise {share:g} asks for {wanted} fake pairs, but only "
            f"{users * items - len(true)} of all {users * items} are not in train: lower it."
        )
    fake = np.empty(0, dtype=np.int64)
    while len(fake) < wanted:
        drawn = rng.integers(users * items, size=wanted, dtype=np.int64)
        pool = np.concatenate([fake, drawn[~np.isin(drawn, true)]])
        # The first of equal ones stay, in the order drawn.
        _, first = np.unique(pool, return_index=True)
        fake = pool[np.sort(first)][:wanted]
    keys = np.concatenate([true, fake])
    ones = np.ones(len(keys), dtype=np.float32)
    return csr_matrix((ones, (keys // items, keys % items)), shape=(users, items))


class NegativeSampler:
    """Draws items that a user has not interacted with in train.

    Args:
        train: (U, I); every stored non-zero entry is a positive.
    """

    def __init__(self, train: csr_matrix) -> None:
        pattern = distinct_pairs(train)
        self._items = int(pattern.shape[1])
        self._positives = np.diff(pattern.indptr)
        rows = np.repeat(np.arange(pattern.shape[0], dtype=np.int64), self._positives)
        # CSR order with sorted columns is ascending order of the key.
        self._keys = rows * self._items + pattern.indices
        # Which remainders occur among the keys: one look at it settles most draws, where a
        # binary search among 10^7 keys waits for memory more than ten times.
        self._taken = np.zeros(_PLACES * len(self._keys) + 1, dtype=bool)
        self._taken[self._keys % len(self._taken)] = True

    def sample(self, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One negative item row for each entry of `users`, uniform over the user's negatives.

        Args:
            users: (n,) user rows, repeats allowed.
            rng: the only source of randomness.

        Returns:
            (n,) int64 item rows.

        Raises:
            UserError: a user has interacted with every item, so no negative exists.
        """
        full = users[self._positives[users] >= self._items]
        if full.size:
            raise UserError(
                f"user row {full[0]} has all {self._items} items in train, so there is no "
                "negative to train on: leave such users out, or add items to the catalogue."
            )
        drawn = rng.integers(self._items, size=len(users), dtype=np.int64)
        open_rows = np.flatnonzero(self._is_positive(users, drawn))
        for _ in range(_ROUNDS):
            if not open_rows.size:
                return drawn
            drawn[open_rows] = rng.integers(self._items, size=len(open_rows), dtype=np.int64)
            open_rows = open_rows[self._is_positive(users[open_rows], drawn[open_rows])]
        for row in open_rows:
            drawn[row] = rng.choice(self._negatives_of(int(users[row])))
        return drawn

    def _is_positive(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        keys = users.astype(np.int64) * self._items + items
        found: np.ndarray = self._taken[keys % len(self._taken)]
        open_rows = np.flatnonzero(found)
        # In ascending order the search stays where the cache is.
        open_rows = open_rows[np.argsort(keys[open_rows])]
        asked = keys[open_rows]
        at = np.searchsorted(self._keys, asked)
        found[open_rows] = self._keys[np.minimum(at, len(self._keys) - 1)] == asked
        return found

    def _negatives_of(self, user: int) -> np.ndarray:
        bounds = np.searchsorted(self._keys, [user * self._items, (user + 1) * self._items])
        seen = self._keys[bounds[0] : bounds[1]] - user * self._items
        return np.setdiff1d(np.arange(self._items), seen, assume_unique=True)
