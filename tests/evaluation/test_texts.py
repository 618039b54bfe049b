from __future__ import annotations

import math

import pytest

from raysys.evaluation.texts import distinct, text_metrics


def test_figures_by_hand() -> None:
    """5 of 6 words agree, the longest common run of order is 5 words, of 4-grams 2 of 3."""
    found = text_metrics(["the cat sat on the mat"], ["a cat sat on the mat"])
    assert found["bleu@1"] == pytest.approx(5 / 6)
    assert found["bleu@4"] == pytest.approx(math.prod((5 / 6, 4 / 5, 3 / 4, 2 / 3)) ** 0.25)
    assert found["rouge1"] == found["rougeL"] == pytest.approx(5 / 6)
    assert found["rouge2"] == pytest.approx(4 / 5)
    assert found["distinct@1"] == pytest.approx(5 / 6)
    assert found["unique"] == 1.0


def test_a_model_that_repeats_itself_is_seen() -> None:
    assert distinct(["good good", "good good"], 1) == 0.25
    assert distinct([""], 1) == 0.0
    with pytest.raises(ValueError, match="0 texts"):
        text_metrics([], [])
