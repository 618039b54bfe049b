"""Language models for callers who wait: the real vLLM (never skipped), and an endpoint's stream."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from raysys.text.engine import (
    ERROR,
    KEY,
    MAX_TOKENS,
    MESSAGES,
    REPLY,
    SCHEMA,
    EngineSettings,
    SamplingSettings,
)
from raysys.text.online import Online, UnansweredError, online_model

ANSWER = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 60}},
    "required": ["text"],
    "additionalProperties": False,
}


def request(text: str, schema: dict[str, Any] = ANSWER, tokens: int = 40) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {
        KEY: text[:20],
        MESSAGES: json.dumps(messages),
        MAX_TOKENS: tokens,
        SCHEMA: json.dumps(schema),
    }


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_it_answers_streams_and_stops() -> None:
    settings = EngineSettings(max_model_len=512, max_num_seqs=8, kv_cache_gib=1)
    model = online_model(settings, SamplingSettings())

    async def ask() -> None:
        questions = [request(f"Say something about {name}.") for name in ("cats", "dogs")]
        whole = await asyncio.gather(*map(model.answer, questions))
        for question, reply in zip(questions, whole, strict=True):
            assert reply[ERROR] == ""
            assert set(json.loads(reply[REPLY])) == {"text"}
            pieces = [piece async for piece in model.pieces(question)]
            assert len(pieces) > 3
            assert "".join(pieces) == reply[REPLY]
        assert whole[0][REPLY] != whole[1][REPLY]
        long = request("word " * 2000)
        assert "maximum context length" in (await model.answer(long))[ERROR]
        with pytest.raises(UnansweredError, match="maximum context length"):
            await anext(model.pieces(long))
        # A story of 400 tokens, of which the callers hear three pieces.
        endless = {**ANSWER, "properties": {"text": {"type": "string", "minLength": 3000}}}
        story = request("Tell a long story.", endless, tokens=400)

        async def listen() -> None:
            async with aclosing(model.pieces(story)) as pieces:
                for _ in range(3):
                    await anext(pieces)
                assert model.working() >= 1

        await asyncio.gather(*(listen() for _ in range(4)))
        asking = asyncio.create_task(model.answer(story))
        await asyncio.sleep(0.5)
        assert model.working() == 1
        asking.cancel()
        await asyncio.sleep(1)
        assert model.working() == 0

    try:
        asyncio.run(ask())
    finally:
        model.close()


class Streaming(BaseHTTPRequestHandler):
    """Streams what the last word of the question says."""

    left: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["stream"] is True
        word = body["messages"][-1]["content"].split()[-1]
        self.send_response(503 if word == "away" else 307 if word == "elsewhere" else 200)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        try:
            if word == "garbage":
                self._line('data: {"choice": []}')
            for piece in ('{"a": ', "", '"b', "ü", '"}'):
                self._line("data: " + json.dumps({"choices": [{"delta": {"content": piece}}]}))
                if word == "closed":
                    self.connection.close()
                    return
            while word == "endless":
                self._line("data: " + json.dumps({"choices": [{"delta": {"content": "."}}]}))
                time.sleep(0.01)
            self._line('data: {"choices": []}')
            self._line(": a comment")
            self._line("data: [DONE]")
        except OSError:
            self.left.append(word)

    def _line(self, text: str) -> None:
        self.wfile.write(f"{text}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[Online]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Streaming)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    http = {"base_url": f"http://127.0.0.1:{server.server_port}/v1", "timeout_s": 5}
    yield online_model(EngineSettings(kind="http", http=http), SamplingSettings())
    server.shutdown()


def test_an_endpoint_s_reply_comes_piece_by_piece(endpoint: Online) -> None:
    async def ask() -> list[str]:
        return [piece async for piece in endpoint.pieces(request("say good"))]

    assert asyncio.run(ask()) == ['{"a": ', "", '"b', "ü", '"}', ""]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("away", "status 503"),
        ("elsewhere", "status 307"),
        ("garbage", "not the stream of a chat endpoint"),
        ("closed", "broke off|ClientPayloadError|Disconnected"),
    ],
)
def test_a_stream_that_is_none_is_told(endpoint: Online, word: str, told: str) -> None:
    async def ask() -> None:
        async for _ in endpoint.pieces(request(f"say {word}")):
            pass

    with pytest.raises(UnansweredError, match=told):
        asyncio.run(ask())


def test_who_leaves_hangs_up(endpoint: Online) -> None:
    async def ask() -> None:
        async with aclosing(endpoint.pieces(request("say endless"))) as pieces:
            for _ in range(8):
                await anext(pieces)
        for _ in range(100):
            if "endless" in Streaming.left:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the endpoint goes on writing")

    asyncio.run(ask())
