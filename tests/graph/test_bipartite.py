from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, random_array

from raysys.graph import bipartite
from raysys.graph.bipartite import SparseMatrix, bipartite_graph, symmetric_pattern


def random_train(users: int = 13, items: int = 9, seed: int = 0) -> csr_matrix:
    return csr_matrix(random_array((users, items), density=0.3, rng=seed, dtype=np.float32))


def test_equals_the_dense_formula() -> None:
    train = random_train()
    dense = (train.toarray() > 0).astype(np.float64)
    adjacency = np.block([[np.zeros((13, 13)), dense], [dense.T, np.zeros((9, 9))]])
    root = np.sqrt(adjacency.sum(axis=1))
    inverse = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    expected = inverse[:, None] * adjacency * inverse[None, :]
    np.testing.assert_allclose(bipartite_graph(train).matrix().to_dense(), expected, rtol=1e-6)


def test_isolated_nodes_have_zero_rows_and_no_nan() -> None:
    train = csr_matrix(([1.0], ([1], [2])), shape=(3, 4), dtype=np.float32)
    dense = bipartite_graph(train).matrix().to_dense()
    assert torch.isfinite(dense).all()
    assert dense.count_nonzero() == 2
    assert dense[1, 3 + 2] == dense[3 + 2, 1] == 1.0


def test_repeated_and_zero_entries_are_one_edge_and_none() -> None:
    repeated = csr_matrix(
        (np.array([1, 1, 0, 5], dtype=np.float32), ([0, 0, 1, 1], [0, 0, 0, 1])), shape=(2, 2)
    )
    clean = csr_matrix(np.eye(2, dtype=np.float32))
    torch.testing.assert_close(
        bipartite_graph(repeated).matrix().to_dense(), bipartite_graph(clean).matrix().to_dense()
    )


def test_reverse_points_to_the_mirrored_entry() -> None:
    graph = bipartite_graph(random_train(seed=3))
    marks = torch.arange(1, len(graph.values) + 1, dtype=torch.float32)
    marked = graph.with_values(marks).to_dense()
    turned = graph.with_values(marks[graph.reverse]).to_dense()
    torch.testing.assert_close(turned, marked.T)
    there_and_back = graph.reverse[graph.reverse]
    assert torch.equal(there_and_back, torch.arange(len(graph.values), dtype=torch.int32))


def test_empty_graph() -> None:
    graph = bipartite_graph(csr_matrix((2, 3), dtype=np.float32))
    assert graph.matrix().to_dense().count_nonzero() == 0
    assert graph.nodes == 5


@pytest.mark.parametrize("block_rows", [1, 4, 2**16])
def test_products_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    monkeypatch.setattr(bipartite, "_BLOCK_ROWS", block_rows)
    graph = bipartite_graph(random_train())
    rows = [block.rows for block in graph.row_blocks]
    assert [row for part in rows for row in range(graph.nodes)[part]] == [*range(graph.nodes)]
    assert len(rows) == 1 or 13 in [part.start for part in rows], "users and items are apart"
    matrix, plain = SparseMatrix(graph, graph.values), graph.matrix()
    x, base = torch.randn(2, graph.nodes, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(matrix.to_dense(), plain.to_dense())
    torch.testing.assert_close(matrix @ x, plain @ x)
    torch.testing.assert_close(matrix.plus(base, x, torch.empty_like(x)), base + plain @ x)


def test_indices_of_very_many_entries_are_64_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    small = bipartite_graph(random_train())
    monkeypatch.setattr(bipartite, "_INT32_ENTRIES", 0)
    large = bipartite_graph(random_train())
    x = torch.randn(small.nodes, 3, generator=torch.Generator().manual_seed(0))
    for name in ("row_starts", "columns", "reverse"):
        assert getattr(large, name).dtype == torch.int64
        assert torch.equal(getattr(large, name), getattr(small, name).long())
    assert torch.equal(SparseMatrix(large, large.values) @ x, SparseMatrix(small, small.values) @ x)
    pair = torch.tensor([0, 1])
    assert symmetric_pattern(pair, pair.flip(0), 2).columns.dtype == torch.int64


def test_a_pattern_without_sides_is_one_block() -> None:
    rows, columns = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0, 2, 2])
    pattern = symmetric_pattern(rows, columns, 4)
    assert [block.rows for block in pattern.row_blocks] == [slice(0, 4)]
    product = SparseMatrix(pattern, torch.tensor([2.0, 3.0, 5.0])) @ torch.eye(4)
    assert product.nonzero().tolist() == [[0, 1], [1, 0], [2, 2]]
