"""Crowd contextual prompts: which there are to be written, and writing them on Ray Data.

"LLM-Enhanced User-Item Interactions", section 3.3.2. Nothing of validation or test is written:
reviews and events are of train interactions alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.schema import FAMILY, ITEM_ID, PROMPT_SCHEMA, REVIEW, TOKENS
from raysys.settings import Settings, nearest
from raysys.text.engine import tokenizer_of
from raysys.text.evidence import train_rows
from raysys.text.graph_prompts import GraphPrompts, GraphTemplates

Family = Literal["attribute", "review", "shared", "event"]
#: Item columns whose values several items have, where they are there.
_SHARED = ("brand", "categories", "category", "genres", "authors", "author", "director", "keywords")
#: Text columns of interactions, where they are there.
_SAID = (REVIEW, "explanation")
#: Prompts of one Ray Data task; starting a task costs a second or two.
_BLOCK = 4096
_NUMBER, _USER, _ITEMS, _NAME, _TEXT = "number", "user", "items", "name", "text"
_REQUEST_SCHEMA = pa.schema(
    [
        pa.field(_NUMBER, pa.int64()),
        pa.field(FAMILY, pa.string()),
        pa.field(_USER, pa.int64()),
        pa.field(_ITEMS, pa.list_(pa.int64())),
        pa.field(_NAME, pa.string()),
        pa.field(_TEXT, pa.string()),
    ]
)


class CrowdSettings(Settings):
    """Which crowd contextual prompts are written, of what."""

    families: tuple[Family, ...] = ("attribute", "review", "shared", "event")
    """`attribute`: "the brand of an item is …". `review`: "a user wrote … for an item". `shared`:
    "these items share the brand …". `event`: "a user has interacted with …". Kinds for which the
    data has no texts give none."""
    item_columns: tuple[str, ...] = ()
    """Columns of `attribute`; empty: all texts beside ids."""
    shared_columns: tuple[str, ...] = ()
    """Columns of `shared`, split at | ; and comma, `keywords` also at spaces; empty: brand,
    categories, genres, authors, director and keywords, as far as there."""
    said_columns: tuple[str, ...] = ()
    """Columns of `review`, of interactions; empty: review and explanation, as far as there."""
    shared_items: int = Field(default=8, ge=2, le=200)
    """Items of a `shared` prompt, at most."""
    shared_lists: int = Field(default=4, ge=1)
    """`shared` prompts of one value, at most; its items are drawn by `seed`."""
    event_items: int = Field(default=20, ge=1, le=1000)
    """Items of an `event` prompt, at most; a longer history is several prompts."""
    text_tokens: int = Field(default=64, ge=1)
    """Longer texts are cut."""
    seed: int = Field(default=2023, ge=0)
    """Draws."""


def requests(settings: CrowdSettings, dataset: Dataset) -> pa.Table:
    """What prompts there are to be written, one row each.

    Raises:
        UserError: a column of the settings is not there.
    """
    makers = {
        "attribute": _attributes,
        "review": _reviews,
        "shared": _shared,
        "event": _events,
    }
    rows = [
        {_NUMBER: 0, FAMILY: family, _USER: user, _ITEMS: items, _NAME: name, _TEXT: text}
        for family in settings.families
        for user, items, name, text in makers[family](settings, dataset)
    ]
    table = pa.Table.from_pylist(rows, schema=_REQUEST_SCHEMA)
    return table.set_column(0, _NUMBER, pa.array(np.arange(len(rows)), pa.int64()))


_Request = tuple[int, list[int], str, str]


def text_columns(table: pa.Table) -> list[str]:
    """Columns of texts: not those whose values are all distinct and without a space, as ids are."""
    found = []
    for name in table.column_names:
        column = table[name]
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            known = column.drop_null()
            spaced = pc.any(pc.match_substring(known, " ")).as_py()
            if len(known) and (spaced or len(known.unique()) < len(known)):
                found.append(name)
    return found


def _columns(
    wanted: tuple[str, ...], usual: Sequence[str], table: pa.Table, key: str
) -> Sequence[str]:
    for name in wanted:
        if name not in table.column_names:
            close = nearest(name, table.column_names)
            raise UserError(f"graph_lm.crowd.{key}: there is no column '{name}': {close}")
    return wanted or usual


def _attributes(settings: CrowdSettings, dataset: Dataset) -> Iterator[_Request]:
    usual = [name for name in text_columns(dataset.items) if name != ITEM_ID]
    for name in _columns(settings.item_columns, usual, dataset.items, "item_columns"):
        for item, value in enumerate(dataset.items[name].to_pylist()):
            if value not in (None, ""):
                yield -1, [item], name, str(value)


def _reviews(settings: CrowdSettings, dataset: Dataset) -> Iterator[_Request]:
    table = dataset.interactions
    usual = [name for name in _SAID if name in table.column_names]
    rows = train_rows(dataset, opinion=None)
    for name in _columns(settings.said_columns, usual, table, "said_columns"):
        values = table[name].take(pa.array(rows)).to_pylist()
        for row, value in zip(rows, values, strict=True):
            if value not in (None, ""):
                yield int(dataset.user_rows[row]), [int(dataset.item_rows[row])], name, str(value)


def _shared(settings: CrowdSettings, dataset: Dataset) -> Iterator[_Request]:
    usual = [name for name in _SHARED if name in dataset.items.column_names]
    rng = np.random.default_rng(settings.seed)
    for name in _columns(settings.shared_columns, usual, dataset.items, "shared_columns"):
        groups: dict[str, list[int]] = {}
        for item, value in enumerate(dataset.items[name].to_pylist()):
            for one in _values(name, value):
                groups.setdefault(one, []).append(item)
        for value, items in groups.items():
            if len(items) < 2:
                continue
            drawn = rng.permutation(items)[: settings.shared_items * settings.shared_lists]
            for start in range(0, len(drawn), settings.shared_items):
                part = drawn[start : start + settings.shared_items]
                if len(part) > 1:
                    yield -1, part.tolist(), name, value


def _values(name: str, value: Any) -> list[str]:
    """The single values of a cell, each once."""
    if value in (None, ""):
        return []
    cut = r"[|;,\s]+" if name == "keywords" else r"\s*[|;,]\s*"
    return list(dict.fromkeys(part.strip() for part in re.split(cut, str(value)) if part.strip()))


def _events(settings: CrowdSettings, dataset: Dataset) -> Iterator[_Request]:
    rows = train_rows(dataset)
    users, items = dataset.user_rows[rows], dataset.item_rows[rows]
    for start, stop in pairwise(np.searchsorted(users, np.arange(len(dataset.user_ids) + 1))):
        for first in range(start, stop, settings.event_items):
            part = items[first : min(stop, first + settings.event_items)]
            yield int(users[start]), part.tolist(), "", ""


def write_crowd_prompts(
    settings: CrowdSettings,
    dataset: Dataset,
    source: tuple[str, str | None],
    words: int,
    templates: GraphTemplates,
    max_tokens: int,
) -> pa.Table:
    """All prompts as tokens, in order, on Ray Data.

    Args:
        source: path or name of the language model, and its revision.
        words: V.

    Returns:
        A table of `PROMPT_SCHEMA`.
    """
    import ray.data

    table = requests(settings, dataset)
    if not len(table):
        return PROMPT_SCHEMA.empty_table()
    blocks = [table.slice(start, _BLOCK) for start in range(0, len(table), _BLOCK)]
    users = len(dataset.user_ids)
    arguments = (settings, source, words, users, templates, max_tokens)
    written = ray.data.from_arrow(blocks).map_batches(
        partial(as_tokens, *arguments),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=1,
    )
    found = pa.concat_tables(written.iter_batches(batch_size=None, batch_format="pyarrow"))
    # Blocks come back in any order.
    return found.sort_by(_NUMBER).drop([_NUMBER]).cast(PROMPT_SCHEMA)


def as_tokens(
    settings: CrowdSettings,
    source: tuple[str, str | None],
    words: int,
    users: int,
    templates: GraphTemplates,
    max_tokens: int,
    batch: pa.Table,
) -> pa.Table:
    """Requests as prompts, in any order, with their numbers; runs in Ray Data's tasks."""
    writer = GraphPrompts(tokenizer_of(*source), words, users, templates, max_tokens)
    rows = []
    for row in batch.to_pylist():
        tokens = writer.prompt(
            row[FAMILY], row[_USER], row[_ITEMS], row[_NAME], row[_TEXT], settings.text_tokens
        )
        rows.append({_NUMBER: row[_NUMBER], FAMILY: row[FAMILY], TOKENS: tokens})
    return pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA.append(pa.field(_NUMBER, pa.int64())))
