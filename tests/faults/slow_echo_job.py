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

import pyarrow as pa

from raysys.cluster import ClusterSettings, Pool, Resources, StagePlan, connect
from raysys.schema import ENTITY_ID, GENERATED_TOKENS, PROMPT_TOKENS
from raysys.store import write_table
from raysys.text.engine import ERROR, MESSAGES, REPLY
from raysys.text.generation import generate

BLOCK_ROWS = 4


class SlowEcho:
    """Answers every chat with its own text."""

    def __init__(self, asked: Path, seconds: float) -> None:
        self._asked, self._seconds = asked, seconds

    def plan(self, stage: str, have: Resources) -> StagePlan:
        return StagePlan(stage, (Pool("echo", 1, 0.1),))

    def replies(self, requests):
        asked, seconds = self._asked, self._seconds

        def answer(row):
            time.sleep(seconds)
            (asked / f"{row[ENTITY_ID]}.{uuid.uuid4().hex}").touch()
            text = json.loads(row[MESSAGES])[0]["content"]
            return {
                ENTITY_ID: row[ENTITY_ID],
                REPLY: json.dumps({"summarization": text}),
                ERROR: "",
                PROMPT_TOKENS: 1,
                GENERATED_TOKENS: 1,
            }

        return requests.map(answer, num_cpus=1)


def main() -> None:
    output, rows, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    asked = output / "asked"
    asked.mkdir(parents=True, exist_ok=True)
    ids = [f"item {row}" for row in range(rows)]
    chats = [json.dumps([{"role": "user", "content": f"about {name}"}]) for name in ids]
    requests = pa.table({ENTITY_ID: ids, MESSAGES: chats})
    with connect(ClusterSettings(cpus=2, gpus=0, object_store_gib=0.1)) as have:
        replies = generate(
            requests,
            SlowEcho(asked, seconds),
            output,
            stage="toy",
            have=have,
            block_rows=BLOCK_ROWS,
        )
    write_table(output / "replies.parquet", replies)


if __name__ == "__main__":
    main()
