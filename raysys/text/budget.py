"""Tokens are counted before the call: what is too long is cut at the borders of items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raysys.text.prompts import Prompt, Shown, Turn

#: What a chat template adds to each message, and once to the chat: more than any we know.
MESSAGE_TOKENS, CHAT_TOKENS = 10, 16
#: A shortened text keeps at least so many characters.
_LEAST = 16
Count = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """A prompt that fits, what it takes, and how much was cut to make it fit."""

    prompt: Prompt
    tokens: int
    cut_items: int = 0
    shortened: bool = False

    @property
    def cut(self) -> int:
        """Items left out or shortened."""
        return self.cut_items + self.shortened


def fit(prompts: Sequence[Prompt], count: Count, limit: int) -> list[Fitted | None]:
    """Cut each prompt to at most `limit` tokens.

    First the oldest answered turns of a conversation go, then the oldest items of the open
    question, then the longest text of the item that is left is halved until all fits. Solved
    examples and instruction stay.

    Returns:
        One entry a prompt, in order; None where even the instruction is too long.
    """
    sizes = _sizes(prompts, count)
    return [_fit(prompt, sizes, count, limit) for prompt in prompts]


def _sizes(prompts: Sequence[Prompt], count: Count) -> dict[str, int]:
    """Tokens of every text that the prompts are made of, each counted once."""
    texts: dict[str, None] = {}
    for prompt in prompts:
        texts[prompt.instruction] = None
        for turn in prompt.turns:
            texts |= dict.fromkeys((turn.head, turn.tail, turn.reply or "", *_pieces(turn)))
    return dict(zip(texts, map(int, count(list(texts))), strict=True))


def _pieces(turn: Turn) -> list[str]:
    return [f"{text}{turn.separator}" for text in turn.written]


def _turn_tokens(turn: Turn, sizes: dict[str, int]) -> int:
    reply = 0 if turn.reply is None else sizes[turn.reply] + MESSAGE_TOKENS
    items = sum(sizes[piece] for piece in _pieces(turn))
    return sizes[turn.head] + items + sizes[turn.tail] + MESSAGE_TOKENS + reply


def _fit(prompt: Prompt, sizes: dict[str, int], count: Count, limit: int) -> Fitted | None:
    turns = list(prompt.turns)
    tokens = [_turn_tokens(turn, sizes) for turn in turns]
    total = sizes[prompt.instruction] + MESSAGE_TOKENS + CHAT_TOKENS + sum(tokens)
    cut = 0
    while total > limit:
        old = next((row for row, turn in enumerate(turns[:-1]) if not turn.example), None)
        if old is None:
            break
        total -= tokens.pop(old)
        cut += len(turns.pop(old).items)
    last = turns[-1]
    pieces = _pieces(last)
    dropped = 0
    while total > limit and len(pieces) - dropped > 1:
        total -= sizes[pieces[dropped]]
        dropped += 1
    last = replace(last, items=last.items[dropped:])
    shortened = False
    while total > limit and last.items:
        shorter = _halved(last.items[0])
        if shorter is None:
            return None
        before = int(count(_pieces(last)).sum())
        last = replace(last, items=(shorter,))
        total += int(count(_pieces(last)).sum()) - before
        shortened = True
    if total > limit:
        return None
    kept = replace(prompt, turns=(*turns[:-1], last))
    return Fitted(kept, total, cut + dropped, shortened)


def _halved(item: Shown) -> Shown | None:
    """The item with its longest text halved, or None where nothing is left to halve."""
    if isinstance(item, str):
        return item[: len(item) // 2] if len(item) > _LEAST else None
    texts: dict[str, Any] = {
        key: " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value or "")
        for key, value in item.items()
    }
    longest = max(texts, key=lambda key: len(texts[key]), default=None)
    if longest is None or len(texts[longest]) <= _LEAST:
        return None
    return {**item, longest: texts[longest][: len(texts[longest]) // 2]}
