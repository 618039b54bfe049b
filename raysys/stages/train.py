"""Stage `train`: every model of the run, one after the other, each resumable by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from raysys.cluster import Pool, Resources, StagePlan, preflight, share
from raysys.errors import UserError
from raysys.models.registry import ModelSettings
from raysys.schema import TRAIN
from raysys.stages.context import RunContext, TrainedModelSettings
from raysys.store import Manifest, StageReport, read_json
from raysys.text.embeddings import VECTORS_FILE
from raysys.training.graph_models import (
    HISTORY_FILE,
    RESULT_FILE,
    TrainJob,
    TrainResult,
    train_graph_model,
)


def run(context: RunContext) -> tuple[Manifest, bool]:
    """Train all models into `RUN/train/NAME/`."""
    settings = context.settings
    aligned = any(model.alignment for model in settings.models.values())
    return context.run.run_stage(
        "train",
        {
            "train": settings.train.model_dump(mode="json"),
            "models": {name: model.model_dump() for name, model in settings.models.items()},
        },
        ["data", "embeddings"] if aligned else ["data"],
        lambda output: _train(context, output),
    )


def plan_training(context: RunContext, have: Resources) -> StagePlan:
    """Workers take a GPU each where there are enough, else an equal share of the CPUs."""
    workers = context.settings.cluster.train_workers
    gpus = 1.0 if have.gpus >= workers else 0.0
    return StagePlan("train", (Pool("worker", workers, share(have, workers, reserved=0.0), gpus),))


def result(folder: Path) -> TrainResult:
    """How the training of the model in `folder` ended."""
    return TrainResult(**read_json(folder / RESULT_FILE))


def history(folder: Path) -> list[dict[str, Any]]:
    """One row an epoch: epoch, loss, each named loss, and recall@20 where it was validated."""
    rows: list[dict[str, Any]] = read_json(folder / HISTORY_FILE)
    return rows


def best_model(context: RunContext) -> str:
    """The model with the highest validation Recall@20; controls are left out."""
    candidates = {
        name: result(context.run.path("train") / name).best_recall or 0.0
        for name, model in context.settings.models.items()
        if not model.shuffle_profiles
    }
    if not candidates:
        raise UserError("recommend.model 'best' finds only controls in [models]: name a model.")
    return max(candidates, key=lambda name: candidates[name])


def _train(context: RunContext, output: Path) -> StageReport:
    plan = plan_training(context, context.resources)
    preflight(plan, context.resources)
    epochs = 0
    for name, model in context.settings.models.items():
        folder = output / name
        if not folder.is_dir():
            work = output / f".{name}"
            train_graph_model(_job(context, model, plan.pools[0]), work)
            os.replace(work, folder)
        epochs += result(folder).epochs
    positives = len(context.dataset.pairs(TRAIN)[0])
    return StageReport(
        counts={"in": positives, "ok": positives, "dead_letter": 0},
        figures={"models": float(len(context.settings.models)), "epochs": float(epochs)},
    )


def _job(context: RunContext, model: TrainedModelSettings, worker: Pool) -> TrainJob:
    values = model.model_dump(exclude={"shuffle_profiles"})
    return TrainJob(
        dataset=context.run.path("data"),
        model=ModelSettings.model_validate(values),
        train=context.settings.train,
        profiles=context.run.path("embeddings") / VECTORS_FILE if model.alignment else None,
        shuffle_profiles=model.shuffle_profiles,
        workers=worker.actors,
        cpus_per_worker=worker.cpus,
        use_gpu=worker.gpus > 0,
    )
