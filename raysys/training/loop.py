"""The training loop of graph models: no Ray, resumable at any epoch.

All randomness of epoch e comes from (seed, e), and of its step t from (seed, e, t). So a run
that goes on from a checkpoint repeats exactly what an undisturbed run would have done, and
several workers draw the same negatives and the same dropped edges without talking.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_matrix, diags

from raysys.errors import UserError
from raysys.evaluation.protocols import all_rank
from raysys.graph.sampling import NegativeSampler
from raysys.models.base import Batch, Recommender
from raysys.models.parameters import (
    below,
    load_optimizer_state,
    load_parameters,
    optimizer_state,
    parameters_of,
)
from raysys.models.saved import Embeddings
from raysys.settings import Settings
from raysys.store import read_arrays, read_json, write_arrays, write_json
from raysys.training.workers import Workers

#: What decides the best epoch and the early stop.
WATCHED = "recall@20"
_STATE_FILE = "state.json"
_TENSORS_FILE = "state.safetensors"


class TrainSettings(Settings):
    """How a graph model is trained; the defaults are RLMRec's, but for `epochs` (there 3,000)."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's step size."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's; without it, it is Adam."""
    halve_after: int | None = Field(default=None, ge=1)
    """The step size is halved each time so many validations in a row were no better."""
    halve_at: tuple[int, ...] = ()
    """And after these epochs; a refit takes them from the run on train."""
    batch_size: int = Field(default=4096, ge=1)
    """Positives in a step, over all workers together."""
    epochs: int = Field(default=300, ge=1)
    """Passes over the train interactions, at most."""
    validate_every: int = Field(default=3, ge=1)
    """Epochs between validations; the last epoch is always validated."""
    patience: int = Field(default=5, ge=1)
    """Validations without a better Recall@20 after which training stops."""
    seed: int = Field(default=2023, ge=0)
    """Start values, order, negatives and dropout all follow from it."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Epochs between checkpoints: what a crash can cost."""
    max_failures: int = Field(default=3, ge=0)
    """Crashes of a worker that are answered by a restart from the newest checkpoint."""
    refit: bool = False
    """Train every model again on train and validation together, with all that validation chose;
    that is what is then measured, recommends and is served."""


class GraphTraining:
    """One training run: model, optimiser, and how far it has come.

    Args:
        model: on its device; trained in place.
        train: (U, I) train interactions, the positives and the validation mask.
        valid: (U, I) validation interactions; none or empty: no early stop, the last
            epoch counts as the best.
        settings: see `TrainSettings`.
        workers: this worker's place among all.
        known: (U, I) what validation lists leave out; train if not given.

    Attributes:
        epoch: finished epochs.
        history: one row an epoch: epoch (from 1), loss, each named loss, recall@20 or null.
        best_epoch, best_recall: of the best validation so far.
        stale: validations since then.
        halved: numbers of finished epochs after which the step size was halved.
    """

    watched: ClassVar[str] = WATCHED

    def __init__(
        self,
        model: Recommender,
        train: csr_matrix,
        valid: csr_matrix | None,
        settings: TrainSettings,
        workers: Workers | None = None,
        known: csr_matrix | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.workers = workers or Workers()
        self.epoch = 0
        self.history: list[dict[str, float | None]] = []
        self.best_epoch = 0
        self.best_recall: float | None = None
        self.stale = 0
        if train.nnz == 0:
            raise UserError("the train split is empty: there is nothing to learn from.")
        self._train = train
        self._known = train if known is None else known
        self._valid = None if valid is None else _unseen(valid, self._known)
        positives = train.tocoo()
        self._users = positives.row.astype(np.int64)
        self._items = positives.col.astype(np.int64)
        self._sampler = NegativeSampler(train)
        self._device = model.graph.device
        self._generator = torch.Generator(device=self._device)
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.halved = list(settings.halve_at)
        self._best = parameters_of(model)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or patience is used up."""
        return self.epoch >= self.settings.epochs or self.stale >= self.settings.patience

    def run(self, after_epoch: Callable[[GraphTraining], None] | None = None) -> None:
        """Train until `finished`; `after_epoch` may save a checkpoint or show progress."""
        while not self.finished:
            self.train_epoch()
            if after_epoch is not None:
                after_epoch(self)

    def train_epoch(self) -> None:
        """One pass over all positives in a new order with new negatives, then validation if due.

        Raises:
            UserError: the loss is no longer a finite number.
        """
        for group in self._optimizer.param_groups:
            halvings = sum(self.epoch >= epoch for epoch in self.halved)
            group["lr"] = self.settings.learning_rate * 0.5**halvings
        figures = self._pass()
        self.epoch += 1
        if not math.isfinite(figures["loss"]):
            raise UserError(
                f"the loss is not finite in epoch {self.epoch}: lower train.learning_rate "
                f"(now {self.settings.learning_rate:g}) or raise the temperature."
            )
        recall = None
        due = self.epoch % self.settings.validate_every == 0
        if self._valid is not None and (due or self.epoch == self.settings.epochs):
            recall = self._validate(self._valid)
        if self._valid is None or recall is not None:
            self._compare(recall)
        self.history.append({"epoch": self.epoch, **figures, WATCHED: recall})

    def restore_best(self) -> None:
        """Set the model to the parameters of the best epoch."""
        load_parameters(self.model, self._best, Path("the best epoch"))

    def save(self, folder: Path) -> None:
        """Write a checkpoint: safetensors and JSON, on the first worker."""
        if not self.workers.first:
            return
        arrays = {f"model/{name}": array for name, array in parameters_of(self.model).items()}
        arrays |= {f"best/{name}": array for name, array in self._best.items()}
        adam = optimizer_state(self.model, self._optimizer)
        arrays |= {f"adam/{name}": array for name, array in adam.items()}
        write_arrays(folder / _TENSORS_FILE, arrays)
        state = {
            "train": self._identity(),
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_recall": self.best_recall,
            "stale": self.stale,
            "halved": self.halved,
            "history": self.history,
        }
        write_json(folder / _STATE_FILE, state)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint of the same run.

        Raises:
            UserError: files are missing, broken, of another model or of another train split.
        """
        state: dict[str, Any] = read_json(folder / _STATE_FILE)
        if state.get("train") != self._identity():
            raise UserError(f"{folder / _STATE_FILE} is of another train split: train anew.")
        arrays, path = read_arrays(folder / _TENSORS_FILE), folder / _TENSORS_FILE
        load_parameters(self.model, below(arrays, "model/"), path)
        self._best = below(arrays, "best/")
        load_optimizer_state(self.model, self._optimizer, below(arrays, "adam/"))
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_recall, self.stale = state["best_recall"], state["stale"]
        self.halved, self.history = state["halved"], state["history"]

    def _identity(self) -> str:
        """A hash of the train pairs in their order."""
        digest = hashlib.sha256(str(self._train.shape).encode())
        for rows in (self._users, self._items):
            digest.update(rows.tobytes())
        return digest.hexdigest()

    def _pass(self) -> dict[str, float]:
        """All steps of one epoch; returns each loss of the whole batch, mean over steps."""
        batches = self._batches()
        names: list[str] = []
        totals = torch.zeros(0)
        for step, batch in enumerate(batches):
            self._generator.manual_seed(mixed_seed(self.settings.seed, self.epoch, step))
            self._optimizer.zero_grad(set_to_none=True)
            named = self.model.losses(batch, self._generator)
            shares = torch.stack(list(named.values()))
            torch.autograd.backward(shares.sum())
            self.workers.add_up_gradients(self._parameters)
            self._optimizer.step()
            if step == 0:
                names, totals = list(named), torch.zeros_like(shares, dtype=torch.float64)
            totals += shares.detach()
        self.workers.add_up(totals)
        means = (totals / len(batches)).tolist()
        return {"loss": sum(means), **dict(zip(names, means, strict=True))}

    def _batches(self) -> list[Batch]:
        sequence = np.random.SeedSequence(self.settings.seed, spawn_key=(self.epoch,))
        rng = np.random.default_rng(sequence)
        order = rng.permutation(len(self._users))
        owners = self._users[order]
        columns = [
            torch.split(torch.from_numpy(rows).to(self._device), self.settings.batch_size)
            for rows in (owners, self._items[order], self._sampler.sample(owners, rng))
        ]
        return [
            Batch(users, positives, negatives, self.workers.number, self.workers.count, step)
            for step, (users, positives, negatives) in enumerate(zip(*columns, strict=True))
        ]

    def _validate(self, valid: csr_matrix) -> float:
        """Recall@20 over all validation users; each worker ranks for every n-th of them."""
        mine = np.arange(valid.shape[0]) % self.workers.count == self.workers.number
        share = diags(mine.astype(np.float32)) @ valid
        share.eliminate_zeros()
        figures = torch.zeros(2, dtype=torch.float64)
        if share.nnz:
            scores = Embeddings.of(self.model).score_block
            recalls = all_rank(scores, self._known, share, ks=[20]).per_user[WATCHED]
            figures += torch.tensor([recalls.sum(), len(recalls)])
        figures = figures.to(self._device)
        self.workers.add_up(figures)
        return float(figures[0] / figures[1])

    def _compare(self, recall: float | None) -> None:
        if recall is None or self.best_recall is None or recall > self.best_recall:
            self.best_epoch, self.best_recall, self.stale = self.epoch, recall, 0
            self._best = parameters_of(self.model)
        else:
            self.stale += 1
            if self.settings.halve_after and self.stale % self.settings.halve_after == 0:
                self.halved.append(self.epoch)


def mixed_seed(seed: int, *place: int) -> int:
    """A well-mixed seed; nearby places (epoch, step, …) give unrelated streams."""
    sequence = np.random.SeedSequence(seed, spawn_key=place)
    return int(sequence.generate_state(1, np.uint64)[0])


def _unseen(valid: csr_matrix, known: csr_matrix) -> csr_matrix | None:
    """Validation pairs that are not known from train; None where there are none."""
    left = csr_matrix(valid - valid.multiply(known.astype(bool)), dtype=np.float32)
    left.eliminate_zeros()
    return left if left.nnz else None
