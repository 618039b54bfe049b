"""Small data and models that several test files share."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch
from scipy.sparse import csr_matrix

from raysys import schema
from raysys.graph.bipartite import bipartite_graph
from raysys.models.base import Batch, Recommender
from raysys.models.contrastive import ContrastiveAlignment
from raysys.models.profiles import Profiles
from raysys.models.registry import ModelSettings, build_model
from raysys.store import write_arrays, write_table

USERS, ITEMS, WIDTH = 24, 18, 6


def toy_train(seed: int = 0) -> csr_matrix:
    """Two groups of users, each with its own half of the items, every third item or so."""
    rng = np.random.default_rng(seed)
    same = (np.arange(USERS) % 2)[:, None] == (np.arange(ITEMS) % 2)[None, :]
    chosen = same & (rng.random((USERS, ITEMS)) < 0.6)
    chosen[np.arange(USERS), np.arange(USERS) % 2] = True
    return csr_matrix(chosen.astype(np.float32))


def toy_valid(train: csr_matrix) -> csr_matrix:
    """The pairs of the same group that are not in train."""
    same = (np.arange(USERS) % 2)[:, None] == (np.arange(ITEMS) % 2)[None, :]
    return csr_matrix((same & (train.toarray() == 0)).astype(np.float32))


def toy_profiles(nulls: bool = True) -> Profiles:
    rng = np.random.default_rng(1)
    users = rng.normal(size=(USERS, 10)).astype(np.float32)
    items = rng.normal(size=(ITEMS, 10)).astype(np.float32)
    if nulls:
        users[3] = np.nan
        items[5] = np.nan
    return Profiles.of(users, items)


def toy_settings(aligned: bool = True, **alignment: object) -> ModelSettings:
    values = {"kd_weight": 0.3, "matmul": "float32"} | alignment
    return ModelSettings(
        settings={"width": WIDTH, "layers": 2, "reg": 1e-3},
        alignment=ContrastiveAlignment(**values) if aligned else None,
    )


def toy_model(settings: ModelSettings | None = None, seed: int = 0) -> Recommender:
    return build_model(
        settings or toy_settings(), bipartite_graph(toy_train()), toy_profiles(), seed
    )


def toy_batch(worker: int = 0, workers: int = 1) -> Batch:
    """Eleven rows with repeated users and items, and the nodes without a profile among them."""
    return Batch(
        torch.tensor([0, 0, 3, 5, 7, 7, 7, 9, 22, 23, 1]),
        torch.tensor([0, 2, 5, 5, 7, 0, 1, 1, 16, 17, 5]),
        torch.tensor([1, 1, 4, 8, 5, 2, 2, 14, 3, 0, 4]),
        worker,
        workers,
    )


def generator(seed: int = 9) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write_toy_dataset(folder: Path) -> None:
    """The toy data as a data set folder, with its profiles in `vectors.safetensors`."""
    users, items = [f"u{row:02}" for row in range(USERS)], [f"i{row:02}" for row in range(ITEMS)]
    rows: dict[str, list[str]] = {schema.USER_ID: [], schema.ITEM_ID: [], schema.SPLIT: []}
    for split, matrix in ((schema.TRAIN, toy_train()), (schema.VALID, toy_valid(toy_train()))):
        for user, item in zip(*matrix.nonzero(), strict=True):
            rows[schema.USER_ID].append(users[user])
            rows[schema.ITEM_ID].append(items[item])
            rows[schema.SPLIT].append(split)
    write_table(folder / schema.INTERACTIONS_FILE, pa.table(rows))
    write_table(folder / schema.USERS_FILE, pa.table({schema.USER_ID: users}))
    write_table(folder / schema.ITEMS_FILE, pa.table({schema.ITEM_ID: items, schema.TITLE: items}))
    profiles = toy_profiles()
    write_arrays(
        folder / "vectors.safetensors",
        {
            "users": np.nan_to_num(profiles.users),
            "items": np.nan_to_num(profiles.items),
            "user_has_profile": profiles.user_has_profile.astype(np.uint8),
            "item_has_profile": profiles.item_has_profile.astype(np.uint8),
        },
    )


def trained_here(*_: float) -> None:
    """As `watch` of a `Placement`: trained in this process, without Ray Train's workers."""


def kill_train_worker(output: Path, killed: list[int]) -> None:
    """Wait for the second checkpoint, then kill the worker process of our own Ray."""
    for _ in range(3000):
        if len(list(output.glob(".ray/*/checkpoint_*/state.json"))) >= 2:
            for process in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
            return
        time.sleep(0.02)
