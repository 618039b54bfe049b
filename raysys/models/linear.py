"""Strong simple models: item neighbours, EASE, and a blend of two models' scores.

They train in seconds without gradients. Whoever says that a graph or a language model
helps has to beat them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_matrix, issparse, vstack

from raysys.errors import UserError
from raysys.graph.bipartite import distinct_pairs
from raysys.settings import Settings

#: EASE's dense (I, I) float32 matrix takes 4 GB at this catalogue.
MAX_DENSE_ITEMS = 32_000
#: Floats of one temporary: 64 MiB.
_FLOATS_AT_ONCE = 2**24


class ItemWeights:
    """score(u, ·) = x_u W: each item of a user's history votes for other items.

    Args:
        train: (U, I); every stored non-zero entry is one interaction.
        weights: (I, I) float32, dense or sparse; it may be a mapped file.
    """

    def __init__(self, train: csr_matrix, weights: np.ndarray | csr_matrix) -> None:
        self.train = _binary(train)
        self.weights = weights

    def score_block(self, user_rows: np.ndarray) -> np.ndarray:
        """User rows (b,) -> scores (b, I) float32; zero for users without history."""
        return self.score_histories(self.train[user_rows])

    def score_histories(self, histories: csr_matrix) -> np.ndarray:
        """Histories (b, I), a stored one for each item -> scores (b, I) float32."""
        found = histories @ self.weights
        scores: np.ndarray = found.toarray() if issparse(found) else found
        return scores

    def item_vectors(self) -> np.ndarray:
        """(I, d) float32: items whose rows of W are alike lie together; d at most 32."""
        items = self.train.shape[1]
        width = min(32, items)
        # Random projection: distances between rows are kept, about.
        sketch = np.random.default_rng(0).standard_normal((items, width), dtype=np.float32)
        vectors: np.ndarray = self.weights @ sketch / np.float32(width**0.5)
        return vectors


class ItemKNNSettings(Settings):
    """Cosine neighbours between items."""

    neighbours: int = Field(default=100, ge=1)
    """Most similar items kept for each item."""
    shrink: float = Field(default=10.0, ge=0)
    """Added to the denominator: similarities of rare items count less."""


class ItemKNN(ItemWeights):
    """score(u, i) = Σ_{j ∈ history(u)} s_ji, s_ji = |U_j ∩ U_i| / (√(|U_j||U_i|) + shrink).

    Source: Deshpande and Karypis 2004, item-based top-N; for each item j only its
    `neighbours` largest similarities are kept.

    Args:
        train: (U, I); every stored non-zero entry is one interaction.
        settings: see `ItemKNNSettings`.
    """

    def __init__(self, train: csr_matrix, settings: ItemKNNSettings) -> None:
        train = _binary(train)
        by_item = train.T.tocsr()  # (I, U)
        norms = np.sqrt(np.diff(by_item.indptr)).astype(np.float32)
        items = len(norms)
        blocks = [_similar(train, by_item, norms, rows, settings) for rows in _blocks(items, items)]
        super().__init__(train, vstack(blocks, format="csr"))


class EaseSettings(Settings):
    """EASE, with item texts as side information where they are given."""

    reg: float = Field(default=50.0, gt=0)
    """λ; the larger, the nearer to popularity. Choose it on validation."""
    text_weight: float = Field(default=0.0, ge=0)
    """Weight of the item vectors' Gram matrix beside the interactions'."""
    solver: Literal["auto", "dense", "sparse"] = "auto"
    """dense: exact; sparse: approximate; auto: dense while the catalogue allows it."""
    neighbours: int = Field(default=100, ge=1)
    """Items that may predict each item, for the sparse solver."""


class Ease(ItemWeights):
    """score(u, ·) = x_u B, where B minimises ‖X − XB‖² + α‖Tᵀ − TᵀB‖² + λ‖B‖², diagonal zero.

    Dense: B = −P / diag(P) off the diagonal, P = G⁻¹, G = XᵀX + αTTᵀ + λI. Source: EASE
    (Steck 2019), equation 8; the rows of Tᵀ are stacked under X as if they were users. Peak
    memory: one (I, I) float32 matrix, which the inverse overwrites.

    Sparse: column j of B may be non-zero only at the K items N with the largest |G_ij|/√(G_ii),
    and solves G_NN b = G_Nj; with K = I − 1 this is the dense B. Source: Markov random fields
    for collaborative filtering (Steck 2019), its limit of one regression for each item, here
    with the same number of neighbours for all. Time grows as I² + I·K³; peak memory: about
    8 bytes for each pair of items that share a user, and 8 for each of the I·K weights.

    Args:
        train: (U, I); every stored non-zero entry is one interaction.
        settings: see `EaseSettings`.
        item_vectors: (I, s) T, used where `text_weight` is above 0; rows are normalised.
        item_has_vector: (I,) bool; items without a vector take no part in TTᵀ.

    Attributes:
        weights: (I, I) B; an array from the dense solver, a csr_matrix from the sparse.

    Raises:
        UserError: the catalogue is too large for the dense solver, `reg` is too small for the
            data, or vectors are asked for and missing or of another length.
    """

    def __init__(
        self,
        train: csr_matrix,
        settings: EaseSettings,
        item_vectors: np.ndarray | None = None,
        item_has_vector: np.ndarray | None = None,
    ) -> None:
        train = _binary(train)
        items = train.shape[1]
        if settings.solver == "dense" and items > MAX_DENSE_ITEMS:
            raise UserError(
                f"EASE needs a dense matrix of {items} x {items} items; the limit is "
                f"{MAX_DENSE_ITEMS}. Set solver to 'sparse', or raise k_core."
            )
        text = torch.empty(items, 0)  # without columns it adds nothing to G
        if settings.text_weight:
            text = _unit_vectors(items, item_vectors, item_has_vector)
            text.mul_(settings.text_weight**0.5)
        try:
            if settings.solver == "sparse" or items > MAX_DENSE_ITEMS:
                weights: np.ndarray | csr_matrix = _sparse_weights(
                    train, text, settings.reg, settings.neighbours
                )
            else:
                weights = _dense_weights(train, text, settings.reg)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            raise UserError(
                f"EASE cannot be solved with reg {settings.reg:g} in 32-bit numbers: raise it."
            ) from None
        super().__init__(train, weights)


class BlendSettings(Settings):
    """Two other models of the run."""

    first: str
    """Name of model a."""
    second: str
    """Name of model b."""
    weight: float = Field(default=0.5, ge=0, le=1)
    """w of a; `grid` chooses it on validation."""


class Blend:
    """w·z(a) + (1 − w)·z(b): two models' scores, each standardised over a user's items.

    Args:
        first: scores of model a.
        second: scores of model b.
        weight: w in [0, 1]; choose it on validation.
    """

    def __init__(
        self,
        first: Callable[[Any], np.ndarray],
        second: Callable[[Any], np.ndarray],
        weight: float,
    ) -> None:
        self._first, self._second, self.weight = first, second, weight

    def score_block(self, user_rows: Any) -> np.ndarray:
        """User rows (b,), or what else both models score -> scores (b, I) float32."""
        first, second = _standard(self._first(user_rows)), _standard(self._second(user_rows))
        return self.weight * first + (1 - self.weight) * second


def _similar(
    train: csr_matrix,
    by_item: csr_matrix,
    norms: np.ndarray,
    rows: np.ndarray,
    settings: ItemKNNSettings,
) -> csr_matrix:
    """Kept similarities of a block of items, (b, I)."""
    shared = (by_item[rows] @ train).toarray()  # (b, I) users in common
    shared /= norms[rows, None] * norms[None] + settings.shrink + 1e-12
    shared[np.arange(len(rows)), rows] = 0.0
    kept = min(settings.neighbours, shared.shape[1])
    found = torch.topk(torch.from_numpy(shared), kept)
    return _from_lists(found.indices, found.values, shared.shape[1])


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


def _blocks(rows: int, width: int) -> Iterator[np.ndarray]:
    """All row numbers in turn, as many at once as have room with `width` floats each."""
    step = max(1, _FLOATS_AT_ONCE // width)
    for start in range(0, rows, step):
        yield np.arange(start, min(start + step, rows))


def _from_lists(columns: torch.Tensor, values: torch.Tensor, width: int) -> csr_matrix:
    """(b, width) with `values` (b, k) at `columns` (b, k) of each row; zeros are not stored."""
    rows, kept = columns.shape
    pointers = np.arange(rows + 1) * kept
    entries = (values.reshape(-1).numpy(), columns.reshape(-1).numpy(), pointers)
    matrix = csr_matrix(entries, (rows, width))
    matrix.eliminate_zeros()
    return matrix


def _gram_rows(shared: csr_matrix, text: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """(b, I) rows of XᵀX + TTᵀ from those of XᵀX; text (I, s)."""
    return torch.from_numpy(shared.toarray()).addmm_(text[rows], text.T)


def _dense_weights(train: csr_matrix, text: torch.Tensor, reg: float) -> np.ndarray:
    """`Ease`'s dense B; text (I, s) is T·√α."""
    by_item = train.T.tocsr()
    items = by_item.shape[0]
    matrix = torch.empty(items, items)
    for rows in _blocks(items, items):
        matrix[rows] = _gram_rows(by_item[rows] @ train, text, rows)
    matrix.diagonal().add_(reg)
    # The matrix is symmetric, so its transposed view is the same matrix in LAPACK's column
    # order; in row order LAPACK would work on a copy.
    torch.linalg.cholesky(matrix.mT, out=matrix.mT)
    torch.cholesky_inverse(matrix.mT, out=matrix.mT)
    matrix.div_(-matrix.diagonal().clone())
    weights: np.ndarray = matrix.fill_diagonal_(0.0).numpy()
    return weights


def _sparse_weights(
    train: csr_matrix, text: torch.Tensor, reg: float, neighbours: int
) -> csr_matrix:
    """`Ease`'s sparse B; text (I, s) is T·√α."""
    items, width = text.shape
    if items == 1:
        return csr_matrix((1, 1), dtype=np.float32)
    kept = min(neighbours, items - 1)
    shared = (train.T @ train).tocsr()
    shared.sort_indices()  # entries of a sorted row are looked up by bisection
    scale = (torch.from_numpy(shared.diagonal()) + text.square().sum(dim=1) + reg).rsqrt()
    lower = np.tril_indices(kept)  # all that a Cholesky factorisation reads
    columns = []
    for rows in _blocks(items, max(items, kept * kept, kept * width)):
        gram = _gram_rows(shared[rows], text, rows)
        similar = gram.abs().mul_(scale)
        similar[np.arange(len(rows)), rows] = -1.0  # an item does not predict itself
        near = similar.topk(kept).indices.sort(dim=1).values
        below, left = (near.int().numpy().take(part, axis=1).ravel() for part in lower)
        systems = torch.zeros(len(rows), kept, kept)
        systems[:, *lower] = torch.from_numpy(np.asarray(shared[below, left])).view(len(rows), -1)
        vectors = text[near]
        systems.baddbmm_(vectors, vectors.mT)
        systems.diagonal(dim1=1, dim2=2).add_(reg)
        targets = gram.gather(1, near).unsqueeze(2)
        solved = torch.cholesky_solve(targets, torch.linalg.cholesky(systems))
        columns.append(_from_lists(near, solved, items))
    return vstack(columns).T.tocsr()


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
