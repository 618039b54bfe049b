"""Stage `train`: every model of the run, one after the other, each resumable by itself."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raysys.cluster import Pool, Resources, StagePlan, preflight, share
from raysys.errors import UserError
from raysys.manifest import Manifest, StageReport
from raysys.models.registry import ModelSettings
from raysys.models.saved import PARAMETERS_FILE
from raysys.observe import get_logger
from raysys.schema import TRAIN, VALID
from raysys.stages.context import RunContext, RunSettings
from raysys.stages.profiles import PROFILE_STAGES
from raysys.store import read_json
from raysys.text.embeddings import VECTORS_FILE
from raysys.training.graph_models import train_graph_model
from raysys.training.jobs import HISTORY_FILE, TrainJob, TrainResult
from raysys.training.linear_models import train_linear_model
from raysys.training.loop import WATCHED, TrainSettings
from raysys.training.ray_train import RESULT_FILE, Placement, user_error

logger = get_logger(__name__)
#: From titles to vectors, in order.
TEXT_STAGES = (*PROFILE_STAGES, "embeddings")


def run(context: RunContext) -> tuple[Manifest, bool]:
    """Train all models into `RUN/train/NAME/`."""
    settings = context.settings
    require_models(settings)
    outside = {
        f"{name}.start_from": Path(model.start_from) / PARAMETERS_FILE
        for name, model in settings.models.items()
        if model.start_from is not None and model.start_from not in settings.models
    }
    return context.run.run_stage(
        "train",
        {
            "train": settings.train.model_dump(mode="json", exclude={"refit"}),
            "models": {name: model.model_dump() for name, model in settings.models.items()},
        },
        ["data", "embeddings"] if reading(settings) else ["data"],
        lambda output: _train(context, output),
        files=outside,
    )


def run_refit(context: RunContext) -> tuple[Manifest, bool]:
    """Train all models again on train and validation into `RUN/refit/NAME/`."""
    return context.run.run_stage(
        "refit", {}, ["data", "train"], lambda output: _train(context, output, refit=True)
    )


def reading(settings: RunSettings) -> bool:
    """Whether a model reads profile vectors."""
    return any(model.reads_profiles(model.grid) for model in settings.models.values())


def text_stages(settings: RunSettings) -> tuple[str, ...]:
    """The stages of texts that a whole run has: none where no model reads them."""
    if not reading(settings):
        return ()
    return ("embeddings",) if settings.embeddings.own else TEXT_STAGES


def require_models(settings: RunSettings) -> None:
    """Refuse a config that names no model to train."""
    if not settings.models:
        raise UserError(
            "the config has no [models.NAME]: say which models to train, or run a single command."
        )


def plan_training(context: RunContext, have: Resources, stage: str) -> StagePlan:
    """Workers take a GPU each where there are enough, else an equal share of the CPUs."""
    workers = context.settings.cluster.train_workers
    gpus = 1.0 if have.gpus >= workers else 0.0
    return StagePlan(stage, (Pool("worker", workers, share(have, workers, reserved=0.0), gpus),))


def place_training(context: RunContext, stage: str) -> Placement:
    """What a training takes of this cluster.

    Raises:
        UserError: the cluster has not got it.
    """
    plan = plan_training(context, context.resources, stage)
    preflight(plan, context.resources)
    worker, share = plan.pools[0], context.share
    watch = None
    if share is not None and share.watch is not None and worker.actors == 1:
        watch = partial(share.watch, stage)
    return Placement(worker.actors, worker.cpus, worker.gpus > 0, watch)


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
        if not model.control
    }
    if not candidates:
        raise UserError("recommend.model 'best' finds only controls in [models]: name a model.")
    return max(candidates, key=lambda name: candidates[name])


def _train(context: RunContext, output: Path, *, refit: bool = False) -> StageReport:
    placement = place_training(context, "train")
    epochs = 0
    for name, model in context.settings.models.items():
        folder = output / name
        if not folder.is_dir():
            work = output / f".{name}"
            job = _job(context, name, placement, output)
            if refit:
                job = _as_chosen(job, result(context.run.path("train") / name))
            if model.linear:
                _fit(job, work)
            else:
                train_graph_model(job, work)
            os.replace(work, folder)
            if not (model.linear or refit):
                _say_if_cut(name, job.train, result(folder))
        epochs += result(folder).epochs
    recalls = [
        found
        for name, model in context.settings.models.items()
        if not model.control and (found := result(output / name).best_recall) is not None
    ]
    best = {f"validation_{WATCHED}": max(recalls)} if recalls else {}
    positives = len(context.dataset.pairs(*((TRAIN, VALID) if refit else (TRAIN,)))[0])
    return StageReport(
        counts={"in": positives, "ok": positives, "dead_letter": 0},
        figures={
            "models": float(len(context.settings.models)),
            "epochs": float(epochs),
            **best,
        },
    )


def _say_if_cut(name: str, train: TrainSettings, found: TrainResult) -> None:
    """A model that no early stop ended may have got better yet."""
    patience = train.patience * train.validate_every
    cut = found.epochs >= train.epochs and found.epochs - found.best_epoch < patience
    if cut and found.best_recall is not None:
        logger.info(
            "train: %s was best in epoch %d of the %d that train.epochs allows: more may help",
            name,
            found.best_epoch,
            found.epochs,
        )


def _fit(job: TrainJob, work: Path) -> None:
    """Fit a linear model in a task of Ray, or here."""
    if job.placement.watch is not None:
        train_linear_model(job, work)
        return
    import ray

    fit = ray.remote(num_cpus=job.placement.cpus_per_worker, max_retries=0)(train_linear_model)
    try:
        ray.get(fit.remote(job, work))
    except ray.exceptions.RayTaskError as error:
        mistake = user_error(error)
        if mistake is not None:
            raise mistake from None
        raise


def _job(context: RunContext, name: str, placement: Placement, trained: Path) -> TrainJob:
    model = context.settings.models[name]
    vectors = context.run.path("embeddings") / VECTORS_FILE
    start = None
    if model.start_from is not None:
        above = trained / model.start_from
        start = above if model.start_from in context.settings.models else Path(model.start_from)
    return TrainJob(
        dataset=context.run.path("data"),
        model=ModelSettings.model_validate(
            model.model_dump(include=set(ModelSettings.model_fields))
        ),
        train=context.settings.training_of(name),
        profiles=vectors if model.reads_profiles(model.grid) else None,
        shuffle_profiles=model.shuffle_profiles,
        train_noise=model.train_noise,
        start_from=start,
        grid=model.grid,
        placement=placement,
    )


def _as_chosen(job: TrainJob, found: TrainResult) -> TrainJob:
    """The same job on train and validation, with what validation chose."""
    model = job.model.model_copy(update={"settings": job.model.settings | found.chosen})
    # An epoch of more interactions has more steps; as many epochs are the same passes over each.
    train = job.train.model_copy(
        update={"epochs": max(1, found.best_epoch), "halve_at": tuple(found.halved)}
    )
    return replace(job, model=model, train=train, grid={}, refit=True)
