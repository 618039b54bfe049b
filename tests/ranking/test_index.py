"""Candidates out of an index: nearly all of the exact best, and never a wrong score."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from toy_run import write_run

from raysys.ranking.index import ItemIndex
from raysys.ranking.retrieve import best_of
from raysys.serving.shelf import Shelf


def clustered(rows: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(30, 8))
    rng = np.random.default_rng(seed)
    spread = 0.7 * rng.normal(size=(rows, 8))
    return (centres[rng.integers(30, size=rows)] + spread).astype(np.float32)


def test_it_finds_what_an_exact_search_finds() -> None:
    items, users, others = clustered(20_000, 1), clustered(200, 2), clustered(50, 3)
    index = ItemIndex(items, users, recall=0.98)
    assert index.recall >= 0.98
    assert index.probes < index.lists / 2, "all of it was searched: no index at all"
    hits = 0
    for user in others:  # whom it was not tuned on
        exact, _ = best_of(items @ user, 20)
        hits += len(np.intersect1d(index.nearest(user, 100), exact))
    assert hits / (20 * len(others)) > 0.95


def test_it_searches_wider_for_more_recall() -> None:
    items, users = clustered(20_000, 1), np.random.default_rng(4).normal(size=(200, 8))
    wide, narrow = (ItemIndex(items, users, recall) for recall in (1.0, 0.5))
    assert wide.recall > narrow.recall
    assert wide.probes > narrow.probes


def test_without_users_to_try_the_narrowest_search_stands() -> None:
    index = ItemIndex(clustered(2_000, 1), np.zeros((0, 8), np.float32), recall=0.98)
    assert index.recall == 1.0
    assert index.probes == 8


@pytest.mark.parametrize(("user", "history"), [("u1", []), (None, ["a"]), ("u2", []), (None, [])])
def test_a_shelf_answers_the_same_from_it(
    tmp_path: Path, user: str | None, history: list[str]
) -> None:
    run = write_run(tmp_path / "run")
    exact, quick = Shelf(run), Shelf(run, index_above=0)
    assert quick._index is not None
    for k in (1, 3, 10):
        one, other = (shelf.recommend(user, history, k, None) for shelf in (exact, quick))
        assert one.items.tolist() == other.items.tolist()
        assert one.scores.tolist() == other.scores.tolist()
        assert one.source == other.source


def test_without_faiss_every_item_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    shelf = Shelf(write_run(tmp_path / "run"), index_above=0)
    assert shelf._index is None
    assert "pip install 'raysys[faiss]'" in caplog.text
    assert len(shelf.recommend("u1", [], 3, None).items) == 2
