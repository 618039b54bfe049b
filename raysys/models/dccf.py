"""DCCF: intents and two reweighted graphs in each layer, contrasted with the plain one."""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn import functional, init

from raysys.graph.bipartite import BipartiteGraph
from raysys.graph.edges import edge_dots, weighted_mean
from raysys.graph.propagation import full_adjacency, propagate
from raysys.models.base import Batch, Encoded, NodeRecommender
from raysys.models.losses import info_nce
from raysys.settings import Settings

#: Of one layer: plain propagation, and the three views that are contrasted with it.
_Views = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class DCCFSettings(Settings):
    """DCCF; the defaults are RLMRec's base row for Amazon-book."""

    width: int = Field(default=32, ge=1)
    """Embedding width d."""
    layers: int = Field(default=2, ge=1)
    """Layers L."""
    intents: int = Field(default=128, ge=1)
    """Intents K of the users, and as many of the items."""
    reg: float = Field(default=1e-4, ge=0)
    """Weight of the squared norm of all parameters."""
    cl_weight: float = Field(default=1e-3, ge=0)
    """Weight of the contrast between the views."""
    temperature: float = Field(default=0.1, gt=0)
    """τ of that contrast."""


class DCCF(NodeRecommender):
    """E = Σ_l E^l, E^{l+1} = Z + R + H + G + E^l, with, for each layer,

    Z = ÂE^l; R = softmax(E^l C)Cᵀ with intents C (d, K), one C for users and one for items;
    H and G = neighbours' mean of E^l, weighted by (1 + cos)/2 of the ends' Z and R.

    Loss = mean BPR + reg·Σ‖W‖² + cl_weight·Σ_l InfoNCE(Z; R) + InfoNCE(Z; H) + InfoNCE(Z; G)
    among the batch's distinct users and distinct positives. Source: DCCF (Ren 2023),
    equations 5 to 12; RLMRec's code divides both sides' sums by the number of distinct users.

    Args:
        settings: see `DCCFSettings`.
        graph: train edges.
        generator: CPU random state for embeddings and intents.
    """

    def __init__(
        self, settings: DCCFSettings, graph: BipartiteGraph, generator: torch.Generator
    ) -> None:
        super().__init__(graph, settings.reg, settings.width, generator)
        self.settings = settings
        self.user_intents, self.item_intents = (
            torch.nn.Parameter(
                init.xavier_uniform_(
                    torch.empty(settings.width, settings.intents), generator=generator
                )
            )
            for _ in range(2)
        )

    def encode(
        self, start: torch.Tensor, generator: torch.Generator | None, step: int = 0
    ) -> Encoded:
        """Sum of all layers; nothing is random."""
        adjacency = full_adjacency(self.graph)
        x = total = start
        layers: list[_Views] = []
        for _ in range(self.settings.layers):
            _, plain = propagate(adjacency, x, 1)
            users, items = self.sides(x)
            intents = torch.cat(
                [_through(users, self.user_intents), _through(items, self.item_intents)]
            )
            by_graph, by_intents = self._reweighted(plain, x), self._reweighted(intents, x)
            layers.append((plain, (intents, by_graph, by_intents)))
            x = plain + intents + by_graph + by_intents + x
            total = total + x
        return self.encoded(start, total, inner=layers)

    def batch_losses(
        self, encoded: Encoded, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """BPR, and `contrast` with its weight."""
        named = super().batch_losses(encoded, batch, generator)
        users = torch.unique(batch.users)
        items = torch.unique(batch.positives) + self.graph.users
        total = named["bpr"].new_zeros(())
        for plain, views in encoded.inner:
            for nodes in (users, items):
                queries = plain.index_select(0, batch.share(nodes))
                for view in views:
                    keys = view.index_select(0, nodes)
                    own = batch.share(keys)
                    total = total + info_nce(queries, own, keys, self.settings.temperature)
        named["contrast"] = total * (self.settings.cl_weight / len(users))
        return named

    def _reweighted(self, ends: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(N, d): mean of the neighbours' x, weighted by (1 + cos of both `ends`)/2."""
        unit = functional.normalize(ends, dim=1)
        weights = (edge_dots(self.graph, unit, unit) + 1) / 2
        return weighted_mean(self.graph, weights, x)


def _through(x: torch.Tensor, intents: torch.Tensor) -> torch.Tensor:
    """softmax(x C)Cᵀ: (n, d), (d, K) -> (n, d)."""
    return torch.softmax(x @ intents, dim=1) @ intents.T
