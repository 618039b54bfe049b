"""Score items for one user at a time, as a server does: what was read of a history is kept.

"LLM-Enhanced User-Item Interactions", section 3.5. Keys and values of a user's history stay in
memory; asking again costs the few tokens of the question, and a new interaction one token more.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raysys.models.graph_lm import GraphLM, as_batch
from raysys.models.lora import body_and_head
from raysys.models.precision import mixed_precision
from raysys.training.graph_lm_model import Built


@dataclass
class _Kept:
    """A history's tokens, and the keys and values of each layer."""

    tokens: list[int]
    cache: Any


class OnlineScorer:
    """Scores of all items for a user and a history.

    Args:
        built: see `raysys.training.graph_lm.build`.
        most_tokens: of histories in memory; those asked for longest ago are dropped.
    """

    def __init__(self, built: Built, most_tokens: int = 100_000) -> None:
        self._built, self._most = built, most_tokens
        self._model: GraphLM = built.model.eval()
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        #: Tokens that were encoded so far.
        self.encoded = 0

    def scores(self, user: int, items: Sequence[int]) -> np.ndarray:
        """Scores of all items, (I,) float32.

        Args:
            user: user row.
            items: item rows of the history, oldest first; they need not be in train.

        Raises:
            ValueError: an unknown user or item.
        """
        users, count = self._built.dataset.shape
        if not 0 <= user < users or any(not 0 <= item < count for item in items):
            raise ValueError(f"user row {user} or an item row of {list(items)[:5]} is not known")
        with self._lock, mixed_precision(self._model.items.device):
            return self._scores(user, items)

    def warm(self, histories: dict[int, Sequence[int]]) -> None:
        """Encode histories before they are asked for, such as those of a batch of lists."""
        for user, items in histories.items():
            self.scores(user, items)

    @torch.inference_mode()
    def _scores(self, user: int, items: Sequence[int]) -> np.ndarray:
        from transformers import DynamicCache

        writer, model = self._built.writer, self._model
        history = writer.history(user, items)
        kept = self._kept.pop(user, None)
        if kept is None or kept.tokens != history[: len(kept.tokens)]:
            make: Any = DynamicCache
            kept = _Kept([], make())
        known = len(kept.tokens)
        batch = as_batch([history + writer.trigger], writer.words, self._built.relations.of_history)
        batch = batch.to(model.items.device)
        embeds = model.embeds(batch.tokens[:, known:])
        mask = model.mask(batch, embeds.dtype)[:, :, known:]
        body, _ = body_and_head(model.language_model)
        states = body(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=torch.arange(known, batch.tokens.shape[1], device=embeds.device)[None],
            past_key_values=kept.cache,
            use_cache=True,
        ).last_hidden_state
        self.encoded += embeds.shape[1]
        kept.cache.crop(-len(writer.trigger))
        self._kept[user] = _Kept(history, kept.cache)
        while sum(len(one.tokens) for one in self._kept.values()) > self._most:
            self._kept.popitem(last=False)
        found: np.ndarray = model.item_logits(states[:, -1])[0].float().cpu().numpy()
        return found
