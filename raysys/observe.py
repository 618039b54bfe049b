"""Logs and progress: bars on a terminal, one log line a minute elsewhere.

Everything here writes to standard error, so that `--json` leaves standard
output to the result.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

#: Seconds between progress lines when standard error is not a terminal.
LOG_EVERY_S = 60.0


def get_logger(name: str) -> logging.Logger:
    """A logger below `raysys`; silent until `configure_logging` is called."""
    return logging.getLogger(name)


def configure_logging(*, verbose: bool = False) -> None:
    """Send raysys logs to standard error; called once by the command line and by jobs."""
    root = logging.getLogger("raysys")
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
    if sys.stderr.isatty():
        root.addHandler(RichHandler(console=Console(stderr=True), show_path=False, markup=False))
    else:
        plain = logging.StreamHandler(sys.stderr)
        plain.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        root.addHandler(plain)


class Tracker:
    """Counts finished units of one long job; see `progress`."""

    def __init__(self, label: str, total: int, bar: Progress | None) -> None:
        self._label, self._total, self._bar = label, total, bar
        self._task = bar.add_task(label, total=total) if bar else None
        self._start = self._last = time.monotonic()
        self.done = 0

    def update(self, done: int, note: str = "") -> None:
        """Set the number of finished units; `note` is a short figure such as `loss 0.61`."""
        self.done = done
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=done, description=f"{self._label} {note}".strip()
            )
        elif time.monotonic() - self._last >= LOG_EVERY_S:
            self._last = time.monotonic()
            rate = done / max(self._last - self._start, 1e-9)
            get_logger("raysys").info(
                "%s: %d of %d (%.1f a second) %s", self._label, done, self._total, rate, note
            )


@contextmanager
def progress(label: str, total: int) -> Iterator[Tracker]:
    """Show progress of a long job of `total` units."""
    if not sys.stderr.isatty():
        yield Tracker(label, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Tracker(label, total, bar)
