"""Stages `yes_no_examples`, `yes_no_model`, `yes_no_evaluation`: LLM-TRSR's recommender."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from raysys.cluster import StagePlan, preflight
from raysys.errors import UserError
from raysys.evaluation.candidates import question_metrics
from raysys.evaluation.metrics import intervals
from raysys.manifest import Manifest, StageReport
from raysys.models.popularity import Popularity
from raysys.observe import get_logger
from raysys.runs import RunDirectory
from raysys.schema import ITEM_ID, TARGET, TEST, TRAIN, VALID
from raysys.stages.blocks import in_blocks
from raysys.stages.context import RunContext
from raysys.stages.train import place_training
from raysys.store import write_arrays, write_json
from raysys.training.language_models import HOW
from raysys.training.sequential import candidate_scores, train_sasrec
from raysys.training.yes_no import (
    ADAPTER_FOLDER,
    FinetuneJob,
    LoadedModel,
    finetune_yes_no,
    merge,
)
from raysys.training.yes_no_examples import (
    YesNoSettings,
    build_examples,
    questions_of,
    read_questions,
)

EXAMPLES, MODEL, EVALUATION = "yes_no_examples", "yes_no_model", "yes_no_evaluation"
METRICS_FILE, SCORES_FILE = "metrics.json", "scores.safetensors"
#: Rows of the table: the fine-tuned model, the same without fine-tuning, and what reads no text.
TUNED, ZERO_SHOT, POPULARITY, SASREC = "yes_no", "zero_shot", "popularity", "sasrec"
#: Questions of one call; what a crash can cost.
_BLOCK = 20
logger = get_logger(__name__)


def run_examples(context: RunContext) -> tuple[Manifest, bool]:
    """Write questions as tokens into `RUN/yes_no_examples`.

    Raises:
        UserError: the summaries have read what is to be predicted.
    """
    settings, summaries = context.settings.yes_no, context.settings.summaries
    if settings.summaries:
        _refuse_leak(context)
    unused = dict.fromkeys(("finetune", "sasrec", "ks", *settings.of_lists()), True)
    folder = context.run.path("summaries") if settings.summaries else None
    if settings.summaries and summaries.users is not None and settings.users is None:
        logger.warning("summaries.users is set and yes_no.users is not: most users have none")
    return context.run.run_stage(
        EXAMPLES,
        {**settings.model_dump(mode="json", exclude=unused), **settings.about()},
        ["data", "summaries"] if settings.summaries else ["data"],
        lambda output: _build(context, folder, output),
    )


def run_model(context: RunContext) -> tuple[Manifest, bool]:
    """Fine-tune into `RUN/yes_no_model/adapter`."""
    settings = context.settings.yes_no
    return context.run.run_stage(
        MODEL,
        {"finetune": settings.finetune.model_dump(mode="json", exclude=HOW), **settings.about()},
        [EXAMPLES],
        lambda output: _finetune(context, output),
    )


def run_evaluation(context: RunContext) -> tuple[Manifest, bool]:
    """Measure the model, itself without fine-tuning, popularity and SASRec on the test split."""
    settings = context.settings.yes_no
    config = {"ks": settings.ks, "sasrec": settings.sasrec.model_dump(), "seed": settings.seed}
    return context.run.run_stage(
        EVALUATION,
        config,
        ["data", EXAMPLES, MODEL],
        lambda output: _evaluate(context, output),
    )


def merge_run(run: Path, output: Path, base: str | None = None) -> None:
    """Write the fine-tuned model of a run as a plain model.

    Raises:
        UserError: the run has none, `output` exists, or `base` is another model.
    """
    RunDirectory(run).require(MODEL, "raysys finetune yes-no CONFIG")
    merge(run / MODEL / ADAPTER_FOLDER, output, base)


def _refuse_leak(context: RunContext) -> None:
    settings, summaries = context.settings.yes_no, context.settings.summaries
    if summaries.splits != (TRAIN,) or summaries.leave_out_latest < settings.train_positives:
        raise UserError(
            "the summaries read the interactions that the model is trained to predict: set "
            f'summaries.splits = ["train"] and summaries.leave_out_latest = '
            f"{settings.train_positives} (now {list(summaries.splits)} and "
            f"{summaries.leave_out_latest})."
        )


def _build(context: RunContext, summaries: Path | None, output: Path) -> StageReport:
    preflight(StagePlan(EXAMPLES, ()), context.resources)
    return build_examples(context.settings.yes_no, context.dataset, summaries, output)


def _finetune(context: RunContext, output: Path) -> StageReport:
    placement = place_training(context, MODEL)
    job = FinetuneJob(context.run.path(EXAMPLES), context.settings.yes_no, placement)
    result = finetune_yes_no(job, output)
    examples = result["examples"]
    figures = {"epochs": result["epochs"], "best_epoch": result["best_epoch"]}
    if result["best"] is not None:
        figures["validation_mrr@10"] = result["best"]
    return StageReport(counts={"in": examples, "ok": examples, "dead_letter": 0}, figures=figures)


def _evaluate(context: RunContext, output: Path) -> StageReport:
    settings, dataset = context.settings.yes_no, context.dataset
    questions = questions_of(settings, dataset, TEST)
    asked, table = read_questions(context.run.path(EXAMPLES), TEST)
    ids = [dataset.item_ids[question.items].tolist() for question in questions]
    if ids != table[ITEM_ID].to_pylist():
        raise UserError(f"{context.run.path(EXAMPLES)} is of other settings: run it again.")
    scores: dict[str, np.ndarray] = {}
    adapter = context.run.path(MODEL) / ADAPTER_FOLDER
    for name, folder in ((TUNED, adapter), (ZERO_SHOT, None)):
        scores[name] = _score(context, name, folder, len(asked), output)
    asking = np.array([question.user for question in questions])
    popularity = Popularity(dataset.matrix(TRAIN)).score_block(asking)
    shown = np.stack([question.items for question in questions])
    scores[POPULARITY] = np.take_along_axis(popularity, shown, axis=1)
    valid = questions_of(settings, dataset, VALID)
    histories = dataset.histories(TRAIN)
    model = train_sasrec(settings.sasrec, histories, len(dataset.item_ids), valid)
    scores[SASREC] = candidate_scores(model, questions)
    targets = table[TARGET].to_pylist()
    metrics = {
        name: question_metrics(found, targets, settings.ks) for name, found in scores.items()
    }
    write_arrays(output / SCORES_FILE, scores)
    write_json(output / METRICS_FILE, _summary(metrics, settings))
    for name in (TUNED, ZERO_SHOT):
        shutil.rmtree(output / f".{name}")
    return StageReport(
        counts={"in": len(questions), "ok": len(questions), "dead_letter": 0},
        figures={
            f"{name}_{key}": round(float(values.mean()), 4)
            for name, found in metrics.items()
            for key, values in found.items()
        },
    )


def _summary(metrics: dict[str, dict[str, np.ndarray]], settings: YesNoSettings) -> dict[str, Any]:
    """Means with 95 % intervals over questions, and the paired differences to the fine-tuned."""
    return {
        "questions": len(next(iter(metrics[TUNED].values()))),
        "candidates": settings.negatives + 1,
        "rows": {name: intervals(found, None, settings.seed) for name, found in metrics.items()},
        f"{TUNED}_minus": {
            name: intervals(metrics[TUNED], found, settings.seed)
            for name, found in metrics.items()
            if name != TUNED
        },
    }


def _score(
    context: RunContext, name: str, adapter: Path | None, questions: int, output: Path
) -> np.ndarray:
    """Scores of all questions, (n, 1 + m); blocks that were finished before are kept."""
    arguments = (context.settings.yes_no, context.run.path(EXAMPLES), adapter)
    work = output / f".{name}"
    found = in_blocks(context, EVALUATION, name, _Scorer, arguments, questions, _BLOCK, work)
    return found["scores"]


class _Scorer:
    """A model on a worker, and the test questions."""

    def __init__(self, settings: YesNoSettings, examples: Path, adapter: Path | None) -> None:
        self._model = LoadedModel(settings, adapter)
        self._questions = read_questions(examples, TEST)[0]

    def block(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """(block, 1 + m) scores."""
        asked = self._questions[start:stop]
        return {"scores": np.stack([self._model.score(question) for question in asked])}
