"""What lists are like beyond hits: coverage of the catalogue, novelty, diversity within a list.

Definitions, over lists of n users cut at k:

    coverage@k  = different items in all lists / items of the catalogue
    novelty@k   = mean over entries of -log2((users with the item in train + 1) / (users + 1))
    diversity@k = mean over lists of the mean of 1 - cosine over all pairs of the list's items,
                  by the items' profile vectors; entries without a vector take no part
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix

from raysys.models.profiles import Profiles

#: Lists whose vectors are looked at together.
_BLOCK = 1024


def list_figures(
    items: np.ndarray, train: csr_matrix, ks: Sequence[int], profiles: Profiles | None = None
) -> dict[str, float]:
    """The three figures at each cut-off.

    Args:
        items: (n, K) item rows, best first; -1 fills the end of a short list.
        train: (U, I); every stored entry is one interaction.
        ks: cut-offs, at most K.
        profiles: vectors of the items; None: no diversity.
    """
    users, catalogue = train.shape
    surprise = -np.log2((train.getnnz(axis=0) + 1) / (users + 1))
    found: dict[str, float] = {}
    for k in dict.fromkeys(ks):
        shown = items[:, :k]
        entries = shown[shown >= 0]
        found[f"coverage@{k}"] = len(np.unique(entries)) / catalogue
        found[f"novelty@{k}"] = float(surprise[entries].mean()) if entries.size else 0.0
        if profiles is not None:
            found[f"diversity@{k}"] = _diversity(shown, profiles)
    return found


def _diversity(items: np.ndarray, profiles: Profiles) -> float:
    total = lists = 0.0
    for start in range(0, len(items), _BLOCK):
        part = items[start : start + _BLOCK]
        kept = (part >= 0) & profiles.item_has_profile[np.maximum(part, 0)]
        vectors = profiles.items[np.maximum(part, 0)].astype(np.float64)  # (b, k, s)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-12)
        vectors *= kept[:, :, None]
        count = kept.sum(axis=1)
        # All pairs at once: |Σv|² = number of vectors + twice the sum of their cosines.
        pairs = count * (count - 1)
        cosines = np.square(vectors.sum(axis=1)).sum(axis=1) - count
        several = pairs > 0
        total += float((1 - cosines[several] / pairs[several]).sum())
        lists += int(several.sum())
    return total / lists if lists else 0.0
