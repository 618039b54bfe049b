"""The profile stages: an LLM describes every item, then every user, from *train* alone.

`rlmrec`: RLMRec §3.2, one question each. `unified` and `integrated`: End-to-End Personalization
§2.1, where a user's profile is refined in a conversation; see `raysys.text.conversation`.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysys.cluster import ClusterSettings, Resources
from raysys.data.dataset import Dataset
from raysys.manifest import StageReport
from raysys.schema import ENTITY_ID, FIELDS, PROFILES_FILE, SUMMARY, TITLE, TRAIN
from raysys.store import read_table
from raysys.text.conversation import Evidence, converse, markdown
from raysys.text.evidence import (
    describe_items,
    item_reviews,
    liked_and_disliked,
    reviews_of,
    sample_per_row,
    train_rows,
)
from raysys.text.prompts import Prompt, Prompts, Shown, load_prompts
from raysys.text.stage import Text, TextSettings, latest_titles, publish, writing
from raysys.text.structured import Fields, Rejected
from raysys.text.writing import Written

NO_EVIDENCE = Rejected("no_evidence", "nothing in train says anything of this user")


class ProfileSettings(TextSettings):
    """What the LLM is asked and how long it may answer. Defaults: RLMRec's prompts."""

    moved = MappingProxyType({"liked_from": "data.liked_from", "disliked_to": "data.disliked_to"})
    method: Literal["rlmrec", "unified", "integrated"] = "rlmrec"
    """`rlmrec`: what kind of users, what kind of items. `unified`: Overview, Attributes,
    Description, Dislikes for both. `integrated`: the same evidence as `unified`, one free text."""
    item_words: int = Field(default=200, ge=5, le=500)
    """Longest item profile."""
    user_words: int = Field(default=100, ge=5, le=500)
    """Longest user profile."""
    reasoning_words: int = Field(default=200, ge=0, le=500)
    """Longest reasoning (`rlmrec`); 0 does not ask for one. It is stored, never embedded."""
    description_columns: tuple[str, ...] = ()
    """Item columns shown to the LLM; empty: the description, or all beside id and title."""
    description_characters: int = Field(default=1000, ge=20)
    """Longer descriptions are cut."""
    reviews_per_item: int = Field(default=3, ge=0)
    """Train reviews, drawn by seed, shown for an item that has no description of its own."""
    review_characters: int = Field(default=300, ge=20)
    """Longer reviews are cut."""
    items_per_user: int = Field(default=10, ge=1)
    """Train interactions shown for a user, drawn by seed (`rlmrec`)."""
    liked_items: int = Field(default=10, ge=1)
    """Items shown that the user liked (`unified`, `integrated`); `data.liked_from` says from which
    rating on."""
    disliked_items: int = Field(default=10, ge=0)
    """Items shown that the user disliked, by `data.disliked_to`."""
    items_per_turn: int = Field(default=5, ge=1)
    """How many of them in one turn of the conversation."""
    evidence: Literal["latest", "extreme"] = "latest"
    """Which ones: the latest (the released code), or the highest and lowest rated (the paper)."""

    def prompts(self, kind: Literal["item", "user"]) -> Prompts:
        """The prompts for items or users."""
        words = self.item_words if kind == "item" else self.user_words
        reasoning = self.reasoning_words if self.method == "rlmrec" else 0
        return load_prompts(self.method, self.domain, words, reasoning, examples=self.examples)


def profile_items(
    settings: ProfileSettings,
    cluster: ClusterSettings,
    have: Resources,
    dataset: Dataset,
    output: Path,
    *,
    dry: bool = False,
) -> StageReport:
    """Write a profile for every item into `output`: rows in = profiles + dead letters."""
    prompts = settings.prompts("item")
    asked = item_prompts(settings, prompts, dataset)
    with writing("item_profiles", settings, prompts, cluster, have, output, dry=dry) as writer:
        written = writer.write(asked)
        results = {name: _text(settings, result) for name, result in written.items()}
        if settings.on_failure == "template":
            _fill_items(settings, dataset, results)
        return publish(output, results, writer)


def profile_users(
    settings: ProfileSettings,
    cluster: ClusterSettings,
    have: Resources,
    dataset: Dataset,
    item_profiles: Path,
    output: Path,
    *,
    dry: bool = False,
) -> StageReport:
    """Write a profile for every user into `output`, from train interactions only.

    Args:
        item_profiles: the published folder of the item profile stage.
    """
    prompts = settings.prompts("user")
    results: dict[str, Text | Rejected] = dict.fromkeys(dataset.user_ids, NO_EVIDENCE)
    with writing("user_profiles", settings, prompts, cluster, have, output, dry=dry) as writer:
        if settings.method == "rlmrec":
            summaries = summaries_in_order(item_profiles, dataset.item_ids)
            written = writer.write(user_prompts(settings, prompts, dataset, summaries))
            results |= {name: _text(settings, result) for name, result in written.items()}
        else:
            evidence = user_evidence(settings, dataset, item_profiles)
            told = converse(writer, prompts, evidence)
            results |= {
                name: rounds
                if isinstance(rounds, Rejected)
                else Text.of(profile_text(settings.method, rounds[-1].fields), rounds)
                for name, rounds in told.items()
            }
        if settings.on_failure == "template":
            _fill_users(dataset, results)
        return publish(output, results, writer)


def item_prompts(
    settings: ProfileSettings, prompts: Prompts, dataset: Dataset
) -> dict[str, Prompt]:
    """What the LLM is asked about each item, by item id."""
    titles = dataset.items[TITLE].to_pylist()
    descriptions, own = describe_items(
        dataset.items, settings.description_columns, settings.description_characters
    )
    shown: list[dict[str, Any]] = [
        {TITLE: title, "description": description}
        for title, description in zip(titles, descriptions, strict=True)
    ]
    reviews = reviews_of(dataset, settings.review_characters) if settings.reviews_per_item else None
    if reviews is not None:
        drawn = item_reviews(dataset, reviews, settings.reviews_per_item, settings.seed)
        for item, mine, described in zip(shown, drawn, own, strict=True):
            if not described:
                item["reviews"] = mine
    parts = [] if reviews is None else ["reviews"]
    return {
        name: prompts.prompt("item", [item], *parts)
        for name, item in zip(dataset.item_ids, shown, strict=True)
    }


def user_prompts(
    settings: ProfileSettings, prompts: Prompts, dataset: Dataset, summaries: list[str | None]
) -> dict[str, Prompt]:
    """What the LLM is asked about each user with train interactions, by user id (`rlmrec`).

    Args:
        summaries: the profile of each item; None where there is none.
    """
    titles = dataset.items[TITLE].to_pylist()
    rows = train_rows(dataset)
    drawn = sample_per_row(
        dataset.user_rows[rows],
        rows,
        len(dataset.user_ids),
        settings.items_per_user,
        settings.seed,
    )
    reviews = reviews_of(dataset, settings.review_characters)
    parts = [] if reviews is None else ["review"]

    def shown(row: int) -> Shown:
        item = dataset.item_rows[row]
        known: dict[str, Any] = {TITLE: titles[item], "description": summaries[item]}
        return known if reviews is None else known | {"review": reviews[row]}

    return {
        name: prompts.prompt("user", [shown(row) for row in mine], *parts)
        for name, mine in zip(dataset.user_ids, drawn, strict=True)
        if len(mine)
    }


def user_evidence(
    settings: ProfileSettings, dataset: Dataset, item_profiles: Path
) -> dict[str, Evidence]:
    """Liked and disliked items of each user who has any, with their profiles, in turns."""
    titles = dataset.items[TITLE].to_pylist()
    fields = fields_in_order(item_profiles, dataset.item_ids)
    liked, disliked = liked_and_disliked(
        dataset,
        settings.liked_items,
        settings.disliked_items,
        extreme=settings.evidence == "extreme",
    )
    shown: list[Shown] = [
        {TITLE: title, **(known or {})} for title, known in zip(titles, fields, strict=True)
    ]
    size = settings.items_per_turn

    def turns(rows: np.ndarray) -> list[list[Shown]]:
        return [
            [shown[row] for row in rows[start : start + size]]
            for start in range(0, len(rows), size)
        ]

    return {
        name: Evidence(turns(good), turns(bad))
        for name, good, bad in zip(dataset.user_ids, liked, disliked, strict=True)
        if len(good) or len(bad)
    }


def profile_text(method: str, fields: Fields) -> str:
    """The text of a profile, which is what is embedded and shown to other prompts."""
    if method == "unified":
        return markdown(fields)
    text: str = fields["summarization" if method == "rlmrec" else "profile"]
    return text


def summaries_in_order(folder: Path, ids: np.ndarray) -> list[str | None]:
    """The profile of each id in `ids`; None where there is none."""
    return _in_order(folder, ids, SUMMARY)


def fields_in_order(folder: Path, ids: np.ndarray) -> list[Fields | None]:
    """The fields of the profile of each id in `ids`; None where there is none."""
    return [json.loads(text) if text else None for text in _in_order(folder, ids, FIELDS)]


def _in_order(folder: Path, ids: np.ndarray, column: str) -> list[str | None]:
    table = read_table(folder / PROFILES_FILE, [ENTITY_ID, column])
    rows = pc.index_in(pa.array(ids, pa.string()), value_set=table[ENTITY_ID])
    found: list[str | None] = table[column].take(rows).to_pylist()
    return found


def _text(settings: ProfileSettings, result: Written | Rejected) -> Text | Rejected:
    if isinstance(result, Rejected):
        return result
    return Text.of(profile_text(settings.method, result.fields), [result])


def _fill_items(
    settings: ProfileSettings, dataset: Dataset, results: dict[str, Text | Rejected]
) -> None:
    """Give failed items a text of their attributes alone."""
    titles = dataset.items[TITLE].to_pylist()
    known, _ = describe_items(
        dataset.items, settings.description_columns, settings.description_characters
    )
    for name, title, description in zip(dataset.item_ids, titles, known, strict=True):
        parts = [part for part in (title, description) if part]
        if isinstance(results[name], Rejected) and parts:
            results[name] = Text(". ".join(parts), {}, "template")


def _fill_users(dataset: Dataset, results: dict[str, Text | Rejected]) -> None:
    """Give failed users a text of the titles of their latest train items."""
    titles = dataset.items[TITLE].to_pylist()
    for name, items in zip(dataset.user_ids, dataset.histories(TRAIN), strict=True):
        if isinstance(results[name], Rejected):
            results[name] = latest_titles(titles[item] for item in items) or results[name]
