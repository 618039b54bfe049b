"""Replies that were paid for once: an SQLite file from the hash of a request to its reply."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from raysys.errors import UserError

_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
  key TEXT PRIMARY KEY, reply TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, generated_tokens INTEGER NOT NULL
) WITHOUT ROWID
"""
_RATES = "CREATE TABLE IF NOT EXISTS rates (engine TEXT PRIMARY KEY, tokens_per_s REAL NOT NULL)"
#: Keys of one query: SQLite allows 32,766 values.
_AT_ONCE = 10_000
#: How long to wait for another process that writes.
_WAIT_S = 60.0


@dataclass(frozen=True)
class Reply:
    """What the engine wrote, or why it could not (`error`)."""

    text: str
    error: str = ""
    prompt_tokens: int = 0
    generated_tokens: int = 0


class ReplyCache:
    """Replies by key. Several processes of one machine may use the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(_TABLE)
            connection.execute(_RATES)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection that commits at the end; the data is on disk then."""
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_S)) as connection, connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"the cache of replies {self.path} cannot be used ({error}): move it away, or "
                "give another one (profiles.cache, summaries.cache)."
            ) from None

    def get(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that are known, by key."""
        found: dict[str, Reply] = {}
        with self._open() as connection:
            for start in range(0, len(keys), _AT_ONCE):
                part = list(keys[start : start + _AT_ONCE])
                marks = ",".join("?" * len(part))
                rows = connection.execute(f"SELECT * FROM replies WHERE key IN ({marks})", part)
                found |= {
                    key: Reply(text, "", prompt, generated) for key, text, prompt, generated in rows
                }
        return found

    def put(self, replies: Iterable[tuple[str, Reply]]) -> None:
        """Keep replies; a key that is there already keeps what it has."""
        rows = [(key, row.text, row.prompt_tokens, row.generated_tokens) for key, row in replies]
        with self._open() as connection:
            connection.executemany("INSERT OR IGNORE INTO replies VALUES (?,?,?,?)", rows)

    def rate(self, engine: str) -> float | None:
        """Tokens a second that this engine wrote when it was last used for long."""
        with self._open() as connection:
            row = connection.execute("SELECT tokens_per_s FROM rates WHERE engine=?", [engine])
            found = row.fetchone()
        return None if found is None else float(found[0])

    def keep_rate(self, engine: str, tokens_per_s: float) -> None:
        """Remember how fast an engine was."""
        with self._open() as connection:
            connection.execute("INSERT OR REPLACE INTO rates VALUES (?,?)", [engine, tokens_per_s])
