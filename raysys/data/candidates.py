"""The next item of each user, hidden among sampled negatives (LLM-TRSR §5.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raysys.data.dataset import Dataset
from raysys.data.filters import Rows
from raysys.errors import UserError
from raysys.schema import SPLITS, TEST, TRAIN, VALID

#: What a user has done before the target of each split.
_BEFORE = {TRAIN: (), VALID: (TRAIN,), TEST: (TRAIN, VALID)}


@dataclass(frozen=True)
class Candidates:
    """One user's question: which of these items comes next?

    Attributes:
        user: user row.
        history: (h,) item rows before the target, oldest first; may be empty.
        items: (1 + m,) item rows, the target and m negatives in random order.
        target: place of the target in `items`.
    """

    user: int
    history: Rows
    items: Rows
    target: int


def drawn_users(n_users: int, limit: int | None, seed: int) -> Rows:
    """At most `limit` user rows, ascending: a larger limit with the same seed only adds users."""
    order = np.random.default_rng([seed, 0]).permutation(n_users)
    rows: Rows = np.sort(order[:limit])
    return rows


def next_items(
    dataset: Dataset, split: str, users: Rows, negatives: int, seed: int, latest: int = 1
) -> Iterator[Candidates]:
    """The targets of a split with sampled negatives.

    In valid and test every interaction of the split is a target, and history is all that was
    before that split. In train the targets are the `latest` train interactions, each with the
    interactions before it as history.

    Negatives are uniform over the items that the user knows neither from before nor from this
    split, liked or not. What is
    drawn for a user depends on the seed, the split and the user alone. A user without a target has
    no question.

    Args:
        users: (n,) user rows.
        negatives: m, for each target.
        latest: train targets of each user.

    Raises:
        UserError: a user has not so many items left to draw from.
    """
    before, during = dataset.histories(*_BEFORE[split]), dataset.histories(split)
    met = dataset.histories(*_BEFORE[split], split, opinion=None)
    for user in users.tolist():
        history, targets, known = before[user], during[user], met[user]
        first = max(0, len(targets) - latest) if split == TRAIN else 0
        rng = np.random.default_rng([seed, 1 + SPLITS.index(split), user])
        for place in range(first, len(targets)):
            drawn = drawn_items(rng, len(dataset.item_ids), known, negatives)
            if drawn is None:
                raise UserError(
                    f"user '{dataset.user_ids[user]}' has {len(np.unique(known))} of all "
                    f"{len(dataset.item_ids)} items: {negatives} negatives cannot be drawn."
                )
            where = int(rng.integers(negatives + 1))
            items = np.insert(drawn, where, targets[place])
            past = targets[:place] if split == TRAIN else history
            yield Candidates(user, past, items, where)


def drawn_items(rng: np.random.Generator, n_items: int, known: Rows, count: int) -> Rows | None:
    """`count` different items that are not in `known`, uniform; None where there are not enough."""
    known = np.unique(known)
    if n_items - len(known) < count:
        return None
    free = rng.choice(n_items - len(known), count, replace=False)
    # The r-th item that is not known: r plus the number of known items before it.
    drawn: Rows = free + np.searchsorted(known - np.arange(len(known)), free, side="right")
    return drawn
