"""Training on a real local Ray: one worker, two workers, a killed worker."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from toy_models import (
    ITEMS,
    kill_train_worker,
    toy_model,
    toy_settings,
    toy_train,
    toy_valid,
    trained_here,
    write_toy_dataset,
)

from raysys.errors import UserError
from raysys.models.saved import load_model, save_model
from raysys.store import read_arrays
from raysys.training.graph_models import train_graph_model
from raysys.training.jobs import TrainJob
from raysys.training.loop import GraphTraining, TrainSettings
from raysys.training.ray_train import Placement


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    folder = tmp_path_factory.mktemp("data")
    write_toy_dataset(folder)
    return TrainJob(
        dataset=folder,
        model=toy_settings(),
        train=TrainSettings(
            batch_size=32, epochs=6, learning_rate=0.02, validate_every=2, checkpoint_every=2
        ),
        profiles=folder / "vectors.safetensors",
    )


def run_here(job: TrainJob, output: Path) -> list[dict[str, float | None]]:
    """The same job without Ray: what every run on Ray must come to."""
    train = toy_train()
    model = toy_model(job.model, seed=job.train.seed)
    training = GraphTraining(model, train, toy_valid(train), job.train)
    training.run()
    training.restore_best()
    save_model(output, model, job.model)
    return training.history


def assert_same_models(left: Path, right: Path, atol: float) -> None:
    for file in ("model.safetensors", "embeddings.safetensors"):
        ours, theirs = read_arrays(left / file), read_arrays(right / file)
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_allclose(array, theirs[name], rtol=0, atol=atol, err_msg=name)


def read_history(output: Path) -> list[dict[str, float | None]]:
    rows: list[dict[str, float | None]] = json.loads((output / "history.json").read_text())
    return rows


def assert_same_history(
    left: list[dict[str, float | None]], right: list[dict[str, float | None]], rel: float
) -> None:
    for ours, theirs in zip(left, right, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value == (theirs[name] and pytest.approx(theirs[name], rel=rel)), name


def note_listeners(found: set[str], done: threading.Event) -> None:
    """Collect the addresses at which the train workers of our own Ray accept connections."""
    while not done.wait(0.1):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    for socket in process.net_connections("inet"):
                        if socket.status == psutil.CONN_LISTEN:
                            found.add(socket.laddr.ip.removeprefix("::ffff:"))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_two_workers_equal_a_run_without_ray(job: TrainJob, tmp_path: Path) -> None:
    output = tmp_path / "output"
    found: set[str] = set()
    done = threading.Event()
    watcher = threading.Thread(target=note_listeners, args=(found, done))
    watcher.start()
    try:
        result = train_graph_model(replace(job, placement=Placement(2)), output)
    finally:
        done.set()
        watcher.join()
    assert found == {"127.0.0.1"}
    assert (result.epochs, result.null_users, result.null_items) == (6, 1, 1)
    assert sorted(path.name for path in output.iterdir()) == [
        "embeddings.safetensors",
        "history.json",
        "model.json",
        "model.safetensors",
        "training.json",
    ]
    assert load_model(output).score_block(np.arange(3)).shape == (3, ITEMS)
    expected = run_here(job, tmp_path)
    assert_same_models(output, tmp_path, atol=1e-4)
    assert_same_history(read_history(output), expected, rel=1e-4)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_one_worker_that_is_killed_equals_a_run_without_ray(job: TrainJob, tmp_path: Path) -> None:
    settings = job.train.model_copy(
        update={"epochs": 120, "checkpoint_every": 10, "validate_every": 10, "patience": 120}
    )
    job, output, killed = replace(job, train=settings), tmp_path / "output", []
    killer = threading.Thread(target=kill_train_worker, args=(output, killed))
    killer.start()
    result = train_graph_model(job, output)
    killer.join()
    assert len(killed) == 1
    assert result.epochs == 120
    expected = run_here(job, tmp_path)
    assert_same_history(read_history(output), expected, rel=1e-6)
    assert_same_models(output, tmp_path, atol=1e-6)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_mistakes_come_back_as_user_errors(job: TrainJob, tmp_path: Path) -> None:
    here = replace(job, placement=Placement(watch=trained_here))
    with pytest.raises(UserError, match="reads profile vectors but none"):
        train_graph_model(replace(here, profiles=None), tmp_path)
    with pytest.raises(UserError, match=r"users\.parquet does not exist"):
        train_graph_model(replace(here, dataset=tmp_path), tmp_path)
    wild = job.train.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(UserError, match="not finite in epoch"):
        train_graph_model(replace(job, train=wild), tmp_path)
    assert not (tmp_path / "training.json").exists()
