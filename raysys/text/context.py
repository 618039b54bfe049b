"""What a language model is told of a user: the same lines for every question about this user.

The lines have keys (U1, L1, …) by which an explanation can say what it rests on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raysys.text.prompts import Shown, as_line, clean

#: Stands where a user has neither a profile nor a like.
NOTHING = "nothing is known yet"


@dataclass(frozen=True)
class Context:
    """Lines about a user, by key: U for the profile, L for what was liked, oldest first."""

    lines: Mapping[str, str]

    def text(self) -> str:
        """The lines as the prompt shows them."""
        return "\n".join(f"{key} {line}" for key, line in self.lines.items()) or NOTHING


def context_of(profile: str | None, liked: Sequence[Shown], characters: int) -> Context:
    """The context of a user.

    Args:
        profile: the profile's text; each line of it becomes a line of its own.
        liked: liked items, oldest first.
        characters: of the profile; the rest is cut.
    """
    parts = [clean(line.lstrip("-* ").replace("**", "")) for line in _lines(profile, characters)]
    told = {f"U{place}": part for place, part in enumerate(filter(None, parts), start=1)}
    told |= {f"L{place}": as_line(item) for place, item in enumerate(liked, start=1)}
    return Context(told)


def item_lines(item: Shown) -> dict[str, str]:
    """The lines of a recommended item, by key: one for each thing that is known of it."""
    fields = {"title": item} if isinstance(item, str) else item
    known = [as_line({name: value}) for name, value in fields.items() if value]
    return {f"C{place}": line for place, line in enumerate(known, start=1)}


def _lines(profile: str | None, characters: int) -> list[str]:
    return (profile or "")[:characters].splitlines()
