"""A small finished run, as an endpoint reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raysys.manifest import StageReport
from raysys.runs import RunDirectory
from raysys.schema import RECOMMENDATION_SCHEMA
from raysys.store import write_arrays, write_json, write_table

KEY = {"Authorization": "Bearer secret"}
ITEMS = np.array([[1, 1], [2, 3], [3, 2], [0, 1]], np.float32)


def write_run(folder: Path, items: np.ndarray = ITEMS, recall: float = 0.5) -> Path:
    """Users u1 = (1, 0) and u2 = (0, 1); u3 has nothing in train. Items a, b, c, d."""
    directory = RunDirectory(folder)

    def data(output: Path) -> StageReport:
        inter = {
            "user_id": ["u1", "u1", "u2", "u3"],
            "item_id": ["a", "b", "a", "d"],
            "split": ["train", "train", "train", "test"],
        }
        table = {
            "item_id": ["a", "b", "c", "d"],
            "title": ["A", None, "<script>", "D"],
            "genres": ["Comedy|Drama", "drama", None, "Comedy"],
        }
        write_table(output / "interactions.parquet", pa.table(inter))
        write_table(output / "items.parquet", pa.table(table))
        write_table(output / "users.parquet", pa.table({"user_id": ["u1", "u2", "u3"]}))
        return StageReport()

    def train(output: Path) -> StageReport:
        about = {"model": {}, "users": 3, "items": 4, "width": 2}
        write_json(output / "m" / "model.json", about)
        users = np.array([[1, 0], [0, 1], [9, 9]], np.float32)
        write_arrays(output / "m" / "embeddings.safetensors", {"users": users, "items": items})
        return StageReport()

    def evaluate(output: Path) -> StageReport:
        write_json(output / "metrics.json", {"models": {"m": {"recall@20": recall}}})
        return StageReport()

    def recommend(output: Path) -> StageReport:
        write_json(output / "model.json", {"model": "m"})
        write_table(output / "recommendations.parquet", RECOMMENDATION_SCHEMA.empty_table())
        return StageReport()

    config = {"items": items.tobytes().hex(), "recall": recall}
    bodies = {"data": data, "train": train, "evaluate": evaluate, "recommend": recommend}
    for name, body in bodies.items():
        directory.run_stage(name, config, [], body)
    return folder
