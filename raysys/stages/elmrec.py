"""Stages `elmrec_inputs`, `elmrec_model`, `elmrec_evaluation`: ELMRec (raysys/models/elmrec.py)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.sparse import csr_matrix, issparse

from raysys.evaluation.candidates import hit_metrics
from raysys.evaluation.kept_lists import write_test_lists
from raysys.evaluation.metrics import intervals
from raysys.evaluation.texts import text_metrics
from raysys.manifest import Manifest, StageReport
from raysys.models.elmrec import DIRECT, EXPLANATION, SEQUENTIAL
from raysys.models.linear import Ease, EaseSettings
from raysys.models.popularity import Popularity
from raysys.observe import get_logger
from raysys.ranking.retrieve import top_k
from raysys.schema import (
    RECOMMENDATIONS_FILE,
    REVIEW,
    TEST,
    TRAIN,
)
from raysys.stages.blocks import in_blocks
from raysys.stages.context import RunContext
from raysys.stages.recommend import lists_table
from raysys.stages.train import place_training
from raysys.store import write_json, write_table
from raysys.text.engine import model_identity
from raysys.text.id_prompts import IdPrompts, Row, load_templates
from raysys.training.elmrec import (
    ELMRecJob,
    load,
    material,
    train_elmrec,
    write_inputs,
)
from raysys.training.elmrec_answers import Asked
from raysys.training.ray_train import Placement

INPUTS, MODEL, EVALUATION = "elmrec_inputs", "elmrec_model", "elmrec_evaluation"
METRICS_FILE, TEXTS_FILE = "metrics.json", "explanations.parquet"
#: Rows of the table.
ELMREC, POPULARITY, EASE = "elmrec", "popularity", "ease"
LEAKY = "elmrec (LEAKY: its graph holds edges that are asked for)"
#: Rows of one call; what a crash can cost.
_BLOCK = 256
#: How a run is trained and asked, which leaves what it starts from as it is.
_LATER = {"train", "words", "tasks", "graph", "hide", "supervision_share", "templates", "decode"}
_LATER |= {"train_negatives", "beams", "further", "ks", "split", "history", "ease_reg"}
_ASKED = {"decode", "beams", "further", "ks", "split", "test_users", "ease_reg"}
logger = get_logger(__name__)


def run_inputs(context: RunContext) -> tuple[Manifest, bool]:
    """Write numbers, candidates and, where none is named, a small model to `RUN/elmrec_inputs`."""
    settings = context.settings.elmrec
    return context.run.run_stage(
        INPUTS,
        settings.model_dump(mode="json", exclude=_LATER) | {"start": settings.train.seed},
        ["data"],
        lambda output: _inputs(context, output),
    )


def run_model(context: RunContext) -> tuple[Manifest, bool]:
    """Train into `RUN/elmrec_model`."""
    settings = context.settings.elmrec
    templates = load_templates(settings.templates).model_dump(mode="json")
    config = settings.model_dump(mode="json", exclude=_ASKED) | {"templates": templates}
    if settings.model is not None:
        config["model"] = model_identity(settings.model, settings.revision)
    return context.run.run_stage(
        MODEL, config, ["data", INPUTS], lambda output: _train(context, output)
    )


def run_evaluation(context: RunContext) -> tuple[Manifest, bool]:
    """Measure every task on the test split, beside popularity and EASE."""
    settings = context.settings.elmrec
    return context.run.run_stage(
        EVALUATION,
        settings.model_dump(mode="json", include=_ASKED),
        ["data", INPUTS, MODEL],
        lambda output: _evaluate(context, output),
    )


def _inputs(context: RunContext, output: Path) -> StageReport:
    settings, dataset = context.settings.elmrec, context.dataset
    counts = write_inputs(settings, dataset, output)
    rows = sum(counts.values())
    return StageReport(
        counts={"in": rows, "ok": rows, "dead_letter": 0},
        figures={f"{split}_users": float(count) for split, count in counts.items()},
    )


def _job(context: RunContext, placement: Placement) -> ELMRecJob:
    run = context.run
    return ELMRecJob(run.path("data"), run.path(INPUTS), context.settings.elmrec, placement)


def _train(context: RunContext, output: Path) -> StageReport:
    settings = context.settings.elmrec
    if settings.leaks:
        logger.warning(
            "elmrec.graph = '%s': the graph holds edges of validation and test, so every figure "
            "of this model LEAKS; it is there to be compared with.",
            settings.graph,
        )
    result = train_elmrec(_job(context, place_training(context, MODEL)), output)
    positives = len(context.dataset.pairs(TRAIN)[0])
    figures = {"epochs": float(result["epochs"]), "best_epoch": float(result["best_epoch"])}
    figures |= {"leaks": float(settings.leaks)}
    if result["best"] is not None:
        figures["validation_loss"] = result["best"]
    return StageReport(counts={"in": positives, "ok": positives, "dead_letter": 0}, figures=figures)


def _evaluate(context: RunContext, output: Path) -> StageReport:
    settings = context.settings.elmrec
    job = _job(context, Placement())
    found_material = material(job)
    tasks, prompts = found_material.tasks, found_material.prompts
    name = LEAKY if settings.leaks else ELMREC
    asked = {task: tasks.asked(task, settings.split) for task in settings.tasks}
    ease = Ease(context.dataset.matrix(TRAIN), EaseSettings(reg=settings.ease_reg))
    shown: dict[str, Any] = {}
    means: dict[str, float] = {}
    for task, rows in asked.items():
        if not rows:
            continue
        work = output / f".{task}"
        arguments = (job, context.run.path(MODEL), task)
        found = in_blocks(context, EVALUATION, task, _Asking, arguments, len(rows), _BLOCK, work)
        shutil.rmtree(work)
        if task == EXPLANATION:
            figures = _explained(prompts, rows, found["tokens"], output)
            shown[task] = {"texts": len(rows), "rows": {name: figures}}
            means |= {f"{task}_{key}": value for key, value in figures.items()}
            continue
        lists = {name: found["items"], **_baselines(context, ease, task, rows)}
        if task == SEQUENTIAL and settings.split == TEST:
            users, items = np.array([row.user for row in rows]), found["items"]
            # A beam search says an order; its scores are of different lengths.
            order = np.broadcast_to(-np.arange(items.shape[1], dtype=np.float32), items.shape)
            write_test_lists(output, users, lists)
            table = lists_table(context.dataset, users, items, order)
            write_table(output / RECOMMENDATIONS_FILE, table)
        targets = [row.item for row in rows]
        metrics = {row: hit_metrics(one, targets, settings.ks) for row, one in lists.items()}
        means |= {f"{task}_{key}": float(one.mean()) for key, one in metrics[name].items()}
        shown[task] = {
            "users": len(rows),
            "rows": {row: intervals(one, None, settings.seed) for row, one in metrics.items()},
            "elmrec_minus": {
                row: intervals(metrics[name], one, settings.seed)
                for row, one in metrics.items()
                if row != name
            },
        }
    write_json(output / METRICS_FILE, {"leaks": settings.leaks, "tasks": shown})
    done = sum(map(len, asked.values()))
    # Only what was measured on validation may choose: see raysys/tuning.
    figures = {} if settings.split == TEST else {f"validation_{key}": means[key] for key in means}
    return StageReport(counts={"in": done, "ok": done, "dead_letter": 0}, figures=figures)


def _explained(
    prompts: IdPrompts, rows: list[Row], tokens: np.ndarray, output: Path
) -> dict[str, float]:
    """Keep the written texts beside what users wrote, and measure them."""
    written = [prompts.text(row) for row in tokens]
    references = [prompts.text(row.text) for row in rows if row.text is not None]
    write_table(output / TEXTS_FILE, pa.table({"written": written, REVIEW: references}))
    return text_metrics(written, references)


def _baselines(
    context: RunContext, ease: Ease, task: str, rows: list[Row]
) -> dict[str, np.ndarray]:
    """Popularity and EASE on the same users; the sequential EASE weighs recent items more."""
    settings, dataset = context.settings.elmrec, context.dataset
    train = ease.train
    users = np.array([row.user for row in rows])
    lists: dict[str, list[np.ndarray]] = {POPULARITY: [], EASE: []}
    histories = dataset.histories(*settings.before)
    popularity = Popularity(train)
    for start in range(0, len(rows), 1024):
        part, block = rows[start : start + 1024], users[start : start + 1024]
        recent = _recent([histories[user] for user in block], train.shape[1])
        linear: Any = ease.score_block(block) if task == DIRECT else recent @ ease.weights
        linear = linear.toarray() if issparse(linear) else linear
        for name, scores in ((POPULARITY, popularity.score_block(block)), (EASE, linear)):
            if task == DIRECT:
                allowed = np.full_like(scores, -np.inf)
                items = np.stack([row.items for row in part])
                voted = np.take_along_axis(scores, items, axis=1)
                np.put_along_axis(allowed, items, voted, axis=1)
            else:
                allowed = np.array(scores)
                for row, user in enumerate(block):
                    allowed[row, histories[user]] = -np.inf
            lists[name].append(top_k(allowed, settings.longest_list)[0])
    return {name: np.concatenate(found) for name, found in lists.items()}


def _recent(histories: list[np.ndarray], items: int) -> csr_matrix:
    """(b, I): each item of a history weighs exp(−age / 2), the latest 1."""
    ages = [np.arange(len(one))[::-1] for one in histories]
    pointers = np.cumsum([0, *map(len, histories)])
    values = np.exp(-np.concatenate(ages) / 2).astype(np.float32)
    return csr_matrix((values, np.concatenate(histories), pointers), (len(histories), items))


class _Asking:
    """A model on a worker, and the rows of a task."""

    def __init__(self, job: ELMRecJob, model: Path, task: str) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        built = load(job, model, device)
        self._asked, self._task = Asked(built, job.settings), task
        self._rows = built.tasks.asked(task, job.settings.split)
        self._known = built.dataset.histories(*job.settings.before, opinion=None)

    def block(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Lists (block, k), or written tokens (block, T)."""
        rows = self._rows[start:stop]
        if self._task == DIRECT:
            return {"items": self._asked.direct(rows)}
        if self._task == SEQUENTIAL:
            known = [self._known[row.user] for row in rows]
            return {"items": self._asked.sequential(rows, known)}
        return {"tokens": self._asked.explain(rows)}
