"""Alignment of graph embeddings with LLM profiles: a wrapper over any backbone (RLMRec)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import init

from raysys.errors import UserError
from raysys.models.base import Batch, Recommender
from raysys.models.losses import info_nce
from raysys.models.profiles import Profiles
from raysys.settings import Settings


class ContrastiveAlignment(Settings):
    """RLMRec-Con; the defaults are its row for Amazon-book (which also sets reg to 1e-7)."""

    kd_weight: float = Field(default=0.01, ge=0)
    """Weight of the alignment loss. 0 trains the same model without it: the fair baseline."""
    temperature: float = Field(default=0.2, gt=0)
    """τ: cosines are divided by it."""
    denominator: Literal["rlmrec", "in_batch"] = "rlmrec"
    """`rlmrec`: users against all users, items against the batch. `in_batch`: users too."""
    matmul: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the profile MLP. `auto`: bfloat16 on a GPU or a processor with AMX."""


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32.

    Measured: with AMX about 8 times faster, with AVX-512 alone half as fast.
    """
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def matmul_type(choice: str, device: torch.device) -> torch.dtype:
    """The precision that `ContrastiveAlignment.matmul` means on this device."""
    if choice == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else fast_bfloat16()
        choice = "bfloat16" if fast else "float32"
    return torch.bfloat16 if choice == "bfloat16" else torch.float32


class _Texts:
    """The profile vectors of one side, without the nodes that have none.

    Attributes:
        vectors: (n, s), n nodes with a profile.
        nulls: how many nodes have none.
    """

    def __init__(
        self, matrix: np.ndarray, mask: np.ndarray, device: torch.device, dtype: torch.dtype
    ) -> None:
        rows = np.flatnonzero(mask)
        place = np.full(len(mask), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        self.vectors = torch.from_numpy(matrix[rows]).to(device, dtype)
        self.nulls = len(mask) - len(rows)
        self._rows = torch.from_numpy(rows).to(device)
        self._place = torch.from_numpy(place).to(device)

    def unique(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Nodes of a batch that have a profile, each once.

        Args:
            nodes: (B,) node rows.

        Returns:
            (m,) places in `vectors`, (m,) node rows, (m,) float counts in the batch.
        """
        places = self._place[nodes]
        found, counts = torch.unique(places[places >= 0], return_counts=True)
        return found, self._rows[found], counts.float()


class Aligned(Recommender):
    """A backbone with RLMRec's contrastive alignment added to its losses.

    L_align = kd_weight/B · Σ_{b} [ℓ(e_u, t_u; T_users) + ℓ(e_i⁺, t_i⁺; T⁺) + ℓ(e_i⁻, t_i⁻; T⁻)]
    with t = MLP(profile), ℓ = InfoNCE from graph to text only; T_users: all users, T⁺ and T⁻:
    the batch's positives and negatives, duplicates kept. A node without a profile is in
    neither numerator nor denominator. Source: RLMRec, equations 6 and 7, and its code.

    Each node of a batch is computed once and counted as often as it stands there: equal to
    the paper's sums, at about half the work. The MLP runs on all users and on the batch's
    items only.

    Args:
        backbone: any recommender; its `reg` also covers the MLP.
        settings: see `ContrastiveAlignment`.
        profiles: vectors of the graph's users and items.
        generator: CPU random state for the MLP's start (Xavier uniform weights).
    """

    def __init__(
        self,
        backbone: Recommender,
        settings: ContrastiveAlignment,
        profiles: Profiles,
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
        self.settings = settings
        s, d = profiles.users.shape[1], backbone.width
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(s, (s + d) // 2),
            torch.nn.LeakyReLU(),
            torch.nn.Linear((s + d) // 2, d),
        )
        for layer in self.mlp:
            if isinstance(layer, torch.nn.Linear):
                init.xavier_uniform_(layer.weight, generator=generator)
                bound = layer.in_features**-0.5
                init.uniform_(layer.bias, -bound, bound, generator=generator)
        device = backbone.graph.device
        self._type = matmul_type(settings.matmul, device)
        self._users = _Texts(profiles.users, profiles.user_has_profile, device, self._type)
        self._items = _Texts(profiles.items, profiles.item_has_profile, device, self._type)
        self.null_users = self._users.nulls
        self.null_items = self._items.nulls

    @property
    def width(self) -> int:
        """d of the backbone."""
        return self.backbone.width

    def initial_embeddings(self) -> torch.Tensor:
        """Those of the backbone."""
        return self.backbone.initial_embeddings()

    def propagate_nodes(
        self, start: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """That of the backbone."""
        return self.backbone.propagate_nodes(start, generator)

    def batch_losses(
        self,
        users: torch.Tensor,
        items: torch.Tensor,
        batch: Batch,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        """The backbone's losses and `align`."""
        named = self.backbone.batch_losses(users, items, batch, generator)
        if self.settings.kd_weight == 0:
            named["align"] = users.new_zeros(())
        else:
            scale = self.settings.kd_weight / len(batch)
            named["align"] = scale * self._alignment(users, items, batch)
        return named

    def _alignment(self, users: torch.Tensor, items: torch.Tensor, batch: Batch) -> torch.Tensor:
        """This worker's share of the three InfoNCE sums of a batch."""
        places, nodes, counts = self._users.unique(batch.users)
        if self.settings.denominator == "rlmrec":
            everyone = self._text(self._users.vectors)  # (users with a profile, d)
            total = self._sum(batch, users, nodes, counts, everyone[places], everyone, None)
        else:
            texts = self._text(self._users.vectors[places])  # (m, d)
            total = self._sum(batch, users, nodes, counts, texts, texts, counts)

        sides = [self._items.unique(batch.positives), self._items.unique(batch.negatives)]
        needed, at = torch.unique(torch.cat([side[0] for side in sides]), return_inverse=True)
        texts = self._text(self._items.vectors[needed])  # (unique items, d)
        for (_, nodes, counts), rows in zip(
            sides, at.split([len(side[0]) for side in sides]), strict=True
        ):
            own = texts[rows]
            total = total + self._sum(batch, items, nodes, counts, own, own, counts)
        return total

    def _sum(
        self,
        batch: Batch,
        embeddings: torch.Tensor,
        nodes: torch.Tensor,
        counts: torch.Tensor,
        targets: torch.Tensor,
        keys: torch.Tensor,
        key_counts: torch.Tensor | None,
    ) -> torch.Tensor:
        """Σ over this worker's nodes of count · InfoNCE; every worker has all keys."""
        rows = info_nce(
            embeddings.index_select(0, batch.share(nodes)),
            batch.share(targets),
            keys,
            self.settings.temperature,
            key_counts,
        )
        return (rows * batch.share(counts)).sum()

    def _text(self, vectors: torch.Tensor) -> torch.Tensor:
        """MLP(profile), float32 whatever its products are computed in. (n, s) -> (n, d)."""
        low = self._type == torch.bfloat16
        with torch.autocast(vectors.device.type, dtype=torch.bfloat16, enabled=low):
            out: torch.Tensor = self.mlp(vectors)
        return out.float()
