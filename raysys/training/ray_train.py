"""Run one training loop, on Ray Train or here: restarts, progress, and mistakes told once.

The loop itself knows nothing of Ray. Ray restarts killed workers from the newest checkpoint;
calling `fit` again with the same name and output goes on after a killed driver.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from raysys.cluster import cores_per
from raysys.errors import UserError
from raysys.observe import progress
from raysys.store import read_json, write_json
from raysys.training.checkpoints import Checkpoints, FolderCheckpoints, Loop, RayCheckpoints
from raysys.training.epochs import EpochTraining
from raysys.training.workers import Workers, joined_workers

#: The last file that a training writes: it says that the rest is there.
RESULT_FILE = "training.json"
#: Working files, gone once the training has finished.
_RAY_FOLDER = ".ray"
_PROGRESS_FILE = ".progress.json"
#: Key of the result that stands for a UserError during training.
_MISTAKE = "mistake"


@dataclass(frozen=True)
class Placement:
    """What a training takes of the cluster.

    Attributes:
        workers: Ray Train workers; each takes a share of every batch.
        cpus_per_worker: logical CPUs that Ray reserves for each worker.
        use_gpu: one GPU for each worker.
        watch: called with epoch and figure after each validation, where the one worker is this
            process; none: Ray Train starts the workers.
    """

    workers: int = 1
    cpus_per_worker: float = 1.0
    use_gpu: bool = False
    watch: Callable[[int, float], None] | None = None


#: Called by every worker with the device and the workers. It builds the loop, hands it to `resume`
#: (which loads the newest checkpoint), trains, and returns what the result file shall hold.
Train = Callable[["Worker"], dict[str, Any] | None]


@dataclass(frozen=True)
class Worker:
    """What a worker is handed.

    Attributes:
        output: the folder that the first worker writes to.
        watch: see `Placement`.
    """

    output: Path
    device: torch.device
    workers: Workers
    checkpoints: Checkpoints = field(default_factory=RayCheckpoints)
    watch: Callable[[int, float], None] | None = None

    def resume(self, loop: Loop) -> None:
        """Load the newest checkpoint of this run, if there is one."""
        newest = self.checkpoints.newest()
        if newest is not None:
            with newest as folder:
                loop.load(Path(folder))

    def reporter(self) -> Reporter:
        """What the loop calls to keep checkpoints and show how far it is."""
        return Reporter(self)


class Reporter:
    """Report a checkpoint where one is due, and note progress once a second at most."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._noted = 0.0
        self._watched = 0

    def __call__(self, loop: Loop, step: int, loss: float | None, due: bool) -> None:
        """Note how far the training is; with `due`, keep a checkpoint.

        Args:
            step: on the scale of `fit`'s `steps`.
            loss: is shown.
        """
        if loop.workers.first and time.monotonic() - self._noted >= 1.0:
            self._noted = time.monotonic()
            write_json(self._worker.output / _PROGRESS_FILE, {"step": step, "loss": loss})
        if self._worker.watch is not None:
            self._tell(loop, self._worker.watch)
        if due:
            self._worker.checkpoints.keep(loop, {"step": step, "loss": loss})

    def _tell(self, loop: Loop, watch: Callable[[int, float], None]) -> None:
        """Tell of the validations since the last call; after a resume, of all again."""
        rows, self._watched = loop.history[self._watched :], len(loop.history)
        for row in rows:
            figure = row.get(loop.watched)
            if figure is not None:
                watch(int(row["epoch"] or 0), figure)


def run_epochs(training: EpochTraining, worker: Worker) -> None:
    """Train from the newest checkpoint to the end; the model is then that of the best epoch."""
    worker.resume(training)
    report = worker.reporter()

    def after_step(training: EpochTraining) -> None:
        due = training.finished or training.done % training.settings.checkpoint_every == 0
        report(training, training.done, training.loss, due)

    training.run(after_step)
    training.restore_best()


def fit(
    train: Train,
    output: Path,
    name: str,
    placement: Placement,
    *,
    steps: int,
    max_failures: int,
) -> dict[str, Any]:
    """Train where `placement` says; returns what the first worker's `train` returned.

    Args:
        train: what each worker runs; sent to the workers.
        output: the folder that the first worker writes to; all nodes must see it.
        name: the same only for the same training, so that no other's checkpoint is used.
        steps: the length of the progress bar.
        max_failures: crashes of a worker that are answered by a restart.

    Raises:
        UserError: raised by a worker, or `output` is not shared by the nodes.
    """
    (output / RESULT_FILE).unlink(missing_ok=True)
    if placement.watch is not None:
        _run_here(train, output, name, placement)
    else:
        _run_on_ray_train(train, output, name, placement, steps, max_failures)
    if not (output / RESULT_FILE).is_file():
        raise UserError(
            f"training has finished, but {output} holds no model: put the run's folder on "
            "storage that all nodes of the cluster share."
        )
    values: dict[str, Any] = read_json(output / RESULT_FILE)
    shutil.rmtree(output / _RAY_FOLDER, ignore_errors=True)
    (output / _PROGRESS_FILE).unlink(missing_ok=True)
    if _MISTAKE in values:
        (output / RESULT_FILE).unlink()
        raise UserError(values[_MISTAKE])
    return values


def _run_here(train: Train, output: Path, name: str, placement: Placement) -> None:
    """One worker, in this process."""
    device = torch.device("cuda" if placement.use_gpu else "cpu")
    checkpoints = FolderCheckpoints(output / _RAY_FOLDER / name)
    result = train(Worker(output, device, Workers(), checkpoints, placement.watch))
    if result is not None:
        write_json(output / RESULT_FILE, result)


def _run_on_ray_train(
    train: Train, output: Path, name: str, placement: Placement, steps: int, max_failures: int
) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    # Ray looks for reports every 2 s, and each report waits for the one before: checkpoints of
    # a small model would take longer than its training.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    gpu = {"GPU": 1} if placement.use_gpu else {}
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={"train": train, "output": str(output), "use_gpu": placement.use_gpu},
        torch_config=_own_process_group(placement.use_gpu),
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.use_gpu,
            resources_per_worker={"CPU": placement.cpus_per_worker} | gpu,
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=name,
            storage_path=str(output / _RAY_FOLDER),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    with _shown_progress(output / _PROGRESS_FILE, steps):
        try:
            trainer.fit()
        except ray.train.WorkerGroupError as error:
            for failure in error.worker_failures.values():
                mistake = user_error(failure)
                if mistake is not None:
                    raise mistake from None
            raise


def user_error(error: BaseException) -> UserError | None:
    """The UserError that a worker's failure was caused by, if one was."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return UserError(str(seen))
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None


def _run_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import ray.train.torch

    output, use_gpu = Path(config["output"]), config["use_gpu"]
    torch.set_num_threads(cores_per(ray.train.get_context().get_local_world_size()))
    device = ray.train.torch.get_device() if use_gpu else torch.device("cpu")
    with joined_workers(use_gpu) as workers:
        try:
            result = config["train"](Worker(output, device, workers))
        except UserError as mistake:
            # All workers come here together. Raised, it would only be tried again.
            result = {_MISTAKE: str(mistake)}
        if workers.first and result is not None:
            write_json(output / RESULT_FILE, result)


@contextmanager
def _shown_progress(path: Path, steps: int) -> Iterator[None]:
    """Follow the first worker's notes: its own log does not reach the driver."""
    done = threading.Event()

    def follow() -> None:
        with progress("training", steps) as tracker:
            while not done.wait(0.5):
                if path.is_file():
                    row = read_json(path)
                    tracker.update(row["step"], f"loss {row['loss']:.4f}")

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
