from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.store import write_table
from raysys.text.evidence import (
    describe_items,
    item_reviews,
    liked_and_disliked,
    reviews_of,
    sample_per_row,
)

COLUMNS = ("user_id", "item_id", "rating", "timestamp", "split", "review")
ROWS = [
    ("u", "a", 5.0, 1, "train", "great a"),
    ("u", "b", 1.0, 2, "train", "bad b"),
    ("u", "c", 4.0, 3, "train", None),
    ("u", "d", 5.0, 4, "test", "a secret of test"),
    ("u", "e", 3.0, 5, "train", "so so e"),
    ("v", "a", 4.0, 1, "train", "fine a"),
    ("v", "b", 2.0, 2, "valid", "a secret of valid"),
    ("v", "d", 4.5, 3, "train", "late d"),
]


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    columns = dict(zip(COLUMNS, map(list, zip(*ROWS, strict=True)), strict=True))
    columns["opinion"] = [1 if row[2] >= 4 else -1 if row[2] <= 2 else 0 for row in ROWS]
    write_table(tmp_path / "interactions.parquet", pa.table(columns))
    write_table(tmp_path / "users.parquet", pa.table({"user_id": ["u", "v"]}))
    items = list("abcde")
    write_table(
        tmp_path / "items.parquet", pa.table({"item_id": items, "title": [f"T{i}" for i in items]})
    )
    return Dataset.load(tmp_path)


def test_descriptions_use_attributes_where_there_is_no_description():
    items = pa.table(
        {
            "item_id": ["1", "2", "3"],
            "title": ["a", "b", "c"],
            "description": ["A long tale", None, ""],
            "genres": ["Drama", "Comedy", None],
            "release_year": [1995, None, None],
        }
    )
    texts, own = describe_items(items, (), 1000)
    assert texts == ["A long tale", "genres: Comedy", None]
    assert own.tolist() == [True, False, False]
    assert describe_items(items, ("release_year", "genres"), 1000)[0][0] == (
        "release year: 1995; genres: Drama"
    )
    with pytest.raises(UserError, match="no column 'genre': did you mean 'genres'"):
        describe_items(items, ("genre",), 1000)
    assert describe_items(items, ("description",), 20)[0][0] == "description: A long "


def test_sampling_is_bounded_seeded_and_from_what_is_given():
    users = np.array([2, 0, 2, 2, 0, 2])
    items = np.array([10, 11, 12, 13, 14, 15])
    drawn = sample_per_row(users, items, 4, 2, seed=1)
    assert [len(own) for own in drawn] == [2, 0, 2, 0]
    assert set(drawn[0]) == {11, 14}
    assert set(drawn[2]) < {10, 12, 13, 15}
    again = sample_per_row(users, items, 4, 2, seed=1)
    assert [own.tolist() for own in again] == [own.tolist() for own in drawn]
    sets = {tuple(sorted(sample_per_row(users, items, 4, 2, seed=s)[2])) for s in range(30)}
    assert len(sets) > 1


def test_reviews_come_from_train_alone_and_are_cut(dataset):
    reviews = reviews_of(dataset, 5)
    found = item_reviews(dataset, reviews, per_item=9, seed=0)
    assert [sorted(mine) for mine in found] == [
        ["fine ", "great"],
        ["bad b"],
        [],
        ["late "],
        ["so so"],
    ]
    assert "secre" not in str(found)
    assert all(len(mine) <= 1 for mine in item_reviews(dataset, reviews, per_item=1, seed=0))


def test_likes_and_dislikes_come_from_train_oldest_first(dataset):
    liked, disliked = liked_and_disliked(dataset, 10, 10, extreme=False)
    assert [rows.tolist() for rows in liked] == [[0, 2], [0, 3]]
    assert [rows.tolist() for rows in disliked] == [[1], []]


def test_latest_and_extreme_likes_differ(dataset):
    latest, _ = liked_and_disliked(dataset, 1, 1, extreme=False)
    extreme, _ = liked_and_disliked(dataset, 1, 1, extreme=True)
    assert latest[0].tolist() == [2]
    assert extreme[0].tolist() == [0]
