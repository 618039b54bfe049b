"""What a trained ELMRec answers: candidates in order, next items, explanations.

ELMRec §4.2 and §5.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from raysys.models.constrained import (
    Trie,
    constrained_search,
    sequence_scores,
    without_known,
)
from raysys.models.elmrec import DIRECT, EXPLANATION, SEQUENTIAL, TaskBatch
from raysys.text.id_prompts import Row, chunks
from raysys.training.elmrec import Built
from raysys.training.elmrec_settings import ELMRecSettings

#: Places (rows × tokens) that are encoded together, and decoder rows × input tokens.
_ENCODED, _DECODED = 1 << 14, 1 << 18


class Asked:
    """Answers of a loaded model.

    Args:
        built: see `load`.
        settings: how it is asked.
    """

    def __init__(self, built: Built, settings: ELMRecSettings) -> None:
        self._built, self._settings = built, settings
        self._model = built.model
        self._device = built.model.prompts.device
        self._trie: Trie | None = None

    def direct(self, rows: Sequence[Row]) -> np.ndarray:
        """Candidates in order, best first, (n, k) item rows, −1 where there are no more.

        Raises:
            ValueError: a row shows a candidate twice.
        """
        for row in rows:
            if len(np.unique(row.items)) < len(row.items):
                raise ValueError(f"user row {row.user} has a candidate twice")
        find = self._by_trie if self._settings.decode == "trie" else self._by_score
        return self._in_parts(DIRECT, rows, find, self._settings.longest_list)

    def sequential(self, rows: Sequence[Row], known: Sequence[np.ndarray]) -> np.ndarray:
        """Items of the whole catalogue that come next, (n, k) item rows; see `without_known`.

        Args:
            known: item rows of each user, which are left out.
        """
        beams = min(self._settings.width_of_search, len(self._built.prompts.items))
        found = self._in_parts(SEQUENTIAL, rows, partial(self._in_catalogue, beams=beams), beams)
        return without_known(found, list(known), self._settings.longest_list)

    @torch.no_grad()
    def explain(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens of written explanations, by greedy decoding, (n, T) filled up with padding."""
        from transformers.modeling_outputs import BaseModelOutput

        most, pad = (
            self._settings.explanation_tokens,
            self._model.language_model.config.pad_token_id,
        )
        texts = np.full((len(rows), most + 1), pad)
        done = 0
        for part in chunks(rows, 32):
            states, mask = self._encoded(self._built.tasks.written(EXPLANATION, part))
            written = self._model.language_model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),  # type: ignore[arg-type]
                attention_mask=mask,
                max_new_tokens=most,
                do_sample=False,
                num_beams=1,
            )
            texts[done : done + len(part), : written.shape[1]] = written.cpu().numpy()
            done += len(part)
        return texts

    def _in_parts(self, task: str, rows: Sequence[Row], find: Any, width: int) -> np.ndarray:
        """Find items for parts of the rows that fit into memory."""
        lists = [np.empty((0, width), np.int64)]
        for batch, part in self._batches(task, rows, width):
            states, mask = self._encoded(batch)
            lists.append(find(part, states, mask)[:, :width])
        return np.concatenate(lists)

    def _batches(
        self, task: str, rows: Sequence[Row], width: int
    ) -> Iterator[tuple[TaskBatch, Sequence[Row]]]:
        if not rows:
            return
        longest = self._built.tasks.written(task, [max(rows, key=lambda row: len(row.items))])
        tokens = longest.tokens.shape[1]
        if task == DIRECT and self._settings.decode == "score":
            width = max(len(row.items) for row in rows)
        for part in chunks(rows, max(1, min(_ENCODED // tokens, _DECODED // (tokens * width)))):
            yield self._built.tasks.written(task, part), part

    @torch.no_grad()
    def _encoded(self, batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return self._model.encoded(batch.to(self._device))

    def _by_trie(self, part: Sequence[Row], states: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        items = np.concatenate([row.items for row in part])
        roots = np.repeat(np.arange(len(part)), [len(row.items) for row in part])
        trie = Trie.of(self._built.prompts.items[items], roots).to(self._device)
        every = torch.arange(len(part), device=self._device)
        beams = max(self._settings.beams, self._settings.longest_list)
        found, _ = constrained_search(self._model.language_model, states, mask, trie, every, beams)
        places = found.cpu().numpy()
        return np.where(places < 0, -1, items[places])

    def _by_score(
        self, part: Sequence[Row], states: torch.Tensor, mask: torch.Tensor
    ) -> np.ndarray:
        width = max(len(row.items) for row in part)
        items = np.full((len(part), max(width, self._settings.longest_list)), -1)
        for place, row in enumerate(part):
            items[place, : len(row.items)] = row.items
        sequences = torch.from_numpy(self._built.prompts.items[items]).to(self._device)
        scores = sequence_scores(self._model.language_model, states, mask, sequences)
        found = np.where(items < 0, -np.inf, scores.cpu().numpy())
        order = np.argsort(-found, axis=1, kind="stable")
        return np.take_along_axis(items, order, axis=1)

    def _in_catalogue(
        self, part: Sequence[Row], states: torch.Tensor, mask: torch.Tensor, beams: int
    ) -> np.ndarray:
        if self._trie is None:
            self._trie = Trie.of(self._built.prompts.items).to(self._device)
        roots = torch.zeros(len(part), dtype=torch.int64, device=self._device)
        found, _ = constrained_search(
            self._model.language_model, states, mask, self._trie, roots, beams
        )
        return found.cpu().numpy()
