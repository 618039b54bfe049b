"""The one dictionary of backbones, the settings of a model, and how one is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from pydantic import Field, ValidationInfo, field_validator

from raysys.errors import UserError
from raysys.graph.bipartite import BipartiteGraph
from raysys.models.align import Alignment, align
from raysys.models.als import AlsSettings
from raysys.models.autocf import AutoCF, AutoCFSettings
from raysys.models.base import Others, Recommender
from raysys.models.dccf import DCCF, DCCFSettings
from raysys.models.gat import GAT, PROFILES, GATSettings
from raysys.models.gccf import GCCF, GCCFSettings
from raysys.models.lightgcn import LightGCN, LightGCNSettings
from raysys.models.linear import BlendSettings, EaseSettings, ItemKNNSettings
from raysys.models.ngcf import NGCF, NGCFSettings
from raysys.models.profiles import Profiles
from raysys.models.sgl import SGL, SGLSettings, SimGCL, SimGCLSettings
from raysys.settings import Settings, nearest, parse_nested

#: Name, settings class, and a model built from (settings, graph, generator).
Backbone = tuple[type[Settings], type[Recommender]]


def registry(*entries: tuple[str, type[Settings], type[Recommender]]) -> dict[str, Backbone]:
    """A dictionary of backbones.

    Raises:
        ValueError: a name stands twice; a plain dict would silently keep the last.
    """
    table: dict[str, Backbone] = {}
    for name, settings, model in entries:
        if name in table:
            raise ValueError(f"backbone '{name}' is registered twice.")
        table[name] = (settings, model)
    return table


BACKBONES = registry(
    ("lightgcn", LightGCNSettings, LightGCN),
    ("gccf", GCCFSettings, GCCF),
    ("sgl", SGLSettings, SGL),
    ("simgcl", SimGCLSettings, SimGCL),
    ("dccf", DCCFSettings, DCCF),
    ("autocf", AutoCFSettings, AutoCF),
    ("gat", GATSettings, GAT),
    ("ngcf", NGCFSettings, NGCF),
)


#: Models without gradients, in the same family: what any backbone has to beat.
LINEAR: dict[str, type[Settings]] = {
    "itemknn": ItemKNNSettings,
    "ease": EaseSettings,
    "als": AlsSettings,
    "blend": BlendSettings,
}


def no_backbone(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is none of the known ones."""
    hint = nearest(name, known)
    everything = f" All: {', '.join(known)}" if hint.endswith("?") else ""
    return f"no backbone '{name}', {hint}{everything}"


class ModelSettings(Settings):
    """Which model: a backbone, its settings, and whether profiles are aligned with it."""

    backbone: str = "lightgcn"
    """Name in `BACKBONES` or `LINEAR`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the backbone; what is left out takes its default."""
    alignment: Alignment | None = None
    """Alignment with LLM profiles; none: the backbone alone."""

    @property
    def linear(self) -> bool:
        """Whether the model is one of `LINEAR`."""
        return self.backbone in LINEAR

    def reads_profiles(self, grid: Mapping[str, Sequence[Any]] = MappingProxyType({})) -> bool:
        """Whether profile vectors are needed, with any of the settings in `grid`."""
        weights = grid.get("text_weight", [self.settings.get("text_weight", 0.0)])
        features = self.settings.get("features") == PROFILES
        return self._aligned or any(weights) or features

    @property
    def _aligned(self) -> bool:
        """Contrastive alignment of weight 0 is the backbone alone, and needs no texts."""
        return self.alignment is not None and self.alignment.reads_profiles

    @field_validator("backbone")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [*BACKBONES, *LINEAR]
        if name not in known:
            raise ValueError(no_backbone(name, known))
        return name

    @field_validator("alignment")
    @classmethod
    def _fits(cls, alignment: Alignment | None, info: ValidationInfo) -> Alignment | None:
        name = info.data.get("backbone")
        if alignment is not None and name in LINEAR:
            raise ValueError(f"'{name}' has no embeddings to align: valid: {', '.join(BACKBONES)}")
        return alignment

    @field_validator("settings")
    @classmethod
    def _complete(cls, values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        name = info.data.get("backbone")
        if name is None:
            return values  # the unknown backbone is the problem to report
        settings = BACKBONES[name][0] if name in BACKBONES else LINEAR[name]
        return parse_nested(settings, values, source=f"backbone '{name}'").model_dump()


def build_model(
    settings: ModelSettings,
    graph: BipartiteGraph,
    profiles: Profiles | None,
    seed: int,
    others: Others = MappingProxyType({}),
) -> Recommender:
    """A fresh model on the device of the graph; the same seed gives the same parameters.

    Args:
        others: what users rated in train and did not like, for models that read it.

    Raises:
        UserError: the model reads profile vectors and none are given.
    """
    generator = torch.Generator().manual_seed(seed)
    settings_class, model_class = BACKBONES[settings.backbone]
    values = settings_class.model_validate(settings.settings)
    if settings.reads_profiles() and profiles is None:
        raise UserError(
            "the model reads profile vectors and none are given: embed the profiles first, or "
            'remove its [alignment] (gat: set features = "none").'
        )
    build: Any = model_class
    content = (profiles, others) if model_class.reads_content else ()
    model: Recommender = build(values, graph, generator, *content)
    if settings.alignment is not None and settings.alignment.reads_profiles:
        assert profiles is not None
        model = align(model, settings.alignment, profiles, generator)
    return model.to(graph.device)
