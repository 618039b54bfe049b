"""Stage `recommend`: top-k lists for all users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix

from raysys.data.dataset import Dataset
from raysys.manifest import Manifest, StageReport
from raysys.models.saved import load_model
from raysys.observe import progress
from raysys.ranking.retrieve import retrieve
from raysys.schema import (
    RECOMMENDATION_SCHEMA,
    RECOMMENDATIONS_FILE,
    SPLITS,
    TITLE,
)
from raysys.stages.context import RunContext
from raysys.stages.train import best_model
from raysys.store import write_json, write_table

#: Users of one Ray task.
BLOCK = 4096
MODEL_FILE = "model.json"
Lists = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def run(context: RunContext) -> tuple[Manifest, bool]:
    """Write lists for all users into `RUN/recommend/recommendations.parquet`."""
    settings = context.settings.recommend
    return context.run.run_stage(
        "recommend",
        settings.model_dump(mode="json"),
        ["data", "train", context.trained],
        lambda output: _recommend(context, output),
    )


def _recommend(context: RunContext, output: Path) -> StageReport:
    import ray

    dataset, settings = context.dataset, context.settings.recommend
    _ = context.resources  # Ray must be up before anything is put into its store.
    model = best_model(context) if settings.model == "best" else settings.model
    # The folder and not the model: what is in it is mapped by each task, never copied.
    shared = ray.put(
        (
            context.run.path(context.trained) / model,
            dataset.matrix(*SPLITS, opinion=None),
            settings.k,
        )
    )
    rank = ray.remote(num_cpus=1)(_rank)
    users = np.arange(len(dataset.user_ids))
    pending = [
        rank.remote(shared, users[start : start + BLOCK]) for start in range(0, len(users), BLOCK)
    ]
    found: list[Lists] = []
    with progress("recommend", len(users)) as tracker:
        for ref in pending:
            found.append(ray.get(ref))
            tracker.update(sum(len(items) for items, _ in found))
    items = np.concatenate([items for items, _ in found])
    scores = np.concatenate([scores for _, scores in found])
    table = lists_table(dataset, users, items, scores)
    write_table(output / RECOMMENDATIONS_FILE, table)
    write_json(output / MODEL_FILE, {"model": model, "stage": context.trained})
    # A user who has seen nearly everything gets a shorter list; none at all is counted.
    empty = int((items < 0).all(axis=1).sum())
    return StageReport(
        counts={
            "in": len(users),
            "ok": len(users) - empty,
            "dead_letter": empty,
            "rows": table.num_rows,
        },
        dropped={"all_items_seen": empty} if empty else {},
    )


def _rank(shared: tuple[Path, csr_matrix, int], users: np.ndarray[Any, Any]) -> Lists:
    folder, seen, k = shared
    return retrieve(load_model(folder).score_block, users, seen, k)


def lists_table(
    dataset: Dataset, users: np.ndarray, items: np.ndarray, scores: np.ndarray
) -> pa.Table:
    """Lists in the form of `RECOMMENDATIONS_FILE`.

    Args:
        users: (n,) user rows.
        items, scores: (n, k) item rows, best first, -1 where a list is shorter; their scores.
    """
    filled = items >= 0
    rows, places = np.nonzero(filled)
    chosen = items[filled]
    return pa.table(
        [
            pa.array(dataset.user_ids[users], pa.string()).take(pa.array(rows)),
            pa.array(places + 1, pa.int32()),
            pa.array(dataset.item_ids, pa.string()).take(pa.array(chosen)),
            pa.array(scores[filled], pa.float32()),
            dataset.items[TITLE].take(pa.array(chosen)),
        ],
        schema=RECOMMENDATION_SCHEMA,
    )
