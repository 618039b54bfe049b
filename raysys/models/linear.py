"""Strong simple models: item neighbours, EASE, and a blend of two models' scores.

They train in seconds without gradients. Whoever says that a graph or a language model
helps has to beat them.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_matrix, vstack

from raysys.errors import UserError
from raysys.graph.bipartite import distinct_pairs
from raysys.models.base import ScoreBlock
from raysys.settings import Settings

#: EASE holds two dense (I, I) float32 matrices: 8 GB at this catalogue.
MAX_DENSE_ITEMS = 32_000
_ITEMS_AT_ONCE = 1024


class ItemKNNSettings(Settings):
    """Cosine neighbours between items."""

    neighbours: int = Field(default=100, ge=1)
    """Most similar items kept for each item."""
    shrink: float = Field(default=10.0, ge=0)
    """Added to the denominator: similarities of rare items count less."""


class ItemKNN:
    """score(u, i) = Σ_{j ∈ history(u)} s_ji, s_ji = |U_j ∩ U_i| / (√(|U_j||U_i|) + shrink).

    Source: Deshpande and Karypis 2004, item-based top-N; for each item j only its
    `neighbours` largest similarities are kept.

    Args:
        train: (U, I); every stored non-zero entry is one interaction.
        settings: see `ItemKNNSettings`.
    """

    def __init__(self, train: csr_matrix, settings: ItemKNNSettings) -> None:
        self._train = _binary(train)
        by_item = self._train.T.tocsr()  # (I, U)
        norms = np.sqrt(np.diff(by_item.indptr)).astype(np.float32)
        blocks = [
            self._similar(by_item, norms, start, settings)
            for start in range(0, by_item.shape[0], _ITEMS_AT_ONCE)
        ]
        self.similarity: csr_matrix = vstack(blocks, format="csr")

    def _similar(
        self, by_item: csr_matrix, norms: np.ndarray, start: int, settings: ItemKNNSettings
    ) -> csr_matrix:
        """Kept similarities of a block of items, (b, I)."""
        rows = np.arange(start, min(start + _ITEMS_AT_ONCE, by_item.shape[0]))
        shared = (by_item[rows] @ self._train).toarray()  # (b, I) users in common
        shared /= norms[rows, None] * norms[None] + settings.shrink + 1e-12
        shared[np.arange(len(rows)), rows] = 0.0
        kept = min(settings.neighbours, shared.shape[1])
        found = torch.topk(torch.from_numpy(shared), kept)
        pointers = np.arange(len(rows) + 1) * kept
        columns = found.indices.reshape(-1).numpy()
        block = csr_matrix((found.values.reshape(-1).numpy(), columns, pointers), shared.shape)
        block.eliminate_zeros()
        return block

    def score_block(self, user_rows: np.ndarray) -> np.ndarray:
        """User rows (b,) -> scores (b, I) float32."""
        scores: np.ndarray = (self._train[user_rows] @ self.similarity).toarray()
        return scores


class EaseSettings(Settings):
    """EASE, with item texts as side information where they are given."""

    reg: float = Field(default=50.0, gt=0)
    """λ; the larger, the nearer to popularity. Choose it on validation."""
    text_weight: float = Field(default=0.0, ge=0)
    """Weight of the item vectors' Gram matrix beside the interactions'."""


class Ease:
    """score(u, ·) = x_u B, B = −P / diag(P) off the diagonal, 0 on it, P = (XᵀX + αTTᵀ + λI)⁻¹.

    The minimiser of ‖X − XB‖² + α‖Tᵀ − TᵀB‖² + λ‖B‖² with a zero diagonal. Source: EASE
    (Steck 2019), equation 8; the rows of Tᵀ are stacked under X as if they were users.

    Args:
        train: (U, I); every stored non-zero entry is one interaction.
        settings: see `EaseSettings`.
        item_vectors: (I, s) T, used where `text_weight` is above 0; rows are normalised.
        item_has_vector: (I,) bool; items without a vector take no part in TTᵀ.

    Raises:
        UserError: the catalogue is too large for dense matrices, or vectors are asked for
            and missing or of another length.
    """

    def __init__(
        self,
        train: csr_matrix,
        settings: EaseSettings,
        item_vectors: np.ndarray | None = None,
        item_has_vector: np.ndarray | None = None,
    ) -> None:
        self._train = _binary(train)
        items = train.shape[1]
        if items > MAX_DENSE_ITEMS:
            raise UserError(
                f"EASE needs a dense matrix of {items} x {items} items; the limit is "
                f"{MAX_DENSE_ITEMS}. Use ItemKNN, or a larger k_core."
            )
        gram = torch.from_numpy((self._train.T @ self._train).toarray())
        if settings.text_weight:
            vectors = _unit_vectors(items, item_vectors, item_has_vector)
            gram.addmm_(vectors, vectors.T, alpha=settings.text_weight)
        gram.diagonal().add_(settings.reg)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        inverse.div_(-inverse.diagonal().clone())
        self.weights = inverse.fill_diagonal_(0.0)

    def score_block(self, user_rows: np.ndarray) -> np.ndarray:
        """User rows (b,) -> scores (b, I) float32."""
        scores: np.ndarray = self._train[user_rows] @ self.weights.numpy()
        return scores


class Blend:
    """w·z(a) + (1 − w)·z(b): two models' scores, each standardised over a user's items.

    Args:
        first: scores of model a.
        second: scores of model b.
        weight: w in [0, 1]; choose it on validation.
    """

    def __init__(self, first: ScoreBlock, second: ScoreBlock, weight: float) -> None:
        self._first, self._second, self.weight = first, second, weight

    def score_block(self, user_rows: np.ndarray) -> np.ndarray:
        """User rows (b,) -> scores (b, I) float32."""
        first, second = _standard(self._first(user_rows)), _standard(self._second(user_rows))
        return self.weight * first + (1 - self.weight) * second


def _standard(scores: np.ndarray) -> np.ndarray:
    """Zero mean and unit deviation in each row; a constant row becomes zero."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    deviation: np.ndarray = centred.std(axis=1, keepdims=True)
    result: np.ndarray = centred / np.maximum(deviation, 1e-12)
    return result.astype(np.float32)


def _binary(train: csr_matrix) -> csr_matrix:
    """The matrix as float32 ones."""
    ones = distinct_pairs(train)
    ones.data = np.ones(ones.nnz, dtype=np.float32)
    return ones


def _unit_vectors(
    items: int, vectors: np.ndarray | None, has_vector: np.ndarray | None
) -> torch.Tensor:
    if vectors is None or len(vectors) != items:
        found = "none" if vectors is None else str(len(vectors))
        raise UserError(f"EASE with text_weight needs {items} item vectors, found {found}.")
    rows = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    unit = torch.nn.functional.normalize(rows, dim=1)
    if has_vector is not None:
        unit[torch.from_numpy(~has_vector.astype(bool))] = 0.0
    return unit
