from __future__ import annotations

import json

import pytest

from raysys.text.engine import KEY, MAX_TOKENS, MESSAGES, SCHEMA
from raysys.text.generation import Request, _blocks


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (4, 1), (5, 2), (12, 3)])
def test_blocks_are_always_full(rows, blocks):
    """Ray Data would wait for ever for the rest of a block."""
    requests = {
        f"key {row}": Request([{"role": "user", "content": f"{row}"}], 9, "{}")
        for row in range(rows)
    }
    found = _blocks(requests, 4)
    assert [block.num_rows for block in found] == [4] * blocks
    lines = [row for block in found for row in block.to_pylist()]
    assert [row[KEY] for row in lines if row[KEY]] == list(requests)
    fillers = [row for row in lines if not row[KEY]]
    assert all(row[MAX_TOKENS] == 1 and row[SCHEMA] == "{}" for row in fillers)
    assert all(len(json.loads(row[MESSAGES])) == 1 for row in lines)
