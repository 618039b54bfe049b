"""A user's profile refined turn by turn, as batches over all users (End-to-End Pers. §2.1.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from raysys.text.prompts import Prompt, Prompts, Shown
from raysys.text.structured import Fields, Rejected
from raysys.text.writing import Writer, Written

#: Fields of a unified profile whose entries must be in the items that the user was shown.
VOCABULARY = "attributes"


@dataclass(frozen=True)
class Evidence:
    """What is shown of one user, in turns of a few items each, oldest first."""

    liked: list[list[Shown]]
    disliked: list[list[Shown]]


def converse(
    writer: Writer, prompts: Prompts, evidence: Mapping[str, Evidence]
) -> dict[str, list[Written] | Rejected]:
    """Ask for each user's profile, then for its refinement with each further turn of items.

    All users' first turns are one batch, then all second turns, and so on. An attribute that no
    item shown to the user has is taken out of the profile.

    Returns:
        What was written for each user, turn by turn; why not, where one turn failed.
    """
    waiting = {name: _turns(mine) for name, mine in evidence.items()}
    rounds: dict[str, list[Written] | Rejected] = {name: [] for name in evidence}
    open_chats: dict[str, Prompt] = {}
    words = {name: _vocabulary(mine) for name, mine in evidence.items()}
    number = 0
    while waiting:
        number += 1
        for name, turns in waiting.items():
            kind, items = turns.pop(0)
            if name in open_chats:
                turn = prompts.turn(kind, items)
                open_chats[name] = open_chats[name].then(turn)
            else:
                chat = prompts.prompt("user", items)
                if kind != "user":  # nothing was liked
                    chat = replace(chat, turns=(*chat.turns[:-1], prompts.turn(kind, items)))
                open_chats[name] = chat
        for name, result in writer.write(open_chats, f"turn {number}").items():
            done = rounds[name]
            if isinstance(result, Rejected):
                rounds[name] = Rejected(result.reason, f"turn {number}: {result.detail}")
                del open_chats[name], waiting[name]
                continue
            assert isinstance(done, list)
            done.append(replace(result, fields=within(result.fields, words[name])))
            open_chats[name] = result.prompt.answered(result.text)
            if not waiting[name]:
                del open_chats[name], waiting[name]
    return rounds


def _turns(evidence: Evidence) -> list[tuple[str, list[Shown]]]:
    return [("user", items) for items in evidence.liked] + [
        ("user_disliked", items) for items in evidence.disliked
    ]


def _vocabulary(evidence: Evidence) -> set[str]:
    """The attributes of all items shown, folded; empty where items have none."""
    found: set[str] = set()
    for items in (*evidence.liked, *evidence.disliked):
        for item in items:
            if not isinstance(item, str):
                found |= {str(entry).casefold() for entry in item.get(VOCABULARY) or ()}
    return found


def within(fields: Fields, words: set[str]) -> Fields:
    """The fields without attributes and dislikes that are not among `words`."""
    if VOCABULARY not in fields:
        return fields
    return {
        name: [entry for entry in value if entry.casefold() in words]
        if isinstance(value, list)
        else value
        for name, value in fields.items()
    }


def markdown(fields: Fields) -> str:
    """A unified profile as the Markdown of the paper (§2.1.3); empty parts are left out."""
    parts = []
    for name, value in fields.items():
        text = ", ".join(value) if isinstance(value, list) else value
        if text:
            parts.append(f"- **{name.capitalize()}:** {text}")
    return "\n".join(parts)
