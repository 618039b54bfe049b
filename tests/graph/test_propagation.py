from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, random_array
from torch_geometric.nn import LGConv

from raysys.graph.bipartite import BipartiteGraph, bipartite_graph
from raysys.graph.propagation import (
    drop_edges,
    full_adjacency,
    propagate,
    propagate_sum,
    without_pairs,
)


@pytest.fixture
def graph() -> BipartiteGraph:
    train = random_array((40, 30), density=0.15, rng=1, dtype=np.float32)
    return bipartite_graph(csr_matrix(train))


def test_agrees_with_torch_geometric(graph: BipartiteGraph) -> None:
    edges = graph.matrix().to_dense().nonzero().T
    x = torch.randn(graph.nodes, 8, generator=torch.Generator().manual_seed(0))
    convolution, expected = LGConv(), [x]
    for _ in range(3):
        expected.append(convolution(expected[-1], edges))
    torch.testing.assert_close(propagate(full_adjacency(graph), x, 3), expected)


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("keep_rate", [1.0, 0.6])
def test_sum_and_gradients_equal_dense_autograd(
    graph: BipartiteGraph, layers: int, keep_rate: float
) -> None:
    adjacency = drop_edges(graph, keep_rate, torch.Generator().manual_seed(4))
    start = torch.randn(graph.nodes, 5, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(graph.nodes, 5, generator=torch.Generator().manual_seed(2))
    dense = adjacency.forward.to_dense()

    def dense_sum(x: torch.Tensor) -> torch.Tensor:
        outputs = [x]
        for _ in range(layers):
            outputs.append(dense @ outputs[-1])
        return torch.stack(outputs).sum(dim=0)

    results = []
    for function in (
        dense_sum,
        lambda x: propagate_sum(adjacency, x, layers),
        lambda x: torch.stack(propagate(adjacency, x, layers)).sum(dim=0),
    ):
        x = start.clone().requires_grad_()
        out = function(x)
        (out * weights).sum().backward()
        results.append((out.detach(), x.grad))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_dropout_keeps_values_unscaled_and_directions_apart() -> None:
    train = csr_matrix(np.ones((120, 100), dtype=np.float32))
    graph = bipartite_graph(train)
    adjacency = drop_edges(graph, 0.8, torch.Generator().manual_seed(0))
    kept, full = adjacency.forward.to_dense(), graph.matrix().to_dense()
    alive = kept != 0
    torch.testing.assert_close(kept[alive], full[alive])
    # 24,000 directed edges: three standard errors of the share are 0.008.
    share = alive.sum() / (full != 0).sum()
    assert share == pytest.approx(0.8, abs=0.008)
    # Both directions alive in 0.8² of 12,000 edges if independent, in 0.8 if tied.
    both = (alive[:120, 120:] & alive[120:, :120].T).float().mean()
    assert both == pytest.approx(0.64, abs=0.014)
    torch.testing.assert_close(adjacency.transposed.to_dense(), kept.T)


def test_dropout_follows_the_generator(graph: BipartiteGraph) -> None:
    def values(seed: int) -> torch.Tensor:
        return drop_edges(graph, 0.5, torch.Generator().manual_seed(seed)).forward.to_dense()

    torch.testing.assert_close(values(1), values(1))
    assert not torch.equal(values(1), values(2))


def test_pairs_left_out_give_the_graph_of_the_smaller_data(graph: BipartiteGraph) -> None:
    dense = graph.matrix().to_dense()[: graph.users, graph.users :]
    users, items = dense.nonzero()[::7].T
    smaller = csr_matrix((dense > 0).float().numpy())
    smaller[users.tolist(), items.tolist()] = 0
    wanted = bipartite_graph(smaller).matrix().to_dense()
    # A pair that is no edge, and one that is named twice, change nothing.
    absent = (dense == 0).nonzero()[0]
    users, items = (
        torch.cat([rows, rows[:1], absent[place : place + 1]])
        for place, rows in enumerate((users, items))
    )
    found = without_pairs(graph, users, items)
    torch.testing.assert_close(found.forward.to_dense(), wanted)
    torch.testing.assert_close(found.transposed.to_dense(), wanted.T)


def test_a_user_whose_only_edge_is_left_out_is_alone() -> None:
    graph = bipartite_graph(csr_matrix(np.eye(3, dtype=np.float32)))
    found = without_pairs(graph, torch.tensor([1]), torch.tensor([1])).forward.to_dense()
    assert found[1].abs().sum() == found[4].abs().sum() == 0
    assert found[0, 3] == found[2, 5] == 1


def test_a_graph_without_edges_has_no_pair_to_leave_out() -> None:
    empty = bipartite_graph(csr_matrix((2, 3), dtype=np.float32))
    found = without_pairs(empty, torch.tensor([0]), torch.tensor([1]))
    assert found.forward.to_dense().count_nonzero() == 0
