"""Train ELMRec on Ray Train; load what came out, and ask it.

ELMRec §3.1, §4 and §5.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysys.assets import model_path
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.graph.bipartite import bipartite_graph
from raysys.models.align import fast_bfloat16
from raysys.models.constrained import (
    Trie,
    constrained_search,
    sequence_scores,
    without_known,
)
from raysys.models.elmrec import DIRECT, EXPLANATION, SEQUENTIAL, ELMRec, GraphWords, TaskBatch
from raysys.models.parameters import load_parameters, parameters_of
from raysys.schema import VALID
from raysys.store import fingerprint, read_arrays, read_json, write_arrays, write_json
from raysys.text.engine import tokenizer_of
from raysys.text.id_prompts import IdPrompts, Row
from raysys.training.elmrec_tasks import (
    Edges,
    ELMRecSettings,
    ELMRecTrainSettings,
    Tasks,
    prompts_of,
)
from raysys.training.epochs import EpochTraining
from raysys.training.loop import mixed_seed
from raysys.training.ray_train import Placement, Worker, fit
from raysys.training.workers import Workers

#: Folder of the small language model, where none is named; and the numbers in id words.
LANGUAGE_MODEL, NUMBERS_FILE = "language_model", "numbers.safetensors"
#: What a trained ELMRec is: parameters, and what they fit.
PARAMETERS_FILE, ABOUT_FILE = "elmrec.safetensors", "elmrec.json"
#: Places (rows × tokens) that are encoded together, and decoder rows × input tokens.
_ENCODED, _DECODED = 1 << 14, 1 << 18
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
        fast = self.device.type == "cuda" or fast_bfloat16()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
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
    worker.resume(training)
    report = worker.reporter()

    def after_step(training: ELMRecTraining) -> None:
        due = training.finished or training.done % job.settings.train.checkpoint_every == 0
        report(training, training.done, training.loss, due)

    training.run(after_step)
    training.restore_best()
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


class Asked:
    """Answers of a loaded model.

    Args:
        built: see `load`.
        settings: how it is asked.
    """

    def __init__(self, built: Built, settings: ELMRecSettings) -> None:
        self._built, self._settings = built, settings
        self._model = built.model
        self._device = built.model.prompts.device
        self._trie: Trie | None = None

    def direct(self, rows: Sequence[Row]) -> np.ndarray:
        """Candidates in order, best first, (n, k) item rows, −1 where there are no more.

        Raises:
            ValueError: a row shows a candidate twice.
        """
        for row in rows:
            if len(np.unique(row.items)) < len(row.items):
                raise ValueError(f"user row {row.user} has a candidate twice")
        find = self._by_trie if self._settings.decode == "trie" else self._by_score
        return self._in_parts(DIRECT, rows, find, self._settings.longest_list)

    def sequential(self, rows: Sequence[Row], known: Sequence[np.ndarray]) -> np.ndarray:
        """Items of the whole catalogue that come next, (n, k) item rows; see `without_known`.

        Args:
            known: item rows of each user, which are left out.
        """
        beams = min(self._settings.width_of_search, len(self._built.prompts.items))
        found = self._in_parts(SEQUENTIAL, rows, partial(self._in_catalogue, beams=beams), beams)
        return without_known(found, list(known), self._settings.longest_list)

    @torch.no_grad()
    def explain(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens of written explanations, by greedy decoding, (n, T) filled up with padding."""
        from transformers.modeling_outputs import BaseModelOutput

        most, pad = (
            self._settings.explanation_tokens,
            self._model.language_model.config.pad_token_id,
        )
        texts = np.full((len(rows), most + 1), pad)
        done = 0
        for part in chunks(rows, 32):
            states, mask = self._encoded(self._built.tasks.written(EXPLANATION, part))
            written = self._model.language_model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),  # type: ignore[arg-type]
                attention_mask=mask,
                max_new_tokens=most,
                do_sample=False,
                num_beams=1,
            )
            texts[done : done + len(part), : written.shape[1]] = written.cpu().numpy()
            done += len(part)
        return texts

    def _in_parts(self, task: str, rows: Sequence[Row], find: Any, width: int) -> np.ndarray:
        """Find items for parts of the rows that fit into memory."""
        lists = [np.empty((0, width), np.int64)]
        for batch, part in self._batches(task, rows, width):
            states, mask = self._encoded(batch)
            lists.append(find(part, states, mask)[:, :width])
        return np.concatenate(lists)

    def _batches(
        self, task: str, rows: Sequence[Row], width: int
    ) -> Iterator[tuple[TaskBatch, Sequence[Row]]]:
        if not rows:
            return
        longest = self._built.tasks.written(task, [max(rows, key=lambda row: len(row.items))])
        tokens = longest.tokens.shape[1]
        if task == DIRECT and self._settings.decode == "score":
            width = max(len(row.items) for row in rows)
        for part in chunks(rows, max(1, min(_ENCODED // tokens, _DECODED // (tokens * width)))):
            yield self._built.tasks.written(task, part), part

    @torch.no_grad()
    def _encoded(self, batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return self._model.encoded(batch.to(self._device))

    def _by_trie(self, part: Sequence[Row], states: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        items = np.concatenate([row.items for row in part])
        roots = np.repeat(np.arange(len(part)), [len(row.items) for row in part])
        trie = Trie.of(self._built.prompts.items[items], roots).to(self._device)
        every = torch.arange(len(part), device=self._device)
        beams = max(self._settings.beams, self._settings.longest_list)
        found, _ = constrained_search(self._model.language_model, states, mask, trie, every, beams)
        places = found.cpu().numpy()
        return np.where(places < 0, -1, items[places])

    def _by_score(
        self, part: Sequence[Row], states: torch.Tensor, mask: torch.Tensor
    ) -> np.ndarray:
        width = max(len(row.items) for row in part)
        items = np.full((len(part), max(width, self._settings.longest_list)), -1)
        for place, row in enumerate(part):
            items[place, : len(row.items)] = row.items
        sequences = torch.from_numpy(self._built.prompts.items[items]).to(self._device)
        scores = sequence_scores(self._model.language_model, states, mask, sequences)
        found = np.where(items < 0, -np.inf, scores.cpu().numpy())
        order = np.argsort(-found, axis=1, kind="stable")
        return np.take_along_axis(items, order, axis=1)

    def _in_catalogue(
        self, part: Sequence[Row], states: torch.Tensor, mask: torch.Tensor, beams: int
    ) -> np.ndarray:
        if self._trie is None:
            self._trie = Trie.of(self._built.prompts.items).to(self._device)
        roots = torch.zeros(len(part), dtype=torch.int64, device=self._device)
        found, _ = constrained_search(
            self._model.language_model, states, mask, self._trie, roots, beams
        )
        return found.cpu().numpy()


def chunks(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Consecutive parts of at most `size` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
