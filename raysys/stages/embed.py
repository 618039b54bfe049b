"""Stage `embeddings`: profiles become vectors, or a person's own vectors take their place."""

from __future__ import annotations

from raysys.data.sources import require_file
from raysys.manifest import Manifest
from raysys.stages.context import RunContext
from raysys.text.embeddings import embed_profiles
from raysys.text.vectors import take_vectors


def run(context: RunContext) -> tuple[Manifest, bool]:
    """Write `RUN/embeddings/vectors.safetensors`.

    From all profiles, or, where the config gives vectors, from these and the data set alone:
    Ray is not started then.
    """
    settings = context.settings.embeddings
    own = settings.own
    if own:
        for path in own.values():
            require_file(path)
        return context.run.run_stage(
            "embeddings",
            {key: str(path) for key, path in own.items()}
            | {"users_from_items": settings.users_from_items},
            ["data"],
            lambda output: take_vectors(settings, context.dataset, output),
            files=own,
        )
    return context.run.run_stage(
        "embeddings",
        # What has no meaning here may change without making finished work stale.
        settings.model_dump(
            mode="json", exclude={"user_vectors", "item_vectors", "users_from_items"}
        ),
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
