"""Contrastive alignment of graph embeddings with LLM profiles (RLMRec-Con)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field

from raysys.models.aligned import Aligned, AlignmentSettings
from raysys.models.base import Batch, Encoded, Recommender
from raysys.models.precision import padded
from raysys.models.profiles import Profiles
from raysys.models.texts import NodeTexts


class ContrastiveAlignment(AlignmentSettings):
    """RLMRec-Con; the defaults are its row for Amazon-book (which also sets reg to 1e-7)."""

    weight_name: ClassVar[str] = "kd_weight"
    kind: Literal["con"] = "con"
    """Contrastive."""
    kd_weight: float = Field(default=0.01, ge=0)
    """Weight of the alignment loss. 0 trains the backbone alone, and needs no profiles: the fair
    baseline."""
    temperature: float = Field(default=0.2, gt=0)
    denominator: Literal["rlmrec", "distinct", "in_batch", "sampled"] = "rlmrec"
    """`rlmrec`: users against all users, items against the batch's, as often as they stand
    there. `distinct`: the same with each item once. `in_batch`: users against the batch too.
    `sampled`: the batch, weighted by 1/Q, stands for all users and items: what scales."""
    symmetric: bool = False
    """The mean of both directions, graph to text and text to graph; RLMRec has the first."""


@dataclass(frozen=True)
class _Group:
    """Nodes of one role in a batch, each once, and what they are compared with.

    Attributes:
        nodes: (k,) rows of the side's embeddings.
        counts: (k,) how often each stands in the batch.
        texts: (k, d) their projected profiles.
        key_nodes, key_texts: (m,) and (m, d), the denominator.
        key_counts: (m,) how often each counts there; none: once.
    """

    nodes: torch.Tensor
    counts: torch.Tensor
    texts: torch.Tensor
    key_nodes: torch.Tensor
    key_texts: torch.Tensor
    key_counts: torch.Tensor | None


class Contrastive(Aligned):
    """L_align = kd_weight/B · Σ_b [ℓ(e_u, t_u) + ℓ(e_i⁺, t_i⁺) + ℓ(e_i⁻, t_i⁻)].

    t = MLP(profile), ℓ = InfoNCE; what is in its denominator is `settings.denominator`. A node
    without a profile is in neither numerator nor denominator. Negatives are left out where
    the backbone does not use them. Source: RLMRec, equations 16 and 18, and its code; `sampled`:
    Yi 2019, equation 3 (sampling-bias-corrected softmax), Q = degree/E of users and positives,
    1/I of negatives.

    Each node of a batch is computed once and counted as often as it stands there: equal to
    the paper's sums, at about half the work. The MLP runs only on nodes that a loss needs.

    Args:
        backbone, settings, profiles, generator: see `Aligned`.
    """

    def __init__(
        self,
        backbone: Recommender,
        settings: ContrastiveAlignment,
        profiles: Profiles,
        generator: torch.Generator,
    ) -> None:
        widths = (profiles.users.shape[1], backbone.width)
        super().__init__(backbone, settings, profiles, widths, generator)
        self.settings = settings
        graph = backbone.graph
        self._users = NodeTexts(profiles.users, profiles.user_has_profile, graph.device, self._type)
        self._items = NodeTexts(profiles.items, profiles.item_has_profile, graph.device, self._type)
        # 1/Q of being drawn as a train edge's end; never read for nodes without an edge.
        inverse = (len(graph.columns) / 2) / graph.degrees.clamp(min=1)
        self._inverse = torch.split(inverse, [graph.users, graph.items])

    def alignment(self, encoded: Encoded, batch: Batch) -> torch.Tensor:
        """This worker's share of the InfoNCE sums of a batch."""
        total = self._sum(batch, encoded.users, self._user_group(batch))
        for group in self._item_groups(batch):
            total = total + self._sum(batch, encoded.items, group)
        return total * (self.settings.kd_weight / len(batch))

    def _user_group(self, batch: Batch) -> _Group:
        places, counts = self._users.unique(batch.users)
        nodes = self._users.rows[places]
        if self.settings.denominator in ("rlmrec", "distinct"):
            everyone = self.project(self._users.all)  # (users with a profile, d)
            return _Group(nodes, counts, everyone[places], self._users.rows, everyone, None)
        texts = self._projected(self._users, places)
        key_counts = self._key_counts(counts, len(batch), self._inverse[0][nodes])
        return _Group(nodes, counts, texts, nodes, texts, key_counts)

    def _item_groups(self, batch: Batch) -> list[_Group]:
        sides = [(batch.positives, self._inverse[1])]
        if self.uses_negatives:
            uniform = torch.full_like(self._inverse[1], float(self.graph.items))
            sides.append((batch.negatives, uniform))
        found = [self._items.unique(nodes) for nodes, _ in sides]
        needed, at = torch.unique(torch.cat([places for places, _ in found]), return_inverse=True)
        projected = self._projected(self._items, needed)  # (distinct items, d)
        groups = []
        for (places, counts), rows, (_, inverse) in zip(
            found, at.split([len(places) for places, _ in found]), sides, strict=True
        ):
            nodes, texts = self._items.rows[places], projected[rows]
            key_counts = self._key_counts(counts, len(batch), inverse[nodes])
            groups.append(_Group(nodes, counts, texts, nodes, texts, key_counts))
        return groups

    def _projected(self, side: NodeTexts, places: torch.Tensor) -> torch.Tensor:
        """MLP of the profiles at (k,) places. -> (k, d)."""
        if self._type == torch.float32:
            return self.project(side.take(places))
        return self.project(side.take(padded(places)))[: len(places)]

    def _key_counts(
        self, counts: torch.Tensor, size: int, inverse: torch.Tensor
    ) -> torch.Tensor | None:
        """How often each node of a batch counts in a denominator made of that batch."""
        if self.settings.denominator == "distinct":
            return None
        if self.settings.denominator == "sampled":
            return counts * inverse / size
        return counts

    def _sum(self, batch: Batch, embeddings: torch.Tensor, group: _Group) -> torch.Tensor:
        """Σ over this worker's nodes of count · InfoNCE; every worker has all keys."""
        own = embeddings.index_select(0, batch.share(group.nodes))
        texts = batch.share(group.texts)
        counts = batch.share(group.counts)
        total = self.info_nce(own, texts, group.key_texts, counts, group.key_counts)
        if self.settings.symmetric:
            keys = embeddings.index_select(0, group.key_nodes)
            total = (total + self.info_nce(texts, own, keys, counts, group.key_counts)) / 2
        return total
