"""Stages `item_profiles`, `user_profiles` and `summaries`: the LLM describes items and users."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from raysys.cluster import Resources
from raysys.data.sources import require_file
from raysys.errors import UserError
from raysys.manifest import Manifest, StageReport
from raysys.schema import PROFILES_FILE
from raysys.settings import Settings
from raysys.stages.context import RunContext
from raysys.text.engine import HOW
from raysys.text.profiles import profile_items, profile_users
from raysys.text.summaries import summarize

#: The profile stages; a run with its own vectors has none of them.
PROFILE_STAGES = ("item_profiles", "user_profiles")
_ITEMS_ONLY = {
    "item_words",
    "description_columns",
    "description_characters",
    "reviews_per_item",
}
_USERS_ONLY = {
    "user_words",
    "items_per_user",
    "liked_items",
    "disliked_items",
    "items_per_turn",
    "evidence",
}
_NOTHING = Resources(0, 0, 0)


def run_items(context: RunContext) -> tuple[Manifest, bool]:
    """Profile every item into `RUN/item_profiles`.

    Raises:
        UserError: the run has its own vectors, so that nobody would read the profiles.
    """
    _refuse_own_vectors(context)
    settings = context.settings.profiles
    return context.run.run_stage(
        "item_profiles",
        text_config(settings, _USERS_ONLY, settings.prompts("item").mark()),
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
        text_config(settings, _ITEMS_ONLY, settings.prompts("user").mark()),
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


def run_summaries(context: RunContext) -> tuple[Manifest, bool]:
    """Summarise every user's history into `RUN/summaries`."""
    settings = context.settings.summaries
    stored = settings.update_from / PROFILES_FILE if settings.update_from else None
    if stored is not None:
        require_file(stored)
    return context.run.run_stage(
        "summaries",
        text_config(settings, set(), settings.prompts().mark()),
        ["data"],
        lambda output: summarize(
            settings, context.settings.cluster, context.resources, context.dataset, output
        ),
        files={"update_from": stored} if stored else None,
    )


def foretell(context: RunContext, stages: tuple[str, ...]) -> dict[str, StageReport]:
    """What the named stages would ask, without asking it: rows, calls, tokens at most.

    Profiles that are not written yet are taken to be as long as they may be. Nothing of the run
    is changed, and Ray is not started.
    """
    settings, cluster, dataset = context.settings, context.settings.cluster, context.dataset
    told: dict[str, StageReport] = {}
    with tempfile.TemporaryDirectory() as folder:
        items = Path(folder, "items")
        for name in ("items", "users", "summaries"):
            Path(folder, name).mkdir()
        if set(stages) & set(PROFILE_STAGES):
            told["item_profiles"] = profile_items(
                settings.profiles, cluster, _NOTHING, dataset, items, dry=True
            )
        if "user_profiles" in stages:
            told["user_profiles"] = profile_users(
                settings.profiles,
                cluster,
                _NOTHING,
                dataset,
                items,
                Path(folder, "users"),
                dry=True,
            )
        if "summaries" in stages:
            told["summaries"] = summarize(
                settings.summaries,
                cluster,
                _NOTHING,
                dataset,
                Path(folder, "summaries"),
                dry=True,
            )
    return {name: told[name] for name in stages}


def _refuse_own_vectors(context: RunContext) -> None:
    own = context.settings.embeddings.own
    if own:
        keys = " and ".join(f"embeddings.{key}" for key in own)
        raise UserError(
            f"the config gives its own vectors, so no profile is needed: remove {keys} "
            "to have profiles written."
        )


def text_config(settings: Settings, unused: set[str], prompts: dict[str, Any]) -> dict[str, Any]:
    """What decides the texts: not how the engine is run, nor where replies are kept."""
    without: dict[str, Any] = {"engine": HOW, "cache": True, **dict.fromkeys(unused, True)}
    return {**settings.model_dump(mode="json", exclude=without), "prompts": prompts}
