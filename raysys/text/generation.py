"""Ask an engine round after round, resumably: the one loop behind every LLM stage.

An engine takes half a minute to start, and a conversation needs it several times: so one Ray Data
execution serves all rounds of a stage. Its source is a folder of request files, which its read
tasks take in turn and wait for; replies come back to this process as they are finished, and are
on disk, in the cache, before the next are taken. After a crash the cache knows what is done.
"""

from __future__ import annotations

import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from raysys.cluster import SMALL_CPUS, Resources, preflight
from raysys.observe import get_logger, progress
from raysys.schema import GENERATED_TOKENS, PROMPT_TOKENS
from raysys.store import fingerprint, read_table, write_table
from raysys.text.cache import Reply, ReplyCache
from raysys.text.engine import (
    ERROR,
    KEY,
    MAX_TOKENS,
    MESSAGES,
    REPLY,
    REPLY_SCHEMA,
    REQUEST_SCHEMA,
    SCHEMA,
    Engine,
)
from raysys.text.prompts import Message

if TYPE_CHECKING:
    from ray.data import Dataset

FEED = "feed"
#: Read tasks of one execution: each waits for one file of requests. When all are used, or the
#: engine has failed, the next round starts another execution, and with it the engine anew.
_LEAST_BLOCKS, _MOST_BLOCKS = 500, 20_000
#: What fills a block up asks this, for one token.
_SHORTEST = [{"role": "user", "content": "."}]
#: How often the read task that waits looks.
_LOOK_S = 0.05
#: A rate is remembered from so many replies on: before, the start of the engine counts too much.
_ENOUGH_FOR_A_RATE = 200
#: How often a request that failed in the engine is asked in all.
ATTEMPTS = 2
#: Executions in a row that end with the engine's death and bring no reply: then it is given up.
_DEATHS = 3
logger = get_logger(__name__)


@dataclass(frozen=True)
class Request:
    """A chat, how many tokens its reply may have, the JSON schema of the reply, and a reply as
    long as one may be."""

    messages: list[Message]
    max_tokens: int
    schema: str
    longest: str = ""


@dataclass
class Counters:
    """What a stage has asked so far; tokens of replies that were cached are counted apart."""

    asked: int = 0
    cached: int = 0
    generated: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_prompt_tokens: int = 0
    cached_generated_tokens: int = 0
    seconds: float = 0.0


def request_key(identity: dict[str, Any], request: Request) -> str:
    """What a reply is cached by: the engine's identity and all that it is asked."""
    return fingerprint([identity, request.messages, request.max_tokens, json.loads(request.schema)])


class Asker(ABC):
    """Answers requests: from the cache where it can, each different one once."""

    def __init__(self, engine: Engine, cache: ReplyCache) -> None:
        self.engine, self._cache = engine, cache
        self._identity = engine.identity()
        self.counters = Counters()

    def ask(self, requests: Sequence[Request], label: str = "") -> list[Reply]:
        """The reply to each request, in order."""
        keys = [request_key(self._identity, request) for request in requests]
        wanted = dict(zip(keys, requests, strict=True))
        found = self._cache.get(list(wanted))
        missing = {key: wanted[key] for key in wanted if key not in found}
        self.counters.asked += len(keys)
        self.counters.cached += sum(key in found for key in keys)
        self.counters.cached_prompt_tokens += sum(one.prompt_tokens for one in found.values())
        self.counters.cached_generated_tokens += sum(one.generated_tokens for one in found.values())
        if missing:
            if found:
                logger.info("%s: %d of %d replies found", label, len(found), len(wanted))
            found |= self._answers(missing, label)
        return [found[key] for key in keys]

    @abstractmethod
    def _answers(self, missing: dict[str, Request], label: str) -> dict[str, Reply]:
        """Replies to what is not cached, by key."""


class DryRun(Asker):
    """Asks nothing: every reply is the longest one allowed, so that cost can be foretold.

    It counts what `Generation` would ask: calls that are not cached, and their tokens at most.
    """

    def _answers(self, missing: dict[str, Request], label: str) -> dict[str, Reply]:
        texts = [
            "\n".join(message["content"] for message in request.messages)
            for request in missing.values()
        ]
        counters = self.counters
        counters.generated += len(texts)
        counters.prompt_tokens += int(self.engine.count(texts).sum())
        longest = [request.longest for request in missing.values()]
        different = sorted(set(longest))
        tokens = dict(zip(different, self.engine.count(different), strict=True))
        counters.generated_tokens += sum(int(tokens[reply]) for reply in longest)
        rate = self._cache.rate(fingerprint(self._identity))
        if rate:
            counters.seconds = counters.generated_tokens / rate
        return {key: Reply(request.longest) for key, request in missing.items()}


class Generation(Asker):
    """An engine at work for one stage; starts it with the first reply that is not cached.

    A request that fails in the engine is asked again once; then its reply has an `error`.

    Args:
        engine: writes the replies.
        cache: where they are kept.
        folder: work folder on this machine.
        stage: name for logs and for the preflight.
        have: the cluster's resources.
        block_rows: requests of one block; what a crash can cost is a few of these.
    """

    def __init__(
        self,
        engine: Engine,
        cache: ReplyCache,
        folder: Path,
        *,
        stage: str,
        have: Resources,
        block_rows: int,
    ) -> None:
        super().__init__(engine, cache)
        self._stage, self._have = stage, have
        self._feed, self._block_rows = folder / FEED, block_rows
        self._replies: Iterator[pa.Table] | None = None
        self._written = self._room = self._deaths = 0

    def __enter__(self) -> Self:
        preflight(self.engine.plan(self._stage, self._have), self._have)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def ask(self, requests: Sequence[Request], label: str = "") -> list[Reply]:
        """See `Asker.ask`; `label` is shown after the stage's name."""
        return super().ask(requests, f"{self._stage} {label}".strip())

    def _answers(self, missing: dict[str, Request], label: str) -> dict[str, Reply]:
        found: dict[str, Reply] = {}
        start = time.monotonic()
        with progress(label, len(missing)) as tracker:
            for attempt in range(ATTEMPTS):
                left = {
                    key: request
                    for key, request in missing.items()
                    if key not in found or found[key].error
                }
                if not left:
                    break
                for key, reply in self._round(left, alone=attempt > 0):
                    found[key] = reply
                    tracker.update(len(found))
        counters = self.counters
        counters.seconds += time.monotonic() - start
        counters.generated += len(found)
        counters.failed += sum(bool(reply.error) for reply in found.values())
        counters.prompt_tokens += sum(reply.prompt_tokens for reply in found.values())
        counters.generated_tokens += sum(reply.generated_tokens for reply in found.values())
        if counters.generated >= _ENOUGH_FOR_A_RATE:
            rate = counters.generated_tokens / max(counters.seconds, 1e-9)
            self._cache.keep_rate(fingerprint(self._identity), rate)
        return found

    def _round(self, requests: dict[str, Request], *, alone: bool) -> Iterator[tuple[str, Reply]]:
        """Ask once; what comes back is cached before it is yielded.

        Args:
            alone: one block after the other, so that a request which takes the engine down takes
                its own block down and no other.
        """
        blocks = _blocks(requests, self._block_rows)
        while blocks:
            if self._replies is None or self._written == self._room:
                self._start(len(blocks))
            size = 1 if alone else self._room - self._written
            part, blocks = blocks[:size], blocks[size:]
            open_keys = {key for block in part for key in block[KEY].to_pylist() if key}
            for block in part:
                write_table(self._feed / f"{self._written}.parquet", block)
                self._written += 1
            yield from self._collect(open_keys)

    def _collect(self, open_keys: set[str]) -> Iterator[tuple[str, Reply]]:
        from ray.exceptions import RayError

        while open_keys:
            assert self._replies is not None
            try:
                table = next(self._replies, None)
            except RayError as error:
                problem = str(error).strip().splitlines()[-1][:300]
                logger.warning("%s: the engine died: %s", self._stage, problem)
                self._stop()
                self._deaths += 1
                if self._deaths == _DEATHS:
                    raise RuntimeError(
                        f"{self._stage}: the engine died {_DEATHS} times without a reply between: "
                        f"{problem} Its own words are in the log of its process, worker-*.out "
                        "under /tmp/ray/session_latest/logs. What was answered is kept."
                    ) from error
                yield from ((key, Reply("", f"the engine died: {problem}")) for key in open_keys)
                return
            self._deaths = 0
            if table is None:
                raise RuntimeError(f"{self._stage}: the engine left {len(open_keys)} unanswered")
            rows = [
                (
                    row[KEY],
                    Reply(row[REPLY], row[ERROR], row[PROMPT_TOKENS], row[GENERATED_TOKENS]),
                )
                for row in table.select(REPLY_SCHEMA.names).cast(REPLY_SCHEMA).to_pylist()
                # A block that Ray ran twice comes twice: the first one counts.
                if row[KEY] in open_keys
            ]
            self._cache.put((key, reply) for key, reply in rows if not reply.error)
            open_keys -= {key for key, _ in rows}
            yield from rows

    def _start(self, blocks: int) -> None:
        """Start an execution with room for so many blocks, and for the rounds that may follow."""
        self._stop()
        self._feed.mkdir(parents=True)
        self._written = 0
        self._room = min(_MOST_BLOCKS, _LEAST_BLOCKS + 4 * blocks)
        replies = self.engine.replies(_feed(self._feed, self._room))
        self._replies = iter(
            replies.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0)
        )

    def _stop(self) -> None:
        """Ray Data ends an execution when nobody holds its iterator any more."""
        self._replies = None
        shutil.rmtree(self._feed, ignore_errors=True)


def _blocks(requests: dict[str, Request], rows: int) -> list[pa.Table]:
    """Blocks of exactly `rows` requests: Ray Data would wait for ever for the rest of a block.

    The last one is filled up with requests for a single token, whose key is empty.
    """
    columns = [
        {
            KEY: key,
            MESSAGES: json.dumps(request.messages),
            MAX_TOKENS: request.max_tokens,
            SCHEMA: request.schema,
        }
        for key, request in requests.items()
    ]
    filler = {**columns[-1], KEY: "", MESSAGES: json.dumps(_SHORTEST), MAX_TOKENS: 1}
    columns += [filler] * (-len(columns) % rows)
    table = pa.Table.from_pylist(columns, schema=REQUEST_SCHEMA)
    return [table.slice(start, rows) for start in range(0, table.num_rows, rows)]


def _feed(folder: Path, blocks: int) -> Dataset:
    """The requests of `folder` as they appear there, as a data set of `blocks` blocks."""
    import ray.data
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read(number: int) -> Iterator[pa.Table]:
        path = folder / f"{number}.parquet"
        while not path.exists():
            if not folder.exists():  # the stage is over; Ray Data leaves its tasks running
                return
            time.sleep(_LOOK_S)
        yield read_table(path)

    class Feed(Datasource):
        """One read task a file, in the order of their numbers."""

        @property
        def supports_distributed_reads(self) -> bool:
            """The files are on the driver's machine."""
            return False

        def estimate_inmemory_data_size(self) -> int | None:
            """Not known before they are written."""
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            """As many as there may be files."""
            unknown = BlockMetadata(None, None, None, None)
            return [ReadTask(partial(read, number), unknown) for number in range(blocks)]

    feed = Feed()  # type: ignore[no-untyped-call]
    dataset: Dataset = ray.data.read_datasource(
        feed, override_num_blocks=blocks, num_cpus=SMALL_CPUS, concurrency=1
    )
    return dataset
