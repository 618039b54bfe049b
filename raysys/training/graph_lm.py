"""The steps of the graph-attentive language model, trained on Ray Train.

"LLM-Enhanced User-Item Interactions", sections 3.2 to 3.4.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysys.data.candidates import drawn_users
from raysys.evaluation.protocols import all_rank
from raysys.models.lora import body_and_head
from raysys.models.parameters import parameters_of
from raysys.models.precision import mixed_precision
from raysys.schema import TRAIN, VALID
from raysys.store import write_arrays, write_json
from raysys.training.epochs import EpochTraining
from raysys.training.graph_lm_lessons import Lesson, Lessons
from raysys.training.graph_lm_model import (
    ABOUT_FILE,
    PARAMETERS_FILE,
    Built,
    GraphLMJob,
    build,
    history_scores,
    lessons_of,
    material,
)
from raysys.training.graph_lm_settings import CROWD, INTERACTIONS, GraphLMSettings
from raysys.training.loop import mixed_seed
from raysys.training.ray_train import Worker, fit, run_epochs
from raysys.training.sharding import shard_layers
from raysys.training.workers import Workers


class GraphLMTraining(EpochTraining):
    """One step's training; the watched figure is Recall@20 on validation, none for step 1.

    Args:
        built: the model, on its device.
        lessons: see `lessons_of`.
        step: which of the three.
    """

    watched = "recall@20"
    section = "graph_lm"

    def __init__(
        self,
        built: Built,
        lessons: Lessons,
        settings: GraphLMSettings,
        step: str,
        workers: Workers | None = None,
    ) -> None:
        self._built, self._lessons, self._all, self._step = built, lessons, settings, step
        self._sharded = settings.sharding != "none"
        self._content: torch.Tensor | None = None
        weight = settings.interactions.content_weight
        if step == INTERACTIONS and CROWD in settings.steps and weight:
            tables = torch.cat([built.model.users, built.model.items])
            self._content = tables.detach().clone()
        body, _ = body_and_head(built.model.language_model)
        if settings.gradient_checkpointing:
            body.gradient_checkpointing_enable({"use_reentrant": False})
        if self._sharded:
            shard_layers(body)
        super().__init__(built.model, settings.step(step), workers)
        self._ahead: tuple[tuple[int, int], Future[Lesson | None]] | None = None
        self._pool = ThreadPoolExecutor(1)

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return self._lessons.steps

    def backward(self) -> tuple[torch.Tensor, float]:
        """Gradients of this worker's prompts; its share of the mean loss."""
        lesson, counted = self._lesson(), 1.0
        if lesson is None and self._sharded:
            # Sharded layers are gathered by all workers together.
            lesson, counted = self._lessons.batch(self.epoch, self.step, 0, self.workers.count), 0.0
        share = torch.zeros((), dtype=torch.float64, device=self.device)
        seed = (self.settings.seed, self.epoch, self.step, self.workers.number)
        torch.manual_seed(mixed_seed(*seed))
        if lesson is not None:
            with mixed_precision(self.device):
                loss = counted * lesson.loss(self.model, self.device)
            if self._content is not None:
                loss = loss + counted * self._held(lesson)
            loss.backward()  # type: ignore[no-untyped-call]
            share += loss.detach()
        return share, 1.0

    def _held(self, lesson: Lesson) -> torch.Tensor:
        """This worker's share of λ ‖e - e_content‖², a sum over users and items in the prompts."""
        tokens, words = lesson.batch.tokens, self._built.writer.words
        nodes = (tokens[tokens >= words] - words).to(self.device)
        found: torch.Tensor = self.model.distance(nodes, self._content)
        return self._all.interactions.content_weight * found / lesson.total

    def _lesson(self) -> Lesson | None:
        """This step's prompts; the next step's are written while this one is learnt."""
        place = (self.epoch, self.step)
        if self._ahead is not None and self._ahead[0] == place:
            found = self._ahead[1].result()
        else:
            found = self._write(place)
        after = (self.epoch, self.step + 1)
        if after[1] == self.steps:
            after = (self.epoch + 1, 0)
        self._ahead = (after, self._pool.submit(self._write, after))
        return found

    def _write(self, place: tuple[int, int]) -> Lesson | None:
        return self._lessons.batch(*place, self.workers.number, self.workers.count)

    def validate(self) -> float | None:
        """Recall@20, each worker measuring its share of the users."""
        if self._step == CROWD:
            return None
        dataset = self._built.dataset
        relevant = dataset.matrix(VALID)
        users = np.flatnonzero(np.diff(relevant.indptr))
        if not len(users):
            return None
        users = users[drawn_users(len(users), self._all.valid_users, self._all.seed)]
        number, count = (0, 1) if self._sharded else (self.workers.number, self.workers.count)
        kept = np.zeros(relevant.shape[0], np.float32)
        kept[users[number::count]] = 1
        mine = relevant.multiply(kept[:, None]).tocsr()
        mine.eliminate_zeros()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        if mine.nnz:
            mask = dataset.matrix(TRAIN, opinion=None)
            found = all_rank(partial(history_scores, self._built), mask, mine, (20,))
            recalls = found.per_user["recall@20"]
            sums += torch.tensor([recalls.sum(), len(recalls)], device=self.device)
        if count > 1:
            self.workers.add_up(sums)
        return float(sums[0] / sums[1]) if sums[1] else None


def train_graph_lm(job: GraphLMJob, output: Path) -> dict[str, Any]:
    """Train one step on the connected Ray cluster; the best epoch's model is in `output`.

    Returns:
        prompts, epochs, best_epoch, best (validation Recall@20, none for step 1), history.

    Raises:
        UserError: settings or data do not fit, or training diverged.
    """
    settings = job.settings.step(job.step)
    return fit(
        partial(_train, job),
        output.resolve(),
        job.name(),
        job.placement,
        steps=settings.epochs * lessons_of(job, material(job)).steps,
        max_failures=settings.max_failures,
    )


def _train(job: GraphLMJob, worker: Worker) -> dict[str, Any] | None:
    """What each worker runs."""
    built = build(job, worker.device, job.start)
    lessons = lessons_of(job, built)
    training = GraphLMTraining(built, lessons, job.settings, job.step, worker.workers)
    run_epochs(training, worker)
    arrays = parameters_of(built.model)  # With sharding all workers must ask.
    if not worker.workers.first:
        return None
    write_arrays(worker.output / PARAMETERS_FILE, arrays)
    write_json(worker.output / ABOUT_FILE, {"dataset": built.dataset.identity()})
    return {
        "prompts": lessons.count,
        "epochs": training.epoch,
        "best_epoch": training.best_epoch,
        "best": training.best,
        "history": training.history,
    }
