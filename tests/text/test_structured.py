from __future__ import annotations

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from raysys.text.structured import (
    CHARACTERS_PER_WORD,
    Profile,
    Rejected,
    is_none,
    parse_profile,
    profile_schema,
)


def test_a_good_reply():
    reply = '{"summarization": "Fans of space.", "reasoning": "It is in space."}'
    assert parse_profile(reply) == Profile(
        summarization="Fans of space.", reasoning="It is in space."
    )


def test_bad_replies_have_a_reason():
    cases = {
        "": "empty_reply",
        "   \n": "empty_reply",
        '{"summarization": "cut': "invalid_json",
        "Sure! Here it is": "invalid_json",
        '{"summary": "x"}': "wrong_fields",
        '["summarization"]': "wrong_fields",
        '{"summarization": 3}': "wrong_fields",
        '{"summarization": "  "}': "empty_reply",
        "[" * 100_000: "invalid_json",
    }
    for reply, reason in cases.items():
        parsed = parse_profile(reply)
        assert isinstance(parsed, Rejected), reply[:50]
        assert parsed.reason == reason


@given(st.text())
def test_any_text_is_parsed_or_rejected(reply):
    assert isinstance(parse_profile(reply), Profile | Rejected)


def test_5000_broken_replies_raise_nothing():
    draw = random.Random(7)
    good = json.dumps({"summarization": 'A "quoted" ünïcode \\ story', "reasoning": "because"})
    for _ in range(5000):
        text = list(good)
        for _ in range(draw.randint(1, 6)):
            place = draw.randrange(len(text))
            text[place] = draw.choice(["", '"', "{", "}", "\\", "\x00", "\ud800", ",", "1e999"])
        parsed = parse_profile("".join(text))
        assert isinstance(parsed, Profile | Rejected)


def test_the_schema_bounds_strings_and_leaves_reasoning_out():
    short = profile_schema(30, 0)
    assert list(short["properties"]) == ["summarization"]
    assert short["properties"]["summarization"]["maxLength"] == 30 * CHARACTERS_PER_WORD
    assert profile_schema(30, 10)["required"] == ["summarization", "reasoning"]


def test_none_is_recognised_as_the_prompt_says_it():
    assert all(is_none(text) for text in ("None", "none.", ' "None" '))
    assert not is_none("None of the users would enjoy this.")
