"""Reranking while a caller waits: late, broken or hostile, there is always a list."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from toy_run import KEY

from raysys.errors import UserError
from raysys.schema import RECOMMENDATION_SCHEMA
from raysys.serving.doors import Allowances, Gate, digest_of
from raysys.serving.holder import Holder
from raysys.serving.messages import Answer
from raysys.serving.settings import ServeSettings
from raysys.serving.web import web_app
from raysys.settings import parse_settings
from raysys.store import write_json, write_table
from raysys.text.online import Online, UnansweredError

RERANK = {
    "engine": {"kind": "http", "http": {"base_url": "http://127.0.0.1:1"}},
    "method": {"name": "prompt"},
    "domain": "movies",
    "pool": 4,
    "k": 4,
    "weight": 1.0,
    "max_rank_shift": None,
}
Reply = Callable[[dict[str, Any], str], str]
ClientOf = Callable[..., TestClient]


class Asked:
    """A language model by a function that answers; it writes three characters at a time."""

    def __init__(self, answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        self.answer = answer

    async def pieces(self, row: dict[str, Any]) -> AsyncGenerator[str]:
        reply = await self.answer(row)
        if reply["error"]:
            raise UnansweredError(reply["error"])
        for start in range(0, len(reply["reply"]), 3):
            yield reply["reply"][start : start + 3]


def asker(reply: Reply, error: str = "") -> Asked:
    """A language model that answers by a function of the schema and the question."""

    async def ask(row: dict[str, Any]) -> dict[str, Any]:
        question = json.loads(row["messages"])[-1]["content"]
        text = reply(json.loads(row["schema"]), question)
        return {"reply": text, "error": error, "prompt_tokens": 1, "generated_tokens": 1}

    return Asked(ask)


def last_first(schema: dict[str, Any], _: str) -> str:
    """An order from the last to the first, or scores that say the same."""
    ((name, value),) = schema["properties"].items()
    if name == "order":
        return json.dumps({name: list(range(value["minItems"], 0, -1))})
    if name == "better":
        return json.dumps({name: 2})
    return json.dumps({name: {key: 10 * int(key) for key in value["properties"]}})


@pytest.fixture
def client_with(run: Path) -> Iterator[ClientOf]:
    opened = []

    def make(model: Online, rerank: dict[str, Any] | None = None, **further: Any) -> TestClient:
        values = {"run": run, "rerank": RERANK | (rerank or {})} | further
        settings = parse_settings(ServeSettings, values, source="test")
        shared = Allowances(1e6, 1_000_000)

        async def lease(name: str, wanted: int) -> int:
            return shared.lease(name, wanted)

        keys = {digest_of("secret"): "test"}
        web = web_app(settings, keys, Gate(lease, 1e6, 1_000_000), Holder(settings, model))
        client = TestClient(web)
        client.headers.update(KEY)
        opened.append(client)
        return client.__enter__()

    yield make
    for client in opened:
        client.__exit__(None, None, None)


def answer_of(client: TestClient, **asked: Any) -> Answer:
    answer = client.post("/v1/recommend", json={"user_id": "u2"} | asked)
    assert answer.status_code == 200
    return Answer.model_validate(answer.json())


def ids(answer: Answer) -> list[str]:
    return [item.item_id for item in answer.items]


@pytest.mark.parametrize("method", ["auto", "prompt", "batches", "relevancy", "pairwise"])
def test_the_model_turns_the_list_round(client_with: ClientOf, method: str) -> None:
    client = client_with(asker(last_first), {"method": {"name": "prompt", "batch_items": 3}})
    answer = answer_of(client, rerank=method)
    assert (answer.reranked, answer.degraded, answer.reason) == (True, False, None)
    if method == "relevancy":  # shows shuffled batches: a score by place says nothing
        assert sorted(ids(answer)) == ["b", "c", "d"]
    else:
        assert ids(answer) == ["d", "c", "b"]
        assert [item.graph_rank for item in answer.items] == [3, 2, 1]
    assert ids(answer_of(client, rerank="off")) == ["b", "c", "d"]
    assert not answer_of(client, rerank="off").reranked


def test_nobody_moves_farther_than_allowed(client_with: ClientOf) -> None:
    client = client_with(asker(last_first), {"max_rank_shift": 1})
    assert ids(answer_of(client)) == ["c", "b", "d"]


def test_filters_hold_in_a_reranked_list(client_with: ClientOf) -> None:
    client = client_with(asker(last_first))
    assert ids(answer_of(client, filters={"exclude": ["c"]})) == ["d", "b"]
    assert ids(answer_of(client, k=1)) == ["d"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "{",
        "[]",
        '{"order": [1, 1, 2]}',
        '{"order": [1, 2]}',
        '{"order": [1, 2, 9]}',
        '{"order": ["a"]}',
        '{"order": {"a": ' + "[" * 500,
        "\ud800" + "x" * 100_000,
    ],
)
def test_what_cannot_be_used_leaves_the_order(client_with: ClientOf, text: str) -> None:
    answer = answer_of(client_with(asker(lambda *_: text)))
    assert ids(answer) == ["b", "c", "d"]
    assert (answer.reranked, answer.degraded) == (False, True)
    assert answer.reason == "the language model's reply could not be used"


def test_one_bad_reply_is_mended(client_with: ClientOf) -> None:
    asked: list[str] = []

    def second_time(schema: dict[str, Any], question: str) -> str:
        asked.append(question)
        return "nonsense" if len(asked) == 1 else last_first(schema, question)

    answer = answer_of(client_with(asker(second_time)))
    assert answer.reranked
    assert len(asked) == 2


def test_an_endpoint_that_fails_leaves_the_order(client_with: ClientOf) -> None:
    answer = answer_of(client_with(asker(lambda *_: "", error="status 500")))
    assert answer.degraded

    async def broken(_: dict[str, Any]) -> dict[str, Any]:
        raise ConnectionError("gone")

    answer = answer_of(client_with(Asked(broken)))
    assert (ids(answer), answer.degraded) == (["b", "c", "d"], True)
    assert "gone" not in (answer.reason or "")


def test_a_late_model_is_not_waited_for_and_hangs_up(client_with: ClientOf) -> None:
    hung_up = []

    async def slow(_: dict[str, Any]) -> dict[str, Any]:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            hung_up.append(True)
            raise
        raise AssertionError("not reached")

    client = client_with(Asked(slow))
    start = time.monotonic()
    answer = answer_of(client, deadline_ms=200)
    assert time.monotonic() - start < 2
    assert (answer.degraded, answer.reason) == (True, "the language model took too long")
    assert ids(answer) == ["b", "c", "d"]
    assert hung_up


def test_degraded_lists_are_not_kept(client_with: ClientOf) -> None:
    replies = iter(["nonsense", "nonsense"])

    def soon_well(schema: dict[str, Any], question: str) -> str:
        return next(replies, None) or last_first(schema, question)

    client = client_with(asker(soon_well))
    assert answer_of(client).degraded
    assert answer_of(client).reranked
    text = client.get("/metrics").text
    assert 'raysys_orders_total{order="degraded"} 1.0' in text
    assert 'raysys_orders_total{order="reranked"} 1.0' in text


def test_lists_of_the_run_do_not_stand_in_for_reranked_ones(
    client_with: ClientOf, run: Path
) -> None:
    rows = [
        {"user_id": "u2", "rank": rank, "item_id": "d", "score": 0.5, "title": None}
        for rank in range(1, 11)
    ]
    path = run / "recommend" / "recommendations.parquet"
    write_table(path, pa.Table.from_pylist(rows, RECOMMENDATION_SCHEMA))
    client = client_with(asker(last_first))
    assert ids(answer_of(client, rerank="off")) == ["d"] * 10
    assert ids(answer_of(client)) == ["d", "c", "b"]
    assert answer_of(client).reranked


def test_what_validation_chose_decides(client_with: ClientOf, run: Path) -> None:
    (run / "rerank").mkdir()
    write_json(run / "rerank" / "choice.json", {"weight": 1.0, "below": 2, "tried": []})
    client = client_with(asker(last_first))
    # u1 has two likes in train, u2 one.
    assert answer_of(client, user_id="u2").reranked
    assert not answer_of(client, user_id="u1").reranked
    assert answer_of(client, user_id="u1", rerank="prompt").reranked
    write_json(run / "rerank" / "choice.json", {"weight": 0.0, "below": None, "tried": []})
    assert not answer_of(client_with(asker(last_first))).reranked


def test_without_a_language_model_a_method_is_degraded(
    client_of: Callable[..., TestClient],
) -> None:
    client = client_of()
    answer = answer_of(client, rerank="prompt")
    assert (answer.degraded, answer.reason) == (True, "no language model is configured")
    assert not answer_of(client).degraded
    assert answer_of(client, rerank="prompt").degraded  # the list that is kept is not this one
    assert answer_of(client, explain=True).reason == "no language model is configured"
    explained = client.post("/v1/explain", json={"user_id": "u2", "item_ids": ["b"]})
    assert explained.status_code == 501


def test_an_engine_for_batches_is_refused(run: Path) -> None:
    values = {"run": run, "rerank": {"engine": {"kind": "transformers"}}}
    with pytest.raises(UserError, match=r"set engine\.kind = vllm, or http"):
        parse_settings(ServeSettings, values, source="test")


def events_of(client: TestClient, **asked: Any) -> list[tuple[str, dict[str, Any]]]:
    body = {"user_id": "u2", "item_ids": ["d", "b"]} | asked
    with client.stream("POST", "/v1/explain", json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = answer.read().decode().strip().split("\n\n")
    parts = [block.split("\n", 1) for block in blocks]
    return [(name[7:], json.loads(data.removeprefix("data: "))) for name, data in parts]


def claims(text: str, because: str = "L1") -> Reply:
    return lambda *_: json.dumps({"claims": [{"claim": text, "because": [because]}]})


def test_reasons_cite_what_was_given(client_with: ClientOf) -> None:
    # u2 likes A.
    events = events_of(client_with(asker(claims("A comedy, as you like them."))))
    told = {"text": "A comedy, as you like them.", "because": ["title: A; genres: Comedy|Drama"]}
    for item_id in ("d", "b"):
        # First as it is written, then all that are kept of the item.
        assert [(name, value) for name, value in events if value.get("item_id") == item_id] == [
            ("claim", {"item_id": item_id, **told}),
            ("claims", {"item_id": item_id, "source": "llm", "reasons": [told]}),
        ]
    assert events[-1] == ("done", {})


def test_a_list_carries_reasons_where_they_are_asked_for(client_with: ClientOf) -> None:
    def both(schema: dict[str, Any], question: str) -> str:
        if "claims" in schema["properties"]:
            return claims("A comedy, as you like them.")(schema, question)
        return last_first(schema, question)

    client = client_with(asker(both), {"explain_items": 2})
    answer = answer_of(client, explain=True)
    assert (ids(answer), answer.reranked) == (["d", "c", "b"], True)
    told = [item.reasons and [reason.text for reason in item.reasons] for item in answer.items]
    assert told[0] == ["A comedy, as you like them."]
    assert told[1] is not None
    assert told[2] is None
    assert answer.items[0].reasons is not None
    assert answer.items[0].reasons[0].because == ["title: A; genres: Comedy|Drama"]
    assert answer_of(client).items[0].reasons is None  # not the list that was kept with reasons
    assert answer_of(client, explain=True) == answer
    plain = answer_of(client, explain=True, rerank="off")
    assert (plain.reranked, ids(plain)) == (False, ["b", "c", "d"])
    assert plain.items[0].reasons is not None


def test_reasons_that_came_too_late_are_not_kept(client_with: ClientOf) -> None:
    waits = iter([30.0, 0.0, 0.0])

    async def slow_once(row: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(next(waits))
        return await asker(claims("A comedy, as you like them.")).answer(row)

    client = client_with(Asked(slow_once), {"explain_items": 1})
    asked = {"rerank": "off", "explain": True, "deadline_ms": 200}
    texts = []
    for _ in range(3):
        (reason,) = answer_of(client, **asked).items[0].reasons or []
        texts.append(reason.text)
    assert texts[0].startswith("Recommended from what you liked")
    assert texts[1:] == ["A comedy, as you like them."] * 2
    assert next(waits) == 0.0, "the list with whole reasons was not kept"


def test_a_reason_is_told_before_the_next_is_written(client_with: ClientOf) -> None:
    class Slow(Asked):
        async def pieces(self, row: dict[str, Any]) -> AsyncGenerator[str]:
            yield '{"claims": [{"claim": "A comedy, as you like them.", "because": ["L1"]}, '
            await asyncio.sleep(30)
            raise AssertionError("not reached")

    client = client_with(Slow(asker(last_first).answer))
    events = events_of(client, item_ids=["b"], deadline_ms=300)
    # The deadline comes before the reply's end: what was told stands.
    assert [name for name, _ in events] == ["claim", "claims", "done"]
    assert events[1][1]["source"] == "llm"
    assert events[1][1]["reasons"] == [
        {key: value for key, value in events[0][1].items() if key != "item_id"}
    ]


def test_a_caller_who_leaves_stops_the_work(client_with: ClientOf, run: Path) -> None:
    closed = []

    class Endless(Asked):
        async def pieces(self, row: dict[str, Any]) -> AsyncGenerator[str]:
            try:
                while True:
                    yield " "
                    await asyncio.sleep(0.01)
            finally:
                closed.append(row["key"])

    values = {"run": run, "rerank": RERANK}
    settings = parse_settings(ServeSettings, values, source="test")
    reranker = Holder(settings, Endless(asker(last_first).answer)).served.reranker
    assert reranker is not None

    async def leave() -> None:
        found = reranker.explain("u2", [], [1, 3], 30.0)
        waiting = asyncio.ensure_future(anext(found))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0.1)

    asyncio.run(leave())
    assert len(closed) == 2


@pytest.mark.parametrize(
    "reply",
    [
        claims("Buy A at https://example.org"),
        claims("Because of <b>A</b>"),
        claims("It is like A", because="X9"),
        lambda *_: "no json",
        lambda *_: '{"claims": [{"claim": "open',
    ],
)
def test_what_rests_on_nothing_is_replaced(client_with: ClientOf, reply: Reply) -> None:
    events = events_of(client_with(asker(reply)))
    assert [(name, value.get("source")) for name, value in events] == [
        ("claims", "template"),
        ("claims", "template"),
        ("done", None),
    ]
    assert "https" not in json.dumps(events)
    assert "<b>" not in json.dumps(events)


def test_reasons_are_not_waited_for_beyond_the_deadline(client_with: ClientOf) -> None:
    async def slow(_: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(30)
        raise AssertionError("not reached")

    start = time.monotonic()
    events = events_of(client_with(Asked(slow)), deadline_ms=200)
    assert time.monotonic() - start < 3
    assert [value.get("source") for _, value in events] == ["template", "template", None]


def test_reasons_for_something_unknown(client_with: ClientOf) -> None:
    client = client_with(asker(last_first))
    answer = client.post("/v1/explain", json={"user_id": "u2", "item_ids": ["b", "zz"]})
    assert (answer.status_code, answer.json()["detail"]) == (404, "no item 'zz'")
    assert client.post("/v1/explain", json={"user_id": "u2", "item_ids": []}).status_code == 422


def test_a_busy_model_is_not_asked(client_with: ClientOf) -> None:
    async def slow(row: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.3)
        return await asker(last_first).answer(row)

    client = client_with(Asked(slow), rerank_at_once=1, cache_lists=0)
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: answer_of(client), range(3)))
    assert sorted(answer.reranked for answer in answers) == [False, False, True]
    assert {answer.reason for answer in answers} == {None, "the language model is busy"}
    assert "raysys_rerank_limit 1.0" in client.get("/metrics").text
