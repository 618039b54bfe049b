"""Run an engine over many requests, resumably: the one loop behind every LLM stage.

Replies are written as they finish, a part file for each block, by temporary
file and rename. After a crash the parts tell which rows are done, and only the
others are asked again.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.cluster import SMALL_CPUS, Resources, preflight
from raysys.observe import get_logger, progress
from raysys.schema import ENTITY_ID, GENERATED_TOKENS, PROMPT_TOKENS
from raysys.store import read_table, write_table
from raysys.text.engine import ERROR, MESSAGES, REPLY, Engine

if TYPE_CHECKING:
    from ray.data import Datasink

PARTS = "parts"
REQUEST_SCHEMA = pa.schema([(ENTITY_ID, pa.string()), (MESSAGES, pa.string())])
REPLY_SCHEMA = pa.schema(
    [
        (ENTITY_ID, pa.string()),
        (REPLY, pa.string()),
        (ERROR, pa.string()),
        (PROMPT_TOKENS, pa.int64()),
        (GENERATED_TOKENS, pa.int64()),
    ]
)
#: Seconds between two looks at the part files for the progress bar.
POLL_S = 2.0
logger = get_logger(__name__)


def generate(
    requests: pa.Table,
    engine: Engine,
    output: Path,
    *,
    stage: str,
    have: Resources,
    block_rows: int,
) -> pa.Table:
    """Ask the engine for every request that has no reply yet.

    Args:
        requests: `REQUEST_SCHEMA`; `messages` is the chat as JSON. Ids are unique.
        engine: writes the replies.
        output: work folder; parts from an earlier, interrupted call are used.
        stage: name for logs and for the preflight.
        have: the cluster's resources.
        block_rows: rows of one part file.

    Returns:
        `REPLY_SCHEMA`, one row for each request, in the order of the requests.

    Raises:
        UserError: the cluster cannot run the engine's plan.
        RuntimeError: the engine finished and some requests have no reply.
    """
    import ray.data

    preflight(engine.plan(stage, have), have)
    parts = output / PARTS
    parts.mkdir(exist_ok=True)
    done = _read_parts(parts)
    missing = _without(requests, done[ENTITY_ID])
    if done.num_rows:
        logger.info("%s: %d of %d replies found", stage, done.num_rows, requests.num_rows)
    if missing.num_rows:
        blocks = [
            missing.slice(start, block_rows) for start in range(0, missing.num_rows, block_rows)
        ]
        replies = engine.replies(ray.data.from_arrow(blocks))
        with _watch(parts, stage, requests.num_rows):
            replies.write_datasink(_part_sink(parts), ray_remote_args={"num_cpus": SMALL_CPUS})
        done = _read_parts(parts)
    order = pc.index_in(requests[ENTITY_ID], value_set=done[ENTITY_ID])
    if order.null_count:
        raise RuntimeError(f"{stage}: the engine left {order.null_count} requests unanswered")
    return done.take(order)


def _without(requests: pa.Table, done: pa.ChunkedArray) -> pa.Table:
    return requests.filter(pc.invert(pc.is_in(requests[ENTITY_ID], value_set=done)))


def _read_parts(parts: Path) -> pa.Table:
    """All replies so far. A block that Ray ran twice leaves two parts: the first one counts."""
    tables = [read_table(path) for path in sorted(parts.glob("*.parquet"))]
    table = pa.concat_tables([REPLY_SCHEMA.empty_table(), *tables])
    first = pc.index_in(pc.unique(table[ENTITY_ID]), value_set=table[ENTITY_ID])
    return table.take(first)


def _part_sink(parts: Path) -> Datasink[Any]:
    from ray.data import Datasink
    from ray.data.block import Block, BlockAccessor

    class PartSink(Datasink[None]):
        """Writes each block as one part file, whole or not at all."""

        def write(self, blocks: Iterable[Block], ctx: Any) -> None:
            for block in blocks:
                table = BlockAccessor.for_block(block).to_arrow()
                if table.num_rows:
                    rows = table.select(REPLY_SCHEMA.names).cast(REPLY_SCHEMA)
                    write_table(parts / f"{uuid.uuid4().hex}.parquet", rows)

    return PartSink()


@contextmanager
def _watch(parts: Path, label: str, total: int) -> Iterator[None]:
    """Show progress from the part files, which exist wherever the writers run."""
    stop = threading.Event()

    def run() -> None:
        rows: dict[Path, int] = {}
        with progress(label, total) as tracker:
            while not stop.wait(POLL_S):
                for path in parts.glob("*.parquet"):
                    if path not in rows:
                        rows[path] = pq.read_metadata(path).num_rows
                tracker.update(sum(rows.values()))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
