"""The profile stages: an LLM describes every item, then every user (RLMRec §3.2).

Users are described from their *train* interactions only, through the profiles
of the items they chose.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from raysys.cluster import ClusterSettings, Resources
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.schema import (
    DEAD_LETTER_FILE,
    DEAD_LETTER_SCHEMA,
    DETAIL,
    ENTITY_ID,
    GENERATED_TOKENS,
    ITEM_ID,
    PROFILE_SCHEMA,
    PROFILES_FILE,
    PROMPT_TOKENS,
    REASON,
    REASONING,
    SUMMARY,
    TITLE,
    TRAIN,
)
from raysys.settings import Settings, nearest
from raysys.store import StageReport, read_table, write_table
from raysys.text.engine import ERROR, REPLY, EngineSettings, SamplingSettings, VllmEngine
from raysys.text.generation import PARTS, REQUEST_SCHEMA, generate
from raysys.text.prompts import Message, item_messages, user_messages
from raysys.text.structured import Rejected, is_none, parse_profile, profile_schema

DESCRIPTION = "description"
#: JSON punctuation, keys and tokens that break off badly: slack beside the words of a reply.
REPLY_SLACK_TOKENS = 32
#: Tokens that a word of English takes with the tokenisers of small models, rounded up.
TOKENS_PER_WORD = 2


class KnownItem(Settings):
    """What an example shows of an item."""

    title: str
    """Its title."""
    description: str
    """Its description."""


class Example(Settings):
    """A solved case that the LLM sees before each question."""

    items: tuple[KnownItem, ...] = Field(min_length=1)
    """The item; for a user, the items that the user chose."""
    summarization: str
    """The summarization that a good answer gives."""
    reasoning: str = ""
    """Its reasoning, needed where `reasoning_words` is above 0."""


class ProfileSettings(Settings):
    """What the LLM is asked and how long it may answer. Defaults: RLMRec's prompts."""

    noun: str = Field(default="item", min_length=1)
    """What an item is called in the prompts: `movie`, `book`, …"""
    item_words: int = Field(default=200, ge=5, le=500)
    """Longest item summarization."""
    user_words: int = Field(default=100, ge=5, le=500)
    """Longest user summarization."""
    reasoning_words: int = Field(default=200, ge=0, le=500)
    """Longest reasoning; 0 does not ask for one. Reasoning is stored, never embedded."""
    description_columns: tuple[str, ...] = ()
    """Item columns shown to the LLM; empty: all beside id and title."""
    description_characters: int = Field(default=1000, ge=20)
    """Longer descriptions are cut."""
    items_per_user: int = Field(default=10, ge=1)
    """Train interactions shown for a user, drawn at random by seed."""
    seed: int = 2023
    """Draws the interactions shown."""
    item_examples: tuple[Example, ...] = ()
    """Solved items, one item each. The paper has none; models below 1B parameters need them."""
    user_examples: tuple[Example, ...] = ()
    """Solved users."""
    engine: EngineSettings = EngineSettings()
    """The LLM."""
    sampling: SamplingSettings = SamplingSettings()
    """How it decodes."""

    @model_validator(mode="after")
    def _examples_are_complete(self) -> ProfileSettings:
        if any(len(example.items) != 1 for example in self.item_examples):
            raise ValueError("each of item_examples shows exactly one item")
        if self.reasoning_words and not all(
            example.reasoning for example in (*self.item_examples, *self.user_examples)
        ):
            raise ValueError("examples need `reasoning` where reasoning_words is above 0")
        return self

    def answer(self, example: Example) -> dict[str, str]:
        """The reply that an example shows."""
        reply = {"summarization": example.summarization}
        return reply | ({"reasoning": example.reasoning} if self.reasoning_words else {})


def profile_items(
    settings: ProfileSettings,
    cluster: ClusterSettings,
    have: Resources,
    dataset: Dataset,
    output: Path,
) -> StageReport:
    """Write a profile for every item into `output`: rows in = profiles + dead letters."""
    requests = item_requests(settings, dataset)
    engine = profile_engine(settings, cluster, settings.item_words)
    return _profile("item_profiles", requests, engine, settings, have, output)


def profile_users(
    settings: ProfileSettings,
    cluster: ClusterSettings,
    have: Resources,
    dataset: Dataset,
    item_profiles: Path,
    output: Path,
) -> StageReport:
    """Write a profile for every user into `output`, from train interactions only.

    Args:
        item_profiles: the published folder of the item profile stage.
    """
    summaries = summaries_in_order(item_profiles, dataset.item_ids)
    requests = user_requests(settings, dataset, summaries)
    engine = profile_engine(settings, cluster, settings.user_words)
    return _profile("user_profiles", requests, engine, settings, have, output)


def item_requests(settings: ProfileSettings, dataset: Dataset) -> pa.Table:
    """What the LLM is asked about each item, as `REQUEST_SCHEMA`."""
    titles = dataset.items[TITLE].to_pylist()
    descriptions = describe_items(dataset.items, settings)
    examples = [
        (example.items[0].model_dump(), settings.answer(example))
        for example in settings.item_examples
    ]
    chats = [
        item_messages(
            settings.noun,
            settings.item_words,
            settings.reasoning_words > 0,
            {"title": title, "description": description},
            examples,
        )
        for title, description in zip(titles, descriptions, strict=True)
    ]
    return _requests(dataset.item_ids, chats)


def user_requests(
    settings: ProfileSettings, dataset: Dataset, summaries: list[str | None]
) -> pa.Table:
    """What the LLM is asked about each user, as `REQUEST_SCHEMA`.

    Args:
        summaries: the summarization of each item; None where there is no profile.
    """
    titles = dataset.items[TITLE].to_pylist()
    evidence = sample_per_user(
        *dataset.pairs(TRAIN), len(dataset.user_ids), settings.items_per_user, settings.seed
    )
    examples = [
        ([item.model_dump() for item in example.items], settings.answer(example))
        for example in settings.user_examples
    ]
    chats = [
        user_messages(
            settings.noun,
            settings.user_words,
            settings.reasoning_words > 0,
            [{"title": titles[item], "description": summaries[item]} for item in items],
            examples,
        )
        for items in evidence
    ]
    return _requests(dataset.user_ids, chats)


def profile_engine(settings: ProfileSettings, cluster: ClusterSettings, words: int) -> VllmEngine:
    """An engine that writes profiles of at most `words` words, and reasoning where asked for."""
    return VllmEngine(
        settings.engine,
        cluster,
        settings.sampling,
        schema=profile_schema(words, settings.reasoning_words),
        max_tokens=TOKENS_PER_WORD * (words + settings.reasoning_words) + REPLY_SLACK_TOKENS,
    )


def describe_items(items: pa.Table, settings: ProfileSettings) -> list[str | None]:
    """One description an item: its `description`, else `column: value; …` over its columns.

    Raises:
        UserError: a column of the settings is not there.
    """
    skip = {ITEM_ID, TITLE, DESCRIPTION}
    columns = settings.description_columns or tuple(
        name for name in items.column_names if name not in skip
    )
    for name in columns:
        if name not in items.column_names:
            close = nearest(name, items.column_names)
            raise UserError(f"profiles.description_columns: items have no column '{name}': {close}")
    own = items[DESCRIPTION].to_pylist() if DESCRIPTION in items.column_names else None
    rows = items.select(list(columns)).to_pylist()
    found: list[str | None] = []
    for row, attributes in enumerate(rows):
        text = own[row] if own and not settings.description_columns else None
        if not text:
            known = {name: value for name, value in attributes.items() if value not in (None, "")}
            text = "; ".join(f"{name.replace('_', ' ')}: {known[name]}" for name in known)
        found.append(text[: settings.description_characters] or None)
    return found


def sample_per_user(
    users: np.ndarray[Any, Any],
    items: np.ndarray[Any, Any],
    n_users: int,
    limit: int,
    seed: int,
) -> list[np.ndarray[Any, Any]]:
    """Draw at most `limit` item rows for each user, without replacement.

    Args:
        users: (n,) user rows of the interactions, in any order.
        items: (n,) item rows.

    Returns:
        `n_users` arrays of item rows; a user without interactions gets an empty one.
    """
    shuffled = np.random.default_rng(seed).permutation(len(users))
    order = shuffled[np.argsort(users[shuffled], kind="stable")]
    starts = np.searchsorted(users[order], np.arange(n_users + 1))
    return [items[order[start : min(end, start + limit)]] for start, end in pairwise(starts)]


def summaries_in_order(folder: Path, ids: np.ndarray[Any, Any]) -> list[str | None]:
    """The summarization of each id in `ids`; None where there is no profile."""
    table = read_table(folder / PROFILES_FILE, [ENTITY_ID, SUMMARY])
    rows = pc.index_in(pa.array(ids, pa.string()), value_set=table[ENTITY_ID])
    summaries: list[str | None] = table[SUMMARY].take(rows).to_pylist()
    return summaries


def _requests(ids: np.ndarray[Any, Any], chats: list[list[Message]]) -> pa.Table:
    texts = [json.dumps(chat) for chat in chats]
    return pa.table([pa.array(ids, pa.string()), pa.array(texts, pa.string())], REQUEST_SCHEMA)


def _profile(
    stage: str,
    requests: pa.Table,
    engine: VllmEngine,
    settings: ProfileSettings,
    have: Resources,
    output: Path,
) -> StageReport:
    """Generate, check and write profiles and dead letters."""
    replies = generate(
        requests,
        engine,
        output,
        stage=stage,
        have=have,
        block_rows=settings.engine.batch_size,
    )
    profiles, dead = split_replies(replies)
    write_table(output / PROFILES_FILE, profiles)
    write_table(output / DEAD_LETTER_FILE, dead)
    shutil.rmtree(output / PARTS)
    return StageReport(
        counts={
            "in": requests.num_rows,
            "ok": profiles.num_rows,
            "dead_letter": dead.num_rows,
            "null_profiles": profiles[SUMMARY].null_count,
        },
        dropped=dict(Counter(dead[REASON].to_pylist())),
        figures={
            PROMPT_TOKENS: float(pc.sum(replies[PROMPT_TOKENS]).as_py() or 0),
            GENERATED_TOKENS: float(pc.sum(replies[GENERATED_TOKENS]).as_py() or 0),
        },
    )


def split_replies(replies: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Parse raw replies into `PROFILE_SCHEMA` and `DEAD_LETTER_SCHEMA` tables."""
    profiles: list[dict[str, Any]] = []
    dead: list[dict[str, Any]] = []
    for row in replies.select(
        [ENTITY_ID, REPLY, ERROR, PROMPT_TOKENS, GENERATED_TOKENS]
    ).to_pylist():
        parsed = (
            Rejected("engine_error", row[ERROR][:500]) if row[ERROR] else parse_profile(row[REPLY])
        )
        if isinstance(parsed, Rejected):
            dead.append({ENTITY_ID: row[ENTITY_ID], REASON: parsed.reason, DETAIL: parsed.detail})
            continue
        profiles.append(
            {
                ENTITY_ID: row[ENTITY_ID],
                SUMMARY: None if is_none(parsed.summarization) else parsed.summarization.strip(),
                REASONING: parsed.reasoning,
                PROMPT_TOKENS: row[PROMPT_TOKENS],
                GENERATED_TOKENS: row[GENERATED_TOKENS],
            }
        )
    return (
        pa.Table.from_pylist(profiles, schema=PROFILE_SCHEMA),
        pa.Table.from_pylist(dead, schema=DEAD_LETTER_SCHEMA),
    )
