"""Train a graph model on Ray Train: from a data set folder to a saved model.

Ray restarts killed workers from the newest checkpoint; calling `train_graph_model` again
with the same job and output goes on after a killed driver.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from raysys.cluster import cores_per
from raysys.errors import UserError
from raysys.graph.bipartite import bipartite_graph
from raysys.models.align import Aligned
from raysys.models.base import Recommender
from raysys.models.registry import build_model
from raysys.models.saved import save_model, start_from
from raysys.observe import progress
from raysys.store import read_json, write_json
from raysys.training.jobs import HISTORY_FILE, RESULT_FILE, TrainJob, TrainResult, load_inputs
from raysys.training.loop import GraphTraining
from raysys.training.workers import joined_workers

#: Working files, gone once the training has finished.
_RAY_FOLDER = ".ray"
_PROGRESS_FILE = ".progress.json"
#: Key of `training.json` that stands for a UserError during training.
_MISTAKE = "mistake"


def train_graph_model(job: TrainJob, output: Path) -> TrainResult:
    """Train on the connected Ray cluster and write the model of the best validation epoch.

    Writes `model.safetensors`, `model.json`, `embeddings.safetensors`, `history.json` and
    `training.json` into `output`, which all nodes must see.

    Raises:
        UserError: data, profiles or settings are wrong, training diverged, or `output` is not
            shared by the nodes.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    # Mistakes show here at once, not after Ray's restarts.
    load_inputs(job)
    (output / RESULT_FILE).unlink(missing_ok=True)
    # Ray looks for reports every 2 s, and each report waits for the one before: checkpoints of
    # a small model would take longer than its training.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "output": str(output)},
        torch_config=_own_process_group(job.use_gpu),
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.workers,
            use_gpu=job.use_gpu,
            resources_per_worker={"CPU": job.cpus_per_worker} | ({"GPU": 1} if job.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=job.name(),
            storage_path=str(output / _RAY_FOLDER),
            failure_config=ray.train.FailureConfig(max_failures=job.train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    with _shown_progress(output / _PROGRESS_FILE, job.train.epochs):
        try:
            trainer.fit()
        except ray.train.WorkerGroupError as error:
            for failure in error.worker_failures.values():
                mistake = user_error(failure)
                if mistake is not None:
                    raise mistake from None
            raise
    if not (output / RESULT_FILE).is_file():
        raise UserError(
            f"training has finished, but {output} holds no model: put the run's folder on "
            "storage that all nodes of the cluster share."
        )
    values = read_json(output / RESULT_FILE)
    shutil.rmtree(output / _RAY_FOLDER, ignore_errors=True)
    (output / _PROGRESS_FILE).unlink(missing_ok=True)
    if _MISTAKE in values:
        (output / RESULT_FILE).unlink()
        raise UserError(values[_MISTAKE])
    return TrainResult(**values)


def _train_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import ray.train.torch

    job: TrainJob = config["job"]
    output = Path(config["output"])
    use_gpu = job.use_gpu
    torch.set_num_threads(cores_per(ray.train.get_context().get_local_world_size()))
    device = ray.train.torch.get_device() if use_gpu else torch.device("cpu")
    train, valid, profiles, identity = load_inputs(job)
    with joined_workers(use_gpu) as workers:
        model = build_model(job.model, bipartite_graph(train).to(device), profiles, job.train.seed)
        if job.start_from is not None:
            start_from(model, job.start_from, identity)
        training = GraphTraining(model, train, valid, job.train, workers)
        newest = ray.train.get_checkpoint()
        if newest is not None:
            with newest.as_directory() as folder:
                training.load(Path(folder))
        try:
            training.run(_AfterEpoch(output))
        except UserError as mistake:
            # All workers come here together. Raised, it would only be tried again.
            if workers.first:
                write_json(output / RESULT_FILE, {_MISTAKE: str(mistake)})
            return
        if workers.first:
            training.restore_best()
            _write(output, job, model, training, identity)


class _AfterEpoch:
    """Report a checkpoint where one is due, and note progress once a second at most."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._noted = 0.0

    def __call__(self, training: GraphTraining) -> None:
        import ray.train

        row = training.history[-1]
        if training.workers.first and time.monotonic() - self._noted >= 1.0:
            self._noted = time.monotonic()
            write_json(self._output / _PROGRESS_FILE, row)
        if not (training.finished or training.epoch % training.settings.checkpoint_every == 0):
            return
        metrics = {"epoch": training.epoch, "loss": row["loss"]}
        if not training.workers.first:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            training.save(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _write(
    output: Path, job: TrainJob, model: Recommender, training: GraphTraining, identity: str
) -> None:
    save_model(output, model, job.model, identity)
    write_json(output / HISTORY_FILE, training.history)
    result = TrainResult(
        epochs=training.epoch,
        best_epoch=training.best_epoch,
        best_recall=training.best_recall,
        null_users=model.null_users if isinstance(model, Aligned) else 0,
        null_items=model.null_items if isinstance(model, Aligned) else 0,
    )
    # Last, because it says that the rest is there.
    write_json(output / RESULT_FILE, asdict(result))


@contextmanager
def _shown_progress(path: Path, epochs: int) -> Iterator[None]:
    """Follow the first worker's notes: its own log does not reach the driver."""
    done = threading.Event()

    def follow() -> None:
        with progress("training", epochs) as tracker:
            while not done.wait(0.5):
                if path.is_file():
                    row = read_json(path)
                    tracker.update(row["epoch"], f"loss {row['loss']:.4f}")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _own_process_group(use_gpu: bool) -> Any:
    """Tell Ray to leave the process group to `joined_workers`."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class NoRendezvous(Backend):
        share_cuda_visible_devices = True

    class OwnProcessGroup(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return NoRendezvous

    return OwnProcessGroup(backend="nccl" if use_gpu else "gloo")


def user_error(error: BaseException) -> UserError | None:
    """The UserError that a worker's failure was caused by, if one was."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(str(seen))
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
