"""What both alignments share: a backbone, profile vectors, and an MLP between the two (RLMRec)."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch.nn import init

from raysys.errors import UserError
from raysys.models.base import Batch, Encoded, Recommender
from raysys.models.losses import info_nce
from raysys.models.precision import matrix_type
from raysys.models.profiles import Profiles
from raysys.settings import Settings


class AlignmentSettings(Settings):
    """What both alignments share."""

    weight_name: ClassVar[str]
    """The setting that is the weight of the alignment loss; with 0 no text is learnt."""
    temperature: float = Field(gt=0)
    """τ: cosines are divided by it."""
    pca: int | None = Field(default=None, ge=1)
    """Profile vectors are reduced to this width once, before training; none: used as they are."""
    matmul: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the products in the profile MLP and in InfoNCE. `auto`: bfloat16 on a GPU or
    a processor with AMX."""

    @property
    def weight(self) -> float:
        """Of the alignment loss."""
        return float(getattr(self, self.weight_name))

    @property
    def reads_profiles(self) -> bool:
        """Whether anything in training depends on profiles."""
        return self.weight > 0


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
        settings: AlignmentSettings,
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
            torch.nn.LeakyReLU(inplace=True),
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
