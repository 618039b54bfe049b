"""What a sweep tries, how it chooses, and what it may take."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raysys.cluster import ClusterSettings
from raysys.settings import Settings

#: How figures begin that are measured on validation; a sweep may choose by no others.
VALIDATION = "validation_"


class Range(Settings):
    """All numbers between two."""

    low: float
    """The smallest."""
    high: float
    """The largest."""
    log: bool = False
    """Drawn evenly on a logarithmic scale."""
    whole: bool = False
    """Whole numbers only, both ends among them."""

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log wants low above 0, not {self.low:g}")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("whole wants whole numbers for low and high")
        return self


class EarlyStopping(Settings):
    """Asynchronous successive halving (ASHA): trials that fall behind are stopped."""

    grace: int = Field(default=2, ge=1)
    """Validations that every trial gets."""
    reduction: int = Field(default=3, ge=2)
    """After `grace` validations, and each time after so many times as many, one trial of so many
    goes on."""


class TuneSettings(Settings):
    """A sweep: trials are runs of one config with some settings changed."""

    out: Path
    """Folder of the sweep."""
    run: Path
    """Config of the run that the trials start from. Its finished stages are theirs too."""
    overrides: tuple[str, ...] = ()
    """`key=value` words that all trials change in it."""
    objective: str = f"train.{VALIDATION}recall@20"
    """STAGE.FIGURE of the manifest that decides; only figures on validation may. The smallest is
    the best of a loss, else the largest."""
    space: dict[str, tuple[Any, ...] | Range] = Field(min_length=1)
    """Key of the run's config → the values to try, or a range { low, high, log, whole }."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """`grid`: all combinations. `random`: drawn. `optuna`: drawn where earlier trials were good
    (TPE)."""
    trials: int | None = Field(default=None, ge=1)
    """How many, for `random` and `optuna`."""
    seed: int = Field(default=2023, ge=0)
    """Draws the trials."""
    early_stopping: EarlyStopping | None = None
    """Stop trials that fall behind; none: each goes to its end."""
    cpus: float = Field(default=1.0, gt=0)
    """Cores that a trial computes with."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a trial."""
    concurrent: int | None = Field(default=None, ge=1)
    """Trials at a time; none: as many as `cpus` and `gpus` allow."""
    max_failures: int = Field(default=2, ge=0)
    """Crashes of a trial's process that are answered by a restart from its checkpoint."""
    mlflow: Path | None = None
    """SQLite file to log the trials to, for `mlflow ui --backend-store-uri sqlite:///FILE`; needs
    the extra `raysys[mlflow]`."""
    cluster: ClusterSettings = ClusterSettings()
    """What Ray may use, instead of the run's [cluster]."""

    @field_validator("objective")
    @classmethod
    def _on_validation(cls, objective: str) -> str:
        stage, _, figure = objective.partition(".")
        if not stage or not figure.startswith(VALIDATION):
            raise ValueError(
                f"must be STAGE.{VALIDATION}…, such as train.{VALIDATION}recall@20: what is chosen "
                "on test says nothing about new data"
            )
        return objective

    @field_validator("space")
    @classmethod
    def _has_values(
        cls, space: dict[str, tuple[Any, ...] | Range]
    ) -> dict[str, tuple[Any, ...] | Range]:
        for key, values in space.items():
            if values == ():
                raise ValueError(f"'{key}' has no values to try")
            if key in ("out", "cluster") or key.startswith("cluster."):
                raise ValueError(f"'{key}' changes no result")
        return space

    @model_validator(mode="after")
    def _fits(self) -> Self:
        ranges = [key for key, values in self.space.items() if isinstance(values, Range)]
        if self.search == "grid" and ranges:
            raise ValueError(
                f"'{ranges[0]}' is a range: list its values, or set search = \"random\""
            )
        if (self.search == "grid") != (self.trials is None):
            raise ValueError(
                "a grid tries all combinations: leave `trials` out"
                if self.search == "grid"
                else f'search = "{self.search}" wants `trials`'
            )
        return self

    @property
    def stage(self) -> str:
        """The last stage of a trial."""
        return self.objective.partition(".")[0]

    @property
    def figure(self) -> str:
        """What decides, in that stage's manifest."""
        return self.objective.partition(".")[2]

    @property
    def smaller_is_better(self) -> bool:
        """Whether the objective is a loss."""
        return self.figure.endswith("loss")
