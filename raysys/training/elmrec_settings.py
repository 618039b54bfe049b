"""Settings of ELMRec: what it is, what it learns, how it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from raysys.models.elmrec import WordSettings
from raysys.schema import TEST, TRAIN, VALID
from raysys.settings import Settings
from raysys.text.id_prompts import Numbering
from raysys.text.small_models import SmallSettings
from raysys.training.epochs import LoopSettings

Task = Literal["direct", "sequential", "explanation"]


class ELMRecTrainSettings(LoopSettings):
    """Training. Defaults: the paper's."""

    schedule: Literal["linear", "constant"] = "constant"
    """`linear`: the step size falls to 0 over all epochs."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the users, at most."""
    batch_size: int = Field(default=64, ge=1)
    """Rows of an optimiser step, over all workers together; a step is of one task."""
    steps_per_task: int | None = Field(default=None, ge=1)
    """Steps of each task in an epoch; none: as many as its users or rows need, the smaller tasks
    again from the start until the largest is through."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Optimiser steps between checkpoints: what a crash can cost."""


class ELMRecSettings(Settings):
    """ELMRec. Defaults: the paper's for Beauty, but for what leaks."""

    model: str | None = None
    """A sequence-to-sequence model of the T5 family: an asset name, a local folder or a hub id such
    as `google-t5/t5-small`; none: a small one with random weights, see `small`."""
    revision: str | None = None
    """Of a hub model."""
    small: SmallSettings = SmallSettings()
    """Size of the model where `model` is none."""
    words: WordSettings = WordSettings()
    """Whole-word embeddings and soft prompts: `alpha`, `sigma`, `layers`."""
    tasks: tuple[Task, ...] = Field(default=("direct", "sequential"), min_length=1)
    """What is learnt, in turn batch by batch; `explanation` needs texts of interactions."""
    templates: Path | None = None
    """A file of prompts; none: those of raysys."""
    numbering: Numbering = "train_order"
    """Which numbers users and items get: by first appearance in train, or `random`."""
    graph: Literal["train", "explanation_split"] = "train"
    """Edges of the graph. `explanation_split`: a random 80 % of all interactions, as the released
    code's review split; most edges of validation and test are among them, so that figures LEAK."""
    hide: Literal["batch", "split", "none"] = "batch"
    """Which edges are none while they are taught. `batch`: those of the batch. `split`: a fixed
    `supervision_share` of train is taught, and the graph holds the rest. `none`: as the released
    code; "the adjacent item is the answer" is learnt, which holds in test only with a graph that
    leaks."""
    supervision_share: float = Field(default=0.2, gt=0, lt=1)
    """For `hide = "split"`."""
    negatives: int = Field(default=99, ge=1, le=1000)
    """Candidates beside the true one."""
    train_negatives: tuple[int, int] | None = None
    """The same in training: each batch draws a number between these two, small ones as often as
    large ones on a logarithmic scale; none: `negatives`. Short lists are cheap, and they are where
    a model that starts from random weights learns to copy an id at all."""
    history: int = Field(default=20, ge=1, le=200)
    """Latest items that the sequential task shows."""
    explanation_column: str = "review"
    """Text column of the interactions that the explanation task learns to write."""
    explanation_tokens: int = Field(default=20, ge=2, le=200)
    """Longer texts are cut."""
    train: ELMRecTrainSettings = ELMRecTrainSettings()
    """Training."""
    valid_users: int = Field(default=1000, ge=1)
    """Users, and rows of explanations, whose validation loss decides when to stop."""
    test_users: int | None = Field(default=None, ge=1)
    """Users, and rows of explanations, that are measured, drawn by `seed`; none: all."""
    split: Literal["test", "valid"] = "test"
    """Which rows are measured. `valid` is for sweeps over `further` and `decode`, which must not
    choose on test."""
    decode: Literal["trie", "score"] = "trie"
    """Direct task. `trie`: beam search among the candidates. `score`: all by teacher forcing."""
    beams: int = Field(default=20, ge=1, le=200)
    """Of the search; at least k + `further`, where that is more."""
    further: int = Field(default=15, ge=0, le=100)
    """N: so many more items are asked for, and those that the user has are left out (Eq. 12)."""
    ease_reg: float = Field(default=100.0, gt=0)
    """Of EASE, which is measured on the same users."""
    ks: tuple[int, ...] = Field(default=(1, 5, 10), min_length=1)
    """Cut-offs."""
    seed: int = Field(default=2023, ge=0)
    """Draws candidates, users and numbers."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks names one twice: {', '.join(self.tasks)}")
        if self.train_negatives is not None and not 1 <= self.train_negatives[0] <= min(
            self.train_negatives[1], 1000
        ):
            raise ValueError("train_negatives must be two numbers from 1 to 1000, in order")
        if self.hide == "split" and self.words.sequential.whole_words == "graph":
            raise ValueError(
                "hide: 'split' leaves the sequential task's targets in the graph that it reads; "
                'set hide = "batch" or words.sequential.whole_words = "incremental"'
            )
        return self

    @property
    def before(self) -> tuple[str, ...]:
        """The splits that came before the rows that are measured."""
        return (TRAIN, VALID) if self.split == TEST else (TRAIN,)

    @property
    def leaks(self) -> bool:
        """Whether the graph holds edges that are asked for."""
        kinds = [getattr(self.words, task).whole_words for task in self.tasks]
        return self.graph != TRAIN and "graph" in kinds

    @property
    def longest_list(self) -> int:
        """k of the longest list."""
        return max(self.ks)

    @property
    def most_words(self) -> int:
        """Users and items in a row, at most."""
        return 2 + max(self.negatives, *(self.train_negatives or ()), self.history)

    @property
    def width_of_search(self) -> int:
        """Beams of the sequential task."""
        return max(self.beams, self.longest_list + self.further)
