"""The `[data]` keys: where a data set comes from, what is filtered out, how it is split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from raysys import schema
from raysys.data.tables import MAPPABLE
from raysys.settings import Settings, nearest

Fraction = Annotated[float, Field(ge=0, lt=1)]


class SplitSettings(Settings):
    """How interactions are divided into train, valid and test."""

    method: Literal["ratio", "leave_last_two", "time", "column", "fold"] = "ratio"
    """`ratio`: at random per user. `leave_last_two`: each user's last is test, the one before it
    valid. `time`: oldest to newest over all users. `column`: the file says train, valid or test.
    `fold`: a boolean column of the file is true for test."""
    train: float = Field(default=0.8, gt=0, le=1)
    """Fraction for train (`ratio`, `time`)."""
    valid: Fraction = 0.1
    """Fraction for valid (`ratio`, `time`); of each user's rows outside the fold (`fold`)."""
    test: Fraction = 0.1
    """Fraction for test (`ratio`, `time`)."""
    column: str | None = None
    """Name in the file of the column to be used (`fold`; `column`, there `split` if not given)."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random choice (`ratio`, `fold`)."""

    @model_validator(mode="after")
    def _check(self) -> SplitSettings:
        total = self.train + self.valid + self.test
        if self.method in {"ratio", "time"} and abs(total - 1) > 1e-6:
            raise ValueError(f"train, valid and test must add up to 1, not {total:g}")
        if self.method == "fold" and self.column is None:
            raise ValueError("split method 'fold' needs split.column, the boolean test column")
        if self.column is not None and self.method not in {"fold", "column"}:
            raise ValueError(f"split.column means nothing to split method '{self.method}'")
        if self.method == "fold" and self.column in MAPPABLE:
            raise ValueError(f"a fold column cannot be called '{self.column}': rename it")
        return self


class ImportSettings(Settings):
    """Where a data set comes from, what is filtered out and how it is split."""

    source: Literal["files", "ml-100k"] = "files"
    """`files`: CSV, TSV or parquet of your own. `ml-100k`: MovieLens-100K."""
    interactions: Path | None = None
    """File with user_id and item_id, and if you have them rating, timestamp, position, split,
    review and boolean test-fold columns."""
    items: Path | None = None
    """File with item_id and title, and any further columns about the items."""
    users: Path | None = None
    """File with user_id and any further columns about the users."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of your columns, ours = theirs: `item_id = "asin"`."""
    min_rating: float | None = None
    """Interactions rated below this are dropped."""
    liked_from: float | None = None
    """Ratings from here on are likes, which models learn and evaluation counts; lower ones are
    known, and never recommended. None: every interaction is a like."""
    disliked_to: float | None = None
    """Ratings up to here are dislikes, for profiles and for models that use them."""
    license: str = ""
    """Licence of the data, for the model's card."""
    k_core: int = Field(default=0, ge=0)
    """Keep users and items with at least this many interactions (repeated until it holds)."""
    unknown_items: Literal["error", "drop"] = "error"
    """What to do with interactions whose item is not in the items file."""
    split: SplitSettings = SplitSettings()
    """How interactions are divided."""

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        for ours in columns:
            if ours not in MAPPABLE:
                raise ValueError(f"unknown column '{ours}': {nearest(ours, MAPPABLE)}")
        theirs = list(columns.values())
        twice = sorted({name for name in theirs if theirs.count(name) > 1})
        if twice:
            raise ValueError(f"column '{twice[0]}' is given twice")
        return columns

    @model_validator(mode="after")
    def _check(self) -> ImportSettings:
        given = {"interactions": self.interactions, "items": self.items}
        if self.source == "files":
            for key, path in given.items():
                if path is None:
                    raise ValueError(f"source 'files' needs the key '{key}', a file")
        elif any((*given.values(), self.users, self.columns)):
            raise ValueError(
                f"source '{self.source}' comes with its own files: "
                "leave out interactions, items, users and columns"
            )
        if self.disliked_to is not None:
            if self.liked_from is None:
                raise ValueError("disliked_to needs liked_from, from which ratings are likes")
            if self.liked_from <= self.disliked_to:
                raise ValueError("liked_from must be above disliked_to")
        if self.split.column is not None and schema.SPLIT in self.columns:
            raise ValueError("give the split column once: in columns or in split.column")
        return self
