"""R by walks against a dense reference and against values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import bmat, csr_matrix
from scipy.sparse.csgraph import shortest_path

from raysys.errors import UserError
from raysys.graph.relations import NO_NODE, Relations, RelationSettings, longest_path
from raysys.settings import parse_settings

# Users 0, 1, 2 and items 3, 4, 5, 6 on one line: 0-3-1-4-2-5; item 6 has no edge.
LINE = csr_matrix(np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]], np.float32))


def relations(kind: str, train: csr_matrix = LINE, **values: object) -> Relations:
    return Relations(train, RelationSettings(kind=kind, **values))


def adjacency(train: csr_matrix) -> np.ndarray:
    dense: np.ndarray = bmat([[None, train], [train.T, None]]).toarray()
    return dense


def random_graph(seed: int, users: int = 9, items: int = 7, share: float = 0.25) -> csr_matrix:
    rng = np.random.default_rng(seed)
    return csr_matrix((rng.random((users, items)) < share).astype(np.float32))


def test_linear_falls_with_the_distance() -> None:
    found = relations("linear", hops=6).of(np.array([[0, 3, 1, 4, 2, 5]]))[0, 0]
    np.testing.assert_allclose(found, [0, 1, 4 / 11, 3 / 11, 2 / 11, 1 / 11], rtol=1e-6)


def test_what_is_beyond_the_hops_is_not_related() -> None:
    found = relations("linear", hops=3).of(np.array([[0, 3, 1, 4, 2, 5, 6, NO_NODE]]))[0, 0]
    np.testing.assert_allclose(found, [0, 1, 4 / 11, 3 / 11, 0, 0, 0, 0], rtol=1e-6)


def test_decay_by_hand() -> None:
    found = relations("decay", delta=0.3, hops=4).of(np.array([[0, 3, 1, 4, 2, 5]]))[0, 0]
    # (δ^(d−1) + [d = 1]) / 2
    np.testing.assert_allclose(found, [0, 1, 0.15, 0.045, 0.0135, 0], rtol=1e-6)


def test_the_printed_equation_grows_with_the_distance() -> None:
    found = relations("paper_literal", delta=0.5, hops=3).of(np.array([[0, 3, 1, 4, 2, 5]]))[0, 0]
    # The line has five edges: 1 + 1 − .5 / 5, 1 − .25 / 5, 1 − .125 / 5.
    np.testing.assert_allclose(found, [0, 1.9, 0.95, 0.975, 0, 0], rtol=1e-6)


def test_pagerank_by_hand() -> None:
    found = relations("ppr", restart=0.5, hops=2).of(np.array([[0, 3, 1]]))[0]
    # Â: 0-3 1/√2, 3-1 1/2; two steps 0-3-1 1/√8. Weights ½ and ¼, over the largest.
    expected = np.array([[0, 0.5**0.5, 0], [0.5**0.5, 0, 0.5], [0, 0.5, 0]]) / 2
    expected[0, 2] = expected[2, 0] = 8**-0.5 / 4
    np.testing.assert_allclose(found, expected / expected.max(), rtol=1e-6)


def test_cooccurrence_is_the_cosine_of_neighbourhoods() -> None:
    found = relations("cooccurrence").of(np.array([[0, 1, 3, 4]]))[0]
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 1 / np.sqrt(1 * 2)
    expected[2, 3] = expected[3, 2] = 1 / np.sqrt(2 * 2)
    for user, item in ((0, 2), (1, 2), (1, 3)):
        expected[user, item] = expected[item, user] = 1
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_controls() -> None:
    nodes = np.array([[0, 5, NO_NODE]])
    assert relations("ones").of(nodes)[0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert not relations("none").of(nodes).any()


@pytest.mark.parametrize("kind", ["linear", "decay", "paper_literal", "ppr", "cooccurrence"])
@pytest.mark.parametrize("hops", [2, 3, 5])
def test_batches_equal_the_dense_matrix(kind: str, hops: int) -> None:
    for seed in range(4):
        train = random_graph(seed)
        found = relations(kind, train, hops=hops, delta=0.4)
        rng = np.random.default_rng(seed)
        nodes = np.stack([rng.permutation(16)[:8] for _ in range(5)])
        nodes[2, 5:] = nodes[4] = NO_NODE
        nodes[3] = [*range(7), NO_NODE]  # more users than items
        dense = dense_relations(train, found.settings)
        for row, given_nodes in zip(found.of(nodes), nodes, strict=True):
            expected = dense[np.ix_(given_nodes, given_nodes)]
            expected[given_nodes < 0] = 0
            expected[:, given_nodes < 0] = 0
            if kind == "ppr" and expected.any():
                expected = expected / expected.max()
            np.testing.assert_allclose(row, expected, atol=1e-6)


def dense_relations(train: csr_matrix, settings: RelationSettings) -> np.ndarray:
    """The definitions, with N × N matrices."""
    edges = adjacency(train)
    apart = ~np.eye(len(edges), dtype=bool)
    degrees = np.maximum(edges.sum(axis=1), 1)
    if settings.kind == "cooccurrence":
        cosine = edges @ edges / np.sqrt(np.outer(degrees, degrees))
        return np.asarray((edges + cosine) * apart)
    if settings.kind == "ppr":
        walk = edges / np.sqrt(np.outer(degrees, degrees))
        powers = [np.linalg.matrix_power(walk, m) for m in range(1, settings.hops + 1)]
        weights = (1 - settings.restart) ** np.arange(1, settings.hops + 1)
        return np.asarray(np.tensordot(weights, powers, 1) * apart)
    distance = shortest_path(edges, unweighted=True)
    related = apart & (distance <= settings.hops)
    far = longest_path(csr_matrix(edges))
    distance = np.where(related, distance, 1)
    path = {
        "linear": np.maximum(settings.cutoff - distance, 0) / settings.cutoff,
        "decay": settings.delta ** (distance - 1),
        "paper_literal": 1 - settings.delta**distance / far,
    }[settings.kind]
    found = path + edges
    if settings.kind != "paper_literal":
        found = found / (
            1
            + (settings.cutoff - 1) / settings.cutoff * (settings.kind == "linear")
            + (settings.kind == "decay")
        )
    return np.asarray(found * related)


@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("kind", ["linear", "decay", "paper_literal", "ppr", "ones", "none"])
def test_histories_need_no_look_up(kind: str, hops: int) -> None:
    train = random_graph(1, share=0.5)
    found = relations(kind, train, hops=hops)
    histories = np.full((9, 6), NO_NODE)
    for user in range(9):
        own = train[user].indices[:5]
        histories[user, 0], histories[user, 1 : 1 + len(own)] = user, 9 + own
    np.testing.assert_array_equal(found.of_history(histories), found.of(histories))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_relations_are_symmetric_and_bounded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = ["linear", "decay", "ppr", "cooccurrence"][seed % 4]
    nodes = np.stack([rng.permutation(16)[:6] for _ in range(2)])
    found = relations(kind, random_graph(seed)).of(nodes)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, found.transpose(0, 2, 1))
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6


def test_the_longest_path() -> None:
    assert longest_path(csr_matrix(adjacency(LINE))) == 5
    assert longest_path(csr_matrix((3, 3))) == 0


def test_an_unknown_node_is_refused() -> None:
    for ask in (relations("linear").of, relations("linear").of_history):
        with pytest.raises(ValueError, match="from 0 to 6, got 7"):
            ask(np.array([[0, 7]]))
    with pytest.raises(ValueError, match="nodes must be"):
        relations("linear").of_history(np.array([[0, -2]]))


def test_no_prompt_and_no_node() -> None:
    assert relations("linear").of(np.zeros((0, 4), np.int64)).shape == (0, 4, 4)
    assert not relations("linear").of(np.full((2, 3), NO_NODE)).any()


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.5, 2.0])
def test_delta_lies_between_zero_and_one(delta: float) -> None:
    with pytest.raises(UserError, match="delta"):
        parse_settings(RelationSettings, {"kind": "decay", "delta": delta}, source="test")
