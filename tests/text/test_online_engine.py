"""vLLM for callers who wait: the real engine with the real 135M model. Never skipped."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

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
from raysys.text.online import UnansweredError, online_model

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
