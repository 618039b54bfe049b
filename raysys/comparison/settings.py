"""What is compared, how it is measured, and what it may take."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from raysys.cluster import ClusterSettings
from raysys.settings import Settings

#: The row that every comparison has.
POPULARITY = "popularity"


class Method(Settings):
    """One row of the table: the run's config with some keys changed, up to one kind of lists."""

    kind: Literal["model", "elmrec", "graph_lm", "rerank", "yes_no"] = "model"
    """`model`: one of the run's [models]. `rerank`: one of them, and then the language model;
    `yes_no`: and then the fine-tuned one that says yes or no."""
    model: str | None = None
    """Which of [models]; none: the one with the row's name. For `rerank` and `yes_no` it must be
    said."""
    overrides: tuple[str, ...] = ()
    """`key=value` words that this row changes in the run's config."""

    @model_validator(mode="after")
    def _has_its_model(self) -> Self:
        if self.kind in ("rerank", "yes_no") and self.model is None:
            raise ValueError(f"`{self.kind}` wants `model`: which of [models] it reranks")
        if self.kind in ("elmrec", "graph_lm") and self.model is not None:
            raise ValueError(f"`{self.kind}` is a model of its own: leave `model` out")
        return self


class CompareSettings(Settings):
    """A comparison: rows are runs of one config, measured together."""

    out: Path
    """Folder of the comparison."""
    run: Path
    """Config of the run that all rows start from. Its finished stages are theirs too."""
    overrides: tuple[str, ...] = ()
    """`key=value` words that all rows change in it."""
    methods: dict[str, Method] = Field(default_factory=dict)
    """Rows by name; none: one for each of [models], and for [elmrec] and [graph_lm] where the run's
    config has that section."""
    k: int = Field(default=10, ge=1, le=1000)
    """Cut-off of all figures."""
    slices: tuple[int, ...] = (10, 20)
    """Users with fewer train interactions than this are also measured by themselves."""
    baseline: str = POPULARITY
    """The row that the others are subtracted from, user by user."""
    input_price: float = Field(default=0.0, ge=0)
    """Money for 10⁶ tokens read by the language model."""
    output_price: float = Field(default=0.0, ge=0)
    """Money for 10⁶ tokens written by it."""
    cpus: float = Field(default=1.0, gt=0)
    """Cores that a row computes with. Rows with a language model take the whole machine."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a row."""
    concurrent: int | None = Field(default=None, ge=1)
    """Rows at a time; none: as many as `cpus` and `gpus` allow."""
    seed: int = Field(default=2023, ge=0)
    """Draws the bootstrap."""
    cluster: ClusterSettings = ClusterSettings()
    """What Ray may use, instead of the run's [cluster]."""

    @field_validator("methods")
    @classmethod
    def _is_not_popularity(cls, methods: dict[str, Method]) -> dict[str, Method]:
        if POPULARITY in methods:
            raise ValueError(f"'{POPULARITY}' is always there: leave it out")
        return methods
