"""NGCF: messages between users and items with weights and products of neighbours."""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn import functional, init

from raysys.graph.bipartite import BipartiteGraph
from raysys.graph.propagation import full_adjacency, propagate
from raysys.models.base import Encoded, NodeRecommender, dropout
from raysys.settings import Settings

#: Slope of LeakyReLU below zero, as in its released code.
_SLOPE = 0.2


class NGCFSettings(Settings):
    """NGCF; defaults: its paper, section 4.2."""

    width: int = Field(default=64, ge=1)
    """Width d of the embeddings and of every layer."""
    layers: int = Field(default=3, ge=1)
    """Layers L; the final embeddings are (L + 1)·d wide."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """On the output of each layer, in training."""
    reg: float = Field(default=1e-5, ge=0)
    """Weight of the squared norm of all parameters."""


class NGCF(NodeRecommender):
    """E^l = LeakyReLU((Â + I) E^(l−1) W₁ + (Â E^(l−1) ⊙ E^(l−1)) W₂); [E⁰ ‖ unit(E¹) ‖ …].

    Source: NGCF (Wang 2019), equations 7 and 9; its code sets each layer's rows to length 1.

    Args:
        settings: see `NGCFSettings`.
        graph: train edges.
        generator: CPU random state for all start values (Xavier uniform).
    """

    def __init__(
        self, settings: NGCFSettings, graph: BipartiteGraph, generator: torch.Generator
    ) -> None:
        super().__init__(graph, settings.reg, settings.width, generator)
        self.settings = settings
        shape = (settings.layers, 2, settings.width, settings.width)
        weights = torch.empty(shape)
        for layer in weights.view(-1, *shape[2:]):
            init.xavier_uniform_(layer, generator=generator)
        self.weights = torch.nn.Parameter(weights)

    @property
    def width(self) -> int:
        """(L + 1)·d."""
        return self.settings.width * (self.settings.layers + 1)

    def encode(
        self, start: torch.Tensor, generator: torch.Generator | None, step: int = 0
    ) -> Encoded:
        """All layers side by side; dropout where a generator is given."""
        adjacency = full_adjacency(self.graph)
        hidden, outputs = start, [start]
        for along, across in self.weights:
            (_, near) = propagate(adjacency, hidden, 1)
            mixed = (near + hidden) @ along + (near * hidden) @ across
            hidden = functional.leaky_relu(mixed, _SLOPE)
            if generator is not None:
                hidden = dropout(hidden, self.settings.dropout, generator)
            outputs.append(functional.normalize(hidden, dim=1))
        return self.encoded(start, torch.cat(outputs, dim=1))
