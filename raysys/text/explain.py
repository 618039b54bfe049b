"""Let an engine explain recommendations, and keep only claims that rest on what was given."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raysys.ranking.explain import LONGEST_CLAIM, Claim, checked, claim_of, fallback
from raysys.schema import TITLE
from raysys.text.context import Context, item_lines
from raysys.text.prompts import Prompt, Prompts, Shown
from raysys.text.structured import Fields, Rejected
from raysys.text.writing import Writer

CLAIMS = "claims"
#: Lines that one claim may cite; characters of a token, about, for the longest reply.
_MOST_CITED, _CHARACTERS_PER_TOKEN = 4, 3
#: What keys, braces and citations take beside a claim.
_SLACK_TOKENS = 40


@dataclass(frozen=True)
class Explained:
    """Why an item was recommended.

    Attributes:
        claims: what may be shown; never empty.
        evidence: the lines that were given, by key.
        source: `llm`, or `template` where no claim was left.
        dropped: claims that were not kept, by reason.
        calls, prompt_tokens, generated_tokens: what it took.
    """

    claims: list[Claim]
    evidence: Mapping[str, str]
    source: str
    dropped: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


class ClaimsForm:
    """The form of an explanation; what claims may cite is part of the schema."""

    def __init__(self, evidence: Mapping[str, str], claims: int, characters: int) -> None:
        self._keys, self._count = list(evidence), claims
        self._characters = min(characters, LONGEST_CLAIM)
        each = self._characters // _CHARACTERS_PER_TOKEN + _SLACK_TOKENS
        self.max_tokens = claims * each + _SLACK_TOKENS

    def schema(self) -> str:
        """JSON schema for decoding, as text."""
        claim = {"type": "string", "minLength": 1, "maxLength": self._characters}
        keys = {"type": "string", "enum": self._keys}
        cited = {"type": "array", "items": keys, "minItems": 1, "maxItems": _MOST_CITED}
        entry = {
            "type": "object",
            "properties": {"claim": claim, "because": cited},
            "required": ["claim", "because"],
            "additionalProperties": False,
        }
        many = {"type": "array", "items": entry, "minItems": 1, "maxItems": self._count}
        return json.dumps(
            {
                "type": "object",
                "properties": {CLAIMS: many},
                "required": [CLAIMS],
                "additionalProperties": False,
            }
        )

    def longest(self) -> str:
        """A reply as long as one may be."""
        claim = {"claim": "w" * self._characters, "because": self._keys[:_MOST_CITED]}
        return json.dumps({CLAIMS: [claim] * self._count})

    def parse(self, text: str) -> Fields | Rejected:
        """The claims of one reply; never raises."""
        try:
            reply: Any = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            return Rejected("invalid_json", f"{error}: {text[:200]}")
        claims = reply.get(CLAIMS) if isinstance(reply, dict) else None
        if not isinstance(claims, list):
            return Rejected("wrong_fields", f'"{CLAIMS}" must be a list')
        found = [claim for claim in map(claim_of, claims) if claim]
        if not found:
            return Rejected("wrong_fields", 'no entry has a "claim"')
        return {CLAIMS: found[: self._count]}


def explain_prompt(prompts: Prompts, context: Context, item: Shown, claims: int) -> Prompt:
    """The chat that asks for one explanation."""
    lines = [f"{key} {line}" for key, line in item_lines(item).items()]
    return prompts.prompt("explain", lines, context=context.text(), count=str(claims))


def explain(
    writer: Writer,
    prompts: Prompts,
    asked: Mapping[str, tuple[Context, Shown]],
    *,
    claims: int,
    characters: int,
) -> dict[str, Explained]:
    """Explain each (user's context, item); an explanation without a claim left is a template.

    Args:
        claims: at most, for each.
        characters: of a claim, at most.
    """
    evidence = {
        name: {**context.lines, **item_lines(item)} for name, (context, item) in asked.items()
    }
    written = writer.write(
        {
            name: explain_prompt(prompts, context, item, claims)
            for name, (context, item) in asked.items()
        },
        "explanations",
        {name: ClaimsForm(evidence[name], claims, characters) for name in asked},
        whole=True,
    )
    found = {}
    for name, (context, _) in asked.items():
        reply = written[name]
        kept: list[Claim] = []
        cost = (0, 0, 0)
        if isinstance(reply, Rejected):
            dropped = Counter({reply.reason: 1})
        else:
            kept, dropped = checked(reply.fields[CLAIMS], evidence[name])
            cost = (reply.calls, reply.prompt_tokens, reply.generated_tokens)
        source = "llm" if kept else "template"
        shown = kept or [template_of(context)]
        found[name] = Explained(shown, evidence[name], source, dropped, *cost)
    return found


def template_of(context: Context) -> Claim:
    """What is true without the model: it comes from the likes, the latest of them named."""
    liked = [key for key in context.lines if key[0] == "L"]
    if not liked:
        return fallback(None, "")
    title = context.lines[liked[-1]].removeprefix(f"{TITLE}: ").split("; ")[0]
    return fallback(liked[-1], title)
