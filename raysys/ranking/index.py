"""Candidates out of a large catalogue without scoring all of it (faiss, an optional library)."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Queries on which recall is measured, and the depth at which.
_TRIED, _DEPTH = 200, 100


class ItemIndex:
    """Inverted lists of item vectors (faiss IVF, inner product), searched as wide as is needed.

    The number of lists searched is doubled until `recall` of the exact best are found.

    Args:
        vectors: (I, d) float32 item embeddings.
        queries: (n, d) float32 user embeddings on which recall is measured.
        recall: share of the exact 100 best that must be among the found, on average.

    Attributes:
        probes: lists searched of `lists`.
        recall: what was measured.

    Raises:
        ImportError: faiss is not installed.
    """

    def __init__(self, vectors: np.ndarray, queries: np.ndarray, recall: float) -> None:
        import faiss

        vectors = np.ascontiguousarray(vectors, np.float32)
        width = vectors.shape[1]
        # About 4 √I, and as many vectors for each as faiss wants to learn it from.
        self.lists = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // 39))
        quantizer = faiss.IndexFlatIP(width)
        self._index: Any = faiss.IndexIVFFlat(
            quantizer, width, self.lists, faiss.METRIC_INNER_PRODUCT
        )
        # Short training: what it costs in recall is made up by wider search.
        self._index.cp.max_points_per_centroid, self._index.cp.niter = 64, 10
        self._index.train(vectors)
        self._index.add(vectors)
        tried = np.ascontiguousarray(queries[:_TRIED], np.float32)
        exact = self._exact(vectors, tried)
        self.probes = min(8, self.lists)
        while True:
            self._index.nprobe = self.probes
            self.recall = self._recall(tried, exact)
            if self.recall >= recall or self.probes == self.lists:
                break
            self.probes = min(2 * self.probes, self.lists)

    def nearest(self, query: np.ndarray, number: int) -> np.ndarray:
        """(d,) → rows of about the `number` items of largest dot product, best first."""
        _, found = self._index.search(np.ascontiguousarray(query[None], np.float32), number)
        rows: np.ndarray = found[0][found[0] >= 0]
        return rows

    def _recall(self, queries: np.ndarray, exact: np.ndarray) -> float:
        _, found = self._index.search(queries, exact.shape[1])
        hits = [len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)]
        return float(np.mean(hits) / max(1, exact.shape[1])) if hits else 1.0

    @staticmethod
    def _exact(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
        depth = min(_DEPTH, len(vectors))
        scores = queries @ vectors.T
        found: np.ndarray = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        return found
