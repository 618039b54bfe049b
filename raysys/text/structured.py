"""From an engine's raw text to a checked profile, or to a reason why not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

#: Characters allowed for each word of a limit: English words with their space, and slack.
CHARACTERS_PER_WORD = 7


class Profile(BaseModel):
    """The JSON that RLMRec's prompts ask for."""

    model_config = ConfigDict(extra="ignore")

    summarization: str
    reasoning: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A reply that is no profile: a short reason to count by, and the detail."""

    reason: str
    detail: str


def profile_schema(words: int, reasoning_words: int) -> dict[str, Any]:
    """JSON schema for decoding.

    Strings are bounded in characters, so that a small model cannot ramble past
    its token limit and leave the JSON open.

    Args:
        words: bound of `summarization`.
        reasoning_words: bound of `reasoning`; 0 leaves the field out.
    """
    properties = {"summarization": _bounded(words)}
    if reasoning_words:
        properties["reasoning"] = _bounded(reasoning_words)
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _bounded(words: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": words * CHARACTERS_PER_WORD}


def parse_profile(text: str) -> Profile | Rejected:
    """Validate one reply; never raises, whatever the model wrote."""
    if not text.strip():
        return Rejected("empty_reply", "")
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return Rejected("invalid_json", text[:200])
    try:
        profile = Profile.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        return Rejected("wrong_fields", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    if not profile.summarization.strip():
        return Rejected("empty_reply", text[:200])
    return profile


def is_none(summary: str) -> bool:
    """Whether the model used the prompt's way of saying that it cannot summarise."""
    return summary.strip().strip(".\"'").lower() == "none"
