"""Build ELMRec, train it on Ray Train, save and load it.

ELMRec §3.1, §4 and §5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raysys.assets import loading, model_path
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.graph.bipartite import bipartite_graph
from raysys.models.elmrec import ELMRec, GraphWords, TaskBatch
from raysys.models.parameters import load_parameters, parameters_of
from raysys.models.precision import mixed_precision
from raysys.schema import SPLITS, TRAIN, VALID
from raysys.store import fingerprint, read_arrays, read_json, write_arrays, write_json
from raysys.text.engine import tokenizer_of
from raysys.text.id_prompts import IdPrompts, chunks, id_numbers
from raysys.text.small_models import write_small_seq2seq
from raysys.training.elmrec_settings import ELMRecSettings, ELMRecTrainSettings
from raysys.training.elmrec_tasks import Edges, Tasks, prompts_of, write_candidates
from raysys.training.epochs import EpochTraining
from raysys.training.loop import mixed_seed
from raysys.training.ray_train import Placement, Worker, fit, run_epochs
from raysys.training.workers import Workers

#: Folder of the small language model, where none is named; and the numbers in id words.
LANGUAGE_MODEL, NUMBERS_FILE = "language_model", "numbers.safetensors"
#: What a trained ELMRec is: parameters, and what they fit.
PARAMETERS_FILE, ABOUT_FILE = "elmrec.safetensors", "elmrec.json"
_LANGUAGE_MODEL = "language_model."


@dataclass(frozen=True)
class ELMRecJob:
    """What to train, as paths and settings.

    Attributes:
        dataset: data set folder.
        inputs: folder with numbers, candidates and, where none is named, the language model.
    """

    dataset: Path
    inputs: Path
    settings: ELMRecSettings
    placement: Placement

    def name(self) -> str:
        """The same only for the same job, so that no other job's checkpoint is used."""
        values = {"inputs": str(self.inputs), "settings": self.settings.model_dump(mode="json")}
        return f"elmrec-{fingerprint(values)[:16]}"


def write_inputs(settings: ELMRecSettings, dataset: Dataset, folder: Path) -> dict[str, int]:
    """Write numbers, candidates and, where no model is named, a small one into `folder`.

    Returns:
        candidates by split.

    Raises:
        UserError: see `write_candidates`.
    """
    users, items = id_numbers(dataset, settings.numbering, settings.seed)
    write_arrays(folder / NUMBERS_FILE, {"users": users, "items": items})
    if settings.model is None:
        words = [f"user_{n}" for n in users.tolist()] + [f"item_{n}" for n in items.tolist()]
        texts = [*words, *_train_texts(dataset, settings.explanation_column)]
        write_small_seq2seq(folder / LANGUAGE_MODEL, settings.small, texts, settings.train.seed)
    return write_candidates(settings, dataset, folder)


def _train_texts(dataset: Dataset, column: str) -> list[str]:
    """What a vocabulary is learnt of beside ids."""
    if column not in dataset.interactions.column_names:
        return []
    train = pa.array(np.flatnonzero(dataset.labels == SPLITS.index(TRAIN)))
    return [text for text in dataset.interactions[column].take(train).to_pylist() if text]


@dataclass(frozen=True)
class Material:
    """What an ELMRec learns from and is asked with."""

    dataset: Dataset
    edges: Edges
    prompts: IdPrompts
    tasks: Tasks


@dataclass(frozen=True)
class Built(Material):
    """The same with a model."""

    model: ELMRec


def material(job: ELMRecJob) -> Material:
    """Data set, graph, prompts and tasks of a job.

    Raises:
        UserError: a model of another kind, ids that its tokeniser cannot write, a task without
            rows, stored candidates that do not fit.
    """
    settings, dataset = job.settings, Dataset.load(job.dataset)
    numbers = read_arrays(job.inputs / NUMBERS_FILE)
    tokenizer = tokenizer_of(_source(job), settings.revision)
    prompts = prompts_of(settings, tokenizer, (numbers["users"], numbers["items"]))
    edges = Edges.of(settings, dataset)
    return Material(dataset, edges, prompts, Tasks(settings, dataset, prompts, edges, job.inputs))


def build(job: ELMRecJob, device: torch.device, trained: Path | None = None) -> Built:
    """The model as it starts, or with the language model of a folder.

    Raises:
        UserError: see `material` and `load_seq2seq`.
    """
    settings, found = job.settings, material(job)
    generator = torch.Generator().manual_seed(settings.train.seed)
    language_model = (
        load_seq2seq(_source(job), settings.revision)
        if trained is None
        else load_seq2seq(str(trained), None)
    )
    graph = bipartite_graph(found.edges.graph).to(device)
    message = None if found.edges.message is None else bipartite_graph(found.edges.message)
    words = GraphWords(
        graph,
        None if message is None else message.to(device),
        settings.words,
        language_model.config.d_model,
        generator,
    )
    model = ELMRec(language_model, words, settings.words, settings.most_words, generator)
    return Built(found.dataset, found.edges, found.prompts, found.tasks, model.to(device))


def _source(job: ELMRecJob) -> str:
    return job.settings.model or str(job.inputs / LANGUAGE_MODEL)


def load_seq2seq(path: str, revision: str | None) -> Any:
    """An encoder–decoder in float32.

    Raises:
        UserError: the model is of another kind.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    with loading(path):
        config = AutoConfig.from_pretrained(model_path(path), revision=revision)
    if not config.is_encoder_decoder or not hasattr(config, "d_model"):
        raise UserError(
            f"elmrec.model: '{path}' is of type '{config.model_type}', not an encoder-decoder of "
            "the T5 family: try google-t5/t5-small, or leave it out for a small one."
        )
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(
        model_path(path), revision=revision, dtype=torch.float32
    )
    return model


class ELMRecTraining(EpochTraining):
    """One training run; the watched figure is the validation loss, the mean of all tasks'.

    Args:
        built: the model, on its device, and its tasks.
    """

    watched = "validation_loss"
    larger_is_better = False
    section = "elmrec.train"
    settings: ELMRecTrainSettings

    def __init__(
        self, built: Built, settings: ELMRecSettings, workers: Workers | None = None
    ) -> None:
        super().__init__(built.model, settings.train, workers)
        self._tasks = built.tasks
        self._names = settings.tasks
        self._asked = {task: self._tasks.asked(task, VALID) for task in settings.tasks}

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return self._tasks.steps

    def backward(self) -> tuple[torch.Tensor, float]:
        """Gradients of this worker's rows; its share of the mean loss a row."""
        batch = self._tasks.batch(self.epoch, self.step)
        total = len(batch.tokens)
        torch.manual_seed(
            mixed_seed(self.settings.seed, self.epoch, self.step, self.workers.number)
        )
        share = torch.zeros((), dtype=torch.float64, device=self.device)
        mine = batch.rows(slice(self.workers.number, None, self.workers.count))
        if len(mine.tokens):
            loss = self._losses_of(mine).sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            share += loss.detach()
        return share, 1.0

    def validate(self) -> float | None:
        """The mean over tasks of the mean loss a row; each worker takes a share of the rows."""
        self.model.eval()
        sums = torch.zeros(len(self._names), 2, dtype=torch.float64, device=self.device)
        for place, task in enumerate(self._names):
            rows = self._asked[task][self.workers.number :: self.workers.count]
            for part in chunks(rows, 64):
                with torch.no_grad():
                    losses = self._losses_of(self._tasks.written(task, part))
                sums[place] += torch.tensor([float(losses.sum()), len(part)], device=self.device)
        self.workers.add_up(sums)
        sums = sums[sums[:, 1] > 0]
        return float((sums[:, 0] / sums[:, 1]).mean()) if len(sums) else None

    def _losses_of(self, batch: TaskBatch) -> torch.Tensor:
        with mixed_precision(self.device):
            found: torch.Tensor = self.model.losses(batch.to(self.device))
        return found


def train_elmrec(job: ELMRecJob, output: Path) -> dict[str, Any]:
    """Train on the connected Ray cluster; the best epoch's model is in `output`.

    Returns:
        epochs, best_epoch, best (validation loss), history.

    Raises:
        UserError: settings or data do not fit, or training diverged.
    """
    train = job.settings.train
    return fit(
        partial(_train, job),
        output.resolve(),
        job.name(),
        job.placement,
        steps=train.epochs * material(job).tasks.steps,
        max_failures=train.max_failures,
    )


def _train(job: ELMRecJob, worker: Worker) -> dict[str, Any] | None:
    """What each worker runs."""
    built = build(job, worker.device)
    training = ELMRecTraining(built, job.settings, worker.workers)
    run_epochs(training, worker)
    if not worker.workers.first:
        return None
    save(built, job, worker.output)
    return {
        "epochs": training.epoch,
        "best_epoch": training.best_epoch,
        "best": training.best,
        "history": training.history,
    }


def save(built: Built, job: ELMRecJob, folder: Path) -> None:
    """Write a model: the language model in its own form, the rest beside it."""
    arrays = parameters_of(built.model)
    own = {name: array for name, array in arrays.items() if not name.startswith(_LANGUAGE_MODEL)}
    write_arrays(folder / PARAMETERS_FILE, own)
    built.model.language_model.save_pretrained(str(folder / LANGUAGE_MODEL))
    write_json(folder / ABOUT_FILE, {"dataset": built.dataset.identity()})


def load(job: ELMRecJob, folder: Path, device: torch.device) -> Built:
    """A trained model, ready to be asked.

    Raises:
        UserError: it was trained on another data set, or files do not fit.
    """
    about = read_json(folder / ABOUT_FILE)
    built = build(job, device, folder / LANGUAGE_MODEL)
    if about["dataset"] != built.dataset.identity():
        raise UserError(
            f"{folder} was trained on other users or items than {job.dataset} has: train it again."
        )
    own = read_arrays(folder / PARAMETERS_FILE)
    whole = {
        f"{_LANGUAGE_MODEL}{name}": array
        for name, array in parameters_of(built.model.language_model).items()
    }
    load_parameters(built.model, whole | own, folder / PARAMETERS_FILE)
    built.model.eval()
    return built
