"""SGL and SimGCL: LightGCN with two further views of the graph that must agree."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field
from torch.nn import functional

from raysys.graph.bipartite import BipartiteGraph
from raysys.graph.propagation import drop_edges, full_adjacency, propagate, propagate_sum
from raysys.models.base import Batch, Encoded, NodeRecommender
from raysys.models.losses import info_nce
from raysys.settings import Settings


class TwoViewSettings(Settings):
    """What SGL and SimGCL share; the defaults are RLMRec's base rows for Amazon-book."""

    width: int = Field(default=32, ge=1)
    """Embedding width d."""
    layers: int = Field(default=3, ge=0)
    """Propagation layers L."""
    reg: float = Field(default=1e-5, ge=0)
    """Weight of the squared norm of all parameters."""
    cl_weight: float = Field(default=0.1, ge=0)
    """Weight of the contrast between the two views."""
    temperature: float = Field(default=0.2, gt=0)
    """τ of that contrast."""


class SGLSettings(TwoViewSettings):
    """SGL with edge dropout."""

    keep_rate: float = Field(default=0.8, gt=0, le=1)
    """Share of directed edges kept in each view."""


class SimGCLSettings(TwoViewSettings):
    """SimGCL."""

    noise: float = Field(default=0.9, ge=0)
    """ε, the length of the noise vector added to each node in each layer."""


def contrast(
    batch: Batch,
    nodes: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """This worker's share of Σ_b InfoNCE(first_b, second_b; all of second).

    Each node is computed once and counted as often as it stands in the batch.

    Args:
        nodes: (n,) rows of the batch's nodes, duplicates kept.
        first, second: (U, d) or (I, d), one side of the two views.
    """
    unique, counts = torch.unique(nodes, return_counts=True)
    own = batch.share(unique)
    queries, targets = first.index_select(0, own), second.index_select(0, own)
    return info_nce(queries, targets, second, temperature, batch.share(counts))


class _TwoViews(NodeRecommender):
    """BPR on the whole graph, and the contrast of two views."""

    settings: TwoViewSettings
    #: Whether the batch's negatives are contrasted too.
    contrast_negatives: bool

    def __init__(
        self, settings: TwoViewSettings, graph: BipartiteGraph, generator: torch.Generator
    ) -> None:
        super().__init__(graph, settings.reg, settings.width, generator)
        self.settings = settings

    def encode(
        self, start: torch.Tensor, generator: torch.Generator | None, step: int = 0
    ) -> Encoded:
        """Layer sum over all edges; only the views are random."""
        nodes = propagate_sum(full_adjacency(self.graph), start, self.settings.layers)
        return self.encoded(start, nodes)

    @abstractmethod
    def view(
        self, start: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One random view: users (U, d) and items (I, d)."""

    def batch_losses(
        self, encoded: Encoded, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """BPR, and `contrast`: the sums over users and items, over B, times their weight."""
        named = super().batch_losses(encoded, batch, generator)
        users1, items1 = self.view(encoded.start, generator)
        users2, items2 = self.view(encoded.start, generator)
        chosen = (
            [batch.positives, batch.negatives] if self.contrast_negatives else [batch.positives]
        )
        temperature = self.settings.temperature
        total = contrast(batch, batch.users, users1, users2, temperature)
        total = total + contrast(batch, torch.cat(chosen), items1, items2, temperature)
        named["contrast"] = total * (self.settings.cl_weight / len(batch))
        return named


class SGL(_TwoViews):
    """Views with edges left out: users, positives and negatives of the batch must agree.

    Source: SGL (Wu 2021), equations 4 and 10 (SGL-ED); RLMRec's code takes negatives too.

    Args:
        settings: see `SGLSettings`.
        graph: train edges.
        generator: CPU random state for the initial embeddings.
    """

    settings: SGLSettings
    contrast_negatives = True

    def view(
        self, start: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Layer sum over one draw of kept edges, the same in all layers."""
        adjacency = drop_edges(self.graph, self.settings.keep_rate, generator)
        return self.sides(propagate_sum(adjacency, start, self.settings.layers))


class SimGCL(_TwoViews):
    """Views with noise: x ← Âx + ε·sign(Âx)∘δ, δ uniform and of length 1 in each row.

    Source: SimGCL (Yu 2022), equations 7 and 8; layer 0 has no noise and, as in RLMRec's
    code, is part of the sum.

    Args:
        settings: see `SimGCLSettings`.
        graph: train edges.
        generator: CPU random state for the initial embeddings.
    """

    settings: SimGCLSettings
    contrast_negatives = False

    def view(
        self, start: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Layer sum with noise after each layer."""
        adjacency = full_adjacency(self.graph)
        layer = total = start
        for _ in range(self.settings.layers):
            _, layer = propagate(adjacency, layer, 1)
            drawn = torch.rand(layer.shape, generator=generator, device=layer.device)
            layer = layer + self.settings.noise * functional.normalize(drawn, dim=1) * layer.sign()
            total = total + layer
        return self.sides(total)
