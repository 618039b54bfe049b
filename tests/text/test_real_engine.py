"""The real engine: vLLM with the real 135M model on this machine's cores. Never skipped."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from raysys.cluster import ClusterSettings
from raysys.schema import ENTITY_ID, GENERATED_TOKENS, PROMPT_TOKENS
from raysys.text.engine import ERROR, MESSAGES, REPLY, EngineSettings, SamplingSettings, VllmEngine
from raysys.text.generation import generate
from raysys.text.prompts import item_messages
from raysys.text.structured import CHARACTERS_PER_WORD, Profile, parse_profile, profile_schema

WORDS = 12
TITLES = ["Toy Story (1995)", "Alien (1979)", 'Say "Hi" \\ ünïcode', "Heat (1995)", "Ran (1985)"]


@pytest.mark.ray
@pytest.mark.engine
@pytest.mark.timeout(400)
def test_vllm_writes_valid_profiles_on_two_cores_and_failures_do_not_stop_it(tmp_path, local_ray):
    """The default plan runs on 2 CPUs; a prompt that is too long becomes an error row."""
    chats = [
        item_messages("movie", WORDS, False, {"title": title, "description": "genres: Drama"})
        for title in TITLES
    ]
    chats.append(item_messages("movie", WORDS, False, {"title": "long " * 2000}))
    requests = pa.table(
        {
            ENTITY_ID: [str(row) for row in range(len(chats))],
            MESSAGES: [json.dumps(chat) for chat in chats],
        }
    )
    engine = VllmEngine(
        EngineSettings(
            max_model_len=512, max_num_seqs=4, batch_size=3, kv_cache_gib=1, cpu_quantization="int8"
        ),
        ClusterSettings(),
        SamplingSettings(),
        schema=profile_schema(WORDS, 0),
        max_tokens=64,
    )
    replies = generate(
        requests, engine, tmp_path, stage="item_profiles", have=local_ray, block_rows=3
    ).to_pylist()
    assert [row[ENTITY_ID] for row in replies] == requests[ENTITY_ID].to_pylist()
    *good, long = replies
    for row in good:
        profile = parse_profile(row[REPLY])
        assert isinstance(profile, Profile), row
        assert 0 < len(profile.summarization) <= WORDS * CHARACTERS_PER_WORD
        assert row[ERROR] == ""
        assert row[PROMPT_TOKENS] > 50
        assert 0 < row[GENERATED_TOKENS] <= 64
    assert len({row[REPLY] for row in good}) > 1, "the replies do not depend on the prompt"
    assert long[REPLY] == ""
    assert "maximum context length" in long[ERROR]
