"""Explanations that rest on what was given: claims, what they cite, and a checker.

Source: End-to-End Personalization §2.3 (explanations from the same context). The paper does not
check them; here a claim that cites nothing given, says nothing of what it cites, or carries a
link or markup, is dropped.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

#: Longest claim, in characters.
LONGEST_CLAIM = 300
#: Anything that could become a link, markup or code where it is shown.
_LINK = re.compile(
    r"://|\bwww\.|\bmailto:|\bjavascript:|\b[\w-]+\.(?:com|net|org|io|ru|cn|info|biz|xyz|shop|app)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"[<>`\\{}]|\]\(|\*\*|__|!\[|^#{1,6}\s|&#?\w+;")
_WORD = re.compile(r"\w{3,}")
#: Words that a claim may share with anything.
_COMMON = frozenset(
    [
        "the",
        "and",
        "for",
        "with",
        "that",
        "this",
        "you",
        "your",
        "user",
        "users",
        "like",
        "likes",
        "liked",
        "because",
        "has",
        "have",
        "are",
        "was",
        "its",
        "from",
        "they",
        "their",
        "also",
        "who",
        "into",
        "about",
    ]
)


@dataclass(frozen=True)
class Claim:
    """One reason, and the keys of the evidence that it rests on."""

    text: str
    because: tuple[str, ...]


def checked(
    claims: Sequence[Claim], evidence: Mapping[str, str]
) -> tuple[list[Claim], Counter[str]]:
    """The claims that may be shown, and why the others were dropped.

    Args:
        evidence: what was given, by key.

    Returns:
        Claims with what they cite and was given, each text once; counts by reason.
    """
    kept: dict[str, Claim] = {}
    dropped: Counter[str] = Counter()
    for claim in claims:
        text = " ".join(claim.text.split())
        cited = tuple(dict.fromkeys(key for key in claim.because if key in evidence))
        reason = _problem(text, [evidence[key] for key in cited])
        if reason is None and text.casefold() in kept:
            reason = "said_twice"
        if reason is None:
            kept[text.casefold()] = Claim(text, cited)
        else:
            dropped[reason] += 1
    return list(kept.values()), dropped


def _problem(text: str, cited: Sequence[str]) -> str | None:
    if not text or len(text) > LONGEST_CLAIM:
        return "too_long" if text else "empty"
    if any(not character.isprintable() for character in text):
        return "unprintable"
    if _LINK.search(text):
        return "link"
    if _MARKUP.search(text):
        return "markup"
    if not cited:
        return "cites_nothing_given"
    if not _words(text) & set().union(*map(_words, cited)):
        return "not_about_what_it_cites"
    return None


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold())) - _COMMON


def fallback(key: str | None, title: str) -> Claim:
    """What is said where no claim is left: true, and without the model.

    Args:
        key: of the latest like; None: nothing is known of the user.
        title: its title, which is named where it is harmless.
    """
    if key is None:
        return Claim("Recommended without knowing your taste yet.", ())
    named = Claim(f"Recommended from what you liked, such as {title}.", (key,))
    if checked([named], {key: title})[0]:
        return named
    return Claim("Recommended from what you liked.", (key,))


class ClaimStream:
    """Claims out of a JSON reply while it is being written.

    Feed it the text piece by piece: each claim is yielded once its object is closed.
    """

    def __init__(self) -> None:
        self._text, self._at = "", 0

    def feed(self, piece: str) -> Iterator[Claim]:
        """Further text; the claims that it completes."""
        self._text += piece
        while True:
            start = self._text.find('{"claim"', self._at)
            if start < 0:
                return
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, start)
            except json.JSONDecodeError:
                return
            self._at = end
            claim = claim_of(value)
            if claim is not None:
                yield claim


def claim_of(value: object) -> Claim | None:
    """A claim from JSON; None where it is none."""
    if not isinstance(value, dict) or not isinstance(value.get("claim"), str):
        return None
    because = value.get("because")
    keys = [key for key in because if isinstance(key, str)] if isinstance(because, list) else []
    return Claim(value["claim"], tuple(keys))
