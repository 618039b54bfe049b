"""The real engines: the real 135M model on this machine's cores. Never skipped."""

from __future__ import annotations

import json

import pytest

from raysys.cluster import ClusterSettings
from raysys.text.cache import ReplyCache
from raysys.text.engine import EngineSettings, SamplingSettings
from raysys.text.engines import build_engine
from raysys.text.generation import Generation, Request
from raysys.text.prompts import load_prompts
from raysys.text.structured import CHARACTERS_PER_WORD

WORDS = 12
TITLES = ["Toy Story (1995)", "Alien (1979)", 'Say "Hi" \\ ünïcode', "Heat (1995)", "Ran (1985)"]
PROMPTS = load_prompts("rlmrec", "movies", WORDS)
FORM = PROMPTS.form


def request(title: str) -> Request:
    prompt = PROMPTS.prompt("item", [{"title": title, "description": "genres: Drama"}])
    return Request(prompt.messages(), FORM.max_tokens, FORM.schema())


def check(replies) -> None:
    for reply in replies:
        assert reply.error == ""
        fields = FORM.parse(reply.text)
        assert isinstance(fields, dict), reply
        assert 0 < len(fields["summarization"]) <= WORDS * CHARACTERS_PER_WORD
        assert reply.prompt_tokens > 50
        assert 0 < reply.generated_tokens <= FORM.max_tokens
    assert len({reply.text for reply in replies}) > 1, "the replies do not depend on the prompt"


@pytest.mark.ray
@pytest.mark.engine
@pytest.mark.timeout(400)
def test_vllm_answers_rounds_with_one_engine_and_failures_do_not_stop_it(tmp_path, local_ray):
    """The default plan runs on 2 CPUs; a prompt that is too long becomes an error row."""
    settings = EngineSettings(
        max_model_len=512, max_num_seqs=4, batch_size=3, kv_cache_gib=1, cpu_quantization="int8"
    )
    engine = build_engine(settings, ClusterSettings(), SamplingSettings())
    cache = ReplyCache(tmp_path / "replies.sqlite")
    with Generation(
        engine, cache, tmp_path / "work", stage="item_profiles", have=local_ray, block_rows=3
    ) as generation:
        *good, long = generation.ask([*map(request, TITLES), request("long " * 2000)])
        check(good)
        assert long.text == ""
        assert "maximum context length" in long.error
        assert generation.counters.failed == 1
        before = generation._replies
        again = generation.ask([request("Heat (1995)"), request("Brazil (1985)")])
        assert again[0] == good[3]
        assert generation._replies is before, "the engine was started again for the second round"
        assert (generation.counters.cached, generation.counters.generated) == (1, 7)
        check([*good, again[1]])
    schema = json.loads(FORM.schema())
    assert list(schema["properties"]) == ["summarization"]


@pytest.mark.ray
@pytest.mark.engine
@pytest.mark.timeout(300)
def test_transformers_answers_too(tmp_path, local_ray):
    settings = EngineSettings(kind="transformers", max_model_len=512, batch_size=4)
    engine = build_engine(settings, ClusterSettings(), SamplingSettings())
    cache = ReplyCache(tmp_path / "replies.sqlite")
    with Generation(
        engine, cache, tmp_path / "work", stage="item_profiles", have=local_ray, block_rows=4
    ) as generation:
        *good, long = generation.ask([*map(request, TITLES), request("long " * 2000)])
    check(good)
    assert "maximum context length" in long.error
