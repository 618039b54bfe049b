"""The graph attention network of End-to-End Personalization: profiles seed the nodes."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_matrix
from torch.nn import functional, init

from raysys.graph.bipartite import (
    BipartiteGraph,
    SparsePattern,
    distinct_pairs,
    symmetric_pattern,
)
from raysys.graph.edges import attention_scores, softmax_of_rows, weighted_sum
from raysys.models.base import Batch, Encoded, Others, Recommender, dropout
from raysys.models.losses import bpr
from raysys.models.profiles import Profiles
from raysys.schema import DISLIKED, LIKED, NEITHER
from raysys.settings import Settings

#: Slope of LeakyReLU below zero, in the attention and between layers; GATv2's.
_SLOPE = 0.2
#: `features` of a network whose nodes start from profile vectors.
PROFILES = "profiles"


class GATSettings(Settings):
    """The network; defaults: End-to-End Personalization §2.2 and its released code."""

    width: int = Field(default=64, ge=1)
    """Width of a head, and of the final embeddings."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of every layer but the last, which has one."""
    layers: int = Field(default=3, ge=1)
    """Attention layers."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """On the input of each layer, in training."""
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    """On the attention weights: the model cannot lean on the edge that it is to predict."""
    features: Literal["profiles", "none"] = "profiles"
    """What trainable node embeddings start from: the profile vectors, or noise (no text)."""
    node_width: int = Field(default=64, ge=1)
    """Width of node embeddings without profiles; with them it is theirs."""
    edges: Literal["likes", "signed", "all"] = "signed"
    """`signed`: likes and dislikes, told apart by an edge feature (the paper); `likes` alone;
    `all`: what was rated in between too (the released code)."""
    bpr_weight: float = Field(default=5.0, ge=0)
    """Of the ranking loss."""
    cosine_weight: float = Field(default=2.0, ge=0)
    """Of 1 minus the mean cosine of users and the items they like."""
    reg: float = Field(default=0.0, ge=0)
    """Weight of the squared norm of all parameters."""


class AttentionLayer(torch.nn.Module):
    """Σ_j α_ijh W_s h_j, heads joined, and apart from it W_r h_i + b; see `GAT` for α.

    The library's layer keeps several (edges, H·C) arrays for the backward pass; this one keeps
    none. A test holds it against the library's.

    Args:
        before: width of the input.
        width: C, of a head.
        heads: H.
        generator: CPU random state for the start values (Xavier uniform).
    """

    def __init__(self, before: int, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()

        def start(*shape: int) -> torch.nn.Parameter:
            values = init.xavier_uniform_(torch.empty(shape), generator=generator)
            return torch.nn.Parameter(values)

        self.shape = (heads, width)
        self.source, self.target, self.kept = (start(heads * width, before) for _ in range(3))
        self.source_bias, self.target_bias, self.bias = (
            torch.nn.Parameter(torch.zeros(heads * width)) for _ in range(3)
        )
        self.mark, self.attention = start(heads, width), start(heads, width)

    def forward(
        self,
        x: torch.Tensor,
        pattern: SparsePattern,
        marks: torch.Tensor,
        rate: float,
        generator: torch.Generator | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, before) -> what neighbours say and what a node keeps of itself, each (N, H·C).

        Args:
            marks: (E,) a number for each entry of the pattern.
            rate, generator: of dropout of the weights α, which hides edges from a step; or none.
        """
        sources = functional.linear(x, self.source, self.source_bias).view(-1, *self.shape)
        targets = functional.linear(x, self.target, self.target_bias).view(-1, *self.shape)
        scores = attention_scores(
            pattern, targets, sources, marks, self.mark, self.attention, _SLOPE
        )
        weights = softmax_of_rows(pattern, scores)
        if generator is not None:
            weights = dropout(weights, rate, generator)
        heads = [
            weighted_sum(pattern, weight.contiguous(), part.contiguous())
            for weight, part in zip(weights.unbind(1), sources.unbind(1), strict=True)
        ]
        return torch.cat(heads, dim=1), functional.linear(x, self.kept, self.bias)


class GAT(Recommender):
    """L layers h' = W_r h + b + LeakyReLU(norm(Σ_j α_ij W_s h_j)), the last one without LeakyReLU;
    dot-product scores.

    α_ij is the softmax over i's neighbours of aᵀ LeakyReLU(W_t h_i + W_s h_j + w_e s_ij), s_ij = 1
    for a like, -1 for a dislike, 0 between (GATv2, Brody 2022, equation 7). Messages run both
    ways; heads are joined, the last layer has one. Loss: 5·BPR + 2·(1 − mean cosine of likes).

    Source: End-to-End Personalization §2.2.

    Args:
        settings: see `GATSettings`.
        graph: likes in train.
        generator: CPU random state for all start values.
        profiles: where nodes start, layer-normalised and of length 1; nodes without one start
            from noise of that length.
        others: what was rated in train and not liked.
    """

    reads_content: ClassVar[bool] = True

    def __init__(
        self,
        settings: GATSettings,
        graph: BipartiteGraph,
        generator: torch.Generator,
        profiles: Profiles | None,
        others: Others,
    ) -> None:
        super().__init__(graph, settings.reg)
        self.settings = settings
        nodes = graph.users + graph.items
        self._pattern, signs = _edges(graph, others, settings.edges)
        self.register_buffer("signs", signs, persistent=False)
        if settings.features == PROFILES:
            assert profiles is not None
            given = _seeds(profiles, generator)
        else:
            given = _unit(torch.randn(nodes, settings.node_width, generator=generator))
        self.nodes = torch.nn.Parameter(given)
        widths = [settings.width * settings.heads] * (settings.layers - 1) + [settings.width]
        heads = [settings.heads] * (settings.layers - 1) + [1]
        self.attentions = torch.nn.ModuleList(
            AttentionLayer(before, settings.width, count, generator)
            for before, count in zip([given.shape[1], *widths], heads, strict=False)
        )
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for width in widths)

    @property
    def width(self) -> int:
        """Width of the final embeddings."""
        return self.settings.width

    def initial_embeddings(self) -> torch.Tensor:
        """(N, s) trainable node embeddings."""
        return self.nodes

    def encode(
        self, start: torch.Tensor, generator: torch.Generator | None, step: int = 0
    ) -> Encoded:
        """All layers over all edges, with dropout where a generator is given."""
        hidden, last = start, len(self.norms) - 1
        for place, (attend, norm) in enumerate(zip(self.attentions, self.norms, strict=True)):
            if generator is not None:
                hidden = dropout(hidden, self.settings.dropout, generator)
            rate = self.settings.attention_dropout
            told, kept = attend(hidden, self._pattern, self.signs, rate, generator)
            told = norm(told)
            if place < last:
                told = functional.leaky_relu(told, _SLOPE)
            # Beside the norm, not inside: else all items would have one length, popular or not.
            hidden = kept + told
        users, items = torch.split(hidden, [self.graph.users, self.graph.items])
        return Encoded(start, users, items)

    def batch_losses(
        self, encoded: Encoded, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """BPR and cosine alignment, each averaged over the global batch."""
        users = encoded.users.index_select(0, batch.share(batch.users))
        liked = encoded.items.index_select(0, batch.share(batch.positives))
        other = encoded.items.index_select(0, batch.share(batch.negatives))
        apart = 1 - functional.cosine_similarity(users, liked)
        return {
            "bpr": bpr(users, liked, other).sum() * (self.settings.bpr_weight / len(batch)),
            "cosine": apart.sum() * (self.settings.cosine_weight / len(batch)),
        }


def _edges(graph: BipartiteGraph, others: Others, kind: str) -> tuple[SparsePattern, torch.Tensor]:
    """All edges in both directions, on the graph's device, and (E,) the sign of each."""
    wanted = {"likes": (), "signed": (DISLIKED,), "all": (DISLIKED, NEITHER)}[kind]
    nodes = graph.users + graph.items
    keys = [graph.rows.cpu() * nodes + graph.columns.long().cpu()]
    signs = [torch.full((len(graph.columns),), float(LIKED))]
    for opinion in wanted:
        pairs = distinct_pairs(others.get(opinion, csr_matrix((graph.users, graph.items)))).tocoo()
        users = torch.from_numpy(pairs.row.astype(np.int64))
        items = torch.from_numpy(pairs.col.astype(np.int64)) + graph.users
        keys += [users * nodes + items, items * nodes + users]
        signs.append(torch.full((2 * len(users),), float(opinion)))
    order = torch.cat(keys).argsort()
    key = torch.cat(keys)[order]
    pattern = symmetric_pattern(key // nodes, key % nodes, nodes)
    device = graph.device
    placed = SparsePattern(
        pattern.row_starts.to(device), pattern.columns.to(device), pattern.reverse.to(device)
    )
    return placed, torch.cat(signs)[order].to(device)


def _seeds(profiles: Profiles, generator: torch.Generator) -> torch.Tensor:
    """(N, s) profile vectors, users first, layer-normalised and of length 1."""
    vectors = torch.from_numpy(np.concatenate([profiles.users, profiles.items]))
    known = np.concatenate([profiles.user_has_profile, profiles.item_has_profile])
    noise = torch.randn(vectors.shape, generator=generator)
    vectors = torch.where(torch.from_numpy(known)[:, None], vectors, noise)
    return _unit(functional.layer_norm(vectors, vectors.shape[1:]))


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return functional.normalize(rows, dim=1)
