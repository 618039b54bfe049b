"""Equations of RLMRec's graph part, worked by hand on a graph of five nodes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from raysys.graph.bipartite import bipartite_graph
from raysys.graph.propagation import full_adjacency, propagate, propagate_sum
from raysys.models.losses import bpr, info_nce

# Users 0, 1; items a, b, c. Edges: 0-a, 0-b, 1-b. Item c has none.
# Degrees: user 0: 2, user 1: 1, a: 1, b: 2, c: 0.
#   weight 0-a = 1/sqrt(2*1) = h       with h = 0.7071067811865476
#   weight 0-b = 1/sqrt(2*2) = 1/2
#   weight 1-b = 1/sqrt(1*2) = h
H = math.sqrt(0.5)
TRAIN = csr_matrix(np.array([[1, 1, 0], [0, 1, 0]], dtype=np.float32))


def test_normalised_adjacency() -> None:
    expected = torch.tensor(
        [
            [0, 0, H, 0.5, 0],
            [0, 0, 0, H, 0],
            [H, 0, 0, 0, 0],
            [0.5, H, 0, 0, 0],
            [0, 0, 0, 0, 0],
        ]
    )
    torch.testing.assert_close(bipartite_graph(TRAIN).matrix().to_dense(), expected)


def test_two_layers_of_propagation() -> None:
    # x0 = (user 0, user 1, a, b, c) = (1, 2, 4, 8, 16)
    # x1: user 0 = 4h + 8/2 = 4 + 4h;  user 1 = 8h;  a = 1h;  b = 1/2 + 2h;  c = 0
    # x2: user 0 = h*h + (1/2 + 2h)/2 = 1/2 + 1/4 + h = 0.75 + h
    #     user 1 = h(1/2 + 2h) = h/2 + 1
    #     a = h(4 + 4h) = 4h + 2;  b = (4 + 4h)/2 + h*8h = 2 + 2h + 4 = 6 + 2h;  c = 0
    x = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    first = torch.tensor([[4 + 4 * H], [8 * H], [H], [0.5 + 2 * H], [0.0]])
    second = torch.tensor([[0.75 + H], [H / 2 + 1], [4 * H + 2], [6 + 2 * H], [0.0]])
    adjacency = full_adjacency(bipartite_graph(TRAIN))
    outputs = propagate(adjacency, x, layers=2)
    torch.testing.assert_close(outputs, [x, first, second])
    # RLMRec adds the layers up; a mean would be a third of this.
    torch.testing.assert_close(propagate_sum(adjacency, x, layers=2), x + first + second)


def test_bpr() -> None:
    # scores: s+ = 1*2 + 2*1 = 4, s- = 1*1 + 2*0 = 1  ->  softplus(1 - 4) = ln(1 + e^-3)
    # and with the roles exchanged softplus(3) = ln(1 + e^3) = 3 + ln(1 + e^-3)
    user, high, low = (
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[2.0, 1.0]]),
        torch.tensor([[1.0, 0.0]]),
    )
    assert bpr(user, high, low).item() == pytest.approx(0.04858735157374206, rel=1e-6)
    assert bpr(user, low, high).item() == pytest.approx(3.04858735157374206, rel=1e-6)


def test_info_nce() -> None:
    # Query (3, 4), target and first key (4, 3), second key (-8, 6), third key (0, 2); tau = 0.5.
    # Cosines: (12 + 12)/25 = 0.96;  (-24 + 24)/50 = 0;  8/10 = 0.8.
    # Loss = ln(e^1.92 + e^0 + e^1.6) - 1.92 = ln(6.820958 + 1 + 4.953032) - 1.92
    #      = ln(12.773991) - 1.92 = 2.547411 - 1.92 = 0.627411
    query, target = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    keys = torch.tensor([[4.0, 3.0], [-8.0, 6.0], [0.0, 2.0]])
    assert info_nce(query, target, keys, 0.5).item() == pytest.approx(0.627411, abs=2e-6)
    # The second key kept twice: ln(13.773991) - 1.92 = 2.622783 - 1.92 = 0.702783
    counts = torch.tensor([1.0, 2.0, 1.0])
    assert info_nce(query, target, keys, 0.5, key_counts=counts).item() == pytest.approx(
        0.702783, abs=2e-6
    )
