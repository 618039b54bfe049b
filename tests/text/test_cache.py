from __future__ import annotations

import pytest

from raysys.errors import UserError
from raysys.store import fingerprint
from raysys.text.cache import Reply, ReplyCache
from raysys.text.generation import DryRun, Request, request_key

CHAT = Request([{"role": "user", "content": "a"}], 9, '{"type": "object"}')


def test_a_reply_is_found_again_and_never_replaced(tmp_path):
    cache = ReplyCache(tmp_path / "deep" / "replies.sqlite")
    cache.put([("a", Reply("text ü", "", 3, 2)), ("b", Reply("", "", 1, 0))])
    cache.put([("a", Reply("other", "", 0, 0))])
    again = ReplyCache(tmp_path / "deep" / "replies.sqlite")
    assert again.get(["a", "b", "c"]) == {"a": Reply("text ü", "", 3, 2), "b": Reply("", "", 1, 0)}


def test_many_keys_at_once(tmp_path):
    cache = ReplyCache(tmp_path / "c")
    cache.put((str(row), Reply(str(row))) for row in range(25_000))
    assert len(cache.get([str(row) for row in range(40_000)])) == 25_000


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "c").write_text("hello " * 1000)
    with pytest.raises(UserError, match="cannot be used"):
        ReplyCache(tmp_path / "c")


def test_rates_are_remembered(tmp_path):
    cache = ReplyCache(tmp_path / "c")
    assert cache.rate("x") is None
    cache.keep_rate("x", 5.0)
    cache.keep_rate("x", 6.0)
    assert cache.rate("x") == 6.0


@pytest.mark.parametrize(
    "other",
    [
        Request([{"role": "user", "content": "b"}], 9, CHAT.schema),
        Request(CHAT.messages, 8, CHAT.schema),
        Request(CHAT.messages, 9, '{"type": "array"}'),
    ],
)
def test_the_key_is_all_that_decides_a_reply(other):
    same = Request([dict(CHAT.messages[0])], 9, '{"type":   "object"}')
    assert request_key({"m": 1}, CHAT) == request_key({"m": 1}, same)
    assert request_key({"m": 1}, CHAT) != request_key({"m": 1}, other)
    assert request_key({"m": 1}, CHAT) != request_key({"m": 2}, CHAT)


LONGEST = "three words long"


def test_a_dry_run_counts_what_would_be_asked(tmp_path):
    from toy_llm import Words

    class Engine(Words):
        def identity(self):
            return {"m": 1}

    cache = ReplyCache(tmp_path / "c")
    cache.put([(request_key({"m": 1}, CHAT), Reply("paid", "", 7, 2))])
    dry = DryRun(Engine(), cache)
    new = Request([{"role": "user", "content": "five words are in here"}], 9, CHAT.schema, LONGEST)
    replies = dry.ask([CHAT, new, new])
    assert [reply.text for reply in replies] == ["paid", LONGEST, LONGEST]
    counters = dry.counters
    assert (counters.asked, counters.cached, counters.generated) == (3, 1, 1)
    assert (counters.prompt_tokens, counters.generated_tokens, counters.seconds) == (5, 3, 0)
    assert (counters.cached_prompt_tokens, counters.cached_generated_tokens) == (7, 2)
    cache.keep_rate(fingerprint({"m": 1}), 2.0)
    dry.ask([Request([{"role": "user", "content": "z"}], 9, CHAT.schema, LONGEST)])
    assert counters.seconds == counters.generated_tokens / 2
