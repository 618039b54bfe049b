"""ELMRec from files to metrics, on Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from toy_language_model import toy_shop

from raysys.cli import main
from raysys.data.dataset import Dataset
from raysys.pipeline import ELMREC, run_stages
from raysys.schema import RECOMMENDATION_SCHEMA
from raysys.settings import parse_settings
from raysys.stages.context import RunSettings
from raysys.store import read_arrays, read_json, read_table, write_json, write_table

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
STAGES = ("data", *ELMREC)


def config_of(folder: Path, out: str, **changes) -> RunSettings:
    values = {
        "out": folder / out,
        "data": {
            "interactions": folder / "files" / "interactions.parquet",
            "items": folder / "files" / "items.parquet",
            "split": {"method": "leave_last_two"},
        },
        "elmrec": {
            "small": {"width": 16, "layers": 1, "heads": 2, "inner": 32, "vocabulary": 400},
            "words": {"sigma": 0.5, "layers": 2},
            "tasks": ["direct", "sequential", "explanation"],
            "negatives": 9,
            "ks": [1, 5],
            "train": {"learning_rate": 0.01, "batch_size": 4, "epochs": 2, "checkpoint_every": 1},
        }
        | changes,
    }
    return parse_settings(RunSettings, values, source="test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = Path(tmp_path_factory.mktemp("elmrec"))
    toy_shop(folder / "files")
    path = folder / "files" / "interactions.parquet"
    table = read_table(path).drop_columns(["split"])
    texts = [f"good number {n}" for n in range(table.num_rows)]
    write_table(path, table.append_column("review", pa.array(texts)))
    return folder


@pytest.fixture(scope="module")
def run(folder, in_process) -> RunSettings:
    """A finished run."""
    settings = config_of(folder, "run")
    run_stages(settings, STAGES, in_process)
    return settings


def test_a_run_ends_with_every_task_measured(run) -> None:
    found = read_json(run.out / "elmrec_evaluation" / "metrics.json")
    assert not found["leaks"]
    for task in ("direct", "sequential"):
        rows = found["tasks"][task]["rows"]
        assert list(rows) == ["elmrec", "popularity", "ease"]
        for row in rows.values():
            assert set(row) == {"hr@1", "hr@5", "ndcg@1", "ndcg@5"}
            assert all(one["low"] <= one["mean"] <= one["high"] for one in row.values())
        assert found["tasks"][task]["users"] == 12
        assert set(found["tasks"][task]["elmrec_minus"]) == {"popularity", "ease"}
    texts = found["tasks"]["explanation"]
    assert texts["texts"] == 12
    assert {"bleu@1", "bleu@4", "rouge1", "rougeL", "distinct@2"} <= set(texts["rows"]["elmrec"])
    written = read_table(run.out / "elmrec_evaluation" / "explanations.parquet")
    assert written.num_rows == 12
    assert written["review"].to_pylist()[0].startswith("good number")
    assert all(outcome.skipped for outcome in run_stages(run, STAGES).values())


def test_the_lists_are_of_items_that_are_new_and_can_be_measured(run, folder, capsys) -> None:
    path = run.out / "elmrec_evaluation" / "recommendations.parquet"
    table = read_table(path)
    assert table.schema.equals(RECOMMENDATION_SCHEMA)
    dataset = Dataset.load(run.out / "data")
    known = dataset.matrix("train", "valid").toarray()
    places = {one: row for row, one in enumerate(dataset.user_ids)}
    items = {one: row for row, one in enumerate(dataset.item_ids)}
    for row in table.to_pylist():
        assert not known[places[row["user_id"]], items[row["item_id"]]]
    words = ["evaluate", str(path), "--dataset", str(run.out / "data"), "--k", "5", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    ours = read_json(run.out / "elmrec_evaluation" / "metrics.json")["tasks"]["sequential"]
    # One test item a user: recall is the hit rate.
    assert found["recall"] == pytest.approx(ours["rows"]["elmrec"]["hr@5"]["mean"])


def test_two_workers_train_the_same_model(run, folder, in_process) -> None:
    settings = config_of(folder, "two", small=run.elmrec.small.model_copy(update={"dropout": 0.0}))
    one = config_of(folder, "one", small=run.elmrec.small.model_copy(update={"dropout": 0.0}))
    cluster = settings.cluster.model_copy(update={"train_workers": 2})
    run_stages(settings.model_copy(update={"cluster": cluster}), STAGES[:-1])
    run_stages(one, STAGES[:-1], in_process)
    arrays = [read_arrays(s.out / "elmrec_model" / "elmrec.safetensors") for s in (one, settings)]
    for name, array in arrays[0].items():
        np.testing.assert_allclose(arrays[1][name], array, atol=1e-4, err_msg=name)


def test_a_leaky_graph_is_named_in_every_report(folder, capsys, tmp_path) -> None:
    leaky = config_of(folder, "leaky", graph="explanation_split", hide="none", tasks=["direct"])
    write_json(tmp_path / "config.yaml", leaky.model_dump(mode="json"))
    assert main(["train", "elmrec", str(tmp_path / "config.yaml")]) == 0
    shown = capsys.readouterr()
    assert "elmrec (LEAKY: its graph holds edges that are asked for): hr" in shown.out
    assert "every figure of this model LEAKS" in shown.err
    found = read_json(leaky.out / "elmrec_evaluation" / "metrics.json")
    assert found["leaks"]
    assert next(iter(found["tasks"]["direct"]["rows"])).startswith("elmrec (LEAKY")
    manifest = read_json(leaky.out / "elmrec_model" / "manifest.json")
    assert manifest["figures"]["leaks"] == 1.0


def test_train_still_trains_graph_models_without_a_word(folder, tmp_path, capsys) -> None:
    assert main(["train", str(tmp_path / "none.toml")]) == 2
    assert "none.toml does not exist" in capsys.readouterr().err
    assert main(["train", "graphs", str(tmp_path / "none.toml")]) == 2
