"""Which alignment a config asks for; a wrapper over any backbone."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Discriminator, Tag

from raysys.errors import UserError
from raysys.models.aligned import Aligned
from raysys.models.base import Recommender
from raysys.models.contrastive import Contrastive, ContrastiveAlignment
from raysys.models.generative import Generative, GenerativeAlignment
from raysys.models.profiles import Profiles


def _kind(value: Any) -> Any:
    """Contrastive where a config does not say."""
    return value.get("kind", "con") if isinstance(value, dict) else getattr(value, "kind", None)


Alignment = Annotated[
    Annotated[ContrastiveAlignment, Tag("con")] | Annotated[GenerativeAlignment, Tag("gen")],
    Discriminator(_kind),
]


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
