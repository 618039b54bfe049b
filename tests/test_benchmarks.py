"""What others read of the benchmarks: the last line, and the exit code of a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from toy_models import write_toy_dataset

from benchmarks import mutants
from benchmarks.reproduce import Data
from raysys.errors import UserError
from raysys.store import write_table

ROOT = Path(__file__).parents[1]


def reproduce(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.reproduce", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_toy_dataset(folder)
    return folder


def test_reproduce_prints_figures_by_model(folder: Path) -> None:
    # The toy data has no test split of its own, so that the benchmark draws one.
    import pyarrow.parquet as pq

    path = folder / "interactions.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["split"]), path)
    done = reproduce("--dataset", str(folder), "--models", "popularity,itemknn,itemknn+popularity")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert list(figures) == ["popularity", "itemknn", "itemknn+popularity"]
    for row in figures.values():
        assert 0 < row["recall@20"] <= 1
        assert 0 < row["ndcg@20"] <= 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dataset", "nowhere"], "no interactions.parquet"),
        (["--models", "popularity,simcgl"], "did you mean 'simgcl'"),
        (
            ["--models", "ease_shuffled"],
            "no model 'ease_shuffled', did you mean 'ease_text_shuffled'",
        ),
        (["--models", "lightgcn_0"], "no model 'lightgcn_0', did you mean"),
        (["--models", "itemknn+"], "no model '', valid: popularity, itemknn, ease"),
        (["--models", "sgl_con"], "reads texts: give --vectors"),
        (["--models", "ease", "--vectors", "/nowhere.parquet"], "/nowhere.parquet does not exist"),
        (["--seeds", "0"], "0 is not at least 1"),
        (["--patience", "-1"], "-1 is not at least 1"),
    ],
)
def test_mistakes_exit_with_2(folder: Path, words: list[str], told: str) -> None:
    done = reproduce("--dataset", str(folder), *words)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


_IDS = ["a", "a", "a", "b", "b", "b"]
_ITEMS = ["x", "y", "z", "x", "y", "w"]
_SPLITS = ["train", "valid", "test"] * 2


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"user": _IDS, "item_id": _ITEMS, "split": _SPLITS}, "--map user_id=COLUMN`, and give"),
        (
            {"user_id": _IDS, "item_id": [*_ITEMS[:5], None], "split": _SPLITS},
            "row 6, column 'item_",
        ),
        ({"user_id": [[1]] * 6, "item_id": _ITEMS, "split": _SPLITS}, "'user_id': has type list"),
        (
            {"user_id": _IDS, "item_id": _ITEMS, "split": ["x", *_SPLITS[1:]]},
            "row 1, column 'split'",
        ),
        ({"user_id": _IDS, "item_id": _ITEMS, "split": [1] * 6}, "column 'split': has type int64"),
        (
            {"user_id": ["a"] * 3, "item_id": ["x", "x", "y"], "split": ["train", "valid", "test"]},
            "no row has the split 'valid' whose pair is not also in 'train'",
        ),
    ],
)
def test_a_file_that_cannot_be_measured_on(
    tmp_path: Path, columns: dict[str, list[object]], told: str
) -> None:
    write_table(tmp_path / "interactions.parquet", pa.table(columns))
    with pytest.raises(UserError, match=r"interactions\.parquet") as caught:
        Data(tmp_path)
    assert told in str(caught.value)


def test_ids_of_any_kind_are_the_same_data(tmp_path: Path) -> None:
    numbers = [3, 3, 3, 11, 11, 11]
    found = []
    for users in (numbers, [str(n) for n in numbers], pa.array(numbers).dictionary_encode()):
        rows = {"user_id": users, "item_id": _ITEMS, "split": ["Train", "val", "test"] * 2}
        write_table(tmp_path / "interactions.parquet", pa.table(rows))
        data = Data(tmp_path)
        found.append([part.toarray().tolist() for part in (data.train, data.valid, data.test)])
    assert found[0] == found[1] == found[2]
    assert data.split == "the column 'split'"


def test_a_split_that_is_missing_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    rows = {"user_id": ["a", "a"], "item_id": ["x", "y"], "split": ["train", "test"]}
    write_table(tmp_path / "interactions.parquet", pa.table(rows))
    done = reproduce("--dataset", str(tmp_path))
    assert done.returncode == 2
    assert "no row has the split 'valid'" in done.stderr


@pytest.mark.parametrize(
    ("line", "mutated", "another"),
    [
        ("def f(a: int | None = None) -> int:", "def f(a: int - None = None) -> int:", False),
        ("def f(a: int | None = None) -> int:", "def f(a: int | None = None) -> int * 2:", False),
        ("    b: int = a + 1", "    b: int = a - 1", True),
        ("    b: int = a + 1", "    b: float = a + 1", False),
        ("    b: int = a + 1", "    b: int = a + >>1", False),
    ],
)
def test_a_mutant_of_annotations_alone_is_no_other_program(
    line: str, mutated: str, another: bool
) -> None:
    source = "x = 1\n\ndef f(a: int | None = None) -> int:\n    b: int = a + 1\n    return b\n"
    diff = f"--- mutation diff ---\n--- a/f.py\n+++ b/f.py\n@@ -3,1 +3,1 @@\n-{line}\n+{mutated}"
    assert mutants.another_program(source, diff) == another
