"""Fine-tune the yes/no recommender on Ray Train; load, score with and merge what came out.

LLM-TRSR §4.3.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysys.assets import model_path
from raysys.errors import UserError
from raysys.models.lora import load_base, merged, with_lora
from raysys.models.parameters import parameters_of
from raysys.models.yes_no import AnswerTokens, Question, YesNoScorer
from raysys.schema import TRAIN, VALID
from raysys.store import fingerprint, read_json, write_json
from raysys.text.engine import model_identity, tokenizer_of
from raysys.training.language_models import YesNoTraining, steps_of_epoch
from raysys.training.ray_train import Placement, Worker, fit, run_epochs
from raysys.training.yes_no_examples import YesNoSettings, read_questions

ADAPTER_FOLDER = "adapter"
#: What an adapter was made on: the base model, its answer tokens, the prompts.
ABOUT_FILE = "yes_no.json"


@dataclass(frozen=True)
class FinetuneJob:
    """What to fine-tune, as paths and settings."""

    examples: Path
    settings: YesNoSettings
    placement: Placement

    def name(self) -> str:
        """The same only for the same job, so that no other job's checkpoint is used."""
        values = {"examples": str(self.examples), "settings": self.settings.model_dump()}
        return f"yes-no-{fingerprint(values)[:16]}"


def finetune_yes_no(job: FinetuneJob, output: Path) -> dict[str, Any]:
    """Fine-tune on the connected Ray cluster; the best epoch's adapter is in `output/adapter`.

    Returns:
        epochs, best_epoch, best (validation MRR@10), examples, history.

    Raises:
        UserError: model or settings are wrong, or training diverged.
    """
    output = output.resolve()
    settings = job.settings
    questions, _ = read_questions(job.examples, TRAIN)
    steps = steps_of_epoch(questions, settings.finetune.batch_size)
    return fit(
        partial(_finetune, job),
        output,
        job.name(),
        job.placement,
        steps=settings.finetune.epochs * steps,
        max_failures=settings.finetune.max_failures,
    )


def _finetune(job: FinetuneJob, worker: Worker) -> dict[str, Any] | None:
    """What each worker runs."""
    settings = job.settings
    tokenizer = tokenizer_of(settings.model, settings.revision)
    answers = AnswerTokens.of(tokenizer)
    base = load_base(model_path(settings.model), settings.revision, worker.device)
    model = with_lora(base, settings.finetune.lora, settings.finetune.seed)
    pad = pad_token(tokenizer)
    questions, valid = (read_questions(job.examples, split)[0] for split in (TRAIN, VALID))
    training = YesNoTraining(
        model,
        questions,
        valid,
        answers,
        settings.finetune,
        pad,
        settings.max_tokens,
        worker.workers,
    )
    run_epochs(training, worker)
    # Sharded adapters are gathered by all workers together.
    arrays = parameters_of(model)
    if not worker.workers.first:
        return None
    folder = worker.output / ADAPTER_FOLDER
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    model.save_pretrained(str(folder), state_dict=state)
    tokenizer.save_pretrained(str(folder))
    about = {"model": settings.model, "revision": settings.revision, **settings.about()}
    write_json(folder / ABOUT_FILE, about)
    return {
        "epochs": training.epoch,
        "best_epoch": training.best_epoch,
        "best": training.best,
        "examples": sum(len(question.candidates) for question in questions),
        "history": training.history,
    }


class LoadedModel:
    """The base model with the adapters of a folder, or as it is: ready to score.

    Raises:
        UserError: the adapters were made on another base model.
    """

    def __init__(self, settings: YesNoSettings, adapter: Path | None) -> None:
        tokenizer = tokenizer_of(settings.model, settings.revision)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_base(model_path(settings.model), settings.revision, device)
        if adapter is not None:
            require_base(adapter, settings.model, settings.revision)
            model = merged(model, adapter)
        self._scorer = YesNoScorer(model, AnswerTokens.of(tokenizer), pad_token(tokenizer))

    def score(self, question: Question) -> np.ndarray:
        """(1 + m,) float32 scores of a question's candidates."""
        scores: np.ndarray = self._scorer.shared(question.prefix, question.candidates).cpu().numpy()
        return scores


def require_base(adapter: Path, model: str, revision: str | None) -> None:
    """Refuse adapters that were made on another base model."""
    about = read_json(adapter / ABOUT_FILE)
    if about.get("base") != model_identity(model, revision):
        raise UserError(
            f"{adapter} was fine-tuned from '{about.get('model')}', which is not the model "
            f"'{model}' (or not this version of it): give its base model."
        )


def merge(adapter: Path, output: Path, model: str | None = None) -> None:
    """Write a plain model, base and adapters in one, that vLLM and transformers load.

    Args:
        adapter: a folder written by `finetune_yes_no`.
        output: a folder that does not exist yet.
        model: the base model, where it is not found under its old name.

    Raises:
        UserError: `output` exists, or the base model is another one.
    """
    if output.exists():
        raise UserError(f"{output} exists: choose another folder.")
    about = read_json(adapter / ABOUT_FILE)
    base, revision = model or about["model"], about["revision"]
    require_base(adapter, base, revision)
    found = merged(load_base(model_path(base), revision, torch.device("cpu")), adapter)
    work = output.with_name(f".{output.name}.work")
    found.save_pretrained(str(work))
    tokenizer_of(base, revision).save_pretrained(str(work))
    write_json(work / ABOUT_FILE, about)
    os.replace(work, output)


def pad_token(tokenizer: Any) -> int:
    """A token to fill up with; it is never attended to, so any will do."""
    found = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id or 0) if found is None else int(found)
