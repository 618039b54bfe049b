from __future__ import annotations

import pytest
from toy_llm import Words

from raysys.text.budget import CHAT_TOKENS, MESSAGE_TOKENS, fit
from raysys.text.prompts import Prompt, Turn

OVERHEAD = CHAT_TOKENS + 2 * MESSAGE_TOKENS


def question(*items, head="", reply=None, example=False) -> Turn:
    return Turn(head, items, "\n", "", "line", reply, example)


def one(prompt: Prompt, limit: int):
    return fit([prompt], Words().count, limit)[0]


def test_what_fits_is_left_alone():
    prompt = Prompt("two words", (question("a b", "c d"),))
    found = one(prompt, 100)
    assert found.prompt == prompt
    assert (found.tokens, found.cut) == (2 + 2 * 3 + OVERHEAD, 0)  # "1. a b" has three words


def test_the_oldest_items_go_first_and_are_counted():
    prompt = Prompt("x", (question(*[f"item {row}" for row in range(10)]),))
    found = one(prompt, 1 + OVERHEAD + 3 * 3)
    assert found.prompt.turns[-1].items == ("item 7", "item 8", "item 9")
    assert found.cut_items == 7
    assert found.tokens <= 1 + OVERHEAD + 9


def test_old_turns_go_before_items_and_examples_stay():
    turns = (
        question("example", reply="ok", example=True),
        question("old", reply="first profile"),
        question("older than now", reply="second profile"),
        question("new one", "new two"),
    )
    found = one(Prompt("x", turns), 110)
    assert [turn.reply for turn in found.prompt.turns] == ["ok", "second profile", None]
    assert found.prompt.turns[-1].items == ("new one", "new two")
    assert found.cut_items == 1


def test_the_last_item_is_halved_until_it_fits():
    long = {"title": "t", "description": "word " * 20_000}
    turn = Turn("", (long,), ",", "", "json")
    found = one(Prompt("x", (turn,)), 200)
    assert found.shortened
    assert found.tokens <= 200
    kept = found.prompt.turns[-1].items[0]
    assert kept["title"] == "t"
    assert 50 < len(kept["description"].split()) < 200


def test_an_instruction_over_the_limit_is_refused():
    assert one(Prompt("word " * 500, (question("a"),)), 100) is None


@pytest.mark.parametrize("limit", [60, 80, 120, 400])
def test_nothing_is_ever_over_the_limit(limit):
    prompts = [
        Prompt("x", (question("seen " * 9, reply="yes " * 9), question(*["item text"] * size)))
        for size in range(1, 40)
    ]
    for found in fit(prompts, Words().count, limit):
        assert found is not None
        assert found.tokens <= limit
