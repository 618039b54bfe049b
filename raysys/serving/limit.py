"""How much a language model is asked at once: more while it is in time, less when it is late."""

from __future__ import annotations

import time
from dataclasses import dataclass

#: Where it starts, and what it falls to after a late answer (additive increase, multiplicative
#: decrease, as TCP's congestion control).
_START, _FALL = 8.0, 0.7


@dataclass(frozen=True)
class Place:
    """One of those that are asked for now."""

    since: float


class AdaptiveLimit:
    """Places for lists that are reranked at the same time.

    Args:
        most: it never grows beyond.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = min(_START, float(most))
        self._open = 0
        self._fell = float("-inf")

    @property
    def limit(self) -> int:
        """Places there are now, at least one."""
        return int(self._limit)

    def enter(self) -> Place | None:
        """A place; none where all are taken."""
        if self._open >= self.limit:
            return None
        self._open += 1
        return Place(time.monotonic())

    def leave(self, place: Place, *, in_time: bool) -> None:
        """Give a place back, and say how it went."""
        full = self._open >= self.limit
        self._open -= 1
        if in_time:
            # A limit that nobody reaches says nothing of what the model could bear.
            if full:
                self._limit = min(float(self._most), self._limit + 1 / self._limit)
        elif place.since >= self._fell:
            # Those that entered before the last fall are late for the same reason: once is enough.
            self._limit = max(1.0, self._limit * _FALL)
            self._fell = time.monotonic()
