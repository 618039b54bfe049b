"""Train a graph model on Ray Train: from a data set folder to a saved model."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from raysys.graph.bipartite import bipartite_graph
from raysys.models.aligned import Aligned
from raysys.models.registry import build_model
from raysys.models.saved import save_model, start_from
from raysys.store import write_json
from raysys.training.jobs import HISTORY_FILE, TrainJob, TrainResult, load_inputs
from raysys.training.loop import GraphTraining
from raysys.training.ray_train import Worker, fit


def train_graph_model(job: TrainJob, output: Path) -> TrainResult:
    """Train on the connected Ray cluster and write the model of the best validation epoch.

    Writes `model.safetensors`, `model.json`, `embeddings.safetensors`, `history.json` and
    `training.json` into `output`, which all nodes must see.

    Raises:
        UserError: data, profiles or settings are wrong, training diverged, or `output` is not
            shared by the nodes.
    """
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    # Mistakes show here at once, not after Ray has started.
    load_inputs(job)
    values = fit(
        partial(_train, job),
        output,
        job.name(),
        job.placement,
        steps=job.train.epochs,
        max_failures=job.train.max_failures,
    )
    return TrainResult(**values)


def _train(job: TrainJob, worker: Worker) -> dict[str, Any] | None:
    """What each worker runs."""
    given = load_inputs(job)
    graph = bipartite_graph(given.train).to(worker.device)
    model = build_model(job.model, graph, given.profiles, job.train.seed, given.others)
    if job.start_from is not None:
        start_from(model, job.start_from, job.model.backbone, given.identity, given.starts)
    training = GraphTraining(
        model, given.train, given.valid, job.train, worker.workers, given.known
    )
    worker.resume(training)
    report = worker.reporter()

    def after_epoch(training: GraphTraining) -> None:
        due = training.finished or training.epoch % job.train.checkpoint_every == 0
        report(training, training.epoch, training.history[-1]["loss"], due)

    training.run(after_epoch)
    if not worker.workers.first:
        return None
    training.restore_best()
    save_model(worker.output, model, job.model, given.identity, given.learnt)
    write_json(worker.output / HISTORY_FILE, training.history)
    result = TrainResult(
        epochs=training.epoch,
        best_epoch=training.best_epoch,
        best_recall=training.best_recall,
        halved=tuple(epoch for epoch in training.halved if epoch < training.best_epoch),
        null_users=model.null_users if isinstance(model, Aligned) else 0,
        null_items=model.null_items if isinstance(model, Aligned) else 0,
    )
    return asdict(result)
