"""LLM-TRSR's summaries of long histories: hierarchical, recurrent, and brought up to date.

A history is cut into blocks of a few items (§4.1.1). *Hierarchical*: each block is summarised, then
groups of summaries are merged until one is left (§4.1.3). *Recurrent*: the summary of the first
block is updated with each further block (§4.2). A stored summary is brought up to date in the same
way: new interactions cost one call a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from raysys.cluster import ClusterSettings, Resources
from raysys.data.candidates import drawn_users
from raysys.data.dataset import Dataset
from raysys.manifest import StageReport
from raysys.schema import (
    ENTITY_ID,
    HISTORY,
    ITEMS_READ,
    PROFILES_FILE,
    SOURCE,
    SUMMARY,
    SUMMARY_SCHEMA,
    TITLE,
    TRAIN,
    VALID,
)
from raysys.store import fingerprint, read_table
from raysys.text.evidence import shown_items
from raysys.text.prompts import Prompt, Prompts, Shown, clean, load_prompts
from raysys.text.stage import Text, TextSettings, latest_titles, publish, writing
from raysys.text.structured import Rejected
from raysys.text.writing import Writer, Written

NO_HISTORY = Rejected("no_history", "this user has no interaction in the splits that are read")
#: What was written for each user, call by call; the last of it is the summary.
Rounds = dict[str, list[Written] | Rejected]


class SummarySettings(TextSettings):
    """How histories are summarised. Defaults: LLM-TRSR."""

    method: Literal["hierarchical", "recurrent"] = "recurrent"
    """`hierarchical`: blocks, then a tree of merges. `recurrent`: block after block."""
    block_items: int = Field(default=5, ge=1)
    """Items of one block."""
    fan_in: int = Field(default=5, ge=2)
    """Summaries merged into one (`hierarchical`)."""
    words: int = Field(default=100, ge=5, le=500)
    """Longest summary."""
    item_columns: tuple[str, ...] = ()
    """Item columns shown beside the title; empty: all."""
    item_characters: int = Field(default=500, ge=20)
    """Longer values of an item are cut."""
    latest_items: int | None = Field(default=None, ge=1)
    """Only so many of the latest interactions are read; none: all."""
    splits: tuple[Literal["train", "valid"], ...] = ("train",)
    """What counts as history. Test never does."""
    leave_out_latest: int = Field(default=0, ge=0)
    """The latest interactions of these splits are not read: a recommender that learns to predict
    them must not find them in the summary."""
    users: int | None = Field(default=None, ge=1)
    """Only so many users, drawn by `seed`; none: all."""
    update_from: Path | None = None
    """A folder of stored summaries (RUN/summaries): users whose history has grown since then
    cost one call for each new block, users whose history is the same none."""

    def prompts(self) -> Prompts:
        """The three prompts."""
        return load_prompts("trsr", self.domain, self.words, examples=self.examples)


class History:
    """One user's items in order, and how much of them a stored summary has read."""

    def __init__(self, items: Sequence[Shown], ids: Sequence[str]) -> None:
        self.items, self.ids = list(items), list(ids)
        self.read, self.stored = 0, ""

    def mark(self, length: int | None = None) -> str:
        """A hash of the first `length` items, or of all."""
        return fingerprint(self.ids if length is None else self.ids[:length])

    def start_from(self, summary: str, read: int, mark: str) -> None:
        """Take a stored summary, where it is one of the beginning of this history."""
        if read <= len(self.ids) and self.mark(read) == mark:
            self.read, self.stored = read, summary

    def blocks(self, size: int) -> list[list[Shown]]:
        """What is not read yet, in blocks."""
        rest = self.items[self.read :]
        return [rest[start : start + size] for start in range(0, len(rest), size)]


def summarize(
    settings: SummarySettings,
    cluster: ClusterSettings,
    have: Resources,
    dataset: Dataset,
    output: Path,
    *,
    dry: bool = False,
) -> StageReport:
    """Write a summary for every user into `output`: rows in = summaries + dead letters."""
    prompts = settings.prompts()
    told = user_histories(settings, dataset)
    unchanged = _take_stored(settings, told) if settings.update_from else {}
    drawn = drawn_users(len(dataset.user_ids), settings.users, settings.seed)
    results: dict[str, Text | Rejected] = dict.fromkeys(dataset.user_ids[drawn], NO_HISTORY)
    results |= unchanged
    todo = {name: history for name, history in told.items() if name not in unchanged}
    with writing("summaries", settings, prompts, cluster, have, output, dry=dry) as writer:
        begun = {name: history for name, history in todo.items() if history.read}
        fresh = {name: history for name, history in todo.items() if not history.read}
        rounds = recurrent(writer, prompts, begun, settings.block_items)
        if settings.method == "recurrent":
            rounds |= recurrent(writer, prompts, fresh, settings.block_items)
        else:
            rounds |= hierarchical(writer, prompts, fresh, settings.block_items, settings.fan_in)
        for name, mine in rounds.items():
            results[name] = (
                mine if isinstance(mine, Rejected) else Text.of(mine[-1].fields["summary"], mine)
            )
        if settings.on_failure == "template":
            _fill(told, results)
        further: dict[str, Mapping[str, Any]] = {
            name: {ITEMS_READ: len(history.ids), HISTORY: history.mark()}
            for name, history in told.items()
        }
        return publish(output, results, writer, further, SUMMARY_SCHEMA)


def user_histories(settings: SummarySettings, dataset: Dataset) -> dict[str, History]:
    """The histories of the drawn users who have one, by user id."""
    shown = shown_items(
        dataset.items, settings.item_columns, settings.item_characters, "summaries.item_columns"
    )
    splits = tuple(split for split in (TRAIN, VALID) if split in settings.splits)
    found = {}
    every = dataset.histories(*splits)
    for user in drawn_users(len(every), settings.users, settings.seed).tolist():
        name, rows = dataset.user_ids[user], every[user]
        kept: np.ndarray = rows[: max(0, len(rows) - settings.leave_out_latest)]
        if settings.latest_items:
            kept = kept[-settings.latest_items :]
        if len(kept):
            found[name] = History([shown[row] for row in kept], list(dataset.item_ids[kept]))
    return found


def recurrent(
    writer: Writer, prompts: Prompts, told: Mapping[str, History], block_items: int
) -> Rounds:
    """Block after block, each step one batch over all users (Figures 6 and 7)."""
    rounds: Rounds = {name: [] for name in told}
    waiting = {name: history.blocks(block_items) for name, history in told.items()}
    summary = {name: history.stored for name, history in told.items()}
    step = 0
    while waiting:
        step += 1
        asked: dict[str, Prompt] = {}
        for name, blocks in waiting.items():
            block = blocks.pop(0)
            asked[name] = (
                prompts.prompt("update", block, columns=_columns(block), previous=summary[name])
                if summary[name]
                else prompts.prompt("block", block, columns=_columns(block))
            )
        for name, result in writer.write(asked, f"step {step}").items():
            done = rounds[name]
            if isinstance(result, Rejected):
                rounds[name] = Rejected(result.reason, f"step {step}: {result.detail}")
                del waiting[name]
                continue
            assert isinstance(done, list)
            done.append(result)
            summary[name] = clean(result.fields["summary"])
            if not waiting[name]:
                del waiting[name]
    return rounds


def hierarchical(
    writer: Writer, prompts: Prompts, told: Mapping[str, History], block_items: int, fan_in: int
) -> Rounds:
    """A tree of summaries: all blocks of all users are one batch, then each level of merges."""
    rounds: Rounds = {name: [] for name in told}
    asked: dict[tuple[str, int], Prompt] = {
        (name, place): prompts.prompt("block", block, columns=_columns(block))
        for name, history in told.items()
        for place, block in enumerate(history.blocks(block_items))
    }
    # The summaries of one level by user and place; a group of one needs no merge.
    found: dict[tuple[str, int], str] = {}
    level = 0
    while asked:
        level += 1
        named = {f"{place} {name}": prompt for (name, place), prompt in asked.items()}
        written = writer.write(named, f"level {level}")
        for name, place in asked:
            result, done = written[f"{place} {name}"], rounds[name]
            if isinstance(result, Rejected):
                rounds[name] = Rejected(result.reason, f"level {level}: {result.detail}")
            elif isinstance(done, list):
                done.append(result)
                found[name, place] = result.fields["summary"]
        asked, found = _merges(prompts, found, fan_in)
        asked = {key: prompt for key, prompt in asked.items() if isinstance(rounds[key[0]], list)}
    return rounds


def _merges(
    prompts: Prompts, found: dict[tuple[str, int], str], fan_in: int
) -> tuple[dict[tuple[str, int], Prompt], dict[tuple[str, int], str]]:
    """The merges of the next level, and the summaries that go up to it as they are."""
    levels: dict[str, list[str]] = {}
    for (name, _), summary in sorted(found.items()):
        levels.setdefault(name, []).append(summary)
    asked: dict[tuple[str, int], Prompt] = {}
    alone: dict[tuple[str, int], str] = {}
    for name, mine in levels.items():
        if len(mine) == 1:
            continue
        for place, start in enumerate(range(0, len(mine), fan_in)):
            part = mine[start : start + fan_in]
            if len(part) == 1:
                alone[name, place] = part[0]
            else:
                asked[name, place] = prompts.prompt("merge", part)
    return asked, alone


def _columns(block: Sequence[Shown]) -> str:
    """What the block's items are described by, in words."""
    names: dict[str, None] = {}
    for item in block:
        if not isinstance(item, str):
            names |= dict.fromkeys(key.replace("_", " ") for key in item)
    return ", ".join(names) or "titles"


def _take_stored(settings: SummarySettings, told: Mapping[str, History]) -> dict[str, Text]:
    """Stored summaries of unchanged histories; the others that can are made to start from them."""
    assert settings.update_from is not None
    table = read_table(settings.update_from / PROFILES_FILE, [*SUMMARY_SCHEMA.names])
    unchanged = {}
    for row in table.to_pylist():
        history = told.get(row[ENTITY_ID])
        # A template stands for a summary that could not be written: it is tried again.
        if history is None or not row[SUMMARY] or row[SOURCE] == "template":
            continue
        history.start_from(row[SUMMARY], row[ITEMS_READ], row[HISTORY])
        if history.read == len(history.ids):
            unchanged[row[ENTITY_ID]] = Text(row[SUMMARY], {"summary": row[SUMMARY]}, row[SOURCE])
    return unchanged


def _fill(told: Mapping[str, History], results: dict[str, Text | Rejected]) -> None:
    """Give failed users a text of the titles of their latest items."""
    for name, history in told.items():
        if isinstance(results[name], Rejected):
            titles = (None if isinstance(item, str) else item.get(TITLE) for item in history.items)
            results[name] = latest_titles(titles) or results[name]
