"""Pages of figures are what their generators write: nothing in them is typed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import end_to_end, rerank_choice, results, tables

ROOT = Path(__file__).parents[1]


def test_the_page_of_results_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert results.PAGE.read_text(encoding="utf-8") == results.page()


def test_the_page_of_the_pipeline_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert end_to_end.PAGE.read_text(encoding="utf-8") == end_to_end.page()


def test_a_row_says_what_it_has_over_its_parts() -> None:
    figures = dict.fromkeys(end_to_end.SHOWN, 0.5)
    pair = {"model": "best", "baseline": "ease"}
    more = {"metric": "ndcg@10", "difference": 0.02, "low": 0.01, "high": 0.03}
    less = {"metric": "ndcg@10", "difference": -0.04, "low": -0.06, "high": 0.01}
    runs = [
        {
            "models": {"ease": figures, "best": figures},
            "comparisons": [{**pair, **found}, {**pair, **found, "metric": "recall@10"}],
        }
        for found in (more, less)
    ]
    rows = end_to_end.summary(runs)
    assert "over" not in rows["ease"]
    over = rows["best"]["over"]["ease"]
    assert over == {"difference": pytest.approx(-0.01), "better": 1, "worse": 0}


def test_figures_are_added_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    row = {"seeds": 2, "chosen": "epoch 3", "recall@20": 0.1, "recall@20_sd": 0.01, "ndcg@20": 0.05}
    results.record("mine", "python -m benchmarks.reproduce --dataset mine", {"sgl": row})
    results.record("mine", "again", {"ease": {**row, "recall@20": 0.2}})
    text = results.PAGE.read_text(encoding="utf-8")
    assert "| sgl | 0.1000 ± 0.0100 | 0.0500 | 2 | epoch 3 |" in text
    assert text.index("| sgl |") < text.index("| ease |")
    assert "    python -m benchmarks.reproduce --dataset mine" in text


@pytest.mark.parametrize("page", tables.PAGES, ids=str)
def test_pages_show_the_tables_of_comparisons_as_they_were_written(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = page.read_text(encoding="utf-8")
    assert "<!-- table " in text
    assert text == tables.shown(text)


def test_a_table_is_kept_and_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    page = "before\n<!-- table mine -->\nold\n<!-- end of table -->\nafter\n"
    for path in tables.PAGES:
        path.write_text(page, encoding="utf-8")
    for table in ("| a |\n", "| b |\n"):
        tables.save("mine", table, "raysys compare mine.toml")
    shown = "before\n<!-- table mine -->\n\n| b |\n\n    raysys compare mine.toml\n\n"
    assert Path("README.md").read_text(encoding="utf-8").startswith(shown)
    assert Path("README.md").read_text(encoding="utf-8").endswith("after\n")


def test_what_validation_tried_is_a_table() -> None:
    rows = [(0.0, None, 0.3), (0.5, 10, 0.31), (0.5, None, 0.29), (1.0, 10, 0.2), (1.0, None, 0.1)]
    tried = [{"weight": weight, "below": below, "ndcg@20": f} for weight, below, f in rows]
    table = rerank_choice.table_of({"weight": 0.5, "below": 10, "tried": tried}).splitlines()
    assert table[0] == "| weight | below 10 likes | all users |"
    assert table[2] == "| 0 | 0.3000 | 0.3000 |"
    assert table[3] == "| 0.5 | **0.3100** | 0.2900 |"
    assert table[4] == "| 1 | 0.2000 | 0.1000 |"
    assert table[-1].startswith("ndcg@20")
