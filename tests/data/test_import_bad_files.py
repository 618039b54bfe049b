"""Every bad file: one UserError that says where and what, and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.data.import_settings import ImportSettings
from raysys.data.importers import import_data
from raysys.errors import UserError
from raysys.settings import parse_settings

GOOD = {
    "interactions.csv": b"user_id,item_id,rating,timestamp\nu1,i1,5,10\nu1,i2,4,20\nu2,i1,3,30\n",
    "items.csv": b"item_id,title\ni1,One\ni2,Two\n",
    "users.csv": b"user_id,age\nu1,30\nu2,40\n",
}
HEADER = b"user_id,item_id,rating,timestamp\n"


def run(folder: Path, files: dict[str, bytes], **settings: Any) -> UserError:
    """Import the good files with some of them replaced; returns the error."""
    for name, content in {**GOOD, **files}.items():
        (folder / name).write_bytes(content)
    values = {
        "interactions": folder / "interactions.csv",
        "items": folder / "items.csv",
        "users": folder / "users.csv",
        **{key: folder / value if key in GOOD_KEYS else value for key, value in settings.items()},
    }
    output = folder / "out"
    with pytest.raises(UserError) as caught:
        import_data(parse_settings(ImportSettings, values, source="config"), output)
    assert not output.exists()
    return caught.value


GOOD_KEYS = ("interactions", "items", "users")


def interactions(*lines: bytes) -> dict[str, bytes]:
    return {"interactions.csv": HEADER + b"".join(line + b"\n" for line in lines)}


# name -> (files, words that the message must hold)
BAD_TEXT: dict[str, tuple[dict[str, bytes], list[str]]] = {
    "empty file": ({"interactions.csv": b""}, ["interactions.csv", "is empty"]),
    "only a byte order mark": ({"items.csv": b"\xef\xbb\xbf"}, ["items.csv", "is empty"]),
    "only blank lines": ({"items.csv": b"\n\n"}, ["items.csv", "is empty"]),
    "header only": ({"interactions.csv": HEADER}, ["interactions.csv", "no data rows"]),
    "misspelt id column": (
        {"interactions.csv": b"userid,item_id\nu1,i1\n"},
        ["interactions.csv", "'user_id'", "did you mean 'userid'?", "--map user_id="],
    ),
    "no title": (
        {"items.csv": b"item_id,name\ni1,One\ni2,Two\n"},
        ["items.csv", "no column 'title'", "item_id, name", "--map title="],
    ),
    "no user column in users": (
        {"users.csv": b"id,age\nu1,3\n"},
        ["users.csv", "no column 'user_id'", "id, age"],
    ),
    "no header": ({"items.csv": b"i1,One\ni2,Two\n"}, ["items.csv", "'item_id'", "i1, One"]),
    "semicolons": ({"items.csv": b"item_id;title\ni1;One\n"}, ["'item_id;title'", "commas"]),
    "two columns of one name": (
        {"items.csv": b"item_id,title,title\ni1,One,Eins\n"},
        ["items.csv", "2 columns named 'title'"],
    ),
    "blank id": (interactions(b"u1,i1,5,10", b",i2,4,20"), ["row 2", "'user_id'", "missing"]),
    "NaN id": (interactions(b"u1,i1,5,10", b"u1,NaN,4,20"), ["row 2", "'item_id'", "'NaN'"]),
    "null id": ({"items.csv": b"item_id,title\nNULL,One\n"}, ["items.csv", "row 1", "'NULL'"]),
    "line break in an id": (
        {"items.csv": b'item_id,title\n"i1\ni2",One\n'},
        ["items.csv", "row 1", "'item_id'", "control character"],
    ),
    "item twice": (
        {"items.csv": b"item_id,title\ni1,One\ni2,Two\n i1 ,Again\n"},
        ["items.csv", "row 3", "'item_id'", "'i1'", "row 1 already"],
    ),
    "user twice": ({"users.csv": b"user_id\nu1\nu1\n"}, ["users.csv", "row 2", "'u1'"]),
    "unknown item": (
        interactions(b"u1,i1,5,10", b"u1,i2,4,20", b"u2,i9,3,30", b"u1,i9,3,30"),
        ["interactions.csv", "row 3", "'item_id'", "'i9'", "items.csv", "2 such rows", "drop"],
    ),
    "leading zeros differ": (
        {**interactions(b"u1,7,5,10"), "items.csv": b"item_id,title\n007,Bond\n"},
        ["row 1", "'7'", "compared as text"],
    ),
    "rating is a word": (
        interactions(b"u1,i1,5,10", b"u1,i2,good,20"),
        ["row 2", "'rating'", "'good'", "not a number"],
    ),
    "decimal comma": (interactions(b'u1,i1,"4,5",10'), ["row 1", "'rating'", "'4,5'"]),
    "rating is NaN": (interactions(b"u1,i1,nan,10"), ["row 1", "'rating'", "not a finite number"]),
    "rating is infinite": (interactions(b"u1,i1,5,1", b"u1,i2,-inf,2"), ["row 2", "'rating'"]),
    "rating overflows": (interactions(b"u1,i1,1e999,10"), ["row 1", "'rating'", "'1e999'"]),
    "rating is missing": (interactions(b"u1,i1,,10"), ["row 1", "'rating'", "missing"]),
    "timestamp beyond int64": (
        interactions(b"u1,i1,5,10", b"u1,i2,4,99999999999999999999"),
        ["row 2", "'timestamp'", "'99999999999999999999'"],
    ),
    "timestamp in milliseconds": (
        interactions(b"u1,i1,5,881250949000"),
        ["row 1", "'timestamp'", "after the year 2099", "milliseconds"],
    ),
    "timestamp negative": (interactions(b"u1,i1,5,-1"), ["row 1", "'timestamp'", "negative"]),
    "date before 1970": (
        interactions(b"u1,i1,5,1969-12-31"),
        ["row 1", "'timestamp'", "before 1970"],
    ),
    "timestamp is a word": (interactions(b"u1,i1,5,soon"), ["row 1", "'timestamp'", "'soon'"]),
    "times of two kinds": (
        interactions(b"u1,i1,5,2020-01-02", b"u1,i2,4,20"),
        ["row 2", "'timestamp'", "'20'", "as in row 1"],
    ),
    "position is a fraction": (
        {"interactions.csv": b"user_id,item_id,position\nu1,i1,1.5\n"},
        ["row 1", "'position'", "'1.5'", "whole number"],
    ),
    "position negative": (
        {"interactions.csv": b"user_id,item_id,position\nu1,i1,0\nu1,i2,-4\n"},
        ["row 2", "'position'", "negative"],
    ),
    "too many fields": (
        {"items.csv": b"item_id,title\ni1,One\n\ni2,Two, too\n"},
        ["items.csv", "row 2", "3 field(s)", "header has 2", "quotes"],
    ),
    "too few fields": (interactions(b"u1,i1,5,10", b"u1"), ["row 2", "1 field(s)", "header has 4"]),
    "quote never closed": (
        {"items.csv": b'item_id,title\n"i1,One\ni2,Two\n'},
        ["items.csv", "row 1", "1 field(s)"],
    ),
    "Latin-1": (
        {"items.csv": b"item_id,title\ni1,One\ni2,Caf\xe9\n"},
        ["items.csv", "row 2", "'title'", "UTF-8"],
    ),
    "Latin-1 header": (
        {"items.csv": b"item_id,title,gen\xe9\ni1,One,x\n"},
        ["items.csv", "UTF-8"],
    ),
    "UTF-16": ({"items.csv": "item_id,title\ni1,One\n".encode("utf-16")}, ["UTF-16", "UTF-8"]),
    "parquet called csv": ({"items.csv": b"PAR1\x00\x00"}, ["items.csv", "parquet"]),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text_file(case: str, tmp_path: Path) -> None:
    files, words = BAD_TEXT[case]
    message = str(run(tmp_path, files))
    for word in words:
        assert word in message
    assert "\n" not in message


def parquet(table: dict[str, Any], path: Path) -> None:
    pq.write_table(pa.table(table), path)


BAD_PARQUET: dict[str, tuple[dict[str, Any], list[str]]] = {
    "NaN id": (
        {"user_id": [1.0, float("nan")], "item_id": ["i1", "i1"]},
        ["row 2", "'user_id'", "missing"],
    ),
    "null id": ({"user_id": ["u1", None], "item_id": ["i1", "i1"]}, ["row 2", "'user_id'"]),
    "fractional id": ({"user_id": [1.0, 2.5], "item_id": ["i1", "i1"]}, ["row 2", "2.5"]),
    "infinite id": ({"user_id": [1.0, float("inf")], "item_id": ["i1", "i1"]}, ["row 2", "inf"]),
    "boolean id": ({"user_id": [True], "item_id": ["i1"]}, ["'user_id'", "bool"]),
    "list of items": ({"user_id": ["u1"], "item_id": [["i1"]]}, ["'item_id'", "list"]),
    "bytes as id": ({"user_id": ["u1"], "item_id": [b"\xff"]}, ["row 1", "'item_id'", "UTF-8"]),
    "only nulls as id": ({"user_id": pa.nulls(2), "item_id": ["i1", "i1"]}, ["row 1", "missing"]),
    "null rating": (
        {"user_id": ["u1"], "item_id": ["i1"], "rating": pa.array([None], pa.float64())},
        ["row 1", "'rating'", "missing"],
    ),
    "boolean rating": (
        {"user_id": ["u1"], "item_id": ["i1"], "rating": [True]},
        ["'rating'", "bool", "numbers"],
    ),
    "unsigned time beyond int64": (
        {"user_id": ["u1"], "item_id": ["i1"], "timestamp": pa.array([2**63], pa.uint64())},
        ["row 1", "'timestamp'", str(2**63)],
    ),
    "fractional time": (
        {"user_id": ["u1"], "item_id": ["i1"], "timestamp": [1.5]},
        ["row 1", "'timestamp'", "1.5"],
    ),
    "no rows": ({"user_id": pa.array([], pa.string()), "item_id": []}, ["no data rows"]),
}


@pytest.mark.parametrize("case", BAD_PARQUET)
def test_bad_parquet_file(case: str, tmp_path: Path) -> None:
    table, words = BAD_PARQUET[case]
    parquet(table, tmp_path / "bad.parquet")
    message = str(run(tmp_path, {}, interactions="bad.parquet"))
    for word in ["bad.parquet", *words]:
        assert word in message


def test_struct_column_of_items(tmp_path: Path) -> None:
    parquet({"item_id": ["i1"], "title": ["One"], "more": [{"a": 1}]}, tmp_path / "bad.parquet")
    message = str(run(tmp_path, {}, items="bad.parquet"))
    assert "column 'more'" in message
    assert "leave this column out" in message


@pytest.mark.parametrize("kept", [3, 20, -1, -9])
def test_truncated_parquet(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.parquet"
    parquet({"user_id": ["u1", "u2"], "item_id": ["i1", "i2"]}, path)
    path.write_bytes(path.read_bytes()[:kept])
    message = str(run(tmp_path, {}, interactions="cut.parquet"))
    assert "cut.parquet is not a readable parquet file" in message


def test_damaged_page_inside_a_parquet(tmp_path: Path) -> None:
    path = tmp_path / "holed.parquet"
    parquet({"user_id": [f"u{n}" for n in range(500)], "item_id": ["i1"] * 500}, path)
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    message = str(run(tmp_path, {}, interactions="holed.parquet"))
    assert "holed.parquet is not a readable parquet file" in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.csv", "does not exist"),
        ("items.xlsx", "must end in .csv, .tsv or .parquet"),
        ("folder.csv", "is a folder"),
        ("text.parquet", "not a readable parquet file"),
    ],
)
def test_wrong_path(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "items.xlsx").write_bytes(b"PK")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "text.parquet").write_bytes(GOOD["items.csv"])
    message = str(run(tmp_path, {}, items=name))
    assert name in message
    assert words in message


SPLITS = {
    "column with another word": (
        {"interactions.csv": b"user_id,item_id,part\nu1,i1,train\nu1,i2,dev\n"},
        {"split": {"method": "column", "column": "part"}},
        ["row 2", "'part'", "'dev'", "train, valid, test"],
    ),
    "no split column": ({}, {"split": {"method": "column"}}, ["no column 'split'", "--map split="]),
    "no fold column": (
        {"interactions.csv": b"user_id,item_id,u1_test\nu1,i1,true\n"},
        {"split": {"method": "fold", "column": "u1_tst"}},
        ["no column 'u1_tst'", "did you mean 'u1_test'?"],
    ),
    "fold column of words": (
        {"interactions.csv": b"user_id,item_id,f\nu1,i1,1\nu1,i2,maybe\n"},
        {"split": {"method": "fold", "column": "f"}},
        ["row 2", "'f'", "'maybe'", "neither true nor false"],
    ),
    "fold holds everything": (
        {"interactions.csv": b"user_id,item_id,f\nu1,i1,true\nu1,i2,true\n"},
        {"split": {"method": "fold", "column": "f"}},
        ["'fold'", "nothing to train on"],
    ),
    "time without times": (
        {"interactions.csv": b"user_id,item_id,when\nu1,i1,3\n"},
        {"split": {"method": "time"}},
        ["split 'time'", "no column 'timestamp'", "--map timestamp=", "user_id, item_id, when"],
    ),
    "last two without order": (
        {"interactions.csv": b"user_id,item_id\nu1,i1\n"},
        {"split": {"method": "leave_last_two"}},
        [
            "split 'leave_last_two'",
            "--map timestamp=COLUMN (in a config: data.columns.timestamp) or --map position=",
        ],
    ),
    "threshold without ratings": (
        {"interactions.csv": b"user_id,item_id,stars\nu1,i1,3\n"},
        {"min_rating": 4},
        ["min_rating", "no column 'rating'", "--map rating=", "stars"],
    ),
    "threshold above every rating": ({}, {"min_rating": 9}, ["3 by below_min_rating"]),
    "core too large": ({}, {"k_core": 3}, ["no interaction is left", "3 by k_core"]),
    "mapped column is not there": (
        {},
        {"columns": {"rating": "ratings"}},
        ["no column 'ratings'", "did you mean 'rating'?"],
    ),
    "mapped id is in no file": (
        {},
        {"columns": {"item_id": "movie"}},
        ["no column 'movie'", "--map item_id="],
    ),
    "unknown name of ours": (
        {},
        {"columns": {"ratng": "x"}},
        ["unknown column 'ratng'", "did you mean 'rating'?"],
    ),
    "one column for two": (
        {},
        {"columns": {"rating": "x", "position": "x"}},
        ["column 'x' is given twice"],
    ),
    "fractions": ({}, {"split": {"train": 0.9}}, ["add up to 1, not 1.1"]),
    "fold without column": ({}, {"split": {"method": "fold"}}, ["needs split.column"]),
    "column for nothing": ({}, {"split": {"column": "f"}}, ["'ratio'", "split.column"]),
    "fold named like ours": (
        {},
        {"split": {"method": "fold", "column": "rating"}},
        ["'rating'", "rename"],
    ),
    "split column twice": (
        {},
        {"columns": {"split": "a"}, "split": {"method": "column", "column": "b"}},
        ["once"],
    ),
}


@pytest.mark.parametrize("case", SPLITS)
def test_settings_that_do_not_fit_the_file(case: str, tmp_path: Path) -> None:
    files, settings, words = SPLITS[case]
    message = str(run(tmp_path, files, **settings))
    for word in words:
        assert word in message


def test_the_source_says_which_keys_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the key 'items'"):
        parse_settings(ImportSettings, {"interactions": "a.csv"}, source="config")
    with pytest.raises(UserError, match="comes with its own files"):
        parse_settings(ImportSettings, {"source": "ml-100k", "items": "a.csv"}, source="config")
    with pytest.raises(UserError, match="needs the folder"):
        import_data(ImportSettings(source="ml-100k"), tmp_path / "out")


def test_a_bad_users_file_is_found_before_anything_is_written(tmp_path: Path) -> None:
    # Users are read last: interactions and items are good.
    message = str(run(tmp_path, {"users.csv": b"user_id\nu1\n\nu1\n"}))
    assert "users.csv, row 2, column 'user_id'" in message


def test_the_good_files_are_good(tmp_path: Path) -> None:
    """The cases above fail for their own reason, not for one in the files around them."""
    for name, content in GOOD.items():
        (tmp_path / name).write_bytes(content)
    settings = ImportSettings(
        interactions=tmp_path / "interactions.csv",
        items=tmp_path / "items.csv",
        users=tmp_path / "users.csv",
    )
    assert import_data(settings, tmp_path / "out").counts["interactions"] == 3
