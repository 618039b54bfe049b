"""From an engine's raw text to checked fields, or to a reason why not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from raysys.settings import Settings

#: Characters allowed for each word of a limit: English words with their space, and slack.
CHARACTERS_PER_WORD = 7
#: JSON punctuation, keys and tokens that break off badly: slack beside the words of a reply.
REPLY_SLACK_TOKENS = 32
#: Tokens that a word of English takes with the tokenisers of small models, rounded up.
TOKENS_PER_WORD = 2
#: Words of one entry of a list.
ENTRY_WORDS = 4

#: A reply: text, or a list of texts, by field.
Fields = dict[str, Any]


class FieldSpec(Settings):
    """One field of a reply, as a method's prompt file describes it."""

    kind: Literal["text", "list"]
    """A text, or a list of short texts."""
    words: Literal["profile", "reasoning"] = "profile"
    """Which of the two limits bounds it; a field for reasoning is left out where that is 0."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Its share of that limit."""


#: The reason of a row that the language model never answered.
ENGINE_ERROR = "engine_error"


@dataclass(frozen=True)
class Rejected:
    """A reply that cannot be used: a short reason to count by, and the detail."""

    reason: str
    detail: str


class Form(Protocol):
    """What every form of a reply can do."""

    max_tokens: int

    def schema(self) -> str:
        """JSON schema for decoding, as text."""
        ...

    def longest(self) -> str:
        """A reply as long as one may be."""
        ...

    def parse(self, text: str) -> Fields | Rejected:
        """Validate one reply; never raises, whatever the model wrote."""
        ...


class ReplyForm:
    """The form of a reply: a JSON schema for decoding, and a pydantic model for checking.

    Strings are bounded in characters, so that a small model cannot ramble past its token limit
    and leave the JSON open.
    """

    def __init__(self, fields: Mapping[str, FieldSpec], words: int, reasoning_words: int) -> None:
        limits = {"profile": words, "reasoning": reasoning_words}
        self._fields = dict(fields)
        self._words = {
            name: max(ENTRY_WORDS, round(limits[spec.words] * spec.share))
            for name, spec in fields.items()
        }
        self.max_tokens = TOKENS_PER_WORD * (words + reasoning_words) + REPLY_SLACK_TOKENS
        if len(fields) > 2:  # each further key costs its own name and punctuation
            self.max_tokens += 12 * (len(fields) - 2)
        kinds: dict[str, Any] = {
            name: (str if spec.kind == "text" else list[str], ...) for name, spec in fields.items()
        }
        self._model: type[BaseModel] = create_model(
            "Reply", __config__=ConfigDict(extra="ignore", strict=True), **kinds
        )

    @property
    def main(self) -> str:
        """The field that must not be empty."""
        return next(iter(self._fields))

    def schema(self) -> str:
        """JSON schema for decoding, as text."""
        properties = {name: self._property(name) for name in self._fields}
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return json.dumps(schema)

    def longest(self) -> str:
        """A reply as long as one may be."""
        return json.dumps(
            {
                name: "word " * self._words[name]
                if spec.kind == "text"
                else ["word"] * max(1, self._words[name] // 2)
                for name, spec in self._fields.items()
            }
        )

    def _property(self, name: str) -> dict[str, Any]:
        words = self._words[name]
        if self._fields[name].kind == "text":
            return {"type": "string", "minLength": 1, "maxLength": words * CHARACTERS_PER_WORD}
        entry = {"type": "string", "minLength": 1, "maxLength": ENTRY_WORDS * CHARACTERS_PER_WORD}
        return {"type": "array", "items": entry, "maxItems": max(1, words // 2)}

    def parse(self, text: str) -> Fields | Rejected:
        """Validate one reply; never raises, whatever the model wrote."""
        if not text.strip():
            return Rejected("empty_reply", "it was empty")
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            return Rejected("invalid_json", f"{error}: {text[:200]}")
        try:
            reply = self._model.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            return Rejected("wrong_fields", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        fields = {
            name: _sound(kept) if isinstance(kept, str) else _distinct(kept)
            for name, kept in reply.model_dump().items()
        }
        if not fields[self.main]:
            return Rejected("empty_reply", f"'{self.main}' was empty")
        return fields


def _sound(text: str) -> str:
    """Without halves of characters, which JSON can escape and no file can hold."""
    return text.encode("utf-8", "ignore").decode("utf-8").strip()


def _distinct(entries: list[str]) -> list[str]:
    """The entries that are not blank, each once, in their order."""
    seen: dict[str, str] = {}
    for entry in map(_sound, entries):
        if entry:
            seen.setdefault(entry.casefold(), entry)
    return list(seen.values())


def is_none(text: str) -> bool:
    """Whether the model used the prompt's way of saying that it cannot answer."""
    return text.strip().strip(".\"'").lower() == "none"
