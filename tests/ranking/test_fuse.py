from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.ranking.fuse import fuse, min_max, order_of


def test_fusion_by_hand():
    llm, graph = np.array([10.0, 30.0, 20.0]), np.array([0.9, 0.5, 0.1])
    # LLM 0, 1, .5; graph 1, .5, 0.
    assert fuse(llm, graph, 0.8) == pytest.approx([0.2, 0.9, 0.4])
    assert fuse(llm, graph, 0.0) == pytest.approx([1, 0.5, 0])
    assert min_max(np.array([3.0, 3.0])).tolist() == [0, 0]
    assert min_max(np.array([])).size == 0
    with pytest.raises(ValueError, match="finite"):
        fuse(np.array([np.nan]), np.array([1.0]), 0.5)
    for llm, graph in ((1, 2), (2, 1)):
        with pytest.raises(ValueError, match="one finite score for each"):
            fuse(np.ones(llm), np.ones(graph), 0.5)


def test_equals_stay_in_the_graphs_order():
    assert order_of(np.array([1.0, 2.0, 1.0, 2.0])).tolist() == [1, 3, 0, 2]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 45))
def test_nobody_moves_further_than_the_bound(scores, bound):
    order = order_of(np.array(scores, dtype=float), bound)
    assert sorted(order.tolist()) == list(range(len(scores)))
    assert (np.abs(order - np.arange(len(scores))) <= bound).all()


def test_a_bound_that_does_not_bind_changes_nothing():
    scores = np.random.default_rng(0).random(30)
    assert order_of(scores, 29).tolist() == order_of(scores).tolist()
    assert order_of(scores, 0).tolist() == list(range(30))
    # The item that wants to jump from 5th to 1st gets as far as it may.
    assert order_of(np.array([5, 4, 3, 2, 9.0]), 2).tolist() == [0, 1, 4, 2, 3]
