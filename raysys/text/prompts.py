"""The prompts, as data. Paper texts are kept; the noun for an item is a setting.

RLMRec's prompts are Figures 7 (item) and 8 (user) of its appendix A.2. Item
text comes from outside and is hostile: it only ever enters as a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

#: A chat message as every engine takes it.
Message = dict[str, str]
#: What is known of one item: `title`, `description` and, for a user's items, `review`.
Evidence = Mapping[str, str | None]
#: The reply to an example: `summarization` and, where it is asked for, `reasoning`.
Answer = Mapping[str, str]
EvidenceT = TypeVar("EvidenceT")

ITEM_INSTRUCTION = """\
You will serve as an assistant to help me summarize which types of users would enjoy a specific \
{noun}.
I will provide you with information in the form of a JSON string that describes the {noun}:
{{"title": "the title of the {noun}", "description": "a description of the {noun}"}} \
(a value that is not known is "None")
Requirements:
1. Please provide your answer in JSON format, following this structure:
{answer}
2. Please ensure that the "summarization" is no longer than {words} words.
3. Do not provide any other text outside the JSON string."""

ITEM_ANSWER = "A summarization of what types of users would enjoy this {noun}"

USER_INSTRUCTION = """\
You will serve as an assistant to help me determine which types of {noun}s a specific user is \
likely to enjoy.
I will provide you with information about {noun}s that the user has chosen, as a list of JSON \
strings called CHOSEN ITEMS:
{{"title": "the title of the {noun}", "description": "a description of what types of users will \
like this {noun}"{review}}} (a value that is not known is "None")
Requirements:
1. Please provide your decision in JSON format, following this structure:
{answer}
2. Please ensure that the "summarization" is no longer than {words} words.
3. Do not provide any other text outside the JSON string."""

USER_ANSWER = "A summarization of what types of {noun}s this user is likely to enjoy"


def _answer(text: str, noun: str, reasoning: bool) -> str:
    fields = f'"summarization": "{text.format(noun=noun)}" (if you cannot, set it to "None")'
    if reasoning:
        fields += ', "reasoning": "briefly explain your reasoning for the summarization"'
    return "{" + fields + "}"


def item_messages(
    noun: str,
    words: int,
    reasoning: bool,
    evidence: Evidence,
    examples: Sequence[tuple[Evidence, Answer]] = (),
) -> list[Message]:
    """RLMRec item prompt (Figure 7) for `{title, description}`.

    Args:
        examples: solved cases shown before the question; the paper has none, small
            models need them.
    """
    system = ITEM_INSTRUCTION.format(
        noun=noun, words=words, answer=_answer(ITEM_ANSWER, noun, reasoning)
    )
    return _chat(system, examples, _as_json, evidence)


def user_messages(
    noun: str,
    words: int,
    reasoning: bool,
    evidence: Sequence[Evidence],
    examples: Sequence[tuple[Sequence[Evidence], Answer]] = (),
) -> list[Message]:
    """RLMRec user prompt (Figure 8) for a list of `{title, description[, review]}`."""
    with_review = any("review" in row for row in evidence)
    review = ', "review": "the user\'s review"' if with_review else ""
    system = USER_INSTRUCTION.format(
        noun=noun, words=words, review=review, answer=_answer(USER_ANSWER, noun, reasoning)
    )
    return _chat(system, examples, _chosen, evidence)


def _chosen(evidence: Sequence[Evidence]) -> str:
    items = ",\n".join(_as_json(row) for row in evidence)
    return f"CHOSEN ITEMS: [\n{items}\n]"


def _chat(
    system: str,
    examples: Sequence[tuple[EvidenceT, Answer]],
    ask: Callable[[EvidenceT], str],
    evidence: EvidenceT,
) -> list[Message]:
    messages = [_message("system", system)]
    for shown, answer in examples:
        reply = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        messages += [_message("user", ask(shown)), _message("assistant", reply)]
    return [*messages, _message("user", ask(evidence))]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _as_json(row: Evidence) -> str:
    return json.dumps({key: value or "None" for key, value in row.items()}, ensure_ascii=False)
