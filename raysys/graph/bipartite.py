"""The user–item graph as one symmetric-normalised sparse matrix.

Node rows: users 0..U−1, then items U..U+I−1, so N = U+I. Train edges only: the caller
decides what is an edge, and passes nothing of the validation or test split.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix

#: Below so many entries indices are 32-bit: MKL converts 64-bit ones anew in every product.
_INT32_ENTRIES = 2**31
#: Rows of a block of a product, at most.
_BLOCK_ROWS = 2**15


@dataclass(frozen=True, eq=False)
class SparsePattern:
    """Where the entries of a sparse (N, N) matrix lie, in CSR; (i, j) stored ⇔ (j, i) stored.

    Attributes:
        row_starts: (N+1,) int32.
        columns: (E,) int32, ascending within a row.
        reverse: (E,) int32; where entry p is (i, j), entry `reverse[p]` is (j, i).

    From 2³¹ entries on all three are int64.
    """

    row_starts: torch.Tensor
    columns: torch.Tensor
    reverse: torch.Tensor

    @property
    def nodes(self) -> int:
        """N."""
        return len(self.row_starts) - 1

    @property
    def device(self) -> torch.device:
        """Where the pattern lies."""
        return self.columns.device

    @property
    def degrees(self) -> torch.Tensor:
        """(N,) entries in each row."""
        return self.row_starts.diff()

    @cached_property
    def rows(self) -> torch.Tensor:
        """(E,) int64 row of each entry."""
        return torch.repeat_interleave(self.degrees.long())

    @cached_property
    def keys(self) -> torch.Tensor:
        """(E,) int64, ascending: row · N + column of each entry."""
        return self.rows * self.nodes + self.columns

    @property
    def sides(self) -> tuple[int, ...]:
        """Numbers of rows, one after the other, within which rows hold about as many entries."""
        return (self.nodes,)

    @cached_property
    def row_blocks(self) -> list[RowBlock]:
        """The rows in order, cut where a side ends and after `_BLOCK_ROWS` rows.

        One block on a GPU, and of few rows: there, more calls cost more than threads wait.
        """
        if self.device.type != "cpu" or self.nodes <= _BLOCK_ROWS:
            return [RowBlock(slice(0, self.nodes), slice(0, len(self.columns)), self.row_starts)]
        ends = np.cumsum((0, *self.sides))
        cuts = [range(a, b, _BLOCK_ROWS) for a, b in pairwise(ends.tolist())]
        blocks = []
        for start, stop in pairwise([*chain.from_iterable(cuts), self.nodes]):
            first, last = self.row_starts[[start, stop]].tolist()
            own = self.row_starts[start : stop + 1] - first
            blocks.append(RowBlock(slice(start, stop), slice(first, last), own))
        return blocks

    def with_values(self, values: torch.Tensor) -> torch.Tensor:
        """The (N, N) sparse CSR tensor with `values` (E,) in the order of the entries.

        CSR, not COO: its product with a dense matrix is 12 times faster here. For products
        take `SparseMatrix`.
        """
        return torch.sparse_csr_tensor(
            self.row_starts,
            self.columns,
            values,
            size=(self.nodes, self.nodes),
            check_invariants=False,
        )


class RowBlock(NamedTuple):
    """Some rows of a pattern: which, which entries are theirs, and (rows + 1,) starts from 0."""

    rows: slice
    entries: slice
    row_starts: torch.Tensor


class SparseMatrix:
    """Values on a pattern, for products with dense matrices; the result has no gradient.

    MKL gives each thread as many *rows* of the matrix that it is handed, and a row of an item
    holds more entries than one of a user: over all rows at once threads wait for one another.
    The sums are those of one product over all rows, bit for bit.

    Args:
        pattern: E entries over N nodes.
        values: (E,) in the order of the entries.
    """

    def __init__(self, pattern: SparsePattern, values: torch.Tensor) -> None:
        self._blocks = [
            (
                block.rows,
                torch.sparse_csr_tensor(
                    block.row_starts,
                    pattern.columns[block.entries],
                    values[block.entries],
                    size=(len(block.row_starts) - 1, pattern.nodes),
                    check_invariants=False,
                ),
            )
            for block in pattern.row_blocks
        ]

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """(N, d) -> (N, d)."""
        (_, first), *more = self._blocks
        if not more:
            return first @ x
        result = torch.empty_like(x)
        for rows, block in self._blocks:
            torch.mm(block, x, out=result[rows])
        return result

    def to_dense(self) -> torch.Tensor:
        """The (N, N) matrix with its zeros, of a small graph."""
        return torch.cat([block.to_dense() for _, block in self._blocks])

    def plus(self, base: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`out` (N, d), filled with base + matrix @ x; it may not be `x`."""
        for rows, block in self._blocks:
            torch.addmm(base[rows], block, x, out=out[rows])
        return out


@dataclass(frozen=True, eq=False)
class BipartiteGraph(SparsePattern):
    """D^-½ A D^-½; each of the E edges is stored in both directions.

    Attributes:
        users: U.
        items: I.
        values: (2E,) float32, 1/√(degree of row · degree of column).
    """

    users: int
    items: int
    values: torch.Tensor

    @property
    def sides(self) -> tuple[int, ...]:
        """Users, items."""
        return (self.users, self.items)

    def matrix(self) -> torch.Tensor:
        """The (N, N) sparse CSR tensor."""
        return self.with_values(self.values)

    def to(self, device: torch.device | str) -> BipartiteGraph:
        """The same graph on another device."""
        return replace(
            self,
            row_starts=self.row_starts.to(device),
            columns=self.columns.to(device),
            values=self.values.to(device),
            reverse=self.reverse.to(device),
        )


def symmetric_pattern(rows: torch.Tensor, columns: torch.Tensor, nodes: int) -> SparsePattern:
    """The pattern of the given entries, each once.

    Args:
        rows, columns: (n,) int64, repeats allowed; with (i, j) also (j, i) must be among them.
        nodes: N.
    """
    keys = torch.unique(rows * nodes + columns)
    rows, columns = keys // nodes, keys % nodes
    row_starts = torch.searchsorted(keys, torch.arange(nodes + 1, device=keys.device) * nodes)
    reverse = torch.searchsorted(keys, columns * nodes + rows)
    index = torch.int32 if len(keys) < _INT32_ENTRIES else torch.int64
    return SparsePattern(row_starts.to(index), columns.to(index), reverse.to(index))


def distinct_pairs(matrix: csr_matrix) -> csr_matrix:
    """A copy, same shape, with each pair stored once and no stored zeros; values are summed."""
    pairs = csr_matrix(matrix, copy=True)
    pairs.sum_duplicates()
    pairs.eliminate_zeros()
    return pairs


def bipartite_graph(train: csr_matrix) -> BipartiteGraph:
    """Normalise the train interactions: Â = D^-½ A D^-½ without self loops.

    Source: LightGCN, equation 8; RLMRec uses the same.

    Args:
        train: (U, I); every stored non-zero entry is one edge, whatever its value.

    Returns:
        The graph on the CPU. A user or item without an edge has a zero row and column.
    """
    pattern = distinct_pairs(train)
    users, items = pattern.shape
    edges = pattern.nnz
    index = np.int32 if 2 * edges < _INT32_ENTRIES else np.int64
    pattern.data = np.arange(edges, dtype=index)
    flipped = pattern.T.tocsr()
    # flipped.data: the entry of the upper half that each lower entry mirrors.
    reverse = np.empty(2 * edges, dtype=index)
    reverse[edges:] = flipped.data
    reverse[flipped.data] = np.arange(edges, 2 * edges, dtype=index)
    degrees = np.diff(pattern.indptr), np.diff(flipped.indptr)
    # A node without an edge has no entry that could read its scale.
    by_user, by_item = (1.0 / np.sqrt(np.maximum(degree, 1)) for degree in degrees)
    # Filled half by half: at 10^8 edges each further array of all edges is gigabytes.
    values = np.empty(2 * edges, dtype=np.float32)
    values[:edges] = np.repeat(by_user, degrees[0]) * by_item[pattern.indices]
    values[edges:] = np.repeat(by_item, degrees[1]) * by_user[flipped.indices]
    columns = np.empty(2 * edges, dtype=index)
    np.add(pattern.indices, users, out=columns[:edges])
    columns[edges:] = flipped.indices
    row_starts = np.concatenate([pattern.indptr, edges + flipped.indptr[1:].astype(np.int64)])
    graph = BipartiteGraph(
        users=users,
        items=items,
        row_starts=torch.from_numpy(row_starts.astype(index)),
        columns=torch.from_numpy(columns),
        values=torch.from_numpy(values),
        reverse=torch.from_numpy(reverse),
    )
    with warnings.catch_warnings():
        # torch says once per process that CSR is in beta: nothing a reader could act on.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        graph.matrix()
    return graph
