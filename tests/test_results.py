"""Pages of figures are what their generators write: nothing in them is typed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import results

ROOT = Path(__file__).parents[1]


def test_the_page_of_results_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert results.PAGE.read_text(encoding="utf-8") == results.page()


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
