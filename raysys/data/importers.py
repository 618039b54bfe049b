"""`raysys data import`: from files to a checked, filtered and split data set folder.

The folder holds `interactions.parquet`, `items.parquet` and `users.parquet`.
Everything is read and checked before the first file is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys import schema
from raysys.data import filters, splits
from raysys.data.columns import shown
from raysys.data.filters import Mask, Rows
from raysys.data.import_settings import ImportSettings, SplitSettings
from raysys.data.movielens import read_movielens
from raysys.data.sources import Source, named, read_source
from raysys.data.tables import interactions_of, items_of, users_of
from raysys.errors import UserError
from raysys.manifest import StageReport
from raysys.observe import get_logger
from raysys.store import write_table

#: Keys of `dropped` that count interactions; the other two count items and users.
ROW_REASONS = ("unknown_item", "below_min_rating", "k_core")
logger = get_logger(__name__)


@dataclass
class _Rows:
    """The interactions that are left: the table with the user and item row of each entry."""

    table: pa.Table
    users: Rows
    items: Rows

    def keep(self, mask: Mask) -> int:
        """Drop the rows where `mask` is false; returns how many."""
        dropped = int(len(mask) - np.count_nonzero(mask))
        if dropped:
            self.table = self.table.filter(pa.array(mask))
            self.users, self.items = self.users[mask], self.items[mask]
        return dropped

    def sort(self) -> None:
        """Sort by user, then by time, then by place in the file."""
        order = splits.time_order(self.users, self.times())
        self.table = self.table.take(pa.array(order))
        self.users, self.items = self.users[order], self.items[order]

    def times(self) -> list[Rows]:
        """The sort keys there are, the main key first."""
        names = (schema.TIMESTAMP, schema.POSITION)
        return [self.array(name) for name in names if name in self.table.column_names]

    def array(self, name: str) -> Rows:
        """A column as numpy."""
        values: Rows = self.table[name].to_numpy()
        return values


def import_data(
    settings: ImportSettings, output: Path, movielens: Path | None = None
) -> StageReport:
    """Check, filter and split a data set and write its three parquet files into `output`.

    Repeated (user, item) pairs keep the latest; then ratings below the
    threshold go, then the k-core is taken, then the rest is split.

    Args:
        settings: files, filters and split.
        output: a work folder; the caller publishes it.
        movielens: folder with ml-100k.inter, .item and .user (source `ml-100k`).

    Returns:
        counts: rows (read), interactions, duplicates, users, items, train,
        valid, test. dropped: interactions by reason, and apart from these
        `items_without_interactions` and `users_without_interactions`.
        rows = interactions + duplicates + unknown_item + below_min_rating + k_core.

    Raises:
        UserError: naming file, row and column; nothing has been written then.
    """
    interactions, items, users = _read(settings, movielens)
    _check_needs(settings, interactions, items, users)
    split, fold = _split_columns(settings, interactions)
    table = interactions_of(interactions, settings.columns, split=split, fold=fold)
    item_table = items_of(items, settings.columns)
    user_table = users_of(users, settings.columns) if users else None
    rows_in = table.num_rows
    user_ids = _user_ids(table, user_table)
    left = _Rows(
        table,
        _codes(table[schema.USER_ID], user_ids),
        _codes(table[schema.ITEM_ID], item_table[schema.ITEM_ID]),
    )
    known = left.items >= 0
    if settings.unknown_items == "error":
        _refuse_unknown(known, settings, interactions, items)
    duplicates, dropped = _filter(left, known, settings)
    if not len(left.users):
        reasons = ", ".join(f"{count} by {reason}" for reason, count in dropped.items() if count)
        raise UserError(f"{interactions.path}: no interaction is left ({reasons}).")
    left.sort()
    labels = _labels(left, settings.split)
    sizes = np.bincount(labels, minlength=len(schema.SPLITS)).tolist()
    if not sizes[splits.TRAIN]:
        raise UserError(
            f"{interactions.path}: split '{settings.split.method}' leaves nothing to train on."
        )
    if not sizes[splits.TEST]:
        logger.warning("split '%s' leaves nothing in test", settings.split.method)
    user_rows, item_rows = np.unique(left.users), np.unique(left.items)
    if settings.liked_from is not None:
        said = _opinions(left.array(schema.RATING), settings.liked_from, settings.disliked_to)
        left.table = left.table.append_column(schema.OPINION, said)
    out_users = _with_attributes(user_ids.take(pa.array(user_rows)), user_table)
    out_items = item_table.take(pa.array(item_rows))
    write_table(output / schema.INTERACTIONS_FILE, _with_split(left.table, labels))
    write_table(output / schema.ITEMS_FILE, out_items)
    write_table(output / schema.USERS_FILE, out_users)
    dropped["items_without_interactions"] = item_table.num_rows - out_items.num_rows
    dropped["users_without_interactions"] = len(user_ids) - out_users.num_rows
    counts = {
        "rows": rows_in,
        "interactions": left.table.num_rows,
        "duplicates": duplicates,
        "users": out_users.num_rows,
        "items": out_items.num_rows,
        **dict(zip(schema.SPLITS, sizes, strict=True)),
    }
    return StageReport(counts=counts, dropped=dropped)


def _read(settings: ImportSettings, movielens: Path | None) -> tuple[Source, Source, Source | None]:
    if settings.source == "ml-100k":
        if movielens is None:
            raise UserError("source 'ml-100k' needs the folder of its files.")
        return read_movielens(movielens)
    if settings.interactions is None or settings.items is None:
        raise UserError("source 'files' needs the keys 'interactions' and 'items'.")
    users = read_source(settings.users) if settings.users else None
    return read_source(settings.interactions), read_source(settings.items), users


def _check_needs(
    settings: ImportSettings, interactions: Source, items: Source, users: Source | None
) -> None:
    """Refuse settings that ask for a column which the files do not have."""
    for ours in (schema.USER_ID, schema.ITEM_ID):
        theirs = settings.columns.get(ours, ours)
        sources = [source for source in (interactions, items, users) if source]
        if not any(theirs in source.table.column_names for source in sources):
            raise interactions.lacks(theirs, named(ours))
    method, mapping = settings.split.method, settings.columns
    for key in ("min_rating", "liked_from"):
        wanted = getattr(settings, key) is not None
        if wanted and interactions.find(schema.RATING, mapping) is None:
            lack = interactions.lacks(schema.RATING, named(schema.RATING))
            raise UserError(f"{key}: {lack}")
    times = {"time": (schema.TIMESTAMP,), "leave_last_two": (schema.TIMESTAMP, schema.POSITION)}
    usable = times.get(method, ())
    if usable and all(interactions.find(ours, mapping) is None for ours in usable):
        remedy = " or ".join(map(named, usable))
        raise UserError(f"split '{method}': {interactions.lacks(schema.TIMESTAMP, remedy)}")


def _split_columns(settings: ImportSettings, interactions: Source) -> tuple[str | None, str | None]:
    """The file's names of the split column and of the fold column, where the split uses one."""
    name = settings.split.column
    if name is not None and name not in interactions.table.column_names:
        raise interactions.lacks(name, "split.column")
    if settings.split.method == "fold":
        return None, name
    if settings.split.method == "column":
        return name or interactions.require(schema.SPLIT, settings.columns), None
    return None, None


def _user_ids(table: pa.Table, user_table: pa.Table | None) -> pa.Array:
    """All user ids: those of the users file in its order, then the others as they appear."""
    chunks = list(table[schema.USER_ID].chunks)
    if user_table is not None:
        chunks = [*user_table[schema.USER_ID].chunks, *chunks]
    return pa.chunked_array(chunks, pa.string()).unique()


def _codes(values: pa.ChunkedArray, ids: pa.Array | pa.ChunkedArray) -> Rows:
    """The place of each value in `ids`, and -1 where it is not there."""
    places = pc.fill_null(pc.index_in(values, value_set=ids), -1)
    codes: Rows = pc.cast(places, pa.int64()).to_numpy()
    return codes


def _refuse_unknown(
    known: Mask, settings: ImportSettings, interactions: Source, items: Source
) -> None:
    unknown = np.flatnonzero(~known)
    if not len(unknown):
        return
    column = interactions.column(interactions.require(schema.ITEM_ID, settings.columns))
    value = shown(column.values[int(unknown[0])].as_py())
    raise column.error(
        int(unknown[0]),
        f"item {value} is not in {items.path} ({len(unknown)} such rows). Add the items there "
        "(ids are compared as text), or set unknown_items=drop.",
    )


def _filter(left: _Rows, known: Mask, settings: ImportSettings) -> tuple[int, dict[str, int]]:
    """Drop rows from `left`; returns the number of duplicates, and of the others by reason."""
    dropped = dict.fromkeys(ROW_REASONS, 0)
    dropped["unknown_item"] = left.keep(known)
    duplicates = left.keep(filters.latest_of_pair(left.users, left.items, left.times()))
    if settings.min_rating is not None:
        dropped["below_min_rating"] = left.keep(left.array(schema.RATING) >= settings.min_rating)
    dropped["k_core"] = left.keep(filters.k_core(left.users, left.items, settings.k_core))
    return duplicates, dropped


def _opinions(ratings: np.ndarray, liked_from: float, disliked_to: float | None) -> pa.Array:
    """What each rating says: liked, disliked or neither."""
    found = np.full(len(ratings), schema.NEITHER, dtype=np.int8)
    found[ratings >= liked_from] = schema.LIKED
    if disliked_to is not None:
        found[ratings <= disliked_to] = schema.DISLIKED
    return pa.array(found)


def _labels(left: _Rows, split: SplitSettings) -> splits.Labels:
    if split.method == "ratio":
        return splits.ratio(left.users, split.valid, split.test, split.seed)
    if split.method == "leave_last_two":
        return splits.leave_last_two(left.users, left.times())
    if split.method == "time":
        return splits.by_time(left.array(schema.TIMESTAMP), split.train, split.valid)
    if split.method == "column":
        return _codes(left.table[schema.SPLIT], pa.array(schema.SPLITS)).astype(np.int8)
    test = left.table[split.column].to_numpy()
    return splits.fold(left.users, test, split.valid, split.seed)


def _with_split(table: pa.Table, labels: splits.Labels) -> pa.Table:
    """The table with the split column in its place: before the fold columns and the review."""
    names = pa.DictionaryArray.from_arrays(pa.array(labels), pa.array(schema.SPLITS))
    if schema.SPLIT in table.column_names:
        table = table.drop_columns(schema.SPLIT)
    leading = (schema.USER_ID, schema.ITEM_ID, schema.RATING, schema.TIMESTAMP, schema.POSITION)
    place = sum(name in table.column_names for name in leading)
    return table.add_column(place, schema.SPLIT, pc.cast(names, pa.string()))


def _with_attributes(user_ids: pa.Array, user_table: pa.Table | None) -> pa.Table:
    """One row a user, with the columns of the users file, null where the user is not in it."""
    if user_table is None:
        return pa.table({schema.USER_ID: user_ids})
    places = pc.index_in(user_ids, value_set=user_table[schema.USER_ID])
    return user_table.take(places).set_column(0, schema.USER_ID, user_ids)
