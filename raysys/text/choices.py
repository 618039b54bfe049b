"""Replies that choose among what was shown: an order, the better of two, a score for each.

Candidates are shown as 1, 2, 3, … and answered by these numbers. Whatever the model wrote, what
comes out is a permutation, one of two, or a complete scoring, or a reason why not.
"""

from __future__ import annotations

import json
from typing import Any

from raysys.ranking.rerank import HIGHEST, LOWEST, Answer, Question
from raysys.text.structured import REPLY_SLACK_TOKENS, Fields, Rejected

#: Tokens that a number takes with its comma or its key.
_TOKENS_PER_NUMBER, _TOKENS_PER_SCORE = 4, 8
#: The one field of a parsed reply.
CHOICE = "choice"
_FIELDS = {"order": "order", "better": "better", "scores": "scores"}


class ChoiceForm:
    """The form of the answer to one question; `parse` gives `{CHOICE: Answer}`."""

    def __init__(self, question: Question) -> None:
        self._kind, self._count = question.kind, len(question.items)
        each = _TOKENS_PER_SCORE if self._kind == "scores" else _TOKENS_PER_NUMBER
        self.max_tokens = each * self._count + REPLY_SLACK_TOKENS

    def schema(self) -> str:
        """JSON schema for decoding, as text."""
        number = {"type": "integer", "minimum": 1, "maximum": self._count}
        value: dict[str, Any]
        if self._kind == "better":
            value = number
        elif self._kind == "order":
            size = {"minItems": self._count, "maxItems": self._count}
            value = {"type": "array", "items": number, **size}
        else:
            names = [str(place) for place in range(1, self._count + 1)]
            score = {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST}
            value = {
                "type": "object",
                "properties": dict.fromkeys(names, score),
                "required": names,
                "additionalProperties": False,
            }
        name = _FIELDS[self._kind]
        return json.dumps(
            {
                "type": "object",
                "properties": {name: value},
                "required": [name],
                "additionalProperties": False,
            }
        )

    def longest(self) -> str:
        """A reply as long as one may be."""
        numbers = list(range(1, self._count + 1))
        scores = {str(number): HIGHEST for number in numbers}
        values: dict[str, Any] = {"order": numbers, "better": 1, "scores": scores}
        return json.dumps({_FIELDS[self._kind]: values[self._kind]})

    def parse(self, text: str) -> Fields | Rejected:
        """Check one reply; never raises."""
        if not text.strip():
            return Rejected("empty_reply", "it was empty")
        try:
            reply = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            return Rejected("invalid_json", f"{error}: {text[:200]}")
        name = _FIELDS[self._kind]
        if not isinstance(reply, dict) or name not in reply:
            return Rejected("wrong_fields", f'"{name}" is missing')
        found = getattr(self, f"_{self._kind}")(reply[name])
        return found if isinstance(found, Rejected) else {CHOICE: found}

    def _order(self, value: Any) -> Answer | Rejected:
        wanted = list(range(1, self._count + 1))
        if not isinstance(value, list) or not all(_whole(number) for number in value):
            return Rejected("wrong_fields", '"order" must be a list of numbers')
        if sorted(value) != wanted:
            return Rejected(
                "no_permutation",
                f'"order" must name each of the numbers 1 to {self._count} exactly once',
            )
        return tuple(number - 1 for number in value)

    def _better(self, value: Any) -> Answer | Rejected:
        if not _whole(value) or not 1 <= value <= self._count:
            return Rejected("wrong_fields", f'"better" must be a number from 1 to {self._count}')
        return (value - 1,)

    def _scores(self, value: Any) -> Answer | Rejected:
        names = [str(place) for place in range(1, self._count + 1)]
        if not isinstance(value, dict) or set(value) != set(names):
            return Rejected(
                "incomplete_scores",
                f'"scores" must have a score for each of the numbers 1 to {self._count}',
            )
        scores = [value[name] for name in names]
        if not all(_whole(score) and LOWEST <= score <= HIGHEST for score in scores):
            return Rejected("wrong_fields", f"scores must be from {LOWEST} to {HIGHEST}")
        return tuple(scores)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
