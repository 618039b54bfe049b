from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from raysys.evaluation.beyond import list_figures
from raysys.models.profiles import Profiles

#: Three users, four items; item 0 is in all histories, item 3 in none.
TRAIN = csr_matrix(np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=np.float32))
ITEMS = np.array([[0, 3], [0, -1], [1, 2]])


def test_coverage_and_novelty_by_hand():
    found = list_figures(ITEMS, TRAIN, [1, 2])
    assert found["coverage@1"] == 2 / 4
    assert found["coverage@2"] == 1
    # -log2 of (3 + 1)/4, (1 + 1)/4 and (0 + 1)/4: 0, 1 and 2 bits.
    assert found["novelty@1"] == pytest.approx((0 + 0 + 1) / 3)
    assert found["novelty@2"] == pytest.approx((0 + 2 + 0 + 1 + 1) / 5)
    assert "diversity@2" not in found


def test_diversity_by_hand():
    vectors = np.array([[1, 0], [0, 2], [3, 3], [np.nan, 0]], dtype=np.float32)
    profiles = Profiles.of(np.zeros((3, 2), np.float32), vectors)
    found = list_figures(ITEMS, TRAIN, [1, 2], profiles)
    # Item 3 has no vector and the second list one item: the third list alone, 45 degrees apart.
    assert found["diversity@2"] == pytest.approx(1 - math.cos(math.pi / 4))
    assert found["diversity@1"] == 0
    three = list_figures(np.array([[0, 1, 2]]), TRAIN, [3], profiles)["diversity@3"]
    assert three == pytest.approx(1 - (0 + 2 * math.cos(math.pi / 4)) / 3)
