"""What ELMRec learns and is asked: rows of three tasks, drawn by (seed, epoch, step) alone.

ELMRec §3.1, §4.2, §5.1. Nothing of validation or test is read for training: not as a positive, not
in a history, not as an edge of the graph; and an edge that a batch teaches is no edge in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
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
from raysys.store import read_table, write_table
from raysys.text.id_prompts import IdPrompts, Row, load_templates
from raysys.training.elmrec_settings import ELMRecSettings

CANDIDATES_FILE = "candidates.parquet"
#: Streams of random numbers that belong to no task.
_ORDER, _SUPERVISION, _LEAKY = 10, 11, 12


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
        taught = np.asarray(self._taught[dataset.user_rows, dataset.item_rows]).ravel() > 0
        for place, text in enumerate(texts):
            user, item = int(dataset.user_rows[place]), int(dataset.item_rows[place])
            split = SPLITS[dataset.labels[place]]
            allowed = split != TRAIN or taught[place]
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
