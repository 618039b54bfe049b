"""Generative alignment: hidden nodes must say their LLM profile (RLMRec-Gen)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field

from raysys.models.aligned import Aligned, AlignmentSettings
from raysys.models.base import Batch, Encoded, Recommender
from raysys.models.profiles import Profiles
from raysys.models.texts import NodeTexts


class GenerativeAlignment(AlignmentSettings):
    """RLMRec-Gen; the defaults are LightGCN's row for Amazon-book (which also sets layers to 2)."""

    weight_name: ClassVar[str] = "recon_weight"
    kind: Literal["gen"]
    """Generative."""
    mask_ratio: float = Field(default=0.15, gt=0, le=1)
    """Share of the nodes with a profile whose layer 0 is hidden in each step."""
    recon_weight: float = Field(default=0.1, ge=0)
    """Weight of the loss. 0 keeps the hiding, so that only the text is left out."""
    temperature: float = Field(default=0.5, gt=0)
    recon_nodes: int | None = Field(default=None, ge=2)
    """At most so many of the hidden nodes, drawn in each step, are reconstructed, and are each
    other's negatives; none: all of them, as RLMRec does. The loss costs the square of it."""

    @property
    def reads_profiles(self) -> bool:
        """Always: nodes with a profile are hidden, whatever the weight."""
        return True


class Generative(Aligned):
    """Layer 0 of some nodes is replaced by a learnable token; what comes out must say their text.

    L_align = recon_weight · mean over the masked nodes of InfoNCE(MLP(e), profile), with the
    masked nodes' profiles, users and items together, as denominator; `recon_nodes` takes a
    uniform sample of them for both. The backbone's own losses see the masked embeddings too.
    Source: RLMRec, equations 17 and 18, and its code.

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
        chosen = order[:number]
        masked = start.index_copy(0, self._described[chosen], self.token.expand(number, -1))
        asked = chosen[: self.settings.recon_nodes].sort().values
        return replace(self.backbone.encode(masked, generator, step), masked=asked)

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
        nodes = self._described[batch.share(places)]  # ascending: users, then items
        first_item = int(torch.searchsorted(nodes, len(encoded.users)))
        of_users, of_items = nodes[:first_item], nodes[first_item:] - len(encoded.users)
        own = torch.cat(
            [encoded.users.index_select(0, of_users), encoded.items.index_select(0, of_items)]
        )
        total = self.info_nce(self.project(own), batch.share(profiles), profiles)
        return total * (self.settings.recon_weight / len(places))
