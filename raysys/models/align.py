"""Alignment of graph embeddings with LLM profiles: wrappers over any backbone (RLMRec)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Discriminator, Field, Tag
from torch.nn import init

from raysys.errors import UserError
from raysys.models.base import Batch, Encoded, Recommender
from raysys.models.losses import info_nce
from raysys.models.precision import matrix_type, padded
from raysys.models.profiles import Profiles
from raysys.models.texts import NodeTexts
from raysys.settings import Settings


class _AlignmentSettings(Settings):
    """What both alignments share."""

    pca: int | None = Field(default=None, ge=1)
    """Profile vectors are reduced to this width once, before training; none: used as they are."""
    matmul: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the products in the profile MLP and in InfoNCE. `auto`: bfloat16 on a GPU or
    a processor with AMX."""


class ContrastiveAlignment(_AlignmentSettings):
    """RLMRec-Con; the defaults are its row for Amazon-book (which also sets reg to 1e-7)."""

    kind: Literal["con"] = "con"
    """Contrastive."""
    kd_weight: float = Field(default=0.01, ge=0)
    """Weight of the alignment loss. 0 trains the same model without it: the fair baseline."""
    temperature: float = Field(default=0.2, gt=0)
    """τ: cosines are divided by it."""
    denominator: Literal["rlmrec", "distinct", "in_batch", "sampled"] = "rlmrec"
    """`rlmrec`: users against all users, items against the batch's, as often as they stand
    there. `distinct`: the same with each item once. `in_batch`: users against the batch too.
    `sampled`: the batch, weighted by 1/Q, stands for all users and items: what scales."""
    symmetric: bool = False
    """The mean of both directions, graph to text and text to graph; RLMRec has the first."""


class GenerativeAlignment(_AlignmentSettings):
    """RLMRec-Gen; the defaults are LightGCN's row for Amazon-book (which also sets layers to 2)."""

    kind: Literal["gen"]
    """Generative."""
    mask_ratio: float = Field(default=0.15, gt=0, le=1)
    """Share of the nodes with a profile whose layer 0 is hidden in each step."""
    recon_weight: float = Field(default=0.1, ge=0)
    """Weight of the loss. 0 keeps the hiding, so that only the text is left out."""
    temperature: float = Field(default=0.5, gt=0)
    """τ: cosines are divided by it."""


def _kind(value: Any) -> Any:
    """Contrastive where a config does not say."""
    return value.get("kind", "con") if isinstance(value, dict) else getattr(value, "kind", None)


Alignment = Annotated[
    Annotated[ContrastiveAlignment, Tag("con")] | Annotated[GenerativeAlignment, Tag("gen")],
    Discriminator(_kind),
]


def matmul_type(choice: str, device: torch.device) -> torch.dtype:
    """The precision that the setting `matmul` means on this device."""
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return types[choice] if choice in types else matrix_type(device)


class Aligned(Recommender):
    """A backbone with a loss beside its own, which reads profile vectors.

    Args:
        backbone: any recommender; its `reg` also covers the MLP.
        settings: one of the two alignments.
        profiles: vectors of the graph's users and items.
        widths: input and output of the MLP; its hidden layer has their mean.
        generator: CPU random state for the MLP's start (Xavier uniform weights).

    Attributes:
        null_users, null_items: nodes without a profile, left out of the alignment.
    """

    def __init__(
        self,
        backbone: Recommender,
        settings: ContrastiveAlignment | GenerativeAlignment,
        profiles: Profiles,
        widths: tuple[int, int],
        generator: torch.Generator,
    ) -> None:
        super().__init__(backbone.graph, backbone.reg)
        expected = (backbone.graph.users, backbone.graph.items)
        if (len(profiles.users), len(profiles.items)) != expected:
            raise UserError(
                f"profiles of {len(profiles.users)} users and {len(profiles.items)} items do not "
                f"fit a graph of {expected[0]} and {expected[1]}."
            )
        self.backbone = backbone
        hidden = sum(widths) // 2
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(widths[0], hidden),
            torch.nn.LeakyReLU(),
            torch.nn.Linear(hidden, widths[1]),
        )
        for layer in self.mlp:
            if isinstance(layer, torch.nn.Linear):
                init.xavier_uniform_(layer.weight, generator=generator)
                bound = layer.in_features**-0.5
                init.uniform_(layer.bias, -bound, bound, generator=generator)
        self._temperature = settings.temperature
        self._type = matmul_type(settings.matmul, backbone.graph.device)
        self.null_users = int((~profiles.user_has_profile).sum())
        self.null_items = int((~profiles.item_has_profile).sum())

    @property
    def width(self) -> int:
        """d of the backbone."""
        return self.backbone.width

    @property
    def uses_negatives(self) -> bool:
        """As the backbone does."""
        return self.backbone.uses_negatives

    def initial_embeddings(self) -> torch.Tensor:
        """Those of the backbone."""
        return self.backbone.initial_embeddings()

    def encode(
        self, start: torch.Tensor, generator: torch.Generator | None, step: int = 0
    ) -> Encoded:
        """That of the backbone."""
        return self.backbone.encode(start, generator, step)

    def batch_losses(
        self, encoded: Encoded, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """The backbone's losses and `align`."""
        named = self.backbone.batch_losses(encoded, batch, generator)
        named["align"] = self.alignment(encoded, batch)
        return named

    @abstractmethod
    def alignment(self, encoded: Encoded, batch: Batch) -> torch.Tensor:
        """This worker's share of the alignment loss, its weight included."""

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """MLP(x), float32 whatever its products are computed in. (n, in) -> (n, out)."""
        low = self._type == torch.bfloat16
        layers = cast("tuple[torch.nn.Linear, torch.nn.Module, torch.nn.Linear]", tuple(self.mlp))
        first, activation, last = layers
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
            if first.in_features > first.out_features:
                # A column a node: the gradient of a wide weight is then a product of two matrices
                # as they lie in memory, 1.5 times as fast on a CPU for 11,000 nodes of 1,536.
                hidden = activation(torch.addmm(first.bias[:, None], first.weight, x.T)).T
            else:
                hidden = activation(first(x))
            out: torch.Tensor = last(hidden)
        return out.float()

    def info_nce(
        self,
        queries: torch.Tensor,
        targets: torch.Tensor,
        keys: torch.Tensor,
        weights: torch.Tensor | None = None,
        key_counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`losses.info_nce` at this alignment's temperature and precision; its shapes."""
        low = self._type == torch.bfloat16
        return info_nce(queries, targets, keys, self._temperature, weights, key_counts, low)


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
        if self.settings.kd_weight == 0:
            return encoded.users.new_zeros(())
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


class Generative(Aligned):
    """Layer 0 of some nodes is replaced by a learnable token; what comes out must say their text.

    L_align = recon_weight · mean over the masked nodes of InfoNCE(MLP(e), profile), with the
    masked nodes' profiles, users and items together, as denominator. The backbone's own losses
    see the masked embeddings too. Source: RLMRec, equations 17 and 18, and its code.

    Args:
        backbone, settings, profiles, generator: see `Aligned`.
    """

    def __init__(
        self,
        backbone: Recommender,
        settings: GenerativeAlignment,
        profiles: Profiles,
        generator: torch.Generator,
    ) -> None:
        widths = (backbone.width, profiles.users.shape[1])
        super().__init__(backbone, settings, profiles, widths, generator)
        self.settings = settings
        self.token = torch.nn.Parameter(torch.zeros(1, backbone.initial_embeddings().shape[1]))
        graph = backbone.graph
        self._sides = tuple(
            NodeTexts(matrix, mask, graph.device, torch.float32)
            for matrix, mask in (
                (profiles.users, profiles.user_has_profile),
                (profiles.items, profiles.item_has_profile),
            )
        )
        users, items = self._sides
        self._described = torch.cat([users.rows, items.rows + graph.users])

    def encode(
        self, start: torch.Tensor, generator: torch.Generator | None, step: int = 0
    ) -> Encoded:
        """That of the backbone; in training from a layer 0 with hidden nodes."""
        if generator is None:
            return self.backbone.encode(start, None)
        number = max(1, int(len(self._described) * self.settings.mask_ratio))
        order = torch.randperm(len(self._described), generator=generator, device=start.device)
        places = order[:number].sort().values
        nodes = self._described[places]
        hidden = start.new_zeros(len(start), 1).index_fill_(0, nodes, 1.0)
        masked = start * (1 - hidden) + self.token * hidden
        return replace(self.backbone.encode(masked, generator, step), masked=places)

    def alignment(self, encoded: Encoded, batch: Batch) -> torch.Tensor:
        """This worker's share of the reconstruction loss."""
        places = encoded.masked
        if self.settings.recon_weight == 0 or places is None:
            return encoded.users.new_zeros(())
        users, items = self._sides
        split = len(users)
        profiles = torch.cat(
            [users.take(places[places < split]), items.take(places[places >= split] - split)]
        )
        outputs = torch.cat([encoded.users, encoded.items])
        own = outputs.index_select(0, self._described[batch.share(places)])
        total = self.info_nce(self.project(own), batch.share(profiles), profiles)
        return total * (self.settings.recon_weight / len(places))


def align(
    backbone: Recommender,
    settings: ContrastiveAlignment | GenerativeAlignment,
    profiles: Profiles,
    generator: torch.Generator,
) -> Aligned:
    """The wrapper that the settings ask for, around a backbone.

    Raises:
        UserError: nobody has a profile, so that there is nothing to align with.
    """
    if not (profiles.user_has_profile.any() or profiles.item_has_profile.any()):
        raise UserError(
            "no user and no item has a profile, so there is nothing to align with: see "
            "dead_letter.parquet of the profile stages, or train without alignment."
        )
    if settings.pca is not None:
        profiles = profiles.reduced(settings.pca)
    if isinstance(settings, ContrastiveAlignment):
        return Contrastive(backbone, settings, profiles, generator)
    return Generative(backbone, settings, profiles, generator)
