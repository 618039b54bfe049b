"""A causal language model that answers yes or no, and ranks candidates by it (LLM-TRSR §4.3).

L tokens of prompt, n candidates, d the model's width. A prompt is a *prefix* that all candidates of
a user share (instruction, summary, recent items) and the *candidate*: encoded once, the prefix
serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from raysys.errors import UserError

YES, NO = ("Yes", "yes", "YES"), ("No", "no", "NO")


@dataclass(frozen=True)
class AnswerTokens:
    """The token ids that say yes and no, in every casing and with or without a space before."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> AnswerTokens:
        """Look the forms up that are a single token.

        Raises:
            UserError: the tokeniser has no single token for one of the two answers.
        """
        found = {}
        for name, words in (("yes", YES), ("no", NO)):
            forms = [form for word in words for form in (word, f" {word}")]
            ids = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
            single = dict.fromkeys(form[0] for form in ids if len(form) == 1)
            if not single:
                raise UserError(
                    f"this model's tokeniser has no single token for '{name}' (tried "
                    f"{', '.join(map(repr, forms))}): choose another base model."
                )
            found[name] = tuple(single)
        return cls(**found)

    def say(self, answer: bool) -> int:
        """The token that an answer is trained as: the form that Figure 8 shows, if there is one."""
        return (self.yes if answer else self.no)[0]


class YesNoScorer:
    """Scores candidates with fp32 logit(yes) − logit(no) at the last real token.

    The forms of an answer count together: the logit of an answer is the log-sum-exp over its
    forms. Any constant over candidates cancels in a ranking; unlike the paper's Eq. 3, a softmax
    over two probabilities, the difference does not saturate.

    Args:
        model: a causal model of transformers, with or without peft adapters.
        answers: the answer tokens.
        pad_id: fills up shorter rows; it is never attended to.
    """

    def __init__(self, model: Any, answers: AnswerTokens, pad_id: int) -> None:
        self._model, self._pad_id = model.eval(), pad_id
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._body, self._head = causal.base_model, causal.get_output_embeddings()
        device = self._head.weight.device
        self._yes = torch.tensor(answers.yes, device=device)
        self._no = torch.tensor(answers.no, device=device)

    @torch.inference_mode()
    def shared(self, prefix: Sequence[int], candidates: Sequence[Sequence[int]]) -> torch.Tensor:
        """Scores of all candidates of one user, the prefix encoded once.

        Args:
            prefix: (P,) token ids, at least one.
            candidates: n sequences of token ids, each at least one.

        Returns:
            (n,) float32.
        """
        device, length = self._yes.device, len(prefix)
        first = self._body(input_ids=torch.tensor([list(prefix)], device=device), use_cache=True)
        cache = first.past_key_values
        cache.batch_repeat_interleave(len(candidates))
        ids, mask, last = self._padded(candidates, "right")
        seen = torch.ones(len(candidates), length, dtype=mask.dtype, device=device)
        hidden = self._body(
            input_ids=ids,
            attention_mask=torch.cat([seen, mask], dim=1),
            position_ids=length + torch.arange(ids.shape[1], device=device).expand_as(ids),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # (n, m, d)
        return self._difference(hidden, last)

    @torch.inference_mode()
    def plain(
        self, prompts: Sequence[Sequence[int]], padding: Literal["left", "right"] = "right"
    ) -> torch.Tensor:
        """Scores of whole prompts, each encoded by itself; the reference for `shared`.

        Returns:
            (n,) float32.
        """
        ids, mask, last = self._padded(prompts, padding)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        hidden = self._body(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state  # (n, L, d)
        return self._difference(hidden, last)

    def _padded(
        self, rows: Sequence[Sequence[int]], padding: Literal["left", "right"]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(n, m) ids, (n, m) mask of real tokens, (n,) place of the last real token."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            place = (
                slice(0, len(tokens)) if padding == "right" else slice(width - len(tokens), width)
            )
            ids[row, place] = torch.tensor(list(tokens))
            mask[row, place] = 1
        if padding == "right":
            last = torch.tensor([len(tokens) - 1 for tokens in rows])
        else:
            last = torch.full((len(rows),), width - 1)
        device = self._yes.device
        return ids.to(device), mask.to(device), last.to(device)

    def _difference(self, hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Logits at the last position alone, of the answers' tokens alone; in float32."""
        rows = torch.arange(len(last), device=last.device)
        states = hidden[rows, last].float()  # (n, d)
        weight, bias = self._head.weight, getattr(self._head, "bias", None)

        def logit(tokens: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = states @ weight[tokens].float().T  # (n, forms)
            if bias is not None:
                found = found + bias[tokens].float()
            return found.logsumexp(dim=1)

        return logit(self._yes) - logit(self._no)


def paper_eq3(yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    """LLM-TRSR Eq. 3: the softmax over two *probabilities*, (n,); lies within .27 and .73."""
    return torch.sigmoid(yes - no)
