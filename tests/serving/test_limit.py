"""Places at a language model: more while it is in time, fewer when it is late."""

from __future__ import annotations

import pytest

from raysys.serving import limit
from raysys.serving.limit import AdaptiveLimit, Place


def all_places(one: AdaptiveLimit) -> list[Place]:
    found = []
    while (place := one.enter()) is not None:
        found.append(place)
    return found


def test_it_grows_while_full_and_in_time() -> None:
    one = AdaptiveLimit(12)
    for _ in range(200):
        for place in all_places(one):
            one.leave(place, in_time=True)
    assert one.limit == 12
    quiet = AdaptiveLimit(12)
    for _ in range(1000):  # never more than one at a time: says nothing of ten
        place = quiet.enter()
        assert place is not None
        quiet.leave(place, in_time=True)
    assert quiet.limit == 8


def test_those_that_are_late_together_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(limit.time, "monotonic", lambda: now)
    one = AdaptiveLimit(100)
    first = all_places(one)
    assert len(first) == 8
    now = 1.0
    for place in first:
        one.leave(place, in_time=False)
    assert one.limit == 5  # 8 · .7
    second = all_places(one)
    assert len(second) == 5
    now = 2.0
    for place in second:
        one.leave(place, in_time=False)
    assert one.limit == 3  # 5.6 · .7


def test_there_is_always_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(limit.time, "monotonic", lambda: now)
    one = AdaptiveLimit(4)
    for _ in range(20):
        now += 1
        place = one.enter()
        assert place is not None
        now += 1
        one.leave(place, in_time=False)
    assert one.limit == 1
