"""LightGCN as RLMRec trains it: layer sum, edge dropout without rescaling."""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn import init

from raysys.graph.bipartite import BipartiteGraph
from raysys.graph.propagation import drop_edges, full_adjacency, propagate_sum
from raysys.models.base import Batch, Recommender
from raysys.models.losses import bpr
from raysys.settings import Settings


class LightGCNSettings(Settings):
    """LightGCN; the defaults are RLMRec's base row for Amazon-book."""

    width: int = Field(default=32, ge=1)
    """Embedding width d."""
    layers: int = Field(default=3, ge=0)
    """Propagation layers L; 0 is plain matrix factorisation."""
    keep_rate: float = Field(default=0.8, gt=0, le=1)
    """Share of directed edges kept in each training step."""
    reg: float = Field(default=1e-6, ge=0)
    """Weight of the squared norm of all parameters."""


class LightGCN(Recommender):
    """E = Σ_{l=0..L} Â^l E⁰, loss = mean BPR + reg·Σ‖W‖².

    Source: LightGCN (He 2020), equations 7 and 15; RLMRec's code takes the *sum* of the
    layers where LightGCN takes the mean.

    Args:
        settings: see `LightGCNSettings`.
        graph: train edges.
        generator: CPU random state for the initial embeddings (Xavier uniform, users and
            items each as one (rows, d) matrix).
    """

    def __init__(
        self, settings: LightGCNSettings, graph: BipartiteGraph, generator: torch.Generator
    ) -> None:
        super().__init__(graph, settings.reg)
        self.settings = settings
        tables = [
            init.xavier_uniform_(torch.empty(rows, settings.width), generator=generator)
            for rows in (graph.users, graph.items)
        ]
        # One table saves joining the two, and splitting their gradient, in every step.
        self.nodes = torch.nn.Parameter(torch.cat(tables))

    @property
    def width(self) -> int:
        """d."""
        return self.settings.width

    def initial_embeddings(self) -> torch.Tensor:
        """(N, d) trainable layer 0."""
        return self.nodes

    def propagate_nodes(
        self, start: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Layer sum over one draw of kept edges, or over all edges without a generator."""
        if generator is None:
            adjacency = full_adjacency(self.graph)
        else:
            adjacency = drop_edges(self.graph, self.settings.keep_rate, generator)
        final = propagate_sum(adjacency, start, self.settings.layers)  # (N, d)
        users, items = torch.split(final, [self.graph.users, self.graph.items])
        return users, items

    def batch_losses(
        self,
        users: torch.Tensor,
        items: torch.Tensor,
        batch: Batch,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        """BPR, averaged over the global batch."""
        rows = bpr(
            users.index_select(0, batch.share(batch.users)),
            items.index_select(0, batch.share(batch.positives)),
            items.index_select(0, batch.share(batch.negatives)),
        )
        return {"bpr": rows.sum() / len(batch)}
