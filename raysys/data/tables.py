"""The interactions, items and users of a file as Arrow tables with raysys column names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys import schema
from raysys.data import columns
from raysys.data.sources import Source
from raysys.observe import get_logger

#: The names of ours that a `columns` mapping may give (ours -> theirs).
MAPPABLE = (
    schema.USER_ID,
    schema.ITEM_ID,
    schema.RATING,
    schema.TIMESTAMP,
    schema.POSITION,
    schema.SPLIT,
    schema.TITLE,
    schema.REVIEW,
)
#: The words for a split that a file may use.
SPLIT_WORDS = {
    **{name: name for name in schema.SPLITS},
    "val": schema.VALID,
    "validation": schema.VALID,
}
logger = get_logger(__name__)


def interactions_of(
    source: Source, mapping: Mapping[str, str], *, split: str | None, fold: str | None
) -> pa.Table:
    """The interactions of a file, one row a file row, checked.

    Args:
        source: the file.
        mapping: ours -> theirs.
        split: name there of the column with train, valid and test, kept as text in `split`.
        fold: name there of the boolean test-fold column to be used; it may hold 0 and 1.

    Returns:
        Columns user_id, item_id, and where the file has them rating (float64),
        timestamp (int64 s), position (int64), split (text), every boolean
        column, and review (text).

    Raises:
        UserError: naming file, row and column.
    """
    user = source.require(schema.USER_ID, mapping)
    item = source.require(schema.ITEM_ID, mapping)
    found: dict[str, pa.ChunkedArray] = {}
    taken = set()
    for ours, theirs, convert in (
        (schema.USER_ID, user, columns.ids),
        (schema.ITEM_ID, item, columns.ids),
        (schema.RATING, source.find(schema.RATING, mapping), columns.numbers),
        (schema.TIMESTAMP, source.find(schema.TIMESTAMP, mapping), columns.seconds),
        (schema.POSITION, source.find(schema.POSITION, mapping), columns.integers),
        (schema.SPLIT, split, _split_words),
    ):
        if theirs is not None:
            found[ours] = convert(source.column(theirs))
            taken.add(theirs)
    review = source.find(schema.REVIEW, mapping)
    for name in source.table.column_names:
        values = source.table[name]
        if name == fold:
            found[name] = columns.booleans(source.column(name))
        elif name in taken or name == review:
            continue
        elif name not in MAPPABLE and columns.is_boolean(values):
            whole = pa.types.is_boolean(values.type)
            found[name] = values if whole else columns.booleans(source.column(name))
        else:
            logger.info("%s: column '%s' is not used", source.path, name)
    if review is not None:
        found[schema.REVIEW] = columns.plain(source.column(review))
    return pa.table(found)


def items_of(source: Source, mapping: Mapping[str, str]) -> pa.Table:
    """The items of a file: item_id, title (null where blank) and every further column.

    Raises:
        UserError: naming file, row and column; also for an item that is there twice.
    """
    item = source.require(schema.ITEM_ID, mapping)
    title = source.require(schema.TITLE, mapping)
    found = {
        schema.ITEM_ID: _unique_ids(source, item),
        schema.TITLE: pc.cast(columns.plain(source.column(title)), pa.string()),
    }
    return _with_further(source, found, {item, title})


def users_of(source: Source, mapping: Mapping[str, str]) -> pa.Table:
    """The users of a file: user_id and every further column.

    Raises:
        UserError: naming file, row and column; also for a user who is there twice.
    """
    user = source.require(schema.USER_ID, mapping)
    return _with_further(source, {schema.USER_ID: _unique_ids(source, user)}, {user})


def _split_words(column: columns.Column) -> pa.ChunkedArray:
    return columns.words(column, SPLIT_WORDS)


def _unique_ids(source: Source, name: str) -> pa.ChunkedArray:
    column = source.column(name)
    values = columns.ids(column)
    codes = pc.index_in(values, value_set=values.unique()).to_numpy()
    _, first = np.unique(codes, return_index=True)
    if len(first) < len(codes):
        row = int(np.setdiff1d(np.arange(len(codes)), first, assume_unique=True)[0])
        before = int(first[codes[row]]) + 1
        problem = f"id '{values[row].as_py()}' is in row {before} already; keep one row an id."
        raise column.error(row, problem)
    return values


def _with_further(source: Source, found: dict[str, pa.ChunkedArray], taken: set[str]) -> pa.Table:
    for name in source.table.column_names:
        if name not in taken and name not in found:
            found[name] = columns.plain(source.column(name))
    return pa.table(found)
