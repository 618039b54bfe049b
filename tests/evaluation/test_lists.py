"""Measuring lists from a file: by hand, bad files, and the lists published with the paper."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest

from raysys.cli import main
from raysys.errors import UserError
from raysys.evaluation.lists import held_out, measure_lists
from raysys.store import write_table

# u likes a and b of its test items and did not like c; v likes d; w only has train rows.
ROWS = [
    ("u", "a", 5.0, True),
    ("u", "b", 4.0, True),
    ("u", "c", 2.0, True),
    ("u", "d", 5.0, False),
    ("v", "d", 4.0, True),
    ("w", "a", 5.0, False),
]
LISTS = [
    ("u", "d", 1),
    ("u", "c", 2),
    ("u", "new", 3),
    ("u", "a", 4),
    ("w", "b", 1),
    ("stranger", "a", 1),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ("user_id", "item_id", "rating", "fold")
    write_table(
        tmp_path / "interactions.parquet",
        pa.table(dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True))),
    )
    return tmp_path


def lists(folder: Path, rows: list[tuple[str, str, int]]) -> Path:
    names = ("user_id", "item_id", "rank")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    write_table(folder / "lists.parquet", table)
    return folder / "lists.parquet"


def test_all_rank_by_hand(folder: Path) -> None:
    found = measure_lists(lists(folder, LISTS), held_out(folder, "fold", 4), k=4)
    # u: one of two relevant items, at rank 4 of 4; v has no list and counts as 0.
    assert found.users == 2
    assert (found.without_list, found.unknown) == (1, 2)
    assert found.metrics["recall"] == pytest.approx((1 / 2 + 0) / 2)
    assert found.metrics["precision"] == pytest.approx((1 / 4 + 0) / 2)
    assert found.metrics["mrr"] == pytest.approx((1 / 4 + 0) / 2)
    assert found.metrics["map"] == pytest.approx((1 / 4 / 2 + 0) / 2)


def test_lists_of_any_length_and_order_of_rows(folder: Path) -> None:
    rows = [("w", "a", 1), ("u", "b", 3), ("w", "b", 2), ("v", "a", 4), ("w", "d", 3)]
    rows += [("v", "c", 7), ("v", "d", 9), ("u", "d", 1), ("u", "a", 8)]
    found = measure_lists(lists(folder, rows), held_out(folder, "fold", 4), k=4)
    # u's hits at the second and third place, v's at the third: gaps between ranks close up.
    assert found.metrics["mrr"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found.metrics["recall"] == pytest.approx(1)
    assert found.metrics["map"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 3) / 2)


def test_condensed_deletes_what_was_not_rated_and_skips_empty_lists(folder: Path) -> None:
    found = measure_lists(lists(folder, LISTS), held_out(folder, "fold", 4), 4, "condensed")
    # u's list becomes c, a; v's is empty, so v is not measured.
    assert found.users == 1
    assert found.metrics["precision"] == pytest.approx(1 / 2)
    assert found.metrics["mrr"] == pytest.approx(1 / 2)
    assert found.metrics["recall"] == pytest.approx(1 / 2)


def test_without_a_relevance_every_test_row_counts(folder: Path) -> None:
    found = measure_lists(lists(folder, LISTS), held_out(folder, "fold", None), k=2)
    assert found.metrics["recall"] == pytest.approx((1 / 3 + 0) / 2)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([("u", "a", 1), ("u", "a", 2)], "user 'u' has item_id 'a' 2 times"),
        ([("u", "a", 1), ("u", "b", 1)], "user 'u' has rank '1' 2 times"),
    ],
)
def test_broken_lists_are_refused(folder: Path, rows, problem) -> None:
    with pytest.raises(UserError, match=problem):
        measure_lists(lists(folder, rows), held_out(folder, "fold", 4), 10)


def test_mistakes_are_named(folder: Path, capsys) -> None:
    path = str(lists(folder, LISTS))
    for further, problem in (
        ([], "--dataset"),
        (["--dataset", str(folder), "--fold", "u1"], "no column 'u1'"),
        (["--dataset", str(folder), "--fold", "fold", "--protocol", "rank"], "no protocol 'rank'"),
        (["--dataset", str(folder), "--fold", "fold", "--relevance", "9"], "no user with"),
    ):
        assert main(["evaluate", path, *further]) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.skipif("RAYSYS_DATA" not in os.environ, reason="needs RAYSYS_DATA (ml-100k)")
@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("lightgcn", (0.2583, 0.1530, 0.3046)),
        ("als", (0.2447, 0.1629, 0.2809)),
        ("gat", (0.2754, 0.1489, 0.3026)),
    ],
)
def test_published_lists_have_the_published_figures(name, figures, capsys) -> None:
    folder = Path(os.environ["RAYSYS_DATA"]) / "ml-100k"
    path = folder / "published_recommendations" / f"{name}.parquet"
    options = ["--dataset", str(folder), "--fold", "u1_test", "--relevance", "4", "--k", "10"]
    assert main(["evaluate", str(path), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["users"] == 456
    assert [round(found[key], 4) for key in ("precision", "recall", "ndcg")] == list(figures)
