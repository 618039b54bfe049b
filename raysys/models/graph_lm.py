"""A causal language model whose attention knows the graph, and whose words are users and items too.

Source: "LLM-Enhanced User-Item Interactions", sections 3.2 to 3.5. Any causal model of transformers
takes R as an additive attention mask, softmax(Q Kᵀ / √d + R) V (Eq. 1), the same in all heads and
layers: no model file is forked. B prompts of T tokens, at most K distinct users and items in each,
V words, U users, I items, d the width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from raysys.graph.relations import NO_NODE
from raysys.models.lora import body_and_head, token_losses
from raysys.settings import Settings

#: Spread of the tables at the start, as GPT-2 starts its own.
_SPREAD = 0.02


class ItemSoftmaxSettings(Settings):
    """The softmax over items."""

    sampled_above: int = Field(default=100_000, ge=1)
    """Catalogues with more items are sampled in training."""
    samples: int = Field(default=8192, ge=1)
    """Items drawn for each step, uniform, beside those that the step's rows want."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as tensors, the real tokens first in each row.

    Attributes:
        tokens: (B, T) int64; below V a word, V + n node n.
        lengths: (B,) int64 real tokens.
        slots: (B, T) int64: which of the row's nodes a token is; K: none.
        relations: (B, K + 1, K + 1) R between the row's nodes; the last row and column are 0.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    slots: torch.Tensor
    relations: torch.Tensor

    def to(self, device: torch.device) -> PromptBatch:
        """The same on `device`."""
        return PromptBatch(**{one.name: getattr(self, one.name).to(device) for one in fields(self)})

    def bias(self) -> torch.Tensor:
        """(B, T, T) float32: R between tokens."""
        rows = torch.arange(len(self.slots), device=self.slots.device)[:, None, None]
        found: torch.Tensor = self.relations[rows, self.slots[:, :, None], self.slots[:, None, :]]
        return found


def as_batch(
    prompts: Sequence[Sequence[int]], words: int, relations_of: Any, pad: int = 0
) -> PromptBatch:
    """Prompts as a batch, with R looked up.

    Args:
        prompts: tokens of each, at least one.
        words: V.
        relations_of: (B, K) nodes → (B, K, K) R, such as `Relations.of`.
        pad: fills up rows.
    """
    lengths = np.array([len(one) for one in prompts])
    shape = (len(prompts), int(lengths.max()))
    tokens = np.full(shape, pad, np.int64)
    tokens[np.arange(shape[1]) < lengths[:, None]] = np.concatenate(prompts)
    rows, places = np.nonzero(tokens >= words)
    found = tokens[rows, places] - words
    # The distinct nodes of each row in order of appearance: a history starts with its user.
    keys = rows * (int(found.max(initial=0)) + 1) + found
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    counts = np.bincount(rows[first], minlength=len(prompts))
    starts = np.cumsum(counts) - counts
    width = int(counts.max(initial=0))
    slot = rank[inverse] - starts[rows]
    nodes = np.full((len(prompts), width), NO_NODE, np.int64)
    nodes[rows, slot] = found
    slots = np.full(shape, width, np.int64)
    slots[rows, places] = slot
    relations = np.zeros((len(prompts), width + 1, width + 1), np.float32)
    relations[:, :width, :width] = relations_of(nodes)
    arrays = (tokens, lengths, slots, relations)
    return PromptBatch(*map(torch.from_numpy, arrays))


class GraphLM(torch.nn.Module):
    """The language model and the tables of users and items.

    Args:
        language_model: a causal model of transformers, with or without peft adapters.
        users, items: U, I.
        softmax: see `ItemSoftmaxSettings`.
        generator: draws the tables from N(0, .02²).
    """

    def __init__(
        self,
        language_model: Any,
        users: int,
        items: int,
        softmax: ItemSoftmaxSettings,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.language_model = language_model
        width = language_model.get_input_embeddings().weight.shape[1]
        self.users = torch.nn.Parameter(torch.randn(users, width, generator=generator) * _SPREAD)
        self.items = torch.nn.Parameter(torch.randn(items, width, generator=generator) * _SPREAD)
        self._softmax = softmax

    @property
    def words(self) -> int:
        """V: rows of the language model's own embeddings."""
        return int(self.language_model.get_input_embeddings().weight.shape[0])

    def embeds(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) tokens → (B, T, d)."""
        words, users = self.words, len(self.users)
        table = self.language_model.get_input_embeddings()
        found: torch.Tensor = table(tokens.clamp(max=words - 1))
        for kind, begin in ((self.users, words), (self.items, words + users)):
            mine = (tokens >= begin) & (tokens < begin + len(kind))
            if mine.any():
                rows = kind[tokens[mine] - begin].to(found.dtype)
                found = found.masked_scatter(mine[..., None], rows)
        return found

    def states(self, batch: PromptBatch) -> torch.Tensor:
        """What the model's body says at each place, (B, T, d)."""
        embeds = self.embeds(batch.tokens)
        body, _ = body_and_head(self.language_model)
        places = torch.arange(embeds.shape[1], device=embeds.device)[None].expand(len(embeds), -1)
        found: torch.Tensor = body(
            inputs_embeds=embeds,
            attention_mask=self.mask(batch, embeds.dtype),
            position_ids=places,
            use_cache=False,
        ).last_hidden_state
        return found

    @staticmethod
    def mask(batch: PromptBatch, dtype: torch.dtype) -> torch.Tensor:
        """(B, 1, T, T): R where a token sees another, the least number where it does not.

        Real tokens come first, so that no real one sees what fills up its row.
        """
        length = batch.tokens.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=batch.tokens.device).triu(1)
        seen = batch.bias().to(dtype)
        return seen.masked_fill(later, torch.finfo(dtype).min)[:, None]

    def last_states(self, batch: PromptBatch) -> torch.Tensor:
        """States of the last real tokens, (B, d)."""
        rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
        found: torch.Tensor = self.states(batch)[rows, batch.lengths - 1]
        return found

    def scores(self, batch: PromptBatch) -> torch.Tensor:
        """Logits of all items after each prompt, (B, I) float32: a head tied to the item table."""
        return self.item_logits(self.last_states(batch))

    def item_logits(self, states: torch.Tensor) -> torch.Tensor:
        """(n, d) states → (n, I) float32."""
        return (states @ self.items.to(states.dtype).T).float()

    def next_token_loss(
        self, batch: PromptBatch, generator: torch.Generator | None = None, words: bool = True
    ) -> torch.Tensor:
        """Eq. 5: summed −log Pr(next token) over all but the users among them.

        A word is told from all words, an item from all items; whether a word or an item follows
        is not asked.

        Args:
            generator: draws samples where the softmax over items is sampled.
            words: also over words.
        """
        states = self.states(batch)[:, :-1]
        labels = batch.tokens[:, 1:]
        real = torch.arange(1, batch.tokens.shape[1], device=labels.device) < batch.lengths[:, None]
        first_item = self.words + len(self.users)
        is_word, is_item = real & (labels < self.words), real & (labels >= first_item)
        _, head = body_and_head(self.language_model)
        total = torch.zeros((), device=states.device)
        if words and is_word.any():
            ones = torch.ones(int(is_word.sum()), device=states.device)
            total = total + token_losses(states[is_word], labels[is_word], ones, head)
        if is_item.any():
            items = labels[is_item] - first_item
            wanted = torch.arange(len(items), device=items.device)
            total = total + self._item_losses(states[is_item], wanted, items, generator).sum()
        return total

    def item_loss(
        self,
        batch: PromptBatch,
        rows: torch.Tensor,
        items: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Eq. 6, −Σ y log softmax over items at the last token of each prompt, (B,).

        Args:
            rows, items: (n,) which items are right for which rows.
            generator: draws samples where the softmax is sampled.
        """
        losses = self._item_losses(self.last_states(batch), rows, items, generator)
        return torch.zeros(len(batch.tokens), device=losses.device).index_add(0, rows, losses)

    def _item_losses(
        self,
        states: torch.Tensor,
        rows: torch.Tensor,
        items: torch.Tensor,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """−log softmax of `items` given the states of `rows`, (n,).

        Sampled, the normaliser is estimated: what the step wants counts once, each drawn item as
        many times as it stands for others, so that the estimate has the right mean.
        """
        if len(self.items) <= self._softmax.sampled_above:
            logs = F.log_softmax(self.item_logits(states), dim=1)
            return -logs[rows, items]
        wanted, places = torch.unique(items, return_inverse=True)
        drawn = torch.randint(
            len(self.items), (self._softmax.samples,), generator=generator, device="cpu"
        ).to(items.device)
        drawn = drawn[~torch.isin(drawn, wanted)]
        among = torch.cat([wanted, drawn])
        logits = (states @ self.items[among].to(states.dtype).T).float()
        others = (len(self.items) - len(wanted)) / max(len(drawn), 1)
        counts = torch.ones(len(among), device=items.device)
        counts[len(wanted) :] = others
        normaliser = torch.logsumexp(logits + counts.log(), dim=1)
        return normaliser[rows] - logits[rows, places]

    def distance(self, nodes: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        """Σ ‖e − e_content‖² over some nodes: how far they moved from what the texts taught.

        Args:
            nodes: (n,), repeats count again.
            content: (U + I, d).
        """
        users = len(self.users)
        own = [self.users[nodes[nodes < users]], self.items[nodes[nodes >= users] - users]]
        learnt = [content[nodes[nodes < users]], content[nodes[nodes >= users]]]
        return (torch.cat(own) - torch.cat(learnt)).square().sum()
