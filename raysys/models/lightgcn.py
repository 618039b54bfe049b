"""LightGCN as RLMRec trains it: layer sum, edge dropout without rescaling."""

from __future__ import annotations

import torch
from pydantic import Field

from raysys.graph.bipartite import BipartiteGraph
from raysys.graph.propagation import drop_edges, full_adjacency, propagate_sum
from raysys.models.base import Encoded, NodeRecommender
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


class LightGCN(NodeRecommender):
    """E = Σ_{l=0..L} Â^l E⁰, loss = mean BPR + reg·Σ‖W‖².

    Source: LightGCN (He 2020), equations 7 and 15; RLMRec's code takes the *sum* of the
    layers where LightGCN takes the mean.

    Args:
        settings: see `LightGCNSettings`.
        graph: train edges.
        generator: CPU random state for the initial embeddings.
    """

    def __init__(
        self, settings: LightGCNSettings, graph: BipartiteGraph, generator: torch.Generator
    ) -> None:
        super().__init__(graph, settings.reg, settings.width, generator)
        self.settings = settings

    def encode(
        self, start: torch.Tensor, generator: torch.Generator | None, step: int = 0
    ) -> Encoded:
        """Layer sum over one draw of kept edges, or over all edges without a generator."""
        if generator is None:
            adjacency = full_adjacency(self.graph)
        else:
            adjacency = drop_edges(self.graph, self.settings.keep_rate, generator)
        return self.encoded(start, propagate_sum(adjacency, start, self.settings.layers))
