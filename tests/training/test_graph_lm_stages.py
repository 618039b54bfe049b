"""The graph-attentive language model from files to lists, on Ray."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from toy_language_model import toy_shop
from toy_models import kill_train_worker, trained_here

from raysys.cli import main
from raysys.data.dataset import Dataset
from raysys.pipeline import run_stages
from raysys.schema import RECOMMENDATION_SCHEMA
from raysys.settings import parse_settings
from raysys.stages.context import RunSettings, Share
from raysys.stages.graph_lm import stages_of
from raysys.store import read_arrays, read_json, read_table, write_json, write_table
from raysys.training.graph_lm import train_graph_lm
from raysys.training.graph_lm_model import PARAMETERS_FILE, GraphLMJob, write_inputs
from raysys.training.graph_lm_settings import GraphLMSettings
from raysys.training.ray_train import Placement

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
STEP = {"learning_rate": 0.01, "batch_size": 5, "epochs": 2, "checkpoint_every": 1}
SMALL = {"width": 16, "layers": 1, "heads": 2, "inner": 16, "vocabulary": 300, "dropout": 0.0}


def config_of(folder: Path, **changes: Any) -> RunSettings:
    values = {
        "out": folder / "run",
        "data": {
            "interactions": folder / "files" / "interactions.parquet",
            "items": folder / "files" / "items.parquet",
            "split": {"method": "leave_last_two"},
        },
        "graph_lm": {
            "small": SMALL,
            "max_tokens": 64,
            "crowd": STEP,
            "interactions": STEP,
            "predict": STEP,
            "ks": [3, 5],
            "lists": 4,
        }
        | changes,
    }
    return parse_settings(RunSettings, values, source="test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("graph_lm"))
    toy_shop(folder / "files", length=6)
    path = folder / "files" / "interactions.parquet"
    table = read_table(path).drop_columns(["split"])
    texts = [f"good number {n}" for n in range(table.num_rows)]
    write_table(path, table.append_column("review", pa.array(texts)))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, in_process: Share) -> RunSettings:
    """A finished run."""
    settings = config_of(folder)
    run_stages(settings, ("data", *stages_of(settings.graph_lm)), in_process)
    return settings


def test_a_run_ends_measured_and_drawn(run: RunSettings) -> None:
    evaluation = run.out / "graph_lm_evaluation"
    found = read_json(evaluation / "metrics.json")
    assert found["users"] == 12
    assert list(found["rows"]) == ["graph_lm", "popularity", "ease"]
    for row in found["rows"].values():
        names = ("recall", "capped_recall", "ndcg")
        assert set(row) == {f"{name}@{k}" for name in names for k in (3, 5)}
        assert all(one["low"] <= one["mean"] <= one["high"] for one in row.values())
    assert set(found["graph_lm_minus"]) == {"popularity", "ease"}
    for name in ("relations.png", "training.png"):
        assert (evaluation / name).read_bytes().startswith(b"\x89PNG")


def test_every_kind_of_prompt_was_written_once(run: RunSettings) -> None:
    manifest = read_json(run.out / "graph_lm_inputs" / "manifest.json")
    # 28 titles, 4 train interactions of each of 12 users with a review, 12 histories.
    kinds = {"attribute_prompts": 28.0, "review_prompts": 48.0, "event_prompts": 12.0}
    assert manifest["figures"] == kinds
    assert manifest["counts"] == {"in": 88, "ok": 88, "dead_letter": 0}
    assert read_table(run.out / "graph_lm_inputs" / "prompts.parquet").num_rows == 88


def test_lists_hold_what_is_new_to_a_user(run: RunSettings) -> None:
    table = read_table(run.out / "graph_lm_lists" / "recommendations.parquet")
    assert table.schema.equals(RECOMMENDATION_SCHEMA)
    assert table.num_rows == 12 * 4
    dataset = Dataset.load(run.out / "data")
    known = dataset.matrix("train", "valid", "test").toarray()
    places = {one: row for row, one in enumerate(dataset.user_ids)}
    items = {one: row for row, one in enumerate(dataset.item_ids)}
    for row in table.to_pylist():
        assert not known[places[row["user_id"]], items[row["item_id"]]]


def test_a_change_runs_again_only_what_it_changes(
    run: RunSettings, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "config.yaml", config_of(folder, ks=[2, 5]).model_dump(mode="json"))
    assert main(["train", "graph-lm", str(tmp_path / "config.yaml")]) == 0
    shown = capsys.readouterr().out
    for step in ("crowd", "interactions", "predict"):
        assert f"graph_lm_{step}: finished before" in shown
    assert "graph_lm:   recall@5" in shown
    again = stages_of(config_of(folder, steps=["crowd", "predict"]).graph_lm)
    assert again == (
        "graph_lm_inputs",
        "graph_lm_crowd",
        "graph_lm_predict",
        "graph_lm_evaluation",
        "graph_lm_lists",
    )


@pytest.fixture
def job(folder: Path, run: RunSettings, tmp_path: Path) -> GraphLMJob:
    values = {
        "small": SMALL,
        "max_tokens": 64,
        "steps": ["predict"],
        "predict": STEP,
        "valid_users": None,
    }
    settings = parse_settings(GraphLMSettings, values, source="test")
    write_inputs(settings, Dataset.load(run.out / "data"), tmp_path / "inputs")
    inputs = tmp_path / "inputs"
    return GraphLMJob(run.out / "data", inputs, settings, "predict", None, Placement())


def test_two_workers_that_share_each_layer_train_the_model_of_one(
    job: GraphLMJob, tmp_path: Path
) -> None:
    found = []
    for workers, sharding in ((1, "none"), (2, "fsdp")):
        settings = job.settings.model_copy(update={"sharding": sharding})
        placed = Placement(workers, 0.5, watch=None if workers > 1 else trained_here)
        one = GraphLMJob(job.dataset, job.inputs, settings, job.step, None, placed)
        train_graph_lm(one, tmp_path / f"{workers}")
        found.append(read_arrays(tmp_path / f"{workers}" / PARAMETERS_FILE))
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, atol=1e-4, err_msg=name)


def test_a_killed_worker_goes_on(job: GraphLMJob, tmp_path: Path) -> None:
    train_graph_lm(replace(job, placement=Placement(watch=trained_here)), tmp_path / "whole")
    output, killed = tmp_path / "killed", []
    thread = threading.Thread(target=kill_train_worker, args=(output, killed))
    thread.start()
    train_graph_lm(job, output)
    thread.join()
    assert killed
    whole = read_arrays(tmp_path / "whole" / PARAMETERS_FILE)
    for name, array in read_arrays(output / PARAMETERS_FILE).items():
        np.testing.assert_allclose(whole[name], array, atol=1e-6, err_msg=name)
