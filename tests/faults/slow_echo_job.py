"""A profiling job with a slow toy engine, run in a process of its own so that it can be killed.

Arguments: the output folder, the number of rows, and the seconds that each row takes. Every row
that the engine really works on is noted in `asked/`, one empty file for each time.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa

from raysys.cluster import ClusterSettings, Pool, Resources, StagePlan, connect
from raysys.schema import ENTITY_ID, GENERATED_TOKENS, PROMPT_TOKENS
from raysys.store import write_table
from raysys.text.cache import ReplyCache
from raysys.text.engine import ERROR, KEY, MESSAGES, REPLY
from raysys.text.generation import Generation, Request

BLOCK_ROWS = 4


class SlowEcho:
    """Answers every chat with its own text."""

    def __init__(self, asked: Path, seconds: float) -> None:
        self._asked, self._seconds = asked, seconds

    def identity(self):
        return {"model": "echo"}

    def count(self, texts):
        return np.ones(len(texts), np.int64)

    def plan(self, stage: str, have: Resources) -> StagePlan:
        return StagePlan(stage, (Pool("echo", 1, 0.1),))

    def replies(self, requests):
        asked, seconds = self._asked, self._seconds

        def answer(row):
            text = json.loads(row[MESSAGES])[0]["content"]
            if row[KEY]:
                time.sleep(seconds)
                (asked / f"{text}.{uuid.uuid4().hex}").touch()
            return {
                KEY: row[KEY],
                REPLY: f"reply to {text}",
                ERROR: "",
                PROMPT_TOKENS: 1,
                GENERATED_TOKENS: 1,
            }

        return requests.map(answer, num_cpus=1)


def main() -> None:
    output, rows, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    asked = output / "asked"
    asked.mkdir(parents=True, exist_ok=True)
    names = [f"item {row}" for row in range(rows)]
    requests = [Request([{"role": "user", "content": name}], 9, "{}") for name in names]
    with (
        connect(ClusterSettings(cpus=2, gpus=0, object_store_gib=0.1)) as have,
        Generation(
            SlowEcho(asked, seconds),
            ReplyCache(output / "replies.sqlite"),
            output,
            stage="toy",
            have=have,
            block_rows=BLOCK_ROWS,
        ) as generation,
    ):
        replies = generation.ask(requests)
    table = {ENTITY_ID: names, REPLY: [reply.text for reply in replies]}
    write_table(output / "replies.parquet", pa.table(table))


if __name__ == "__main__":
    main()
