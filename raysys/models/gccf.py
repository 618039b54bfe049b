"""GCCF as RLMRec trains it: linear propagation, layers side by side."""

from __future__ import annotations

import torch
from pydantic import Field

from raysys.graph.bipartite import BipartiteGraph
from raysys.graph.propagation import drop_values, propagate, weighted
from raysys.models.base import Encoded, NodeRecommender
from raysys.settings import Settings


class GCCFSettings(Settings):
    """GCCF; the defaults are RLMRec's base row for Amazon-book."""

    width: int = Field(default=32, ge=1)
    """Width d of one layer; the final embeddings have (layers + 1)·d columns."""
    layers: int = Field(default=2, ge=0)
    """Propagation layers L."""
    self_loops: bool = True
    """Every node is its own neighbour too."""
    keep_rate: float = Field(default=0.8, gt=0, le=1)
    """Share of directed edges and loops kept in each training step."""
    reg: float = Field(default=1e-6, ge=0)
    """Weight of the squared norm of all parameters."""


class GCCF(NodeRecommender):
    """E = [E⁰ ‖ ÂE⁰ ‖ … ‖ Â^L E⁰], Â = (D+I)^-½ (A+I) (D+I)^-½; mean BPR + reg·Σ‖W‖².

    Source: GCCF (Chen 2020), equations 5 and 8, without its layer weights ("performs better
    without", RLMRec's code). Edges are dropped because its configuration names a keep rate of
    0.8; its code does not use it, and gives 2 % less Recall@20, on validation too. Aligned, that
    code has no self-loops either; here base and aligned differ in the alignment alone.

    Args:
        settings: see `GCCFSettings`.
        graph: train edges.
        generator: CPU random state for the initial embeddings.
    """

    def __init__(
        self, settings: GCCFSettings, graph: BipartiteGraph, generator: torch.Generator
    ) -> None:
        super().__init__(graph, settings.reg, settings.width, generator)
        self.settings = settings
        degrees = graph.degrees + float(settings.self_loops)
        scale = degrees.clamp(min=1.0).rsqrt()
        # (N,): what a node keeps of itself; the loops are not stored as entries.
        self._own = scale.square() * float(settings.self_loops)
        self._values = scale[graph.rows] * scale[graph.columns]

    @property
    def width(self) -> int:
        """(L + 1)·d."""
        return self.settings.width * (self.settings.layers + 1)

    def encode(
        self, start: torch.Tensor, generator: torch.Generator | None, step: int = 0
    ) -> Encoded:
        """All layers side by side, over one draw of kept edges or over all."""
        values, own = self._values, self._own
        if generator is not None and self.settings.keep_rate < 1.0:
            values = drop_values(values, self.settings.keep_rate, generator)
            own = drop_values(own, self.settings.keep_rate, generator)
        adjacency = weighted(self.graph, values)
        x, outputs = start, [start]
        for _ in range(self.settings.layers):
            (_, neighbours) = propagate(adjacency, x, 1)
            x = neighbours + own[:, None] * x
            outputs.append(x)
        return self.encoded(start, torch.cat(outputs, dim=1))
