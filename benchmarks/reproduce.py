"""Accuracy on a published split: every choice is made on validation, test is looked at once.

`--dataset` is a folder with interactions.parquet (user_id, item_id, split), or the name of
one below RAYSYS_DATA. All items are ranked, train items are left out (RLMRec, §4.1.2).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from scipy.sparse import csr_matrix

from benchmarks.results import NDCG, PAGE, RECALL, record
from raysys.data.splits import ratio
from raysys.data.tables import SPLIT_WORDS
from raysys.errors import UserError
from raysys.evaluation.protocols import all_rank
from raysys.graph.bipartite import bipartite_graph
from raysys.models.base import ScoreBlock
from raysys.models.popularity import Popularity
from raysys.models.profiles import Profiles, shuffled, with_users_from_items
from raysys.models.published import PUBLISHED_BACKBONES, published
from raysys.models.registry import ModelSettings, build_model
from raysys.models.saved import Embeddings
from raysys.schema import ITEM_ID, SPLIT, SPLITS, USER_ID
from raysys.store import read_table, write_json
from raysys.text.vectors import read_vectors
from raysys.training.linear_models import fit
from raysys.training.loop import WATCHED, GraphTraining, TrainSettings

K = 20
#: RLMRec's 3:1:1, for data sets without a split of their own.
VALID, TEST, SPLIT_SEED = 0.2, 0.2, 2023
GRIDS: dict[str, dict[str, tuple[float | str, ...]]] = {
    "itemknn": {"neighbours": (20, 50, 100, 200), "shrink": (0.0, 10.0, 50.0)},
    "ease": {"reg": (20.0, 50.0, 100.0, 200.0, 400.0)},
    "ease_sparse": {"solver": ("sparse",), "reg": (20.0, 50.0, 100.0), "neighbours": (50, 100)},
    "ease_text": {"reg": (100.0, 200.0, 400.0), "text_weight": (30.0, 100.0, 300.0)},
    "blend": {"weight": tuple(round(step / 10, 1) for step in range(11))},
}
#: What makes an alignment's cost grow no faster than the graph.
SAMPLED: dict[str, dict[str, Any]] = {
    "con": {"denominator": "sampled"},
    "gen": {"recon_nodes": 2048},
}
INTERACTIONS = ("interactions.parquet", "interactions_implicit.parquet")


class Data:
    """Train, valid and test as (U, I) matrices, and profile vectors where they are given."""

    def __init__(self, folder: Path, vectors: Path | None = None) -> None:
        file = next(folder / name for name in INTERACTIONS if (folder / name).is_file())
        table = read_table(file)
        self.name = folder.name
        digest = hashlib.sha256(file.read_bytes())
        users, items = (pc.unique(table[column]) for column in (USER_ID, ITEM_ID))
        rows = pc.index_in(table[USER_ID], value_set=users).to_numpy()
        columns = pc.index_in(table[ITEM_ID], value_set=items).to_numpy()
        if SPLIT in table.column_names:
            labels = np.array([SPLIT_WORDS.get(name, "") for name in table[SPLIT].to_pylist()])
            if unknown := (labels == "").sum():
                raise UserError(f"{file}: {unknown} rows have a split that is none of {SPLITS}.")
        else:
            labels = np.array(SPLITS)[ratio(rows.astype(np.int64), VALID, TEST, SPLIT_SEED)]

        def matrix(split: str) -> csr_matrix:
            chosen = labels == split
            pairs = (rows[chosen], columns[chosen])
            shape = (len(users), len(items))
            return csr_matrix((np.ones(chosen.sum(), np.float32), pairs), shape)

        self.train, self.valid, self.test = map(matrix, SPLITS)
        for name, part in zip(SPLITS, (self.train, self.valid, self.test), strict=True):
            if not part.nnz:
                raise UserError(f"{file}: no row has the split '{name}'.")
        self.profiles: Profiles | None = None
        if vectors is not None:
            digest.update(vectors.read_bytes())
            ids = np.array([str(item) for item in items.to_pylist()], dtype=object)
            found = read_vectors(vectors, ITEM_ID, ids)
            nobody = np.zeros(len(users), dtype=bool)
            empty = np.zeros((len(users), found.values.shape[1]), dtype=np.float32)
            profiles = Profiles.of(empty, found.values, nobody, found.known)
            self.profiles = with_users_from_items(profiles, self.train)
        self.digest = digest.hexdigest()[:12]


class Bench:
    """Fits models once for each seed; a blend asks for its two parts.

    Names: `popularity`; `itemknn`, `ease`, `ease_sparse`, `ease_text`; a backbone, with `_con` or
    `_gen` for RLMRec's aligned row (`_sampled`: con with the sampled denominator; `_gen_sampled`:
    gen that reconstructs 2,048 of the hidden nodes), then `0` for the same with weight 0, or
    `_shuffled` for the control with the texts dealt out anew (also `ease_text_shuffled`); `a+b`:
    the blend of both.
    """

    def __init__(self, data: Data, seed: int, patience: int) -> None:
        self.data, self.seed, self.patience = data, seed, patience
        self._fitted: dict[str, tuple[ScoreBlock, str]] = {}

    def fitted(self, name: str) -> tuple[ScoreBlock, str]:
        """The scores of a model, and what was chosen for it on validation."""
        if name not in self._fitted:
            if name == "popularity":
                self._fitted[name] = Popularity(self.data.train).score_block, ""
            elif "+" in name:
                self._fitted[name] = self._blend(*name.split("+", 1))
            elif name.startswith(("ease", "itemknn")):
                self._fitted[name] = self._linear(name)
            else:
                self._fitted[name] = self._graph_model(name)
        return self._fitted[name]

    def _linear(self, name: str) -> tuple[ScoreBlock, str]:
        grid = name.removesuffix("_shuffled")
        settings = ModelSettings(backbone=grid.partition("_")[0])
        profiles = self._profiles(name) if grid.endswith("_text") else None
        return self._chosen(settings, grid, profiles)

    def _blend(self, first: str, second: str) -> tuple[ScoreBlock, str]:
        scorers = {part: self.fitted(part)[0] for part in (first, second)}
        settings = ModelSettings(backbone="blend", settings={"first": first, "second": second})
        return self._chosen(settings, "blend", None, scorers)

    def _chosen(
        self,
        settings: ModelSettings,
        grid: str,
        profiles: Profiles | None,
        scorers: dict[str, ScoreBlock] | None = None,
    ) -> tuple[ScoreBlock, str]:
        data = self.data
        best = fit(settings, GRIDS[grid], data.train, data.valid, profiles, scorers)
        chosen = ", ".join(f"{key} {value}" for key, value in best.chosen.items())
        return best.model.score_block, f"{chosen}, validation {best.recall:.4f}"

    def _graph_model(self, name: str) -> tuple[ScoreBlock, str]:
        """RLMRec's settings and early stop."""
        data = self.data
        backbone, _, rest = name.partition("_")
        kind, weight = rest.removesuffix("_shuffled"), None
        if kind.endswith("0"):
            kind, weight = kind[:-1], 0.0
        sampled = kind.endswith("sampled")
        if sampled:
            kind = kind.removesuffix("sampled").removesuffix("_") or "con"
        settings = published(backbone, kind or "none", weight=weight)
        if sampled and settings.alignment:
            alignment = settings.alignment.model_copy(update=SAMPLED[kind])
            settings = settings.model_copy(update={"alignment": alignment})
        profiles = self._profiles(name) if settings.reads_profiles() else None
        model = build_model(settings, bipartite_graph(data.train), profiles, self.seed)
        train = TrainSettings(seed=self.seed, patience=self.patience)
        training = GraphTraining(model, data.train, data.valid, train)
        training.run(partial(_show, name))
        training.restore_best()
        note = f"epoch {training.best_epoch}, validation {training.best_recall:.4f}"
        return Embeddings.of(model).score_block, note

    def _profiles(self, name: str) -> Profiles:
        if self.data.profiles is None:
            raise UserError(f"{name} reads texts: give --vectors (see benchmarks.text_vectors).")
        if name.endswith("_shuffled"):
            return shuffled(self.data.profiles, self.seed)
        return self.data.profiles


def _show(name: str, training: GraphTraining) -> None:
    recall = training.history[-1][WATCHED]
    if recall is not None:
        print(f"  {name} epoch {training.epoch}: validation {recall:.4f}", file=sys.stderr)


DEFAULT = ("popularity", "itemknn", "ease", *PUBLISHED_BACKBONES, "ease+lightgcn")


def find_dataset(given: str) -> Path:
    """The folder itself, or the one of that name below RAYSYS_DATA."""
    root = os.environ.get("RAYSYS_DATA")
    places = [Path(given), *([Path(root, given)] if root else [])]
    for place in places:
        if any((place / name).is_file() for name in INTERACTIONS):
            return place
    raise UserError(
        f"no interactions.parquet in {' or '.join(map(str, places))}; "
        "give a folder, or set RAYSYS_DATA to where data sets lie."
    )


def measure(
    data: Data, names: list[str], seeds: int, patience: int, kept: Path | None = None
) -> Iterator[dict[str, dict[str, Any]]]:
    """Figures of each model after each seed: mean over the seeds so far, and sample deviation.

    `kept`: a folder of finished runs, one JSON file each, which are not run again. Files are named
    after the data, not the code: after a change to a model, take another folder.
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    notes = {}
    for turn in range(seeds):
        seed = 2023 + turn
        bench = Bench(data, seed, patience)
        for name in names:
            file = (
                kept / data.name / f"{name}-{seed}-{patience}-{data.digest}.json" if kept else None
            )
            if file and file.is_file():
                run = json.loads(file.read_text())
            else:
                run = _run(bench, data, name)
                if file:
                    write_json(file, run)
            print(f"{name} {seed}: {run}", file=sys.stderr, flush=True)
            runs[name].append(run["metrics"])
            notes[name] = run["chosen"]
        yield {name: _summary(results, notes[name]) for name, results in runs.items()}


def _run(bench: Bench, data: Data, name: str) -> dict[str, Any]:
    start = time.perf_counter()
    scorer, chosen = bench.fitted(name)
    metrics = all_rank(scorer, data.train, data.test, [K]).metrics
    return {"metrics": metrics, "chosen": chosen, "seconds": round(time.perf_counter() - start)}


def _summary(results: list[dict[str, float]], chosen: str) -> dict[str, Any]:
    figures: dict[str, Any] = {"seeds": len(results), "chosen": chosen}
    for key in (RECALL, NDCG):
        values = np.array([result[key] for result in results])
        figures[key] = round(float(values.mean()), 4)
        if len(values) > 1:
            figures[f"{key}_sd"] = round(float(values.std(ddof=1)), 4)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--models", default=",".join(DEFAULT), help="names: see Bench")
    parser.add_argument("--vectors", type=Path, help="parquet of item_id and vector")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 2023, 2024, …")
    parser.add_argument("--patience", type=int, default=5, help="RLMRec's is 5")
    parser.add_argument("--kept", type=Path, help="folder of finished runs, which are not repeated")
    parser.add_argument("--save", action="store_true", help=f"add the figures to {PAGE}")
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    command = f"python -m benchmarks.reproduce {' '.join(sys.argv[1:])}"
    figures: dict[str, dict[str, Any]] = {}
    try:
        data = Data(find_dataset(arguments.dataset), arguments.vectors)
        for figures in measure(data, names, arguments.seeds, arguments.patience, arguments.kept):
            if arguments.save:
                record(data.name, command, figures)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps({"benchmark": "reproduce", "dataset": data.name, "figures": figures}))


if __name__ == "__main__":
    main()
