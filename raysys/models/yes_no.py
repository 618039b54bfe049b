"""A causal language model that answers yes or no, and ranks candidates by it (LLM-TRSR §4.3).

L tokens of prompt, n candidates, d the model's width. A prompt is a *prefix* that all candidates of
a user share (instruction, summary, recent items) and the *candidate*: encoded once, the prefix
serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch

from raysys.errors import UserError

#: Tokens of candidates that stand beside each other in one row.
_ROW_TOKENS = 4096
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


@dataclass(frozen=True)
class Question:
    """Candidates of one user as tokens: a shared prefix, and the rest of each prompt.

    Attributes:
        prefix: (P,) tokens up to the candidate.
        candidates: the tokens from there to where the answer stands.
        target: place of the candidate whose answer is yes; −1: none is.
    """

    prefix: list[int]
    candidates: list[list[int]]
    target: int

    @property
    def length(self) -> int:
        """Tokens, the prefix counted once."""
        return len(self.prefix) + sum(map(len, self.candidates))

    def alone(self) -> list[Question]:
        """The same prompts as questions of one candidate each."""
        return [
            Question(self.prefix, [tokens], 0 if place == self.target else -1)
            for place, tokens in enumerate(self.candidates)
        ]


@dataclass(frozen=True)
class Packed:
    """Questions as rows: prefix, then every candidate, none of which sees another.

    Attributes:
        ids, positions, segments: (b, L) tokens; their places in their own prompt; 0 in a prefix,
            k in the k-th candidate, −1 where filled up.
        sources: (n,) places in the flattened (b · L) rows whose state predicts a label.
        labels: (n,) the tokens predicted there.
        weights: (n,) of how many prompts each label is part.
        is_answer: (n,) bool, labels that are answers.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    sources: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    is_answer: torch.Tensor

    def to(self, device: torch.device) -> Packed:
        """The same on `device`."""
        return Packed(**{one.name: getattr(self, one.name).to(device) for one in fields(self)})

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """(b, 1, L, L): 0 where a token sees another, the least number where it does not."""
        length = self.ids.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        mine = self.segments[:, :, None] == self.segments[:, None, :]
        seen = earlier & (mine | (self.segments == 0)[:, None, :])
        hidden = torch.zeros(seen.shape, dtype=dtype, device=self.ids.device)
        return hidden.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

    def states(self, body: Any, dtype: torch.dtype) -> torch.Tensor:
        """(n, d) what the model without its head says at `sources`."""
        hidden = body(
            input_ids=self.ids,
            attention_mask=self.mask(dtype),
            position_ids=self.positions,
            use_cache=False,
        ).last_hidden_state  # (b, L, d)
        found: torch.Tensor = hidden.flatten(0, 1)[self.sources]
        return found


def pack(questions: Sequence[Question], answers: AnswerTokens, pad_id: int, width: int) -> Packed:
    """Rows of `width` tokens that hold all prompts of each question, the prefix once.

    The losses of the labels, times their weights, sum up to those of the prompts one by one.
    """
    shape = (len(questions), width)
    ids, positions = np.full(shape, pad_id), np.zeros(shape, np.int64)
    segments = np.full(shape, -1)
    found: list[tuple[int, int, int, bool]] = []
    for row, question in enumerate(questions):
        size = len(question.prefix)
        ids[row, :size], positions[row, :size] = question.prefix, np.arange(size)
        segments[row, :size] = 0
        start = row * width
        prompts = len(question.candidates)
        found += [
            (start + place, token, prompts, False)
            for place, token in enumerate(question.prefix[1:])
        ]
        at = size
        for number, tokens in enumerate(question.candidates):
            end = at + len(tokens)
            ids[row, at:end], segments[row, at:end] = tokens, number + 1
            positions[row, at:end] = size + np.arange(len(tokens))
            # The end of the prefix predicts each candidate's first token.
            before = [start + size - 1, *range(start + at, start + end - 1)]
            found += [(place, token, 1, False) for place, token in zip(before, tokens, strict=True)]
            found.append((start + end - 1, answers.say(number == question.target), 1, True))
            at = end
    sources, labels, weights, is_answer = (torch.tensor(one) for one in zip(*found, strict=True))
    return Packed(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(segments),
        sources,
        labels,
        weights.float(),
        is_answer,
    )


def _rows(prefix: Sequence[int], candidates: Sequence[Sequence[int]]) -> list[Question]:
    """The candidates as few rows; attention takes the square of a row's length."""
    rows: list[list[list[int]]] = [[]]
    room = _ROW_TOKENS
    for tokens in candidates:
        if rows[-1] and len(tokens) > room:
            rows.append([])
            room = _ROW_TOKENS
        rows[-1].append(list(tokens))
        room -= len(tokens)
    return [Question(list(prefix), row, -1) for row in rows]


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
        self._model, self._answers, self._pad_id = model.eval(), answers, pad_id
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
        rows = _rows(prefix, candidates)
        width = max(row.length for row in rows)
        packed = pack(rows, self._answers, self._pad_id, width).to(self._yes.device)
        states = packed.states(self._body, self._head.weight.dtype)
        return self._difference(states[packed.is_answer])

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
        return self._difference(hidden[torch.arange(len(last), device=last.device), last])

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

    def _difference(self, last: torch.Tensor) -> torch.Tensor:
        """(n, d) states of the last tokens -> (n,) in float32; no other logit is computed."""
        states = last.float()
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
