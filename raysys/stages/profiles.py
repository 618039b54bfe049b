"""Stages `item_profiles` and `user_profiles`: the LLM describes items, then users."""

from __future__ import annotations

from raysys.stages.context import RunContext
from raysys.store import Manifest
from raysys.text.profiles import ProfileSettings, profile_items, profile_users

#: Settings of how the engine is run, which leave what it writes as it is.
_HOW = {"engine": {"max_num_seqs", "batch_size", "kv_cache_gib", "tensor_parallel"}}
_ITEMS_ONLY = {"item_words", "item_examples", "description_columns", "description_characters"}
_USERS_ONLY = {"user_words", "user_examples", "items_per_user", "seed"}


def run_items(context: RunContext) -> tuple[Manifest, bool]:
    """Profile every item into `RUN/item_profiles`."""
    settings = context.settings.profiles
    return context.run.run_stage(
        "item_profiles",
        _config(settings, _USERS_ONLY),
        ["data"],
        lambda output: profile_items(
            settings, context.settings.cluster, context.resources, context.dataset, output
        ),
    )


def run_users(context: RunContext) -> tuple[Manifest, bool]:
    """Profile every user into `RUN/user_profiles`."""
    settings = context.settings.profiles
    return context.run.run_stage(
        "user_profiles",
        _config(settings, _ITEMS_ONLY),
        ["data", "item_profiles"],
        lambda output: profile_users(
            settings,
            context.settings.cluster,
            context.resources,
            context.dataset,
            context.run.path("item_profiles"),
            output,
        ),
    )


def _config(settings: ProfileSettings, unused: set[str]) -> dict[str, object]:
    return settings.model_dump(mode="json", exclude={**_HOW, **dict.fromkeys(unused, True)})
