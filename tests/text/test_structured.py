from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.text.prompts import load_prompts
from raysys.text.structured import CHARACTERS_PER_WORD, Rejected, ReplyForm, is_none


def form(method="rlmrec", words=30, reasoning=10) -> ReplyForm:
    return ReplyForm(load_prompts(method, "movies", words, reasoning).fields, words, reasoning)


FORM, UNIFIED = form(), form("unified", 60)


def test_a_good_reply():
    reply = '{"summarization": " Fans of space. ", "reasoning": "It is in space.", "more": 1}'
    assert FORM.parse(reply) == {
        "summarization": "Fans of space.",
        "reasoning": "It is in space.",
    }


def test_lists_keep_each_entry_once():
    reply = {"overview": "x", "attributes": ["Noir", " noir ", "", "heist"], "description": "y"}
    assert UNIFIED.parse(json.dumps(reply | {"dislikes": []}))["attributes"] == ["Noir", "heist"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty_reply"),
        ("   \n", "empty_reply"),
        ('{"summarization": "cut', "invalid_json"),
        ("Sure! Here it is", "invalid_json"),
        ('{"summary": "x", "reasoning": "y"}', "wrong_fields"),
        ('["summarization"]', "wrong_fields"),
        ('{"summarization": 3, "reasoning": "y"}', "wrong_fields"),
        ('{"summarization": "  ", "reasoning": "y"}', "empty_reply"),
        ('{"summarization": "\\ud800", "reasoning": "y"}', "empty_reply"),
        ("[" * 100_000, "invalid_json"),
    ],
)
def test_bad_replies_have_a_reason(reply, reason):
    parsed = FORM.parse(reply)
    assert isinstance(parsed, Rejected)
    assert parsed.reason == reason


@given(st.text())
def test_any_text_is_parsed_or_rejected(reply):
    assert isinstance(FORM.parse(reply), dict | Rejected)


def test_5000_broken_replies_raise_nothing():
    draw = random.Random(7)
    good = json.dumps({"summarization": 'A "quoted" ünïcode \\ story', "reasoning": "because"})
    for _ in range(5000):
        text = list(good)
        for _ in range(draw.randint(1, 6)):
            place = draw.randrange(len(text))
            text[place] = draw.choice(["", '"', "{", "}", "\\", "\x00", "\ud800", ",", "1e999"])
        assert isinstance(FORM.parse("".join(text)), dict | Rejected)


@pytest.mark.parametrize(
    "one", [FORM, UNIFIED, form(reasoning=0), form("trsr"), form("integrated")]
)
def test_the_schema_bounds_every_string_and_its_longest_reply_is_one(one):
    schema = json.loads(one.schema())
    assert schema["required"] == list(schema["properties"])
    for field in schema["properties"].values():
        bounded = field if field["type"] == "string" else field["items"]
        assert bounded["maxLength"] <= 30 * 2 * CHARACTERS_PER_WORD
    assert isinstance(one.parse(one.longest()), dict)


def test_the_schema_leaves_reasoning_out():
    assert list(json.loads(form(reasoning=0).schema())["properties"]) == ["summarization"]
    bound = json.loads(FORM.schema())["properties"]["summarization"]["maxLength"]
    assert bound == 30 * CHARACTERS_PER_WORD


def test_none_is_recognised_as_the_prompt_says_it():
    assert all(is_none(text) for text in ("None", "none.", ' "None" '))
    assert not is_none("None of the users would enjoy this.")
