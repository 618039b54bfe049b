"""RLMRec's settings for Amazon-book, by backbone and alignment (its released configurations)."""

from __future__ import annotations

from typing import Any

from raysys.errors import UserError
from raysys.models.contrastive import ContrastiveAlignment
from raysys.models.generative import GenerativeAlignment
from raysys.models.registry import BACKBONES, ModelSettings, no_backbone
from raysys.settings import nearest

#: Backbone → alignment → what differs from the backbone's defaults, and the alignment.
_ROWS: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "lightgcn": {
        "con": ({"reg": 1e-7}, {"kd_weight": 0.01, "temperature": 0.2}),
        "gen": (
            {"layers": 2, "reg": 1e-7},
            {"mask_ratio": 0.15, "recon_weight": 0.1, "temperature": 0.5},
        ),
    },
    "gccf": {
        "con": ({}, {"kd_weight": 0.001, "temperature": 0.1}),
        "gen": ({"reg": 1e-7}, {"mask_ratio": 0.1, "recon_weight": 0.01, "temperature": 0.1}),
    },
    "sgl": {
        "con": ({}, {"kd_weight": 0.01, "temperature": 0.5}),
        "gen": ({}, {"mask_ratio": 0.2, "recon_weight": 0.1, "temperature": 0.2}),
    },
    "simgcl": {
        "con": ({}, {"kd_weight": 0.01, "temperature": 0.2}),
        "gen": ({}, {"mask_ratio": 0.05, "recon_weight": 0.1, "temperature": 0.2}),
    },
    "dccf": {
        "con": ({}, {"kd_weight": 0.01, "temperature": 0.5}),
        "gen": ({}, {"mask_ratio": 0.05, "recon_weight": 0.1, "temperature": 0.2}),
    },
    "autocf": {
        "con": ({"uniformity_weight": 1.0}, {"kd_weight": 0.1, "temperature": 0.5}),
        "gen": (
            {"uniformity_weight": 1.0},
            {"mask_ratio": 0.2, "recon_weight": 1.0, "temperature": 0.5},
        ),
    },
}
ALIGNMENTS = ("none", "con", "gen")
#: The backbones of RLMRec's Table 1.
PUBLISHED_BACKBONES = tuple(_ROWS)


def published(
    backbone: str, alignment: str = "none", *, weight: float | None = None
) -> ModelSettings:
    """The settings of one row of RLMRec's Table 1, Amazon-book.

    Args:
        backbone: a name in `BACKBONES`.
        alignment: `none`, `con` or `gen`.
        weight: instead of the published weight of the alignment loss; 0 is the base with the
            aligned row's settings.

    Raises:
        UserError: an unknown name; the known ones are listed.
    """
    if backbone not in BACKBONES:
        raise UserError(no_backbone(backbone, list(BACKBONES)))
    if alignment not in ALIGNMENTS:
        raise UserError(f"no alignment '{alignment}': {nearest(alignment, ALIGNMENTS)}")
    if alignment == "none":
        return ModelSettings(backbone=backbone)
    if backbone not in _ROWS:
        raise UserError(
            f"RLMRec has no aligned row for '{backbone}', only for {', '.join(_ROWS)}: give it an "
            "alignment in the config."
        )
    settings, values = _ROWS[backbone][alignment]
    if weight is not None:
        kind = ContrastiveAlignment if alignment == "con" else GenerativeAlignment
        values = values | {kind.weight_name: weight}
    return ModelSettings.model_validate(
        {"backbone": backbone, "settings": settings, "alignment": {"kind": alignment, **values}}
    )
