"""What ELMRec learns and is asked: rows of three tasks, drawn by (seed, epoch, step) alone.

ELMRec §3.1, §4.2, §5.1. Nothing of validation or test is read for training: not as a positive, not
in a history, not as an edge of the graph; and an edge that a batch teaches is no edge in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator
from scipy.sparse import csr_matrix

from raysys.data.candidates import Candidates, drawn_items, drawn_users, next_items
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.models.elmrec import (
    DIRECT,
    EXPLANATION,
    SEQUENTIAL,
    TaskBatch,
    TaskSettings,
    WordSettings,
)
from raysys.schema import (
    CANDIDATE_SCHEMA,
    ITEM_ID,
    LIKED,
    SPLIT,
    SPLITS,
    TARGET,
    TEST,
    TRAIN,
    USER_ID,
    VALID,
)
from raysys.settings import Settings
from raysys.store import read_table, write_table
from raysys.text.id_prompts import IdPrompts, Numbering, Row, load_templates
from raysys.text.small_seq2seq import SmallSettings
from raysys.training.epochs import LoopSettings

CANDIDATES_FILE = "candidates.parquet"
Task = Literal["direct", "sequential", "explanation"]
#: Streams of random numbers that belong to no task.
_ORDER, _SUPERVISION, _LEAKY = 10, 11, 12


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


def write_candidates(settings: ELMRecSettings, dataset: Dataset, folder: Path) -> dict[str, int]:
    """Draw the candidates of validation and test once, and keep them with the data set.

    Returns:
        rows by split.

    Raises:
        UserError: nobody has a validation or test item, or too few items are left to draw from.
    """
    rows = []
    everyone = np.arange(len(dataset.user_ids))
    for split, limit in ((VALID, settings.valid_users), (TEST, settings.test_users)):
        users = np.intersect1d(everyone, dataset.pairs(split)[0])
        chosen = users[drawn_users(len(users), limit, settings.seed)]
        for one in next_items(dataset, split, chosen, settings.negatives, settings.seed):
            ids = dataset.item_ids[one.items].tolist()
            rows.append((dataset.user_ids[one.user], split, ids, one.target))
    records = [dict(zip(CANDIDATE_SCHEMA.names, row, strict=True)) for row in rows]
    write_table(folder / CANDIDATES_FILE, pa.Table.from_pylist(records, CANDIDATE_SCHEMA))
    counts = {split: sum(row[1] == split for row in rows) for split in (VALID, TEST)}
    for split, count in counts.items():
        if not count:
            raise UserError(f"no user has a {split} item: import the data set with another split.")
    return counts


def read_candidates(dataset: Dataset, folder: Path, split: str) -> list[Candidates]:
    """The stored candidates of a split; the history is what the user has before it.

    Raises:
        UserError: an id that the data set has not, or a candidate that is there twice.
    """
    path = folder / CANDIDATES_FILE
    table = read_table(path)
    places = [
        {id_: row for row, id_ in enumerate(ids)} for ids in (dataset.user_ids, dataset.item_ids)
    ]
    histories = dataset.histories(*SPLITS[: SPLITS.index(split)])
    found = []
    for number, row in enumerate(table.to_pylist(), start=1):
        if row[SPLIT] != split:
            continue
        ids = row[ITEM_ID]
        unknown = [one for one in ids if one not in places[1]]
        if row[USER_ID] not in places[0] or unknown:
            name = unknown[0] if unknown else row[USER_ID]
            raise UserError(f"{path}, row {number}: '{name}' is not in the data set.")
        if len(set(ids)) < len(ids):
            double = next(one for one in ids if ids.count(one) > 1)
            raise UserError(f"{path}, row {number}: candidate '{double}' is there twice.")
        user = places[0][row[USER_ID]]
        items = np.array([places[1][one] for one in ids])
        found.append(Candidates(user, histories[user], items, row[TARGET]))
    return found


@dataclass(frozen=True, eq=False)
class Edges:
    """What the graph is made of, (U, I) matrices.

    Attributes:
        graph: read in evaluation.
        message: read in training; None: `graph` less what a batch teaches.
        taught: pairs that direct and explanation may teach.
    """

    graph: csr_matrix
    message: csr_matrix | None
    taught: csr_matrix

    @classmethod
    def of(cls, settings: ELMRecSettings, dataset: Dataset) -> Edges:
        """The edges that the settings ask for."""
        train = dataset.matrix(TRAIN)
        graph = train
        if settings.graph != TRAIN:
            graph = _share(dataset.matrix(*SPLITS), 0.8, [settings.seed, _LEAKY])
        if settings.hide == "batch":
            return cls(graph, None, train)
        if settings.hide == "none":
            return cls(graph, graph, train)
        taught = _share(train, settings.supervision_share, [settings.seed, _SUPERVISION])
        message = graph - graph.multiply(taught)
        message.eliminate_zeros()
        return cls(graph, message, taught)


def _share(pairs: csr_matrix, share: float, seed: list[int]) -> csr_matrix:
    """A random share of the pairs."""
    kept = pairs.copy()
    kept.data = (np.random.default_rng(seed).random(pairs.nnz) < share).astype(np.float32)
    kept.eliminate_zeros()
    return kept


class Tasks:
    """Batches for training, and the fixed rows of validation and test.

    Args:
        candidates: folder of the stored candidates.

    Raises:
        UserError: a task has nothing to learn from.
    """

    def __init__(
        self,
        settings: ELMRecSettings,
        dataset: Dataset,
        prompts: IdPrompts,
        edges: Edges,
        candidates: Path,
    ) -> None:
        self._settings, self._dataset, self._prompts = settings, dataset, prompts
        self._taught, self._candidates = edges.taught, candidates
        self._histories = dataset.histories(TRAIN)
        self._known = dataset.histories(TRAIN, opinion=None)
        self._pools = {task: self._pool(task) for task in settings.tasks}

    def _pool(self, task: str) -> np.ndarray:
        """What an epoch goes through: users, or places among the train explanations."""
        if task == DIRECT:
            pool = np.flatnonzero(np.diff(self._taught.indptr))
        elif task == SEQUENTIAL:
            pool = np.flatnonzero([len(history) > 1 for history in self._histories])
        else:
            pool = np.arange(len(self.explanations[TRAIN]))
        if not len(pool):
            raise UserError(
                f"task '{task}' has nothing to learn from: take it out of elmrec.tasks."
            )
        return pool

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch: as many of each task."""
        size = self._settings.train.batch_size
        most = max(-(-len(pool) // size) for pool in self._pools.values())
        return len(self._pools) * (self._settings.train.steps_per_task or most)

    def batch(self, epoch: int, step: int) -> TaskBatch:
        """What an optimiser step learns; tasks take turns."""
        settings = self._settings
        place = step % len(settings.tasks)
        task, number = settings.tasks[place], step // len(settings.tasks)
        pool = self._pools[task]
        seed = [settings.train.seed, epoch, place]
        order = np.random.default_rng([*seed, _ORDER]).permutation(len(pool))
        size = min(settings.train.batch_size, len(pool))
        rng = np.random.default_rng([*seed, step])
        chosen = pool[order[np.arange(number * size, (number + 1) * size) % len(pool)]]
        if task == DIRECT:
            negatives = self._negatives(rng)
            rows = [self._direct(int(one), rng, negatives) for one in chosen]
        elif task == SEQUENTIAL:
            rows = [self._segment(int(one), rng) for one in chosen]
        else:
            rows = [self.explanations[TRAIN][place] for place in chosen]
        return self._prompts.batch(task, rows, rng, self.shuffled(task))

    def shuffled(self, task: str) -> bool:
        """Whether words are counted in a random order."""
        found: TaskSettings = getattr(self._settings.words, task)
        return found.whole_words == "random"

    def _negatives(self, rng: np.random.Generator) -> int:
        """How many a batch has."""
        if self._settings.train_negatives is None:
            return self._settings.negatives
        low, high = np.log(self._settings.train_negatives)
        return round(float(np.exp(rng.uniform(low, high))))

    def _direct(self, user: int, rng: np.random.Generator, negatives: int) -> Row:
        own = self._taught.indices[self._taught.indptr[user] : self._taught.indptr[user + 1]]
        item = int(rng.choice(own))
        count = min(negatives, len(self._dataset.item_ids) - len(self._known[user]))
        drawn = drawn_items(rng, len(self._dataset.item_ids), self._known[user], count)
        assert drawn is not None
        return Row(user, rng.permutation(np.append(drawn, item)), item)

    def _segment(self, user: int, rng: np.random.Generator) -> Row:
        history = self._histories[user]
        start = int(rng.integers(len(history) - 1))
        end = int(rng.integers(start + 1, len(history)))
        shown = history[max(start, end - self._settings.history) : end]
        return Row(user, shown, int(history[end]))

    @cached_property
    def explanations(self) -> dict[str, list[Row]]:
        """Rows with a text, by split; of train only pairs that may be taught.

        Raises:
            UserError: there is no such column.
        """
        dataset, column = self._dataset, self._settings.explanation_column
        if column not in dataset.interactions.column_names:
            names = ", ".join(dataset.interactions.column_names)
            raise UserError(
                f"task 'explanation' reads the interactions' column '{column}', and there is none "
                f"(there are: {names}): set elmrec.explanation_column, or leave the task out."
            )
        found: dict[str, list[Row]] = {split: [] for split in SPLITS}
        texts = dataset.interactions[column].to_pylist()
        taught = self._taught.astype(bool)
        for place, text in enumerate(texts):
            user, item = int(dataset.user_rows[place]), int(dataset.item_rows[place])
            split = SPLITS[dataset.labels[place]]
            allowed = split != TRAIN or bool(taught[user, item])
            if text and text.strip() and dataset.opinions[place] == LIKED and allowed:
                tokens = self._prompts.explanation(text, self._settings.explanation_tokens)
                found[split].append(Row(user, np.empty(0, np.int64), item, tokens))
        return found

    def asked(self, task: str, split: str) -> list[Row]:
        """The rows of validation or test: the same in every run with the same settings."""
        settings = self._settings
        if task == EXPLANATION:
            rows = self.explanations[split]
            limit = settings.valid_users if split == VALID else settings.test_users
            return [rows[place] for place in drawn_users(len(rows), limit, settings.seed)]
        found = read_candidates(self._dataset, self._candidates, split)
        if task == DIRECT:
            return [Row(one.user, one.items, int(one.items[one.target])) for one in found]
        last = settings.history
        return [
            Row(one.user, one.history[-last:], int(one.items[one.target]))
            for one in found
            if len(one.history)
        ]

    def written(self, task: str, rows: Sequence[Row]) -> TaskBatch:
        """Rows as tensors, for evaluation."""
        return self._prompts.batch(task, rows, None, self.shuffled(task))


def prompts_of(
    settings: ELMRecSettings, tokenizer: object, numbers: tuple[np.ndarray, np.ndarray]
) -> IdPrompts:
    """The writer of rows."""
    return IdPrompts(tokenizer, load_templates(settings.templates), numbers)
