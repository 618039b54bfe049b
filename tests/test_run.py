"""A whole run without a language model: own vectors, a graph model, linear ones and a blend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from toy_models import ITEMS, toy_profiles, toy_train, toy_valid

from raysys.data.dataset import Dataset
from raysys.evaluation.kept_lists import read_test_lists
from raysys.pipeline import run_stages
from raysys.schema import TEST, TRAIN
from raysys.settings import parse_settings
from raysys.stages.context import RunSettings, Share
from raysys.store import read_json, read_table, write_table
from raysys.text.vectors import VECTOR
from raysys.training.jobs import trained_on


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    train = toy_train()
    users, items = (train + toy_valid(train)).nonzero()
    names = pa.array([f"i{row:02}" for row in range(ITEMS)])
    write_table(
        tmp_path / "interactions.parquet",
        pa.table({"user_id": [f"u{row:02}" for row in users], "item_id": names.take(items)}),
    )
    write_table(tmp_path / "items.parquet", pa.table({"item_id": names, "title": names}))
    vectors = toy_profiles(nulls=False).items.astype(np.float64).tolist()
    write_table(tmp_path / "vectors.parquet", pa.table({"item_id": names, VECTOR: vectors}))
    text = {"backbone": "ease", "grid": {"reg": [1.0, 10.0], "text_weight": [1.0, 5.0]}}
    values = {
        "out": tmp_path / "run",
        "data": {
            "interactions": tmp_path / "interactions.parquet",
            "items": tmp_path / "items.parquet",
            "split": {"method": "ratio", "train": 0.6, "valid": 0.2, "test": 0.2},
        },
        "embeddings": {"item_vectors": tmp_path / "vectors.parquet", "users_from_items": True},
        "models": {
            "graph": {"settings": {"width": 8}, "alignment": {"kind": "gen"}},
            "graph0": {"settings": {"width": 8}, "alignment": {"kind": "gen", "recon_weight": 0}},
            "again": {"settings": {"width": 8}, "start_from": "graph", "train_noise": 0.3},
            "ease": {"backbone": "ease", "settings": {"reg": 5.0}},
            "text": text,
            "text_shuffled": text | {"shuffle_profiles": True},
            "both": {
                "backbone": "blend",
                "settings": {"first": "text", "second": "graph"},
                "grid": {"weight": [0.0, 0.5, 1.0]},
            },
        },
        "train": {"epochs": 3, "batch_size": 64},
        "evaluate": {"ks": [3, 5]},
        "recommend": {"k": 4, "model": "both"},
    }
    return parse_settings(RunSettings, values, source="test")


@pytest.mark.ray
def test_a_run_with_own_vectors_and_every_kind_of_model(
    settings: RunSettings, in_process: Share
) -> None:
    outcomes = run_stages(settings, share=in_process)
    assert list(outcomes) == ["data", "embeddings", "train", "evaluate", "recommend", "report"]
    report = read_json(settings.out / "report.json")
    assert set(report["models"]) == {"popularity", *settings.models}
    pairs = {(row["model"], row["baseline"]) for row in report["comparisons"]}
    assert {("text", "ease"), ("text", "text_shuffled"), ("both", "graph")} <= pairs
    assert ("graph", "graph0") in pairs
    assert not {model for model, _ in pairs} & {"graph0", "again"}  # noise is another difference
    data = Dataset.load(settings.out / "data")
    users, shown = read_test_lists(settings.out / "evaluate", "again")
    noisy = trained_on(data, refit=False, noise=0.3, seed=settings.train.seed)
    assert noisy.nnz > data.matrix(TRAIN).nnz
    for user, items in zip(users, shown, strict=True):
        fake = set(noisy[user].indices) - set(data.matrix(TEST)[user].indices)
        assert not set(items) & fake
    lists = read_table(settings.out / "recommend" / "recommendations.parquet")
    assert lists.num_rows > 0
    chosen = read_json(settings.out / "train" / "text" / "training.json")["chosen"]
    assert set(chosen) == {"reg", "text_weight"}
    assert all(outcome.skipped for outcome in run_stages(settings).values())
