"""Sweeps on a real local Ray: grids, early stopping, Optuna, failures, and going on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_sweep import LAYERS, RATE, write_run

from raysys.cli import main
from raysys.errors import UserError
from raysys.pipeline import run_stages
from raysys.settings import load_settings, parse_settings
from raysys.stages.context import RunSettings, Share
from raysys.store import read_arrays
from raysys.tuning.outcome import write_outcome
from raysys.tuning.settings import TuneSettings
from raysys.tuning.sweep import TRIALS, run_sweep

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def sweep_of(folder: Path, run: Path, **values: Any) -> TuneSettings:
    given = {"out": str(folder), "run": str(run), "space": {LAYERS: [1, 2], RATE: [1e-4, 0.05]}}
    return parse_settings(TuneSettings, given | values, source="sweep")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return write_run(folder)


def test_a_grid_is_swept_once_and_its_best_config_goes_on(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One trial takes 2 x 0.4 + 1.1 CPUs of the two.
    settings = sweep_of(folder / "grid", run, cpus=0.4, mlflow=str(folder / "mlflow.db"))
    sweep = run_sweep(settings)
    results = write_outcome(sweep)
    assert results["counts"] == {"in": 4, "ok": 4, "dead_letter": 0, "stopped_early": 0}
    values = [trial["value"] for trial in results["trials"]]
    assert values == sorted(values, reverse=True)
    assert results["best"]["values"][RATE] == 0.05
    best = tomllib.loads((folder / "grid" / "best.toml").read_text())
    assert best["train"]["learning_rate"] == 0.05
    # The data were imported once; the user's own run was only read.
    files = list((folder / "grid" / TRIALS).glob("*/data/interactions.parquet"))
    assert len(files) == 5
    assert len({file.stat().st_ino for file in files}) == 1
    assert not (folder / "run").exists()
    # Each figure is the one that its trial's training found on validation.
    for trial in results["trials"]:
        made = folder / "grid" / TRIALS / trial["trial"] / "train" / "m" / "training.json"
        assert json.loads(made.read_text())["best_recall"] == trial["value"]
    # The best config takes what its trial has finished.
    outcomes = run_stages(
        load_settings(RunSettings, folder / "grid" / "best.toml"), ("data", "train", "evaluate")
    )
    assert [outcome.skipped for outcome in outcomes.values()] == [True, True, False]
    assert b"<img" in (folder / "grid" / "sweep.html").read_bytes()
    assert (folder / "grid" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    with sqlite3.connect(folder / "mlflow.db") as log:
        logged = dict(
            log.execute("SELECT r.name, m.value FROM runs r JOIN metrics m USING (run_uuid)")
        )
    assert logged == {trial["trial"]: trial["value"] for trial in results["trials"]}
    # A larger sweep of the folder keeps its trials as they are, and trains only what is new.
    before = {path: path.stat().st_mtime_ns for path in (folder / "grid").rglob("trial.json")}
    config = folder / "grid.toml"
    config.write_text(
        f'out = "{folder}/grid"\nrun = "{run}"\ncpus = 0.4\n[space]\n'
        f'"{LAYERS}" = [1, 2, 3]\n"{RATE}" = [1e-4, 0.05]\n'
    )
    assert main(["tune", str(config), "--resume", "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(again["trials"]) == 6
    assert all(trial in again["trials"] for trial in results["trials"])
    after = {path: path.stat().st_mtime_ns for path in (folder / "grid").rglob("trial.json")}
    assert len(after) == 6
    assert before.items() <= after.items()


def test_a_trial_trains_the_model_that_ray_train_trains(folder: Path, run: Path) -> None:
    told: list[tuple[str, int, float]] = []
    here = load_settings(RunSettings, run, [f"out={folder}/here", "cluster.address=auto"])
    there = here.model_copy(update={"out": folder / "there"})
    from raysys.cluster import Resources

    share = Share(Resources(2, 0, 1), watch=lambda *row: told.append(row))
    run_stages(here, ("data", "train"), share)
    run_stages(there, ("data", "train"))
    ours = read_arrays(folder / "here" / "train" / "m" / "embeddings.safetensors")
    theirs = read_arrays(folder / "there" / "train" / "m" / "embeddings.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=1e-6)
    assert [(stage, epoch) for stage, epoch, _ in told] == [("train", n) for n in (1, 2, 3, 4)]


def test_trials_that_fall_behind_are_stopped_and_are_not_the_best(folder: Path) -> None:
    (folder / "long").mkdir()
    run = write_run(folder / "long", epochs=400)
    settings = sweep_of(
        folder / "asha",
        run,
        space={RATE: [0.05, 1e-5, 1.1e-5, 1.2e-5]},
        early_stopping={"grace": 1, "reduction": 2},
        cpus=0.4,
    )
    sweep = run_sweep(settings)
    stopped = [trial for trial in sweep.trials if trial.stopped]
    assert stopped
    assert sweep.best.values == {RATE: 0.05}
    for trial in stopped:
        assert not (sweep.folder(trial) / "train").exists()
        assert trial.value is not None


def test_optuna_runs_as_many_as_asked_and_goes_on(folder: Path, run: Path) -> None:
    space = {LAYERS: [1, 2], RATE: {"low": 1e-4, "high": 0.1, "log": True}}
    settings = sweep_of(folder / "optuna", run, space=space, search="optuna", trials=3, cpus=0.4)
    first = {trial.name: trial for trial in run_sweep(settings).trials}
    assert len(first) == 3
    more = run_sweep(settings.model_copy(update={"trials": 5}))
    assert len(more.trials) == 5
    found = {trial.name: trial for trial in more.trials}
    assert first.items() <= found.items()


def test_trials_of_another_config_are_not_taken_for_these(folder: Path, run: Path) -> None:
    settings = sweep_of(folder / "changed", run, space={RATE: [0.01]}, cpus=0.4)
    first = run_sweep(settings).trials[0]
    longer = settings.model_copy(update={"overrides": ("train.epochs=8",)})
    second = run_sweep(longer).trials[0]
    assert first.name == second.name
    made = run_sweep(longer).folder(second) / "train" / "m" / "training.json"
    assert json.loads(made.read_text())["epochs"] == 8


def test_a_failed_trial_is_counted_with_its_reason_and_tried_again(folder: Path, run: Path) -> None:
    settings = sweep_of(folder / "failing", run, space={RATE: [0.05, 1e30]}, cpus=0.4)
    for _ in range(2):
        results = write_outcome(run_sweep(settings))
        assert results["counts"] == {"in": 2, "ok": 1, "dead_letter": 1, "stopped_early": 0}
        assert "learning_rate" in results["trials"][1]["problem"]
    with pytest.raises(UserError, match=r"no trial came to an end: .*learning_rate"):
        run_sweep(settings.model_copy(update={"out": folder / "all", "space": {RATE: (1e30,)}}))


def test_nothing_to_go_on_with_is_told(folder: Path, run: Path) -> None:
    with pytest.raises(UserError, match=r"holds no sweep to go on with"):
        run_sweep(sweep_of(folder / "none", run), resume=True)
    with pytest.raises(UserError, match=r"set cluster.train_workers = 1, or leave it out"):
        run_sweep(
            sweep_of(
                folder / "none",
                run,
                early_stopping={},
                cluster={"address": "auto", "train_workers": 2},
            )
        )


def test_a_killed_sweep_goes_on(folder: Path) -> None:
    """SIGKILL of the driver half-way: finished trials are kept, and all come to an end."""
    (folder / "killed").mkdir()
    run = write_run(folder / "killed", epochs=40)
    config = folder / "killed" / "sweep.toml"
    out = folder / "killed" / "sweep"
    config.write_text(
        f'out = "{out}"\nrun = "{run}"\nconcurrent = 1\n[space]\n'
        f'"{RATE}" = [0.01, 0.02, 0.03]\n[cluster]\nobject_store_gib = 0.2\n'
    )
    command = [str(Path(sys.executable).with_name("raysys")), "tune", str(config)]
    environment = os.environ | {"RAY_worker_niceness": "0"}
    driver = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list(out.rglob("trial.json")) and time.monotonic() < deadline:
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait(timeout=30)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("trial.json")}
    assert 1 <= len(kept) < 3
    assert not (out / "results.json").exists()
    subprocess.run([*command, "--resume"], env=environment, check=True, timeout=200)
    results = json.loads((out / "results.json").read_text())
    assert results["counts"] == {"in": 3, "ok": 3, "dead_letter": 0, "stopped_early": 0}
    for path, time_ns in kept.items():
        assert path.stat().st_mtime_ns == time_ns
