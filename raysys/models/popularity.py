"""The simplest bar: recommend what most users have."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix


class Popularity:
    """Every user gets the same scores: the number of train users of each item.

    Args:
        train: (U, I); every stored non-zero entry is one interaction.

    Attributes:
        counts: (I,) float32.
    """

    def __init__(self, train: csr_matrix) -> None:
        self.counts = train.getnnz(axis=0).astype(np.float32)

    def score_block(self, user_rows: np.ndarray) -> np.ndarray:
        """User rows (b,) -> scores (b, I) float32; a read-only view."""
        return np.broadcast_to(self.counts, (len(user_rows), len(self.counts)))
