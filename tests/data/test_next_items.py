from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_language_model import toy_shop

from raysys.data.candidates import drawn_users, next_items
from raysys.errors import UserError

EVERYONE = np.arange(12)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return toy_shop(Path(tmp_path_factory.mktemp("shop")))


def rows(shop, user: int, *splits: str) -> list[int]:
    return shop.histories(*splits)[user].tolist()


@pytest.mark.parametrize(
    ("split", "before"), [("train", ()), ("valid", ("train",)), ("test", ("train", "valid"))]
)
def test_targets_are_of_their_split_and_histories_of_those_before_it(shop, split, before):
    found = list(next_items(shop, split, EVERYONE, 4, seed=1))
    assert [question.user for question in found] == EVERYONE.tolist()
    for question in found:
        target, history = question.items[question.target], question.history.tolist()
        assert target == rows(shop, question.user, split)[-1]
        if split == "train":
            assert history == rows(shop, question.user, "train")[:-1]
        else:
            assert history == rows(shop, question.user, *before)
        assert target not in history


def test_negatives_are_different_and_neither_history_nor_target(shop):
    for split in ("train", "valid", "test"):
        for question in next_items(shop, split, EVERYONE, 20, seed=1):
            negatives = np.delete(question.items, question.target).tolist()
            assert len(set(negatives)) == 20
            known = {*question.history.tolist(), *rows(shop, question.user, split)}
            assert not known & set(negatives)


def test_the_latest_train_interactions_each_with_what_was_before(shop):
    found = list(next_items(shop, "train", np.array([3]), 1, seed=1, latest=2))
    mine = rows(shop, 3, "train")
    assert [question.items[question.target] for question in found] == mine[-2:]
    assert [question.history.tolist() for question in found] == [mine[:-2], mine[:-1]]


def test_a_user_is_asked_the_same_whoever_else_is(shop):
    alone = list(next_items(shop, "test", np.array([7]), 5, seed=1))
    among = [one for one in next_items(shop, "test", EVERYONE, 5, seed=1) if one.user == 7]
    other = list(next_items(shop, "test", np.array([7]), 5, seed=2))
    assert alone[0].items.tolist() == among[0].items.tolist() != other[0].items.tolist()


def test_negatives_and_places_are_uniform(shop):
    items, places = [], []
    for seed in range(400):
        (question,) = next_items(shop, "test", np.array([0]), 4, seed=seed)
        items += np.delete(question.items, question.target).tolist()
        places.append(question.target)
    known = {*rows(shop, 0, "train", "valid", "test")}
    counts = np.bincount(items, minlength=30)
    assert (counts[[item for item in range(30) if item not in known]] > 30).all()
    assert (np.bincount(places, minlength=5) > 50).all()


def test_too_few_items_to_draw_from_is_told(shop):
    with pytest.raises(UserError, match="user 'u00' has 5 of all 30 items: 26 negatives"):
        list(next_items(shop, "test", EVERYONE, 26, seed=1))


def test_a_larger_limit_only_adds_users():
    few, more = drawn_users(100, 10, seed=3), drawn_users(100, 40, seed=3)
    assert len(few) == 10
    assert set(few) < set(more)
    assert drawn_users(100, None, seed=3).tolist() == list(range(100))
