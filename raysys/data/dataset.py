"""A data set folder, loaded and checked: the one form in which the floors above read data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from raysys import schema
from raysys.data.filters import Rows, has_repeats
from raysys.data.splits import Labels, time_order
from raysys.errors import UserError
from raysys.store import read_table

Ids = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Dataset:
    """U users, I items and their n interactions, sorted by user and then by time.

    A user or item is known by its *row*: its place in `user_ids` or `item_ids`.
    """

    name: str
    user_ids: Ids
    """Shape (U,), str."""
    item_ids: Ids
    """Shape (I,), str."""
    users: pa.Table
    """U rows: user_id and what the users file said."""
    items: pa.Table
    """I rows: item_id, title and further columns."""
    interactions: pa.Table
    """n rows: user_id, item_id, split and what else the file had."""
    user_rows: Rows
    """User row of each interaction, shape (n,), int64."""
    item_rows: Rows
    """Item row of each interaction, shape (n,), int64."""
    labels: Labels
    """Split of each interaction as its place in `schema.SPLITS`, shape (n,), int8."""
    opinions: Labels
    """`schema.LIKED`, `NEITHER` or `DISLIKED` for each interaction, shape (n,), int8."""

    @classmethod
    def load(cls, folder: Path | str, name: str | None = None) -> Dataset:
        """Read the three parquet files of a folder and check that they fit together.

        Args:
            folder: the output of `raysys data import`.
            name: what reports call the data set; the folder's name if not given.

        Raises:
            UserError: a missing or broken file, a missing column, an id that is
                null or there twice, an interaction of an unknown user or item, a
                pair that is there twice, or a split other than train, valid, test.
        """
        folder = Path(folder)
        users = _Table.read(folder / schema.USERS_FILE, (schema.USER_ID,))
        items = _Table.read(folder / schema.ITEMS_FILE, (schema.ITEM_ID, schema.TITLE))
        interactions = _Table.read(
            folder / schema.INTERACTIONS_FILE, (schema.USER_ID, schema.ITEM_ID, schema.SPLIT)
        )
        user_ids, item_ids = users.unique_ids(schema.USER_ID), items.unique_ids(schema.ITEM_ID)
        user_rows = interactions.places(schema.USER_ID, user_ids, f"not in {schema.USERS_FILE}")
        item_rows = interactions.places(schema.ITEM_ID, item_ids, f"not in {schema.ITEMS_FILE}")
        legal = pa.array(schema.SPLITS)
        labels = interactions.places(schema.SPLIT, legal, f"none of {', '.join(schema.SPLITS)}")
        interactions.refuse_repeats(user_rows * len(item_ids) + item_rows)
        order = time_order(user_rows, interactions.times())
        return cls(
            name=name or folder.resolve().name,
            user_ids=user_ids.to_numpy(zero_copy_only=False),
            item_ids=item_ids.to_numpy(zero_copy_only=False),
            users=users.table,
            items=items.table,
            interactions=interactions.table.take(pa.array(order)),
            user_rows=user_rows[order],
            item_rows=item_rows[order],
            labels=labels[order].astype(np.int8),
            opinions=interactions.opinions()[order],
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(U, I)."""
        return len(self.user_ids), len(self.item_ids)

    def identity(self) -> str:
        """A hash of all ids in their order: models fit a data set of the same identity only."""
        digest = hashlib.sha256()
        for ids in (self.user_ids, self.item_ids):
            digest.update("\n".join([*ids, ""]).encode())
            digest.update(b"\0")
        return digest.hexdigest()

    def identity_of(self, *splits: str) -> str:
        """A hash of the likes of these splits: what a model of another split learnt is not this."""
        digest = hashlib.sha256()
        for rows in self.pairs(*sorted(splits)):
            digest.update(rows.tobytes())
        return digest.hexdigest()

    def pairs(self, *splits: str, opinion: int | None = schema.LIKED) -> tuple[Rows, Rows]:
        """User rows and item rows, int64, by user and in time order within a user.

        Args:
            opinion: which interactions: the likes, `schema.DISLIKED`, or None for all that are
                known to the user. Without ratings every interaction is a like.
        """
        chosen = np.isin(self.labels, [schema.SPLITS.index(split) for split in splits])
        if opinion is not None:
            chosen &= self.opinions == opinion
        return self.user_rows[chosen], self.item_rows[chosen]

    def histories(self, *splits: str, opinion: int | None = schema.LIKED) -> list[Rows]:
        """Item rows of each user, oldest first: U arrays; see `pairs`."""
        users, items = self.pairs(*splits, opinion=opinion)
        bounds = np.searchsorted(users, np.arange(len(self.user_ids) + 1))
        return [items[start:end] for start, end in pairwise(bounds)]

    def matrix(self, *splits: str, opinion: int | None = schema.LIKED) -> Any:
        """The interactions of the named splits (at least one) as a matrix; see `pairs`.

        Returns:
            scipy.sparse.csr_matrix, shape (U, I), float32 ones, indices sorted in each row.
        """
        if not splits:
            raise ValueError("matrix() needs the names of the splits it shall hold")
        users, items = self.pairs(*splits, opinion=opinion)
        ones = np.ones(len(users), dtype=np.float32)
        return sparse.csr_matrix((ones, (users, items)), shape=self.shape)


@dataclass(frozen=True)
class _Table:
    """One file of the folder, with the checks that name it."""

    path: Path
    table: pa.Table

    @classmethod
    def read(cls, path: Path, needed: tuple[str, ...]) -> _Table:
        table = read_table(path)
        for name in needed:
            if name not in table.column_names:
                raise UserError(f"{path} has no column '{name}': import the data set again.")
            if not pa.types.is_string(table[name].type):
                raise UserError(f"{path}, column '{name}': has type {table[name].type}, not text.")
        return cls(path, table)

    def error(self, row: int, name: str, problem: str) -> UserError:
        value = self.table[name][row].as_py()
        return UserError(f"{self.path}, row {row + 1}, column '{name}': {value!r} {problem}.")

    def unique_ids(self, name: str) -> pa.Array:
        """The ids in row order, as one array."""
        ids = pa.concat_arrays([*self.table[name].chunks, pa.array([], pa.string())])
        if ids.null_count:
            raise self.error(pc.index(pc.is_null(ids), True).as_py(), name, "is no id")
        first = pc.index_in(ids, value_set=ids.unique()).to_numpy()
        repeated = np.flatnonzero(first != np.arange(len(ids)))
        if len(repeated):
            raise self.error(int(repeated[0]), name, "is there twice")
        return ids

    def places(self, name: str, values: pa.Array, problem: str) -> Rows:
        """The place of each entry of a column in `values`."""
        found = pc.index_in(self.table[name], value_set=values)
        if found.null_count:
            raise self.error(pc.index(pc.is_null(found), True).as_py(), name, f"is {problem}")
        rows: Rows = pc.cast(found, pa.int64()).to_numpy()
        return rows

    def refuse_repeats(self, pairs: Rows) -> None:
        """Refuse a (user, item) pair that is there twice: it could be train and test at once."""
        if has_repeats(pairs):
            _, first = np.unique(pairs, return_index=True)
            row = int(np.setdiff1d(np.arange(len(pairs)), first, assume_unique=True)[0])
            raise self.error(row, schema.ITEM_ID, "is there twice for one user")

    def opinions(self) -> Labels:
        """What each interaction says; a like where the file does not tell."""
        if schema.OPINION not in self.table.column_names:
            return np.full(len(self.table), schema.LIKED, dtype=np.int8)
        found: Labels = pc.cast(self.table[schema.OPINION], pa.int8()).to_numpy()
        return found

    def times(self) -> list[Rows]:
        names = (schema.TIMESTAMP, schema.POSITION)
        return [self.table[name].to_numpy() for name in names if name in self.table.column_names]
