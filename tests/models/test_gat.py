"""The attention layer against PyTorch Geometric's, and what the network is built from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch_geometric.nn import GATv2Conv
from toy_models import ITEMS, USERS, generator, toy_profiles, toy_train

from raysys.errors import UserError
from raysys.graph import edges
from raysys.graph.bipartite import bipartite_graph
from raysys.models.gat import AttentionLayer
from raysys.models.registry import ModelSettings, build_model
from raysys.schema import DISLIKED, NEITHER

OTHERS = {
    DISLIKED: csr_matrix(([1.0], ([0], [1])), shape=(USERS, ITEMS)),
    NEITHER: csr_matrix(([1.0, 1.0], ([2, 3], [1, 2])), shape=(USERS, ITEMS)),
}


def model_of(profiles=None, **values):
    settings = ModelSettings(backbone="gat", settings={"width": 4, "heads": 2, **values})
    given = toy_profiles() if profiles is None else profiles
    return build_model(settings, bipartite_graph(toy_train()), given, 0, OTHERS)


@pytest.mark.parametrize("block", [7, 4096])
def test_the_layer_equals_the_librarys_forward_and_backward(block, monkeypatch):
    monkeypatch.setattr(edges, "_BLOCK", block)
    graph = bipartite_graph(toy_train())
    layer = AttentionLayer(6, 4, 3, generator())
    theirs = GATv2Conv(6, 4, heads=3, add_self_loops=False, edge_dim=1, residual=True)
    with torch.no_grad():
        for bias in (layer.source_bias, layer.target_bias, layer.bias):
            bias.normal_(generator=generator())
        pairs = [
            (theirs.lin_l.weight, layer.source),
            (theirs.lin_l.bias, layer.source_bias),
            (theirs.lin_r.weight, layer.target),
            (theirs.lin_r.bias, layer.target_bias),
            (theirs.res.weight, layer.kept),
            (theirs.bias, layer.bias),
            (theirs.att, layer.attention),
            (theirs.lin_edge.weight, layer.mark),
        ]
        for other, own in pairs:
            other.copy_(own.reshape(other.shape))
    x = torch.randn(graph.nodes, 6, generator=generator())
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    marks = torch.randn(len(graph.columns), generator=generator())
    ours = sum(layer(first, graph, marks, 0.0, None))
    # Row i gathers from column j: the library's edges run from source to target.
    ends = torch.stack([graph.columns.long(), graph.rows])
    expected = theirs(second, ends, marks[:, None])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(ours.shape, generator=generator())
    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-4)
    for other, own in pairs:
        torch.testing.assert_close(own.grad, other.grad.reshape(own.shape), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "signs"), [("likes", {1}), ("signed", {1, -1}), ("all", {1, 0, -1})]
)
def test_edges_are_those_asked_for_in_both_directions(kind, signs):
    model = model_of(edges=kind)
    pattern, found = model._pattern, model.signs
    assert set(found.tolist()) == signs
    assert torch.equal(found, found[pattern.reverse])
    sign = {
        (row, column): value
        for row, column, value in zip(
            pattern.rows.tolist(), pattern.columns.tolist(), found.tolist(), strict=True
        )
    }
    assert sign.get((0, USERS + 1)) == (None if kind == "likes" else -1)
    assert sign.get((USERS + 1, 2)) == (0 if kind == "all" else None)
    likes = {(user, USERS + item) for user, item in zip(*toy_train().nonzero(), strict=True)}
    assert likes == {pair for pair, value in sign.items() if value == 1 and pair[0] < USERS}


def test_nodes_start_from_profiles_and_from_noise_without_one():
    profiles = toy_profiles()
    nodes = model_of(profiles).nodes.detach().numpy()
    assert np.linalg.norm(nodes, axis=1) == pytest.approx(1, abs=1e-5)
    vector = profiles.items[2]
    normed = (vector - vector.mean()) / vector.std()
    assert nodes[USERS + 2] == pytest.approx(normed / np.linalg.norm(normed), abs=1e-4)
    assert np.isfinite(nodes).all(), "user 3 and item 5 have no profile"
    without = model_of(profiles, features="none", node_width=7).nodes
    assert without.shape == (USERS + ITEMS, 7)


def test_profiles_are_needed_only_where_they_are_read():
    graph = bipartite_graph(toy_train())
    with pytest.raises(UserError, match='features = "none"'):
        build_model(ModelSettings(backbone="gat"), graph, None, 0)
    settings = ModelSettings(backbone="gat", settings={"features": "none"})
    assert not settings.reads_profiles()
    build_model(settings, graph, None, 0)
