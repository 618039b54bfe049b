"""The yes/no recommender's prompts as tokens: a prefix, and the candidates that share it.

LLM-TRSR §4.3, Figure 8: instruction, preference summary, recent items, candidate, answer. What is
too long is cut from the oldest recent item on, then from the end of the summary; the candidate and
the mark before the answer are never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysys.errors import UserError
from raysys.text.prompts import Prompts, clean

#: Stands in a section that is off or empty (LLM-TRSR's code).
NOTHING = "NULL"
#: Where the candidate goes, while a chat template is filled in; no text of ours can hold it.
_HERE = "\ue000"
#: Figure 8, for a model without a chat template.
_USER, _ASSISTANT = "### User:\n", "\n\n### Assistant:\n"


@dataclass(frozen=True)
class TokenPrompt:
    """The tokens of one user's question.

    Attributes:
        prefix: everything up to the candidate.
        candidates: each candidate up to where the answer stands.
        recent: recent items that are shown.
        cut: how much was left out to fit: items, plus one for a shortened summary.
    """

    prefix: list[int]
    candidates: list[list[int]]
    recent: int
    cut: int


class YesNoPrompts:
    """Writes questions in one model's chat format.

    Args:
        prompts: the texts, `load_prompts("yes_no", …)`.
        tokenizer: the model's.
        limit: tokens of prefix, candidate and answer together.
    """

    def __init__(self, prompts: Prompts, tokenizer: Any, limit: int) -> None:
        self._prompts, self._tokenizer, self._limit = prompts, tokenizer, limit
        self._before, self._after = self._frame()

    def _frame(self) -> tuple[str, str]:
        """What the chat format puts before the question, and between candidate and answer."""
        if getattr(self._tokenizer, "chat_template", None):
            text: str = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": _HERE}], tokenize=False, add_generation_prompt=True
            )
            before, _, after = text.partition(_HERE)
            return before, after
        return (self._tokenizer.bos_token or "") + _USER, _ASSISTANT

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return found

    def write(
        self, summary: str | None, recent: Sequence[str], candidates: Sequence[str]
    ) -> TokenPrompt:
        """The tokens of one question.

        Prefix and candidate are tokenised by themselves, so that the prompt of a candidate is the
        same tokens whether the prefix is shared or not.

        Args:
            summary: the preference summary; None or empty: none.
            recent: recent items as text, oldest first.
            candidates: the candidates as text.

        Raises:
            UserError: instruction and longest candidate alone are over the limit.
        """
        tails = self._tokens([f"{clean(text)}{self._after}" for text in candidates])
        room = self._limit - max(map(len, tails)) - 1
        # Two lines may be told from one by a token more or less, so the whole is counted anew.
        told, items, cut = clean(summary or ""), [clean(text) for text in recent], 0
        while True:
            prefix = self._tokens([self._prefix(told, items)])[0]
            over = len(prefix) - room
            if over <= 0:
                return TokenPrompt(prefix, tails, len(items), cut)
            if items:
                sizes = [len(ids) for ids in self._tokens(items)]
                gone = _leading(sizes, over)
                items, cut = items[gone:], cut + gone
            elif told:
                words = told.split(" ")
                kept = len(words) - max(1, -(-over * len(words) // len(prefix)))
                told, cut = " ".join(words[: max(0, kept)]), max(cut, len(recent) + 1)
            else:
                raise UserError(
                    f"the instruction and the longest candidate take {len(prefix)} and "
                    f"{self._limit - room} tokens, together more than yes_no.max_tokens "
                    f"= {self._limit}: raise it, or lower yes_no.item_characters."
                )

    def _prefix(self, summary: str, recent: Sequence[str]) -> str:
        lines = "\n".join(f"{place}. {text}" for place, text in enumerate(recent, start=1))
        prompt = self._prompts.prompt(
            "recommend", (), summary=summary or NOTHING, recent=lines or NOTHING
        )
        return f"{self._before}{prompt.instruction}\n\n{prompt.turns[-1].text()}"


def _leading(sizes: Sequence[int], over: int) -> int:
    """How many of the first items to leave out, at least one, to win `over` tokens."""
    won = 0
    for count, size in enumerate(sizes, start=1):
        won += size
        if won >= over:
            return count
    return len(sizes)
