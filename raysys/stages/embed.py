"""Stage `embeddings`: profiles become vectors."""

from __future__ import annotations

from raysys.stages.context import RunContext
from raysys.store import Manifest
from raysys.text.embeddings import embed_profiles


def run(context: RunContext) -> tuple[Manifest, bool]:
    """Encode all profiles into `RUN/embeddings/vectors.safetensors`."""
    settings = context.settings.embeddings
    return context.run.run_stage(
        "embeddings",
        settings.model_dump(mode="json"),
        ["data", "item_profiles", "user_profiles"],
        lambda output: embed_profiles(
            settings,
            context.settings.cluster,
            context.resources,
            context.dataset,
            context.run.path("item_profiles"),
            context.run.path("user_profiles"),
            output,
        ),
    )
