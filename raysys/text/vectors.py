"""A person's own vectors of users and items, which take the place of embedded profiles.

One parquet file a side: the ids, and a column `vector` with one list of numbers a row, all of
one length. The numbers are used as they are; nothing is scaled to length 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys import schema
from raysys.data import columns
from raysys.data.columns import Column, shown
from raysys.data.dataset import Dataset
from raysys.data.sources import require_file
from raysys.errors import UserError
from raysys.manifest import StageReport
from raysys.models.profiles import Profiles, with_users_from_items
from raysys.text.embeddings import EmbeddingSettings, write_vectors

VECTOR = "vector"
#: Rows read together: of a file's vectors, only what is used is ever all in memory.
BLOCK_ROWS = 8192
#: Ids that an error message names.
NAMED = 5


@dataclass(frozen=True)
class Vectors:
    """The vectors of one side, in the order of the data set.

    Attributes:
        values: (n, s) float32, zero where there is no vector.
        known: (n,) bool: who has a vector.
        nan: how many have none because theirs holds a NaN or a missing number.
        unknown: rows of the file whose id is not in the data set.
    """

    values: np.ndarray
    known: np.ndarray
    nan: int = 0
    unknown: int = 0


def take_vectors(settings: EmbeddingSettings, dataset: Dataset, output: Path) -> StageReport:
    """Bring the vectors of `settings.own`, one file or two, into the order of a data set.

    A side whose file is not given has no vectors at all.

    Returns:
        counts: in (users and items), ok and dead_letter. dropped: those without a vector by
        reason, `no_vector` and `nan_vector`, and apart from these `unknown_id`, rows of the
        files whose id is not in the data set. figures: width, and how many users' vectors were
        made from their items.

    Raises:
        UserError: what `read_vectors` refuses, or the two files differ in width.
    """
    sides = {
        key: read_vectors(settings.own[key], name, ids)
        for key, name, ids in (
            ("user_vectors", schema.USER_ID, dataset.user_ids),
            ("item_vectors", schema.ITEM_ID, dataset.item_ids),
        )
        if key in settings.own
    }
    widths = {key: side.values.shape[1] for key, side in sides.items()}
    width = max(widths.values())
    if min(widths.values()) < width:
        raise UserError(
            "users and items need vectors of one width: "
            + ", ".join(f"{settings.own[key]} has {found}" for key, found in widths.items())
            + ". Make both with the same model."
        )
    users = sides.get("user_vectors") or _none(len(dataset.user_ids), width)
    items = sides.get("item_vectors") or _none(len(dataset.item_ids), width)
    profiles = Profiles.of(users.values, items.values, users.known, items.known)
    if settings.users_from_items:
        profiles = with_users_from_items(profiles, dataset.matrix(schema.TRAIN))
    known = np.concatenate([profiles.user_has_profile, profiles.item_has_profile])
    write_vectors(
        output,
        profiles.users,
        profiles.items,
        profiles.user_has_profile,
        profiles.item_has_profile,
    )
    rows, ok = len(known), int(known.sum())
    made = int((profiles.user_has_profile & ~users.known).sum())
    nan = min(users.nan + items.nan, rows - ok)
    dropped = {
        "no_vector": rows - ok - nan,
        "nan_vector": nan,
        "unknown_id": users.unknown + items.unknown,
    }
    return StageReport(
        counts={"in": rows, "ok": ok, "dead_letter": rows - ok},
        dropped={reason: count for reason, count in dropped.items() if count},
        figures={"width": float(width), "users_from_items": float(made)},
    )


def read_vectors(path: Path, name: str, ids: np.ndarray) -> Vectors:
    """Read the vectors of the given ids.

    Rows with other ids are counted and otherwise not looked at. A row that is null, or that
    holds a NaN or a missing number, gives no vector.

    Args:
        path: a parquet file with the columns `name` and `vector` (lists of one length).
        name: `user_id` or `item_id`, text or whole numbers.
        ids: (n,) str, the ids of the data set in order; ids are compared as text.

    Raises:
        UserError: naming file and ids: a missing or broken file or column, an id that is
            missing or there twice, no id of the data set, vectors of several widths, an
            infinite number, or no vector at all.
    """
    require_file(path)
    try:
        with pq.ParquetFile(path) as file:
            places = _places(path, name, _read_ids(path, file, name), ids)
            return _read(path, name, file, places, ids)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file: {error}") from None


def _none(rows: int, width: int) -> Vectors:
    return Vectors(np.zeros((rows, width), np.float32), np.zeros(rows, bool))


def _read_ids(path: Path, file: pq.ParquetFile, name: str) -> pa.ChunkedArray:
    names = file.schema_arrow.names
    for wanted in (name, VECTOR):
        if names.count(wanted) != 1:
            raise UserError(
                f"{path} must have one column '{wanted}'; its columns are: {', '.join(names)}."
            )
    values = file.read(columns=[name])[name]
    if not len(values):
        raise UserError(f"{path} has no rows.")
    if pa.types.is_dictionary(values.type):
        values = pc.cast(values, values.type.value_type)
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        values = pc.cast(values, pa.string())
    return columns.ids(Column(path, name, values))


def _places(path: Path, name: str, found: pa.ChunkedArray, ids: np.ndarray) -> np.ndarray:
    """The place in `ids` of each id of the file, -1 where it is not there."""
    counts = found.value_counts()
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise UserError(
            f"{path}, column '{name}': {len(twice)} id(s) more than once: {_named(twice)}. "
            "Keep one row an id."
        )
    places = pc.fill_null(pc.index_in(found, value_set=pa.array(ids, pa.string())), -1)
    rows: np.ndarray = pc.cast(places, pa.int64()).to_numpy()
    if (rows < 0).all():
        raise UserError(
            f"{path}: no {name} is in the data set. The file has {_named(found)}; the data set "
            f"has {_named(ids)}. Ids are compared as text."
        )
    return rows


def _read(
    path: Path, name: str, file: pq.ParquetFile, places: np.ndarray, ids: np.ndarray
) -> Vectors:
    values: np.ndarray | None = None
    known = np.zeros(len(ids), bool)
    nan = start = 0
    for batch in file.iter_batches(BLOCK_ROWS, columns=[VECTOR]):
        lists = _lists(path, batch.column(0))
        rows = places[start : start + len(lists)]
        start += len(lists)
        used = (rows >= 0) & pc.is_valid(lists).to_numpy(zero_copy_only=False)
        rows, lists = rows[used], lists.filter(pa.array(used))
        if not len(rows):
            continue
        lengths = pc.list_value_length(lists).to_numpy()
        if values is None:
            values = np.zeros((len(ids), lengths[0]), np.float32)
        width = values.shape[1]
        if not width:
            raise UserError(f"{path}: the vector of {name} {_named(ids[rows[:1]])} is empty.")
        odd = lengths != width
        if odd.any():
            raise UserError(
                f"{path}: the vectors of {name} {_named(ids[rows[odd]])} do not have the {width} "
                "numbers of the first; all must have one length."
            )
        # A number beyond float32 becomes infinite here, a missing one NaN.
        numbers = pc.cast(lists.flatten(), pa.float32(), safe=False)
        block = numbers.to_numpy(zero_copy_only=False).reshape(len(rows), width)
        bad = np.isnan(block).any(axis=1)
        infinite = np.isinf(block).any(axis=1) & ~bad
        if infinite.any():
            raise UserError(
                f"{path}: the vectors of {name} {_named(ids[rows[infinite]])} hold an infinite "
                "number, or one too large for float32."
            )
        values[rows[~bad]] = block[~bad]
        known[rows[~bad]] = True
        nan += int(bad.sum())
    if values is None or not known.any():
        raise UserError(f"{path} holds no vector of any {name} of the data set.")
    return Vectors(values, known, nan, int((places < 0).sum()))


def _lists(path: Path, column: pa.Array) -> pa.Array:
    """The column without the tensor type that some writers put around the lists."""
    lists = column.storage if isinstance(column, pa.ExtensionArray) else column
    kind, types = lists.type, pa.types
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    numbers = listed and (types.is_integer(kind.value_type) or types.is_floating(kind.value_type))
    if not numbers:
        raise UserError(f"{path}, column '{VECTOR}': has type {kind}, not lists of numbers.")
    return lists


def _named(ids: pa.Array | pa.ChunkedArray | np.ndarray) -> str:
    """The first ids, quoted: `'a', 'b' and others`."""
    names = ", ".join(shown(str(one)) for one in ids[:NAMED])
    return names + (" and others" if len(ids) > NAMED else "")
