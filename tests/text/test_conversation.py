from __future__ import annotations

import json

from toy_llm import Script, as_json, last, writer

from raysys.text.conversation import Evidence, converse, markdown, within
from raysys.text.prompts import load_prompts
from raysys.text.structured import Rejected

PROMPTS = load_prompts("unified", "movies", 60)


def item(title: str, *attributes: str) -> dict:
    return {"title": title, "attributes": list(attributes)}


def profile(attributes=(), dislikes=(), overview="taste") -> str:
    return as_json(
        overview=overview,
        attributes=list(attributes),
        description="more",
        dislikes=list(dislikes),
    )


def test_turns_are_batches_over_all_users_and_refine_the_reply_before():
    seen = []

    def answer(chat):
        seen.append([message["role"] for message in chat])
        return profile(["crime"], overview=f"after {len(chat) // 2}")

    script = Script(answer)
    evidence = {
        "u": Evidence([[item("A", "crime")], [item("B")]], [[item("C", "war")]]),
        "v": Evidence([[item("D", "crime")]], []),
    }
    rounds = converse(writer(script, PROMPTS), PROMPTS, evidence)
    assert [len(requests) for requests in script.rounds] == [2, 1, 1]
    assert [one.fields["overview"] for one in rounds["u"]] == ["after 1", "after 2", "after 3"]
    assert len(rounds["v"]) == 1
    third = script.rounds[2][0].messages
    assert [message["role"] for message in third] == [
        *("system", "user", "assistant", "user", "assistant", "user")
    ]
    assert json.loads(third[2]["content"])["overview"] == "after 1"
    assert last(third).startswith("DISLIKED: [")
    assert '"A"' in third[1]["content"]
    assert all('"D"' not in message["content"] for message in third)


def test_a_user_who_only_disliked_is_told_so():
    script = Script(lambda chat: profile(dislikes=["war"]))
    rounds = converse(writer(script, PROMPTS), PROMPTS, {"u": Evidence([], [[item("C", "War")]])})
    assert last(script.rounds[0][0].messages).startswith("DISLIKED: [")
    assert rounds["u"][0].fields["dislikes"] == ["war"]


def test_a_users_words_are_those_of_the_items():
    script = Script(lambda chat: profile(["Crime", "spaceships"], ["romance"]))
    rounds = converse(writer(script, PROMPTS), PROMPTS, {"u": Evidence([[item("A", "crime")]], [])})
    assert rounds["u"][0].fields["attributes"] == ["Crime"]
    assert rounds["u"][0].fields["dislikes"] == []
    assert within({"profile": "free text"}, set()) == {"profile": "free text"}


def test_a_failed_turn_stops_that_user_alone():
    def answer(chat):
        return "broken" if "B" in last(chat) or "could not be used" in last(chat) else profile()

    evidence = {
        "u": Evidence([[item("A")], [item("B")], [item("C")]], []),
        "v": Evidence([[item("D")], [item("E")]], []),
    }
    rounds = converse(writer(Script(answer), PROMPTS), PROMPTS, evidence)
    assert isinstance(rounds["u"], Rejected)
    assert rounds["u"].detail.startswith("turn 2: ")
    assert len(rounds["v"]) == 2


def test_the_profile_is_markdown_without_empty_parts():
    fields = {"overview": "O", "attributes": ["a", "b"], "description": "D", "dislikes": []}
    assert markdown(fields) == "- **Overview:** O\n- **Attributes:** a, b\n- **Description:** D"
