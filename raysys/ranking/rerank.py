"""Four ways to rerank a pool of candidates with a language model: which questions, and the merge.

No engine here: a method is a generator. It yields rounds of questions that do not depend on each
other, is sent the answers, and returns a score for each candidate. So the same method runs in
batches over thousands of users, and for one user behind a server.

Candidates are known by their place in the pool, 0 for the graph's best. n candidates.
Source: End-to-End Personalization §2.3.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from raysys.settings import Settings

#: Bradley–Terry: rounds of the fixed-point iteration, and wins each way that every two
#: neighbours in the graph's order start with, so that strengths are finite and all connected.
_ROUNDS, _PRIOR_WINS = 200, 0.1
#: Scores that `relevancy` asks for.
LOWEST, HIGHEST = 1, 100


class MethodSettings(Settings):
    """How a pool is put to the language model."""

    name: Literal["prompt", "pairwise", "batches", "relevancy"] = "relevancy"
    """`prompt`: all at once. `pairwise`: two by two, binary insertion. `batches`: overlapping
    batches, merged. `relevancy`: scores from 1 to 100, each item in several shuffled batches."""
    batch_items: int = Field(default=5, ge=2, le=50)
    """Items of a batch (`batches`, `relevancy`)."""
    overlap: int = Field(default=2, ge=1)
    """Items that a batch shares with the one before it (`batches`)."""
    merge: Literal["bradley_terry", "borda"] = "bradley_terry"
    """How orders of batches become one (`batches`)."""
    repeats: int = Field(default=3, ge=1)
    """Batches that each item is scored in (`relevancy`)."""


@dataclass(frozen=True)
class Question:
    """What is asked about some candidates, shown in the order of `items` as 1, 2, 3, …

    Attributes:
        kind: `order`: all, best first. `better`: which of two. `scores`: a score for each.
        items: places in the pool.
    """

    kind: Literal["order", "better", "scores"]
    items: tuple[int, ...]


#: `order`: a permutation of 0 … m - 1. `better`: (0,) or (1,). `scores`: m numbers.
Answer = tuple[int, ...]
#: Yields rounds of questions, is sent their answers, returns (n,) scores, higher is better.
Method = Generator[list[Question], list[Answer], np.ndarray]


def method_of(settings: MethodSettings, pool: int, seed: int) -> Method:
    """The method that the settings name, over `pool` candidates.

    Args:
        seed: of the shuffles; give each user one of their own.
    """
    if pool < 2:
        return _nothing(pool)
    if settings.name == "prompt":
        return prompt_level(pool)
    if settings.name == "pairwise":
        return pairwise(pool)
    if settings.name == "batches":
        return batches(pool, settings.batch_items, settings.overlap, settings.merge)
    return relevancy(pool, settings.batch_items, settings.repeats, seed)


def prompt_level(pool: int) -> Method:
    """One question: the order of all."""
    (order,) = yield [Question("order", tuple(range(pool)))]
    return _from_order(order)


def pairwise(pool: int) -> Method:
    """Binary insertion, item after item in the graph's order: at most Σ ⌈log₂(i + 1)⌉ questions.

    69 for 20 items, 119 for 30. Answers need not be consistent: each item is compared with at
    most one item of each half, so a cycle cannot make it go on. The item that the graph ranks
    higher is shown first.
    """
    order = [0]
    for item in range(1, pool):
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            ((better,),) = yield [Question("better", (order[middle], item))]
            if better == 1:
                high = middle
            else:
                low = middle + 1
        order.insert(low, item)
    return _from_order(order)


def batches(pool: int, size: int, overlap: int, merge: str) -> Method:
    """Overlapping batches in the graph's order, each put in order, all merged into one.

    The last batch reaches the last candidate: none is dropped.
    """
    groups = overlapping(pool, size, overlap)
    answers = yield [Question("order", group) for group in groups]
    orders = [
        tuple(group[place] for place in answer)
        for group, answer in zip(groups, answers, strict=True)
    ]
    return bradley_terry(orders, pool) if merge == "bradley_terry" else borda(orders, pool)


def relevancy(pool: int, size: int, repeats: int, seed: int) -> Method:
    """The mean of each candidate's scores over `repeats` shuffled partitions."""
    groups = partitions(pool, size, repeats, seed)
    answers = yield [Question("scores", group) for group in groups]
    total = np.zeros(pool)
    for group, answer in zip(groups, answers, strict=True):
        total[list(group)] += answer
    return total / repeats


def overlapping(pool: int, size: int, overlap: int) -> list[tuple[int, ...]]:
    """Batches of `size` neighbours, each with `overlap` of the one before; the last may be moved
    up so that it ends with the last candidate."""
    size = min(size, pool)
    step = size - min(overlap, size - 1)
    starts = list(range(0, pool - size + 1, step))
    if starts[-1] + size < pool:
        starts.append(pool - size)
    return [tuple(range(start, start + size)) for start in starts]


def partitions(pool: int, size: int, repeats: int, seed: int) -> list[tuple[int, ...]]:
    """Shuffled batches that hold every candidate exactly `repeats` times.

    Batches of a partition differ in length by at most one: a batch of a single candidate would
    be scored against nothing.
    """
    rng = np.random.default_rng(seed)
    count = -(-pool // size)
    return [
        tuple(part.tolist())
        for _ in range(repeats)
        for part in np.array_split(rng.permutation(pool), count)
    ]


def borda(orders: Sequence[Sequence[int]], pool: int) -> np.ndarray:
    """Mean over a candidate's batches of the share of the batch that it was put before.

    Returns:
        (n,) from 0 to 1.
    """
    points, counts = np.zeros(pool), np.zeros(pool)
    for order in orders:
        points[list(order)] += np.arange(len(order))[::-1] / max(1, len(order) - 1)
        counts[list(order)] += 1
    found: np.ndarray = points / np.maximum(counts, 1)
    return found


def bradley_terry(orders: Sequence[Sequence[int]], pool: int) -> np.ndarray:
    """Log strengths θ with P(i before j) = σ(θ_i − θ_j), fitted to all pairs of all batches.

    Source: Bradley and Terry 1952; the fixed point of Hunter 2004, equation 3.

    Returns:
        (n,) with mean 0.
    """
    wins = np.zeros((pool, pool))
    for order in orders:
        for place, first in enumerate(order):
            wins[first, list(order[place + 1 :])] += 1
    near = np.arange(pool - 1)
    wins[near, near + 1] += _PRIOR_WINS
    wins[near + 1, near] += _PRIOR_WINS
    met = wins + wins.T
    won = wins.sum(axis=1)
    strength = np.ones(pool)
    for _ in range(_ROUNDS):
        strength = won / (met / (strength[:, None] + strength[None, :])).sum(axis=1)
        strength /= np.exp(np.log(strength).mean())
    found: np.ndarray = np.log(strength)
    return found


def _from_order(order: Sequence[int]) -> np.ndarray:
    scores = np.empty(len(order))
    scores[list(order)] = np.arange(len(order))[::-1]
    return scores


def _nothing(pool: int) -> Method:
    """A pool of one or none needs no question."""
    no_rounds: list[list[Question]] = []
    yield from no_rounds
    return np.zeros(pool)
