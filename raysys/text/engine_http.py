"""Any OpenAI-compatible endpoint, at a rate it allows, with retries."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raysys.cluster import SMALL_CPUS, ClusterSettings, Pool, Resources, StagePlan
from raysys.errors import UserError
from raysys.schema import GENERATED_TOKENS, PROMPT_TOKENS
from raysys.text.engine import (
    ERROR,
    KEY,
    MAX_TOKENS,
    MESSAGES,
    REPLY,
    REPLY_SCHEMA,
    SCHEMA,
    EngineSettings,
    SamplingSettings,
    Tokens,
    UnansweredError,
    estimated_tokens,
)

if TYPE_CHECKING:
    import aiohttp
    from ray.data import Dataset

#: Bytes of an answer that are read at most.
_LARGEST_ANSWER = 4 << 20
#: Pauses between tries: the first, and the longest; an endpoint's Retry-After counts up to that.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0


class HttpEngine:
    """An endpoint that somebody else runs; no GPU or model is needed here."""

    def __init__(
        self, settings: EngineSettings, cluster: ClusterSettings, sampling: SamplingSettings
    ) -> None:
        self._settings, self._sampling = settings, sampling
        self._callers = cluster.engine_replicas
        self._tokens = Tokens(settings.tokenizer) if settings.tokenizer else None

    def identity(self) -> dict[str, Any]:
        """See `Engine.identity`."""
        http = self._settings.http
        return {
            "base_url": http.base_url,
            "model": self._settings.model,
            "json_mode": http.json_mode,
            **self._sampling.model_dump(),
        }

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """See `Engine.count`; estimated without a tokeniser."""
        return self._tokens(texts) if self._tokens else estimated_tokens(texts)

    def plan(self, stage: str, have: Resources) -> StagePlan:
        """Callers wait for most of their time: a small share of a CPU each."""
        return StagePlan(stage, (Pool("caller", self._callers, SMALL_CPUS),))

    def replies(self, requests: Dataset) -> Dataset:
        """See `Engine.replies`."""
        import ray.data

        settings = self._settings
        key = os.environ.get(settings.http.api_key_env, "")
        if "\n" in key or "\r" in key:
            raise UserError(f"the key in {settings.http.api_key_env} has a line break in it.")
        blocks = max(2, 2 * settings.max_num_seqs // settings.batch_size)
        return requests.map_batches(
            Caller,
            fn_constructor_args=(settings, self._sampling, self._callers, key),
            batch_format="pyarrow",
            batch_size=settings.batch_size,
            compute=ray.data.ActorPoolStrategy(
                size=self._callers, max_concurrent_calls_per_actor=blocks
            ),
            num_cpus=SMALL_CPUS,
        )


class _Failed(Exception):
    """A try that failed; whether another one may help, and how long the endpoint asks to wait."""

    def __init__(self, problem: str, *, again: bool, pause_s: float = 0.0) -> None:
        super().__init__(problem)
        self.again, self.pause_s = again, pause_s


class Caller:
    """A Ray Data actor that asks the endpoint; rows of all its blocks share rate and places."""

    def __init__(
        self, settings: EngineSettings, sampling: SamplingSettings, callers: int, key: str
    ) -> None:
        # Now, because an import while others wait for their turn would let them go all at once.
        import aiohttp  # noqa: F401

        self._settings, self._sampling, self._key = settings, sampling, key
        self._spacing = callers / settings.http.requests_per_second
        self._places = asyncio.Semaphore(max(1, settings.max_num_seqs // callers))
        self._next = 0.0
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Answer a block of requests."""
        rows = await asyncio.gather(*(self.answer(row) for row in batch.to_pylist()))
        yield pa.Table.from_pylist(list(rows), schema=REPLY_SCHEMA)

    async def answer(self, row: dict[str, Any]) -> dict[str, Any]:
        """One request as a reply; what went wrong is in its error. Cancelled, it hangs up."""
        answer = {KEY: row[KEY], REPLY: "", ERROR: "", PROMPT_TOKENS: 0, GENERATED_TOKENS: 0}
        if not row[KEY]:  # fills a block up; see `raysys.text.generation`
            return answer
        async with self._places:
            try:
                return answer | await self._ask(row)
            except _Failed as problem:
                return answer | {ERROR: str(problem)}

    async def pieces(self, row: dict[str, Any]) -> AsyncGenerator[str]:
        """The text of one reply as the endpoint writes it; one try. Closed early, it hangs up.

        Raises:
            UnansweredError: no answer, or one of another form.
        """
        import aiohttp

        async with self._places:
            await self._turn()
            try:
                async with self._post(self._body(row) | {"stream": True}) as answer:
                    if answer.status != 200:
                        raise UnansweredError(f"status {answer.status}")
                    size = 0
                    async for line in answer.content:
                        size += len(line)
                        if size > _LARGEST_ANSWER:
                            raise UnansweredError("a reply without end")
                        data = line.decode("utf-8", "replace").strip().removeprefix("data:").strip()
                        if data == "[DONE]":
                            return
                        if data.startswith("{"):
                            yield _piece(data)
                    raise UnansweredError("the stream broke off")
            except (TimeoutError, aiohttp.ClientError, ValueError) as error:
                raise UnansweredError(f"{type(error).__name__}: {error}"[:300]) from None

    async def _ask(self, row: dict[str, Any]) -> dict[str, Any]:
        attempts = self._settings.http.attempts
        for attempt in range(attempts):
            await self._turn()
            try:
                return await self._try(row)
            except _Failed as problem:
                if not problem.again or attempt == attempts - 1:
                    raise
                pause = _FIRST_PAUSE_S * 2**attempt * (1 + random.random())
                await asyncio.sleep(min(_LONGEST_PAUSE_S, max(pause, problem.pause_s)))
        raise AssertionError("not reached")

    async def _turn(self) -> None:
        """Wait until the next request may start."""
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._spacing
        await asyncio.sleep(start - now)

    async def _try(self, row: dict[str, Any]) -> dict[str, Any]:
        import aiohttp

        try:
            async with self._post(self._body(row)) as answer:
                content = await answer.content.read(_LARGEST_ANSWER)
                status, wait = answer.status, answer.headers.get("Retry-After", "")
        except (TimeoutError, aiohttp.ClientError) as error:
            raise _Failed(f"{type(error).__name__}: {error}"[:300], again=True) from None
        if status != 200:
            pause = float(wait) if wait.isdecimal() else 0.0
            again = status in (408, 409, 425, 429) or status >= 500
            text = content[:200].decode("utf-8", "replace")
            raise _Failed(f"status {status}: {text}", again=again, pause_s=pause)
        return _reply(content)

    def _post(self, body: dict[str, Any]) -> Any:
        import aiohttp

        http = self._settings.http
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=http.timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        url = f"{http.base_url.rstrip('/')}/chat/completions"
        return self._session.post(url, json=body, headers=headers, allow_redirects=False)

    def _body(self, row: dict[str, Any]) -> dict[str, Any]:
        sampling = self._sampling
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": json.loads(row[MESSAGES]),
            "max_tokens": row[MAX_TOKENS],
            "temperature": sampling.temperature,
            "seed": sampling.seed,
        }
        if sampling.repetition_penalty != 1:  # not every endpoint knows it
            body["repetition_penalty"] = sampling.repetition_penalty
        mode = self._settings.http.json_mode
        if mode == "json_schema":
            schema = {"name": "reply", "strict": True, "schema": json.loads(row[SCHEMA])}
            body["response_format"] = {"type": mode, "json_schema": schema}
        elif mode == "json_object":
            body["response_format"] = {"type": mode}
        return body


def _piece(data: str) -> str:
    """The text of one event of a stream; "" where it has none."""
    try:
        choices = json.loads(data)["choices"]
        text = choices[0]["delta"].get("content") if choices else ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UnansweredError(
            f"not the stream of a chat endpoint ({type(error).__name__})"
        ) from None
    return text if isinstance(text, str) else ""


def _reply(content: bytes) -> dict[str, Any]:
    """The reply and its token counts; an answer of another form may be better the next time."""
    try:
        value = json.loads(content)
        text = value["choices"][0]["message"]["content"]
        usage = value.get("usage") or {}
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        shown = content[:200].decode("utf-8", "replace")
        problem = f"not the answer of a chat endpoint ({type(error).__name__}): {shown}"
        raise _Failed(problem, again=True) from None
    if not isinstance(text, str):
        raise _Failed("an answer without text", again=True)
    return {
        REPLY: text.encode("utf-8", "ignore").decode("utf-8"),
        PROMPT_TOKENS: counts[0],
        GENERATED_TOKENS: counts[1],
    }
