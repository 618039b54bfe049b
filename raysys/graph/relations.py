"""R: how users and items of a prompt are related in the graph, for the attention of a model.

Source: "LLM-Enhanced User-Item Interactions", section 3.2.2, equations 2 to 4: R = R_conn + R_path.
The released code builds an N × N matrix; here only pairs within a prompt are looked up, by the
walks between them: two nodes are at distance m where a walk of m edges joins them and no shorter
one does, and a walk of m = p + q edges is a node that is p steps from one and q from the other.

B prompts with at most K distinct nodes each; N nodes: users 0..U−1, items U..U+I−1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.sparse import bmat, csr_matrix, diags_array
from scipy.sparse.csgraph import breadth_first_order

from raysys.graph.bipartite import distinct_pairs
from raysys.settings import Settings

Kind = Literal["linear", "decay", "paper_literal", "ppr", "cooccurrence", "ones", "none"]
#: Fills the end of a prompt with fewer than K nodes.
NO_NODE = -1
_BY_DISTANCE = ("linear", "decay", "paper_literal")


class RelationSettings(Settings):
    """What R is. d is the distance of two nodes in the graph of train interactions."""

    kind: Kind = "linear"
    """`linear`: R_path = (c - d) / c. `decay`: δ^(d - 1). Both with R_conn = [d = 1] added and the
    sum scaled to 1 at d = 1. `paper_literal`: [d = 1] + 1 - δ^d / max(P) as printed, which *grows*
    with the distance. `ppr`: personalised PageRank by walks of at most `hops` edges, scaled to 1
    at the prompt's largest. `cooccurrence`: 1 for an edge, the cosine of neighbourhoods for two
    users or two items. `ones`: the control. `none`: no R."""
    cutoff: int = Field(default=6, ge=2, le=100)
    """c of `linear`: pairs that far apart are not related."""
    delta: float = Field(default=0.5, gt=0, lt=1)
    """δ of `decay` and `paper_literal`."""
    hops: int = Field(default=3, ge=1, le=6)
    """Pairs farther apart than so many edges are not looked for, and not related."""
    restart: float = Field(default=0.15, gt=0, lt=1)
    """Of `ppr`: the chance to stop after each edge."""


class Relations:
    """Looks R up. A node's relation to itself is 0: no edge says it (`ones`: 1).

    Args:
        train: (U, I); every stored non-zero entry is an edge.
        settings: see `RelationSettings`.
    """

    def __init__(self, train: csr_matrix, settings: RelationSettings) -> None:
        self.settings = settings
        pairs = distinct_pairs(train)
        pairs.data = np.ones(pairs.nnz, np.float32)
        self.users, self.items = pairs.shape
        edges = csr_matrix(bmat([[None, pairs], [pairs.T, None]], format="csr", dtype=np.float32))
        edges.sort_indices()
        self._degrees = np.diff(edges.indptr).astype(np.float32)
        if settings.kind == "ppr":
            scale = diags_array(1 / np.sqrt(np.maximum(self._degrees, 1)))
            edges = csr_matrix(scale @ edges @ scale, dtype=np.float32)
        self._edges = edges
        self._longest = longest_path(edges) if settings.kind == "paper_literal" else 0

    def of(self, nodes: np.ndarray) -> np.ndarray:
        """R of each prompt.

        Args:
            nodes: (B, K) int64, the distinct nodes of each prompt; `NO_NODE` fills up.

        Returns:
            (B, K, K) float32, symmetric; 0 where a node fills up.

        Raises:
            ValueError: a node that the graph does not have.
        """
        _check(nodes, self.users + self.items)
        kind = self.settings.kind
        if kind == "none" or not nodes.size:
            return np.zeros((*nodes.shape, nodes.shape[1]), np.float32)
        if kind == "ones":
            real = (nodes >= 0).astype(np.float32)
            return real[:, :, None] * real[:, None, :]
        walks = _Walks(self._edges, self.users, nodes)
        if kind == "ppr":
            return self._pagerank(walks)
        if kind == "cooccurrence":
            return self._cosine(walks, nodes)
        return walks.by_distance(self._scale())

    def of_history(self, nodes: np.ndarray) -> np.ndarray:
        """`of` for prompts of a user (first) and some of the user's train items.

        What depends on distances alone needs no look-up: user and item are 1 apart, two items 2.
        It also holds for a user's items that the graph does not know yet.
        """
        if self.settings.kind not in _BY_DISTANCE:
            return self.of(nodes)
        _check(nodes, self.users + self.items)
        size = nodes.shape[1]
        distances = np.full((size, size), 2 if self.settings.hops > 1 else 0, np.int8)
        distances[:1] = distances[:, :1] = 1
        np.fill_diagonal(distances, 0)
        real = nodes >= 0
        found: np.ndarray = self._scale()[distances] * (real[:, :, None] & real[:, None, :])
        return found

    def _scale(self) -> np.ndarray:
        """(hops + 1,) R by distance, that of a node to itself first."""
        settings = self.settings
        d = np.arange(settings.hops + 1)
        near = (d == 1).astype(np.float64)
        if settings.kind == "linear":
            path = np.maximum(settings.cutoff - d, 0) / settings.cutoff
        elif settings.kind == "decay":
            path = settings.delta ** (d - 1.0)
        else:
            path = 1 - settings.delta**d / max(self._longest, 1)
        values: np.ndarray = near + path
        if settings.kind != "paper_literal":
            values /= values[1]
        values[0] = 0
        return values.astype(np.float32)

    def _pagerank(self, walks: _Walks) -> np.ndarray:
        """Σ_m restart (1 − restart)^m Â^m, over its largest within each prompt."""
        going = 1 - self.settings.restart
        found = np.sum([going**m * walks.of(m) for m in range(1, self.settings.hops + 1)], axis=0)
        found *= ~np.eye(walks.size, dtype=bool)
        largest = found.max(axis=(1, 2), keepdims=True)
        scaled: np.ndarray = np.divide(found, largest, out=np.zeros_like(found), where=largest > 0)
        return scaled

    def _cosine(self, walks: _Walks, nodes: np.ndarray) -> np.ndarray:
        """Common neighbours over √(degree · degree); edges are 1."""
        root = np.sqrt(np.maximum(self._degrees[np.maximum(nodes, 0)], 1))
        cosine = walks.of(2) / (root[:, :, None] * root[:, None, :])
        found: np.ndarray = (walks.of(1) + cosine) * ~np.eye(walks.size, dtype=bool)
        return found


def longest_path(edges: csr_matrix) -> int:
    """The longest shortest path: exact on trees, else a lower bound by a double sweep.

    The node farthest from the one with most edges is one end, the node farthest from it the other.

    Args:
        edges: (N, N), symmetric.
    """
    if not edges.nnz:
        return 0
    end, far = int(np.argmax(np.diff(edges.indptr))), 0
    for _ in range(2):
        order, before = breadth_first_order(edges, end, directed=True)
        depth = np.zeros(edges.shape[0], np.int64)
        for node in order[1:]:
            depth[node] = depth[before[node]] + 1
        end, far = int(order[-1]), int(depth[order[-1]])
    return far


class _Walks:
    """Walks between the nodes of each prompt, weighted by the product of their edges.

    Args:
        edges: (N, N) symmetric.
        users: nodes below are users.
        nodes: (B, K).
    """

    def __init__(self, edges: csr_matrix, users: int, nodes: np.ndarray) -> None:
        self._edges, (self._prompts, self.size) = edges, nodes.shape
        self._flat = nodes.ravel()
        kinds = (self._flat >= 0) & (self._flat < users), self._flat >= users
        #: Places in (B · K) of users, and of items.
        self._rows = tuple(map(np.flatnonzero, kinds))
        self._ends: dict[tuple[int, int], csr_matrix] = {}

    def of(self, m: int) -> np.ndarray:
        """(B, K, K) float32: the weight of all walks of m edges; the diagonal is void."""
        found = np.zeros((self._prompts, self.size, self.size), np.float32)
        for rows, columns, weights in self._walks(m):
            found.reshape(-1, self.size)[rows, columns] = weights
        return found

    def by_distance(self, values: np.ndarray) -> np.ndarray:
        """(B, K, K) float32: `values[d]` for nodes whose shortest walk has d edges; else 0.

        Args:
            values: (hops + 1,); the first is of no use.
        """
        found = np.zeros((self._prompts, self.size, self.size), np.float32)
        for m in range(len(values) - 1, 0, -1):
            for rows, columns, weights in self._walks(m):
                joined = weights > 0
                found.reshape(-1, self.size)[rows[joined], columns[joined]] = values[m]
        found[:, np.arange(self.size), np.arange(self.size)] = 0
        return found

    def _walks(self, m: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Walks of m edges: places in (B · K) of one end, slots of the other, weights.

        Walks of an even number of edges join two users or two items, the others a user and an
        item; of these the kind with fewer nodes goes the longer part of the way.
        """
        if m % 2 == 0:
            for kind in (0, 1):
                yield from self._alike(kind, m // 2)
        else:
            few, many = sorted((0, 1), key=lambda kind: len(self._rows[kind]))
            yield from self._between(few, m - m // 2, many, m // 2)

    def _after(self, kind: int, steps: int) -> csr_matrix:
        """Where walks from the users (0) or items (1) are after so many edges: (n, N)."""
        if (kind, steps) not in self._ends:
            if steps > 1:
                ends = self._after(kind, steps - 1) @ self._edges
            else:
                nodes = self._flat[self._rows[kind]]
                shape, ones = (len(nodes), self._edges.shape[0]), np.ones(len(nodes), np.float32)
                start = csr_matrix((ones, nodes, np.arange(len(nodes) + 1)), shape)
                ends = self._edges[nodes] if steps else start
            self._ends[kind, steps] = ends
        return self._ends[kind, steps]

    def _alike(self, kind: int, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Walks between nodes of one kind that meet after so many edges from either end."""
        ends = self._after(kind, steps)
        if not ends.nnz:
            return
        rows = np.repeat(self._rows[kind], np.diff(ends.indptr))
        keys = rows // self.size * np.int64(self._edges.shape[0]) + ends.indices
        # Sorting numbers is twice as fast as sorting places by them: the place is the last bits.
        bits = len(keys).bit_length()
        packed = np.sort(keys << bits | np.arange(len(keys)))
        in_order = packed >> bits
        # Most nodes are reached from one end alone: dropped here, they cost nothing later.
        again = in_order[1:] == in_order[:-1]
        kept = np.flatnonzero(np.r_[again, False] | np.r_[False, again])
        if not len(kept):
            return
        order, in_order = packed[kept] & ((1 << bits) - 1), in_order[kept]
        starts = np.flatnonzero(np.r_[True, in_order[1:] != in_order[:-1], True])
        meeting = csr_matrix(
            (ends.data[order], rows[order], starts), (len(starts) - 1, self._flat.size)
        )
        product = (meeting.T.tocsr() @ meeting).tocoo()
        yield product.row, product.col % self.size, product.data

    def _between(
        self, few: int, steps: int, many: int, other_steps: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Walks between nodes of both kinds, from one node of kind `few` after the other."""
        left, right = self._after(few, steps), self._after(many, other_steps)
        starts = np.arange(self._prompts + 1) * self.size
        ours, theirs = (np.searchsorted(self._rows[kind], starts) for kind in (few, many))
        lines = np.repeat(np.arange(right.shape[0]), np.diff(right.indptr))
        reached = np.zeros(self._edges.shape[0], np.float32)
        for prompt in np.flatnonzero(np.diff(ours) * np.diff(theirs)):
            first, stop = theirs[prompt : prompt + 2]
            part = slice(right.indptr[first], right.indptr[stop])
            nodes, values, line = right.indices[part], right.data[part], lines[part] - first
            others = self._rows[many][first:stop]
            for row in range(*ours[prompt : prompt + 2]):
                entries = slice(*left.indptr[row : row + 2])
                ends = left.indices[entries]
                reached[ends] = left.data[entries]
                weights = np.bincount(line, values * reached[nodes], stop - first)
                reached[ends] = 0
                place = np.full(len(others), self._rows[few][row])
                yield place, others % self.size, weights
                yield others, place % self.size, weights


def _check(nodes: np.ndarray, count: int) -> None:
    if nodes.size and not NO_NODE <= nodes.min() <= nodes.max() < count:
        raise ValueError(f"nodes must be {NO_NODE} or from 0 to {count - 1}, got {nodes.max()}")
