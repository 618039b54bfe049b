from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysys import schema
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.store import write_table

GOOD: dict[str, dict[str, list[Any]]] = {
    schema.USERS_FILE: {"user_id": ["u", "v"]},
    schema.ITEMS_FILE: {"item_id": ["a", "b", "c"], "title": ["A", None, "C"]},
    schema.INTERACTIONS_FILE: {
        "user_id": ["v", "u", "u", "v", "u"],
        "item_id": ["c", "b", "a", "a", "c"],
        "timestamp": [1, 9, 5, 2, 7],
        "split": ["train", "test", "train", "valid", "train"],
    },
}


def write(folder: Path, name: str = "", change: dict[str, list[Any]] | None = None) -> Path:
    """A good folder; in file `name` the columns of `change` are put in place."""
    for file, columns in GOOD.items():
        table = {**columns, **(change or {})} if file == name else columns
        write_table(folder / file, pa.table(table))
    return folder


def test_load_sorts_by_user_and_time(tmp_path: Path) -> None:
    data = Dataset.load(write(tmp_path / "shop"))
    assert data.name == "shop"
    assert Dataset.load(tmp_path / "shop", name="Shop").name == "Shop"
    # u (row 0): a at 5, c at 7, b at 9. v (row 1): c at 1, a at 2.
    assert data.user_rows.tolist() == [0, 0, 0, 1, 1]
    assert data.item_rows.tolist() == [0, 2, 1, 2, 0]
    assert data.interactions["timestamp"].to_pylist() == [5, 7, 9, 1, 2]
    assert [array.tolist() for array in data.pairs("train")] == [[0, 0, 1], [0, 2, 2]]
    assert data.pairs("test")[0].dtype == np.int64


def test_matrix(tmp_path: Path) -> None:
    data = Dataset.load(write(tmp_path))
    matrix = data.matrix("train")
    assert matrix.toarray().tolist() == [[1, 0, 1], [0, 0, 1]]
    assert matrix.dtype == np.float32
    assert data.matrix("train", "valid", "test").nnz == 5
    # Item rows of u come as 0 2 1 in time order; a CSR row has them in order of index.
    assert data.matrix("train", "valid", "test").indices.tolist() == [0, 1, 2, 0, 2]
    assert data.matrix("train").multiply(data.matrix("valid", "test")).nnz == 0
    with pytest.raises(ValueError, match="split"):
        data.matrix()


def test_likes_are_apart_from_what_is_only_known(tmp_path: Path) -> None:
    opinions = {schema.OPINION: [1, 1, -1, 0, 1]}
    data = Dataset.load(write(tmp_path, schema.INTERACTIONS_FILE, opinions))
    everything = ("train", "valid", "test")
    assert data.matrix("train").toarray().tolist() == [[0, 0, 1], [0, 0, 1]]
    assert data.matrix("train", opinion=schema.DISLIKED).toarray().tolist() == [[1, 0, 0], [0] * 3]
    assert data.matrix(*everything, opinion=schema.NEITHER).nnz == 1
    assert data.matrix(*everything, opinion=None).nnz == 5
    assert [mine.tolist() for mine in data.histories(*everything)] == [[2, 1], [2]]
    assert [mine.tolist() for mine in data.histories("train", opinion=None)] == [[0, 2], [2]]


BAD = {
    "user unknown": (
        schema.INTERACTIONS_FILE,
        {"user_id": ["v", "u", "x", "v", "u"]},
        ["row 3", "'user_id'", "'x'", "users.parquet"],
    ),
    "item unknown": (
        schema.INTERACTIONS_FILE,
        {"item_id": ["c", "b", "a", "a", None]},
        ["row 5", "'item_id'", "items.parquet"],
    ),
    "split unknown": (
        schema.INTERACTIONS_FILE,
        {"split": ["train", "Test", "train", "valid", "train"]},
        ["row 2", "'split'", "'Test'"],
    ),
    "pair twice": (
        schema.INTERACTIONS_FILE,
        {"item_id": ["c", "b", "a", "a", "b"]},
        ["row 5", "'b'", "twice for one user"],
    ),
    "user twice": (schema.USERS_FILE, {"user_id": ["u", "u"]}, ["row 2", "'u'", "twice"]),
    "item null": (schema.ITEMS_FILE, {"item_id": ["a", None, "c"]}, ["row 2", "no id"]),
    "numbers as ids": (schema.USERS_FILE, {"user_id": [1, 2]}, ["'user_id'", "int64"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folder(case: str, tmp_path: Path) -> None:
    name, change, words = BAD[case]
    write(tmp_path, name, change)
    with pytest.raises(UserError) as caught:
        Dataset.load(tmp_path)
    for word in [name, *words]:
        assert word in str(caught.value)


def test_missing_file_and_missing_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"users\.parquet does not exist"):
        Dataset.load(tmp_path)
    write(tmp_path)
    write_table(tmp_path / schema.ITEMS_FILE, pa.table({"item_id": ["a", "b", "c"]}))
    with pytest.raises(UserError, match=r"items\.parquet has no column 'title'"):
        Dataset.load(tmp_path)


def test_histories_read_the_splits_they_are_told_oldest_first(tmp_path: Path) -> None:
    data = Dataset.load(write(tmp_path))
    assert [rows.tolist() for rows in data.histories("train")] == [[0, 2], [2]]
    assert [rows.tolist() for rows in data.histories("train", "valid")] == [[0, 2], [2, 0]]
