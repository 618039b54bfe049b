"""What a language model is told of users and items when it reranks and explains."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raysys.data.dataset import Dataset
from raysys.schema import TRAIN
from raysys.stages.context import RunContext
from raysys.text.context import Context, context_of
from raysys.text.evidence import shown_items
from raysys.text.profiles import summaries_in_order
from raysys.text.prompts import Shown
from raysys.text.rerank import RerankSettings

_USER_PROFILES = "user_profiles"


class Told:
    """What the language model is told of users and items.

    Args:
        settings: how much.
        dataset: whose train likes and texts.
        profiles: folder of the users' profiles; none: there are none.
    """

    def __init__(self, settings: RerankSettings, dataset: Dataset, profiles: Path | None) -> None:
        self.settings = settings
        self.items: list[Shown] = list(
            shown_items(
                dataset.items,
                settings.item_columns,
                settings.item_characters,
                "rerank.item_columns",
            )
        )
        self.likes = dataset.histories(TRAIN)
        found: list[str | None] = [None] * len(self.likes)
        if profiles is not None and settings.profile_characters:
            found = list(summaries_in_order(profiles, dataset.user_ids))
        self._profiles = found

    def of(self, user: int) -> Context:
        """The context of a user row."""
        return self.of_items(self.likes[user], self._profiles[user])

    def of_items(self, items: np.ndarray, profile: str | None = None) -> Context:
        """The context of someone who likes these item rows, oldest first."""
        latest = items[max(0, len(items) - self.settings.liked_items) :]
        liked = [self.items[item] for item in latest]
        return context_of(profile, liked, self.settings.profile_characters)


def told_of(context: RunContext) -> Told:
    """What this run tells."""
    folder = context.run.path(_USER_PROFILES) if profile_stages(context) else None
    return Told(context.settings.rerank, context.dataset, folder)


def profile_stages(context: RunContext) -> list[str]:
    """The stage of user profiles, where this run has one."""
    return [_USER_PROFILES] if context.run.path(_USER_PROFILES).is_dir() else []
