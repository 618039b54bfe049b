"""Stages `item_profiles` and `user_profiles`: the LLM describes items, then users."""

from __future__ import annotations

from raysys.errors import UserError
from raysys.stages.context import RunContext
from raysys.store import Manifest
from raysys.text.profiles import ProfileSettings, profile_items, profile_users

#: The stages of this module; a run with its own vectors has none of them.
PROFILE_STAGES = ("item_profiles", "user_profiles")
#: Settings of how the engine is run, which leave what it writes as it is.
_HOW = {"engine": {"max_num_seqs", "batch_size", "kv_cache_gib", "tensor_parallel"}}
_ITEMS_ONLY = {"item_words", "item_examples", "description_columns", "description_characters"}
_USERS_ONLY = {"user_words", "user_examples", "items_per_user", "seed"}


def run_items(context: RunContext) -> tuple[Manifest, bool]:
    """Profile every item into `RUN/item_profiles`.

    Raises:
        UserError: the run has its own vectors, so that nobody would read the profiles.
    """
    _refuse_own_vectors(context)
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
    """Profile every user into `RUN/user_profiles`; refuses what `run_items` refuses."""
    _refuse_own_vectors(context)
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


def _refuse_own_vectors(context: RunContext) -> None:
    own = context.settings.embeddings.own
    if own:
        keys = " and ".join(f"embeddings.{key}" for key in own)
        raise UserError(
            f"the config gives its own vectors, so no profile is needed: remove {keys} "
            "to have profiles written."
        )


def _config(settings: ProfileSettings, unused: set[str]) -> dict[str, object]:
    return settings.model_dump(mode="json", exclude={**_HOW, **dict.fromkeys(unused, True)})
