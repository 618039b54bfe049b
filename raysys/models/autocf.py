"""AutoCF: parts of the graph are hidden, and attention over a random graph must make up for it."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch.nn import functional, init

from raysys.graph.bipartite import BipartiteGraph, SparseMatrix, SparsePattern, symmetric_pattern
from raysys.graph.edges import edge_dots, weighted_mean
from raysys.graph.propagation import Adjacency, full_adjacency, propagate, weighted
from raysys.models.base import Batch, Encoded, NodeRecommender
from raysys.models.losses import log_sum_exp
from raysys.settings import Settings

#: What the encoder propagates over, and the pattern that the decoder attends over.
_Graphs = tuple[Adjacency, SparsePattern]


class AutoCFSettings(Settings):
    """AutoCF; the defaults are RLMRec's base row for Amazon-book."""

    width: int = Field(default=32, ge=1)
    """Embedding width d."""
    layers: int = Field(default=2, ge=0)
    """Propagation layers of the encoder."""
    attention_layers: int = Field(default=1, ge=0)
    """Attention layers of the decoder."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; they divide the width."""
    reg: float = Field(default=1e-6, ge=0)
    """Weight of the squared norm of all parameters."""
    uniformity_weight: float = Field(default=5.0, ge=0)
    """Weight of pushing users apart from users, and items from items (`ssl_reg`)."""
    seeds: int = Field(default=100, ge=1)
    """Nodes around which the graph is hidden."""
    mask_depth: int = Field(default=2, ge=1)
    """Steps from a seed within which edges are hidden."""
    keep_rate: float = Field(default=0.2, ge=0, le=1)
    """Random nodes, as a share of all, that join the hidden ones in the decoder's random graph."""
    refresh_every: int = Field(default=10, ge=1)
    """Steps of an epoch after which seeds and graphs are drawn anew (`fix_steps`)."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self


class AutoCF(NodeRecommender):
    """E = Σ of encoder layers ÂₘX and attention layers; softmax over all items, and uniformity.

    Loss = mean[−e_u·e_i + log Σ_j exp(e_u·e_j)] + uniformity_weight·(mean over the batch's
    distinct users of log Σ_v exp(e_u·e_v), and the same of its positives among the items)
    − mean log σ(cos(node, its surroundings)) where seeds are drawn + reg·Σ‖W‖².
    Source: AutoCF (Xia 2023), equations 4 to 11, as RLMRec's code trains it: plain dot
    products, batch negatives unused, and surroundings that subtract the node once a step
    although the graph has no self-loops.

    Args:
        settings: see `AutoCFSettings`.
        graph: train edges.
        generator: CPU random state for embeddings and attention.
    """

    def __init__(
        self, settings: AutoCFSettings, graph: BipartiteGraph, generator: torch.Generator
    ) -> None:
        super().__init__(graph, settings.reg, settings.width, generator)
        self.settings = settings
        shape = (settings.attention_layers, 3, settings.width, settings.width)
        #: Queries, keys and values of each attention layer.
        self.attention = torch.nn.Parameter(torch.empty(shape))
        for layer in self.attention.detach():
            for matrix in layer:
                init.xavier_uniform_(matrix, generator=generator)
        self._drawn: _Graphs | None = None

    @property
    def uses_negatives(self) -> bool:
        """No: each user is compared with all items."""
        return False

    def encode(
        self, start: torch.Tensor, generator: torch.Generator | None, step: int = 0
    ) -> Encoded:
        """Sum of all layers, over hidden graphs in training and the true one otherwise.

        `inner` is the loss of the seeds where they are drawn in this step, else 0.
        """
        infomax = start.new_zeros(())
        if generator is None:
            graphs: _Graphs = (full_adjacency(self.graph), self.graph)
        else:
            if self._drawn is None or step % self.settings.refresh_every == 0:
                likeness = functional.logsigmoid(self._surroundings())
                infomax = -likeness.mean()
                self._drawn = self._draw(likeness.detach(), generator)
            graphs = self._drawn
        encoder, decoder = graphs
        layers = propagate(encoder, start, self.settings.layers)
        for matrices in self.attention:
            layers.append(self._attend(decoder, layers[-1], matrices))
        return self.encoded(start, torch.stack(layers).sum(dim=0), inner=infomax)

    def batch_losses(
        self, encoded: Encoded, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """This worker's share of `softmax`, `uniformity` and `infomax`."""
        users, items = encoded.users, encoded.items
        distinct, counts = torch.unique(batch.users, return_counts=True)
        own = users.index_select(0, batch.share(distinct))
        positives = torch.unique(batch.positives)
        scores = users.index_select(0, batch.share(batch.users)) * items.index_select(
            0, batch.share(batch.positives)
        )
        softmax = log_sum_exp(own, items, batch.share(counts)) - scores.sum()
        apart_users = log_sum_exp(own, users) / len(distinct)
        own_items = items.index_select(0, batch.share(positives))
        apart_items = log_sum_exp(own_items, items) / len(positives)
        return {
            "softmax": softmax / len(batch),
            "uniformity": (apart_users + apart_items) * self.settings.uniformity_weight,
            "infomax": encoded.inner / batch.workers,
        }

    def _surroundings(self) -> torch.Tensor:
        """(N,) cosine of each node with the sum of its first and second neighbours."""
        graph, x = self.graph, self.nodes
        ones = SparseMatrix(graph, torch.ones_like(graph.values))
        degrees = graph.degrees.to(x.dtype)[:, None]
        around = Adjacency(ones, ones)
        first = propagate(around, x, 1)[1] - x
        second = propagate(around, first, 1)[1] - first - degrees * x
        number = ones @ degrees - degrees
        mean = (first + second) / (number + 1e-8)
        return functional.cosine_similarity(mean, x, dim=1)

    def _draw(self, likeness: torch.Tensor, generator: torch.Generator) -> _Graphs:
        """Hide what lies around new seeds; the encoder's graph and the decoder's pattern."""
        graph, settings, device = self.graph, self.settings, self.graph.device
        uniform = torch.rand(graph.nodes, generator=generator, device=device)
        gumbel = -torch.log(-torch.log(uniform.clamp(min=1e-12)))
        seeds = torch.topk(likeness + gumbel, min(settings.seeds, graph.nodes)).indices
        rows, columns = graph.rows, graph.columns.long()
        near = torch.zeros(graph.nodes, dtype=torch.bool, device=device)
        near[seeds] = True
        chosen, kept = near.clone(), torch.ones_like(rows, dtype=torch.bool)
        for depth in range(settings.mask_depth):
            hidden = kept & (near[rows] | near[columns])
            kept &= ~hidden
            if depth + 1 < settings.mask_depth:
                near = torch.zeros_like(near).index_fill_(0, rows[hidden], True)
                chosen |= near
        extra = int(graph.nodes * settings.keep_rate)
        chosen[torch.randint(graph.nodes, (extra,), generator=generator, device=device)] = True
        pool = chosen.nonzero()[:, 0]
        degrees = torch.zeros(graph.nodes, device=device).index_add_(0, rows, kept.float())
        scale = degrees.clamp(min=1.0).rsqrt()
        encoder = weighted(graph, kept * scale[rows] * scale[columns])
        first, second = pool[
            torch.randint(len(pool), (2, len(rows)), generator=generator, device=device)
        ]
        loops = torch.arange(graph.nodes, device=device)
        decoder = symmetric_pattern(
            torch.cat([first, second, loops, rows[kept]]),
            torch.cat([second, first, loops, columns[kept]]),
            graph.nodes,
        )
        return encoder, decoder

    def _attend(
        self, pattern: SparsePattern, x: torch.Tensor, matrices: torch.Tensor
    ) -> torch.Tensor:
        """Multi-head attention of each node over its entries: (N, d) -> (N, d)."""
        queries, keys, values = (
            (x @ matrix).split(self.settings.width // self.settings.heads, dim=1)
            for matrix in matrices
        )
        return torch.cat(
            [
                weighted_mean(pattern, edge_dots(pattern, q, k).clamp(-10.0, 10.0).exp(), v)
                for q, k, v in zip(queries, keys, values, strict=True)
            ],
            dim=1,
        )
