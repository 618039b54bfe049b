"""The four methods without an engine: which questions are asked, and what becomes of answers."""

from __future__ import annotations

import contextlib
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.ranking.rerank import (
    MethodSettings,
    Question,
    borda,
    bradley_terry,
    method_of,
    overlapping,
    partitions,
)

NAMES = ("prompt", "pairwise", "batches", "relevancy")


def play(
    name: str, worth: list[float], seed: int = 0, **changes
) -> tuple[list[int], list[Question]]:
    """Run a method against a judge who knows the worth of each candidate."""
    method = method_of(MethodSettings(name=name, **changes), len(worth), seed)
    asked: list[Question] = []

    def answer(question: Question) -> tuple[int, ...]:
        own = [worth[item] for item in question.items]
        if question.kind == "scores":
            return tuple(int(value) for value in own)
        best = sorted(range(len(own)), key=lambda place: -own[place])
        return (best[0],) if question.kind == "better" else tuple(best)

    try:
        questions = next(method)
        while True:
            asked += questions
            questions = method.send([answer(question) for question in questions])
    except StopIteration as done:
        scores = done.value
    return np.argsort(-scores, kind="stable").tolist(), asked


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pool", [1, 2, 3, 7, 20, 30])
def test_a_sound_judge_gets_the_order_that_he_wants(name, pool):
    worth = np.random.default_rng(pool).permutation(pool) + 1
    wanted = np.argsort(-worth).tolist()
    order, _ = play(name, worth.tolist())
    assert sorted(order) == list(range(pool))
    if name != "batches":
        assert order == wanted


def test_overlapping_batches_move_a_good_item_up_and_keep_every_tail():
    # In batches of 5 with 2 shared, the best of the last batch can win in its own two alone.
    order, asked = play("batches", [5, 4, 3, 2, 1, 0, 9, 8])
    assert [question.items for question in asked] == [(0, 1, 2, 3, 4), (3, 4, 5, 6, 7)]
    assert order.index(6) < order.index(7) < order.index(3) < order.index(4)


@pytest.mark.parametrize(("pool", "most"), [(20, 69), (30, 119)])
def test_pairwise_asks_no_more_than_binary_insertion_may(pool, most):
    worst = 0
    for seed in range(20):
        worth = np.random.default_rng(seed).permutation(pool).tolist()
        _, asked = play("pairwise", worth)
        assert len(set(asked)) == len(asked), "no pair is asked twice"
        worst = max(worst, len(asked))
    assert worst <= most == sum(math.ceil(math.log2(i + 1)) for i in range(1, pool))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 25), st.randoms(use_true_random=False))
def test_pairwise_ends_whatever_is_answered(pool, random):
    method = method_of(MethodSettings(name="pairwise"), pool, 0)

    def answers():
        scores = yield from method
        assert sorted(scores.tolist()) == list(range(pool))

    judge = answers()
    next(judge)
    rounds = 0
    with contextlib.suppress(StopIteration):
        while rounds < pool * pool:
            judge.send([(random.randint(0, 1),)])
            rounds += 1
    assert rounds < pool * pool


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(2, 12), st.integers(1, 5), st.integers(0, 99))
def test_relevancy_shows_every_item_exactly_so_often(pool, size, repeats, seed):
    groups = partitions(pool, size, repeats, seed)
    counts = np.bincount([item for group in groups for item in group], minlength=pool)
    assert (counts == repeats).all()
    assert all(len(group) <= size for group in groups)
    assert all(len(set(group)) == len(group) for group in groups)
    assert partitions(pool, size, repeats, seed) == groups


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(2, 12), st.integers(1, 11))
def test_batches_cover_all_and_overlap(pool, size, overlap):
    groups = overlapping(pool, size, overlap)
    assert set().union(*groups) == set(range(pool))
    assert {len(group) for group in groups} == {min(size, pool)}
    wanted = min(overlap, min(size, pool) - 1)
    for before, after in pairwise(groups):
        assert len(set(before) & set(after)) >= wanted


def test_relevancy_is_the_mean_of_the_scores():
    method = method_of(MethodSettings(name="relevancy", batch_items=2, repeats=2), 2, 0)
    questions = next(method)
    assert len(questions) == 2
    # What stands first in a batch gets 90, then 10, whichever item it is.
    totals = np.zeros(2)
    for question, score in zip(questions, (90, 10), strict=True):
        totals[question.items[0]] += score
        totals[question.items[1]] += 50
    with pytest.raises(StopIteration) as done:
        method.send([(90, 50), (10, 50)])
    assert done.value.value.tolist() == (totals / 2).tolist()


def test_borda_by_hand():
    # 0 1 2 in this order: 1, 1/2, 0; 2 1: 1, 0. Item 3 was in no batch.
    assert borda([(0, 1, 2), (2, 1)], 4).tolist() == [1, 0.25, 0.5, 0]


def test_bradley_terry_by_hand():
    # Two items, three times 0 before 1, with a tenth of a win each way as a start:
    # the odds are 3.1 to 0.1, and log strengths lie symmetric around 0.
    found = bradley_terry([(0, 1)] * 3, 2)
    assert found[0] - found[1] == pytest.approx(math.log(3.1 / 0.1), rel=1e-6)
    assert found.sum() == pytest.approx(0, abs=1e-12)
    # A chain over batches that share one item: 0 > 1 > 2 although 0 and 2 never met.
    assert np.argsort(-bradley_terry([(1, 2), (0, 1)], 3)).tolist() == [0, 1, 2]
