"""Which test pairs are found, and how well their items are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from benchmarks import results, text_worth
from raysys.errors import UserError
from raysys.store import write_json

TRAIN = csr_matrix(np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]], dtype=np.float32))
TEST = csr_matrix(np.array([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=np.float32))


def test_pairs_are_found_and_grouped(monkeypatch):
    scores = np.array([[9, 8, 1, 2], [0, 0, 0, 0], [9, 1, 9, 2]], dtype=np.float32)
    monkeypatch.setattr(text_worth, "K", 1)
    monkeypatch.setattr(text_worth, "GROUPS", (0, 1, 3))
    # User 0 sees item 3 first and user 2 too: items 0, 1 and 0, 2 are known to them.
    found = text_worth.found_pairs(lambda rows: scores[rows], TRAIN, TEST)
    assert found.tolist() == [False, True, False]
    assert text_worth.groups_of(TRAIN, TEST).tolist() == [1, 0, 1]


def test_the_table_has_a_group_a_row():
    group = {"share": 0.25, "ease": 0.1, "ease_text": 0.2}
    table = text_worth.table_of({"mine": [group] * len(text_worth.GROUPS)}).splitlines()
    assert table[2] == "| 0 to 4 | 25.0% | 10.0% | 20.0% |"
    assert table[-1].startswith("| 50 and more |")


def test_settings_are_those_that_validation_chose(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    row = {"chosen": "reg 200.0, text_weight 100.0, validation 0.1534"}
    write_json(tmp_path / "mine.json", {"ease_text": row})
    assert text_worth.chosen("mine", "ease_text") == {"reg": 200.0, "text_weight": 100.0}
    with pytest.raises(UserError, match="has no row 'ease'"):
        text_worth.chosen("mine", "ease")
