"""SASRec: self-attention over a user's sequence of items (Kang and McAuley, 2018).

n sequences, at most L items of each, I items, d the width. It reads ids alone, no text: what a
language model that reads texts has to beat. Trained with the cross-entropy against many sampled
items, which ranks better than the paper's one (Klenitskiy and Vasilev, 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from raysys.settings import Settings


class SASRecSettings(Settings):
    """Size and training of the model."""

    width: int = Field(default=64, ge=1)
    """Of item embeddings and blocks."""
    blocks: int = Field(default=2, ge=1)
    """Self-attention blocks."""
    heads: int = Field(default=2, ge=1)
    """Of each block; they share the width."""
    length: int = Field(default=50, ge=2)
    """Only so many of the latest items are read."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Inside the blocks and on the embeddings."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Adam's step size."""
    batch_size: int = Field(default=128, ge=1)
    """Sequences of a step."""
    negatives: int = Field(default=512, ge=1)
    """Items drawn for each step, uniform over all, that its targets are told from."""
    epochs: int = Field(default=100, ge=1)
    """Passes over all sequences, at most."""
    patience: int = Field(default=5, ge=1)
    """Epochs without a better validation figure after which training stops."""
    seed: int = Field(default=2023, ge=0)
    """Start values, order and dropout follow from it."""


class SASRec(torch.nn.Module):
    """Item 0 fills up short sequences, so item row i is embedding i + 1."""

    def __init__(self, n_items: int, settings: SASRecSettings) -> None:
        super().__init__()
        self.settings = settings
        self.items = torch.nn.Embedding(n_items + 1, settings.width, padding_idx=0)
        self.places = torch.nn.Embedding(settings.length, settings.width)
        for table in (self.items, self.places):
            torch.nn.init.normal_(table.weight, std=0.02)
        layer = torch.nn.TransformerEncoderLayer(
            settings.width,
            settings.heads,
            4 * settings.width,
            settings.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = torch.nn.TransformerEncoder(
            layer,
            settings.blocks,
            norm=torch.nn.LayerNorm(settings.width),
            enable_nested_tensor=False,
        )
        self.dropout = torch.nn.Dropout(settings.dropout)

    def forward(self, sequences: torch.Tensor) -> torch.Tensor:
        """(n, L) item rows + 1, filled up with 0 on the right -> (n, L, d) states."""
        length = sequences.shape[1]
        x = self.items(sequences) * self.settings.width**0.5 + self.places.weight[:length]
        hidden = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        states: torch.Tensor = self.blocks(self.dropout(x), mask=hidden)
        return states

    @torch.inference_mode()
    def score(self, histories: Sequence[np.ndarray], items: np.ndarray) -> torch.Tensor:
        """Scores of candidates after each history.

        Args:
            histories: n arrays of item rows, oldest first; an empty one scores all items alike.
            items: (n, m) item rows.

        Returns:
            (n, m) float32.
        """
        self.eval()
        sequences = padded(histories, self.settings.length)
        lengths = (sequences > 0).sum(dim=1)
        states = self(sequences)[torch.arange(len(lengths)), (lengths - 1).clamp(min=0)]
        found = (self.items(torch.from_numpy(items) + 1) @ states[:, :, None])[:, :, 0]
        return torch.where(lengths[:, None] > 0, found, 0.0)


def padded(histories: Sequence[np.ndarray], length: int) -> torch.Tensor:
    """(n, L) the latest items of each history + 1, zeros on the right."""
    kept = [np.asarray(history[-length:], dtype=np.int64) + 1 for history in histories]
    width = max(1, max(map(len, kept), default=1))
    rows = np.zeros((len(kept), width), dtype=np.int64)
    for row, history in zip(rows, kept, strict=True):
        row[: len(history)] = history
    return torch.from_numpy(rows)


def next_item_loss(model: SASRec, sequences: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Mean −log Pr(next item) among itself and the negatives, over all places that have one.

    Args:
        sequences: (n, L) see `SASRec`.
        negatives: (m,) item rows; those that are a place's target do not count there.
    """
    inputs, targets = sequences[:, :-1], sequences[:, 1:]
    real = targets > 0
    states, wanted = model(inputs)[real], targets[real]  # (p, d), (p,)
    positive = (states * model.items(wanted)).sum(dim=1, keepdim=True)
    others = states @ model.items(negatives + 1).T  # (p, m)
    others = others.masked_fill(wanted[:, None] == negatives + 1, -torch.inf)
    logits = torch.cat([positive, others], dim=1)
    return F.cross_entropy(logits, torch.zeros_like(wanted))
