"""MovieLens-100K: small files with the quirks of the real ones, then the real ones if present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raysys import schema
from raysys.data.dataset import Dataset
from raysys.data.import_settings import ImportSettings, SplitSettings
from raysys.data.importers import import_data
from raysys.errors import UserError

FILES = {
    "ml-100k.inter": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "196\t12\t3\t881250949\n196\t267\t5\t881250950\n"
        "22\t1412\t1\t878887116\n22\t650\t2\t878887117\n22\t1535\t2\t878887118\n22\t9\t2\t1\n22\t8\t2\t2\n"
    ),
    "ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "12\tUsual Suspects, The\t1995\tCrime Thriller\n"
        "267\tunkonwn\tunkonwn\tunknown\n"
        "1412\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's\n"
        "650\tSeventh Seal, The (Sjunde inseglet, Det)\t1957\tDrama\n"
        "1535\tEnfer, L'\t1994\tDrama\n"
        "8\tBabe\t\t\n"
        '9\t"Sex, Lies, and Paris, Texas\t1989\tDrama\n'
    ),
    "ml-100k.user": (
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "22\t25\tM\twriter\t00347\n196\t49\tM\twriter\t55105\n"
    ),
}
ITEMS = [
    ("12", "The Usual Suspects (1995)", "Crime, Thriller", 1995),
    ("267", "unknown", None, None),
    (
        "1412",
        "Land Before Time III: The Time of the Great Giving (1995)",
        "Animation, Children's",
        1995,
    ),
    ("650", "The Seventh Seal (Det Sjunde inseglet) (1957)", "Drama", 1957),
    ("1535", "L'Enfer (1994)", "Drama", 1994),
    ("8", "Babe", None, None),
    ("9", '"Sex, Lies, and Paris, Texas (1989)', "Drama", 1989),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_quirks_of_the_files(folder: Path) -> None:
    report = import_data(ImportSettings(source="ml-100k"), folder / "out", folder)
    assert report.counts["interactions"] == 7
    data = Dataset.load(folder / "out")
    assert data.items.column_names == ["item_id", "title", "genres", "release_year"]
    assert [tuple(row.values()) for row in data.items.to_pylist()] == ITEMS
    assert data.users.to_pylist()[0] == {
        "user_id": "22",
        "age": "25",
        "gender": "M",
        "occupation": "writer",
        "zip_code": "00347",
    }
    assert data.interactions.column_names == ["user_id", "item_id", "rating", "timestamp", "split"]


@pytest.mark.parametrize("name", FILES)
def test_missing_and_cut_files(name: str, folder: Path) -> None:
    lines = FILES[name].splitlines(keepends=True)
    (folder / name).write_text("".join(lines[:2]) + "1\t2", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name}, row 2: 2 field"):
        import_data(ImportSettings(source="ml-100k"), folder / "out", folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} does not exist"):
        import_data(ImportSettings(source="ml-100k"), folder / "out", folder)
    assert not (folder / "out").exists()


def test_other_items_file(folder: Path) -> None:
    (folder / "ml-100k.item").write_text("item_id:token\tname:token\n12\tx\n")
    with pytest.raises(UserError, match=r"ml-100k\.item is not MovieLens-100K.*title"):
        import_data(ImportSettings(source="ml-100k"), folder / "out", folder)


@pytest.mark.skipif("RAYSYS_ML100K_FOLDER" not in os.environ, reason="no RAYSYS_ML100K_FOLDER")
def test_the_real_atomic_files(tmp_path: Path) -> None:
    settings = ImportSettings(source="ml-100k", split=SplitSettings(method="leave_last_two"))
    report = import_data(settings, tmp_path / "out", Path(os.environ["RAYSYS_ML100K_FOLDER"]))
    # Published: 943 users, 1,682 movies, 100,000 ratings, at least 20 a user.
    assert report.counts == {
        "rows": 100_000,
        "interactions": 100_000,
        "duplicates": 0,
        "users": 943,
        "items": 1_682,
        "train": 100_000 - 2 * 943,
        "valid": 943,
        "test": 943,
    }
    titles = Dataset.load(tmp_path / "out").items[schema.TITLE].to_pylist()
    assert "Les Misérables (1995)" in titles
    assert sum(title.endswith(", The") or ", The (" in title for title in titles) == 0
    assert [title for title in titles if not title.endswith(")")] == ["unknown"]


@pytest.mark.skipif("RAYSYS_DATA" not in os.environ, reason="no RAYSYS_DATA")
def test_the_published_fold_u1(tmp_path: Path) -> None:
    source = Path(os.environ["RAYSYS_DATA"]) / "ml-100k"
    settings = ImportSettings(
        interactions=source / "interactions.parquet",
        items=source / "items.parquet",
        users=source / "users.parquet",
        split=SplitSettings(method="fold", column="u1_test"),
    )
    report = import_data(settings, tmp_path / "out")
    # Published: u1.base has 80,000 rows and u1.test 20,000, of 459 users.
    assert report.counts["test"] == 20_000
    assert report.counts["train"] + report.counts["valid"] == 80_000
    assert abs(report.counts["valid"] - 8_000) < 943
    data = Dataset.load(tmp_path / "out")
    assert len(set(data.pairs("test")[0].tolist())) == 459
    assert "u5_test" in data.interactions.column_names
