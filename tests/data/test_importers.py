from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys import schema
from raysys.data import sources
from raysys.data.dataset import Dataset
from raysys.data.import_settings import ImportSettings
from raysys.data.importers import ROW_REASONS, import_data
from raysys.errors import UserError
from raysys.manifest import StageReport
from raysys.settings import parse_settings

ITEMS = b"item_id,title\na,Alpha\nb,Beta\nc,Gamma\nd,Delta\n"


def load(
    folder: Path, log: bytes, catalogue: bytes = ITEMS, **settings: Any
) -> tuple[StageReport, list[dict[str, Any]]]:
    """Import two CSV files into `folder/out`; returns the report and the interactions."""
    (folder / "interactions.csv").write_bytes(log)
    (folder / "items.csv").write_bytes(catalogue)
    values = {
        "interactions": folder / "interactions.csv",
        "items": folder / "items.csv",
        **settings,
    }
    report = import_data(parse_settings(ImportSettings, values, source="test"), folder / "out")
    return report, rows(folder, schema.INTERACTIONS_FILE)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "out" / name).to_pylist()
    return found


def test_every_row_is_accounted_for_by_hand(tmp_path: Path) -> None:
    # u1-a at 1 and 5: the later (rated 5) stays. u1-z: no such item. u2-b rated 1: below 3.
    # 2-core: u1 has a b, u2 has a c, u3 has a b. c has one user -> goes, then u2 has only a
    # -> goes; a keeps u1 u3, b keeps u1 u3. So 2 rows go by the core, 4 stay.
    report, found = load(
        tmp_path,
        b"user_id,item_id,rating,timestamp\n"
        b"u1,a,2,1\nu1,a,5,5\nu1,b,4,2\nu1,z,5,3\n"
        b"u2,a,4,1\nu2,c,4,2\nu2,b,1,3\n"
        b"u3,b,3,9\nu3,a,3,8\n",
        min_rating=3,
        k_core=2,
        unknown_items="drop",
    )
    assert report.counts == {
        "rows": 9,
        "interactions": 4,
        "duplicates": 1,
        "users": 2,
        "items": 2,
        "train": 4,
        "valid": 0,
        "test": 0,
    }
    assert report.dropped == {
        "unknown_item": 1,
        "below_min_rating": 1,
        "k_core": 2,
        "items_without_interactions": 2,
        "users_without_interactions": 1,
    }
    # Users as they first appear; within a user by time.
    assert [(row["user_id"], row["item_id"], row["rating"]) for row in found] == [
        ("u1", "b", 4.0),
        ("u1", "a", 5.0),
        ("u3", "a", 3.0),
        ("u3", "b", 3.0),
    ]
    assert [row["item_id"] for row in rows(tmp_path, schema.ITEMS_FILE)] == ["a", "b"]
    assert rows(tmp_path, schema.USERS_FILE) == [{"user_id": "u1"}, {"user_id": "u3"}]


@settings(deadline=None, max_examples=60)
@given(
    data=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 5), st.integers(0, 9)),
        min_size=1,
        max_size=40,
    ),
    k=st.integers(0, 2),
    method=st.sampled_from(["ratio", "leave_last_two", "time"]),
)
def test_rows_are_conserved(
    data: list[tuple[int, int, int, int]],
    k: int,
    method: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # User u9 rates item a best and b c after it, so that something is always left.
    data = [*data, (9, 1, 5, 0), (9, 2, 5, 1), (8, 1, 5, 0), (8, 2, 5, 1)]
    # Item 5 is not in the items file.
    items = b"item_id,title\n" + b"".join(b"%d,t\n" % item for item in range(5))
    text = b"user_id,item_id,rating,timestamp\n" + b"".join(b"%d,%d,%d,%d\n" % row for row in data)
    report, found = load(
        tmp_path_factory.mktemp("data"),
        text,
        items,
        unknown_items="drop",
        min_rating=2,
        k_core=k,
        split={"method": method},
    )
    counts, dropped = report.counts, report.dropped
    assert counts["rows"] == len(data)
    assert counts["rows"] == (
        counts["interactions"] + counts["duplicates"] + sum(dropped[r] for r in ROW_REASONS)
    )
    assert sum(counts[split] for split in schema.SPLITS) == counts["interactions"] == len(found)
    assert len({(row["user_id"], row["item_id"]) for row in found}) == len(found)
    # Newest rating of the pair, last in the file among equals: worked out the plain way.
    latest: dict[tuple[int, int], tuple[int, int]] = {}
    for user, item, rating, time in data:
        if item < 5 and time >= latest.get((user, item), (-1, 0))[0]:
            latest[user, item] = (time, rating)
    for row in found:
        assert latest[int(row["user_id"]), int(row["item_id"])] == (row["timestamp"], row["rating"])


def test_columns_come_in_order_and_folds_and_reviews_are_kept(tmp_path: Path) -> None:
    _, found = load(
        tmp_path,
        b"text,u1_test,noise,title,when,who,what,stars\n"
        b"nice,True,x,true,2020-01-02 00:00:10,u1,a,4\n,false,y,true,2020-01-02,u1,b,5\n",
        columns={
            "user_id": "who",
            "item_id": "what",
            "rating": "stars",
            "timestamp": "when",
            "review": "text",
        },
        split={"method": "fold", "column": "u1_test"},
    )
    # 2020-01-02 is 18 263 days after 1970-01-01: 50 years of 365 days, 12 leap days, 1 day.
    midnight = (50 * 365 + 12 + 1) * 86_400
    assert found == [
        {
            "user_id": "u1",
            "item_id": "b",
            "rating": 5.0,
            "timestamp": midnight,
            "split": "train",
            "u1_test": False,
            "review": None,
        },
        {
            "user_id": "u1",
            "item_id": "a",
            "rating": 4.0,
            "timestamp": midnight + 10,
            "split": "test",
            "u1_test": True,
            "review": "nice",
        },
    ]
    assert list(found[0]) == [
        "user_id", "item_id", "rating", "timestamp", "split", "u1_test", "review"
    ]  # fmt: skip


def test_split_column_of_the_file(tmp_path: Path) -> None:
    report, found = load(
        tmp_path,
        b"user_id,item_id,split\nu,a,train\nu,b,VAL\nu,c, test \nv,a,validation\n",
        split={"method": "column"},
    )
    assert [row["split"] for row in found] == ["train", "valid", "test", "valid"]
    assert report.counts["valid"] == 2


def test_split_column_is_replaced_by_another_method(tmp_path: Path) -> None:
    _, found = load(tmp_path, b"user_id,item_id,split\nu,a,test\nu,b,whatever\n")
    assert [row["split"] for row in found] == ["train", "train"]


def test_fold_column_of_zeros_and_ones(tmp_path: Path) -> None:
    _, found = load(
        tmp_path,
        b"user_id,item_id,f\nu,a,0\nu,b,1\n",
        split={"method": "fold", "column": "f"},
    )
    assert [(row["split"], row["f"]) for row in found] == [("train", False), ("test", True)]


def test_leave_last_two_by_position(tmp_path: Path) -> None:
    _, found = load(
        tmp_path,
        b"user_id,item_id,position\nu,c,2\nu,a,0\nu,b,1\n",
        split={"method": "leave_last_two"},
    )
    assert [(row["item_id"], row["split"]) for row in found] == [
        ("a", "train"),
        ("b", "valid"),
        ("c", "test"),
    ]


def test_byte_order_mark_blank_names_quotes_and_leading_zeros(tmp_path: Path) -> None:
    load(
        tmp_path,
        b"\xef\xbb\xbfuser_id, item_id\n 007 ,b1\n\n007,b2\n",
        b"\xef\xbb\xbf,item_id,title,genres,year\n"
        b'0,b1,"One, ""two""\nthree",Drama,0042\n1,b2,, ,\n',
    )
    assert rows(tmp_path, schema.USERS_FILE) == [{"user_id": "007"}]
    assert rows(tmp_path, schema.ITEMS_FILE) == [
        {"item_id": "b1", "title": 'One, "two"\nthree', "genres": "Drama", "year": "0042"},
        {"item_id": "b2", "title": None, "genres": None, "year": None},
    ]


def test_a_row_of_several_lines_may_cross_a_reading_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 64)
    items = b"item_id,title\n" + b"".join(b'%d,"two\nlines"\n' % n for n in range(50))
    load(tmp_path, b"user_id,item_id\n" + b"".join(b"u,%d\n" % n for n in range(50)), items)
    assert [row["title"] for row in rows(tmp_path, schema.ITEMS_FILE)] == ["two\nlines"] * 50


def test_tab_separated_file(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_bytes(b"user_id\titem_id\nu\ta\n")
    report, _ = load(tmp_path, b"unused", interactions=tmp_path / "log.tsv")
    assert report.counts["interactions"] == 1


def test_users_file_comes_first_and_others_get_nulls(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_bytes(b"user_id,age\nidle,9\nlate,40\nearly,30\n")
    report, found = load(
        tmp_path,
        b"user_id,item_id\nguest,a\nearly,a\nlate,b\n",
        users=tmp_path / "users.csv",
    )
    assert rows(tmp_path, schema.USERS_FILE) == [
        {"user_id": "late", "age": "40"},
        {"user_id": "early", "age": "30"},
        {"user_id": "guest", "age": None},
    ]
    assert [row["user_id"] for row in found] == ["late", "early", "guest"]
    assert report.dropped["users_without_interactions"] == 1


def test_id_column_may_have_different_names_in_the_two_files(tmp_path: Path) -> None:
    report, _ = load(
        tmp_path,
        b"user_id,item_id\nu,a\n",
        b"asin,title\na,Alpha\n",
        columns={"item_id": "asin"},
    )
    assert report.counts["items"] == 1


def test_parquet_types(tmp_path: Path) -> None:
    """Ids of several types join; dates become seconds; lists become text."""
    times = pa.array([1_500, 2_000, 3_000], pa.timestamp("ms"))
    pq.write_table(
        pa.table(
            {
                "user_id": pa.array([1.0, 2.0, 1.0]),  # pandas with a gap somewhere
                "item_id": pa.array(["7", "7", "8"], pa.large_string()).dictionary_encode(),
                "rating": pa.array([1, 2, 3], pa.int8()),
                "timestamp": times,
                "fold": [True, False, None],
            }
        ),
        tmp_path / "log.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "item_id": pa.array([8, 7], pa.uint16()),
                "title": ["Eight", " "],
                "genres": [["Drama", None, "War"], None],
                "score": [float("nan"), 0.5],
                "date": pa.array([0, 1], pa.date32()),
                "__index_level_0__": [0, 1],
            }
        ),
        tmp_path / "items.parquet",
    )
    _, found = load(
        tmp_path,
        b"unused",
        interactions=tmp_path / "log.parquet",
        items=tmp_path / "items.parquet",
    )
    assert [(row["user_id"], row["item_id"], row["timestamp"]) for row in found] == [
        ("1", "7", 1),
        ("1", "8", 3),
        ("2", "7", 2),
    ]
    assert [row["fold"] for row in found] == [True, None, False]
    assert rows(tmp_path, schema.ITEMS_FILE) == [
        {"item_id": "8", "title": "Eight", "genres": "Drama, War", "score": None,
         "date": "1970-01-01"},
        {"item_id": "7", "title": None, "genres": None, "score": 0.5, "date": "1970-01-02"},
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["ratio", "leave_last_two", "time"])
def test_same_input_gives_the_same_bytes(method: str, tmp_path: Path) -> None:
    lines = [b"%d,%s,%d\n" % (n % 7, b"abcd"[n % 4 : n % 4 + 1], n) for n in range(28)]
    text = b"user_id,item_id,timestamp\n" + b"".join(lines)
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        load(tmp_path / name, text, split={"method": method})
        files = sorted((tmp_path / name / "out").iterdir())
        written.append([(file.name, file.read_bytes()) for file in files])
    assert written[0] == written[1]
    assert [name for name, _ in written[0]] == [
        schema.INTERACTIONS_FILE,
        schema.ITEMS_FILE,
        schema.USERS_FILE,
    ]


def test_import_and_load_round_trip(tmp_path: Path) -> None:
    report, found = load(
        tmp_path,
        b"user_id,item_id,timestamp\nv,d,4\nu,b,3\nu,a,1\nu,c,2\nv,a,5\n",
        split={"method": "leave_last_two"},
    )
    data = Dataset.load(tmp_path / "out")
    assert data.shape == (report.counts["users"], report.counts["items"]) == (2, 4)
    assert data.user_ids.tolist() == ["v", "u"]
    assert data.item_ids.tolist() == ["a", "b", "c", "d"]
    assert data.interactions.to_pylist() == found
    # v: d at 4, a at 5 (two rows, all train). u: a at 1 train, c at 2 valid, b at 3 test.
    users, items = data.pairs("train")
    assert list(zip(users.tolist(), items.tolist(), strict=True)) == [(0, 3), (0, 0), (1, 0)]
    assert [array.tolist() for array in data.pairs("valid")] == [[1], [2]]
    assert [array.tolist() for array in data.pairs("test")] == [[1], [1]]
    expected = np.array([[1, 0, 0, 1], [1, 0, 1, 0]], dtype=np.float32)
    assert (data.matrix("train", "valid").toarray() == expected).all()


def test_ratings_become_likes_dislikes_and_neither(tmp_path: Path) -> None:
    log = b"user_id,item_id,rating\nu,a,5\nu,b,4\nu,c,3\nv,a,2\nv,d,1\n"
    _, found = load(tmp_path, log, liked_from=4, disliked_to=2)
    said = {(row["user_id"], row["item_id"]): row[schema.OPINION] for row in found}
    assert list(said.values()) == [1, 1, 0, -1, -1]
    assert Dataset.load(tmp_path / "out").matrix(*schema.SPLITS).nnz == 2
    _, found = load(tmp_path, log, liked_from=4)
    assert [row[schema.OPINION] for row in found] == [1, 1, 0, 0, 0]
    _, found = load(tmp_path, log)
    assert schema.OPINION not in found[0]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"disliked_to": 2}, "disliked_to needs liked_from"),
        ({"liked_from": 2, "disliked_to": 2}, "must be above"),
    ],
)
def test_opinions_that_make_no_sense_are_refused(tmp_path: Path, values, problem) -> None:
    with pytest.raises(UserError, match=problem):
        load(tmp_path, b"user_id,item_id,rating\nu,a,5\n", **values)


def test_likes_need_ratings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"liked_from: .*no column 'rating'"):
        load(tmp_path, b"user_id,item_id\nu,a\n", liked_from=4)
