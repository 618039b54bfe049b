"""Accuracy on a published split: every choice is made on validation, test is looked at once.

`--dataset` is a folder with interactions.parquet (user_id, item_id, split), or the name of
one below RAYSYS_DATA. All items are ranked, train items are left out (RLMRec, §4.1.2).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from scipy.sparse import csr_matrix

from raysys.data.tables import SPLIT_WORDS
from raysys.errors import UserError
from raysys.evaluation.protocols import all_rank
from raysys.graph.bipartite import bipartite_graph
from raysys.models.base import ScoreBlock
from raysys.models.linear import Blend, Ease, EaseSettings, ItemKNN, ItemKNNSettings
from raysys.models.popularity import Popularity
from raysys.models.registry import BACKBONES, ModelSettings, build_model
from raysys.models.saved import Embeddings
from raysys.settings import nearest
from raysys.store import read_table
from raysys.training.loop import GraphTraining, TrainSettings

K = 20
EASE_REG = (20.0, 50.0, 100.0, 200.0, 400.0)
NEIGHBOURS = (20, 50, 100, 200)
SHRINK = (0.0, 10.0, 50.0)
WEIGHTS = tuple(round(step / 10, 1) for step in range(11))


class Data:
    """Train, valid and test as (U, I) matrices."""

    def __init__(self, folder: Path) -> None:
        table = read_table(folder / "interactions.parquet", ["user_id", "item_id", "split"])
        self.name = folder.name
        users, items = (pc.unique(table[column]) for column in ("user_id", "item_id"))
        rows = pc.index_in(table["user_id"], value_set=users).to_numpy()
        columns = pc.index_in(table["item_id"], value_set=items).to_numpy()
        labels = np.array([SPLIT_WORDS.get(name, "") for name in table["split"].to_pylist()])
        if unknown := (labels == "").sum():
            raise UserError(f"{folder}: {unknown} rows have a split other than train, valid, test")

        def matrix(split: str) -> csr_matrix:
            chosen = labels == split
            pairs = (rows[chosen], columns[chosen])
            shape = (len(users), len(items))
            return csr_matrix((np.ones(chosen.sum(), np.float32), pairs), shape)

        self.train, self.valid, self.test = map(matrix, ("train", "valid", "test"))


class Bench:
    """Fits models once for each seed; `blend` asks for the others."""

    def __init__(self, data: Data, seed: int) -> None:
        self.data, self.seed = data, seed
        self._fitted: dict[str, tuple[ScoreBlock, str]] = {}

    def fitted(self, name: str) -> tuple[ScoreBlock, str]:
        """The scores of a model, and what was chosen for it on validation."""
        if name not in self._fitted:
            self._fitted[name] = MODELS[name](self)
        return self._fitted[name]

    def best(self, candidates: dict[str, Callable[[], ScoreBlock]]) -> tuple[ScoreBlock, str]:
        """The candidate with the highest validation Recall@20, and its name."""
        found = None
        for label, build in candidates.items():
            scorer = build()
            recall = all_rank(scorer, self.data.train, self.data.valid, [K]).metrics[f"recall@{K}"]
            if found is None or recall > found[0]:
                found = (recall, scorer, label)
        assert found is not None
        return found[1], f"{found[2]}, validation {found[0]:.4f}"

    def popularity(self) -> tuple[ScoreBlock, str]:
        """Most interactions first."""
        return Popularity(self.data.train).score_block, ""

    def itemknn(self) -> tuple[ScoreBlock, str]:
        """Neighbours and shrink by validation."""
        train = self.data.train

        def build(kept: int, shrink: float) -> ScoreBlock:
            return ItemKNN(train, ItemKNNSettings(neighbours=kept, shrink=shrink)).score_block

        return self.best(
            {
                f"neighbours {kept}, shrink {shrink:g}": lambda k=kept, s=shrink: build(k, s)
                for kept in NEIGHBOURS
                for shrink in SHRINK
            }
        )

    def ease(self) -> tuple[ScoreBlock, str]:
        """λ by validation."""
        train = self.data.train
        return self.best(
            {
                f"reg {reg:g}": lambda r=reg: Ease(train, EaseSettings(reg=r)).score_block
                for reg in EASE_REG
            }
        )

    def graph_model(self, backbone: str) -> tuple[ScoreBlock, str]:
        """RLMRec's base row: its settings, its early stop."""
        data = self.data
        settings = TrainSettings(seed=self.seed)
        chosen = ModelSettings(backbone=backbone)
        model = build_model(chosen, bipartite_graph(data.train), None, self.seed)
        training = GraphTraining(model, data.train, data.valid, settings)
        training.run()
        training.restore_best()
        note = f"epoch {training.best_epoch}, validation {training.best_recall:.4f}"
        return Embeddings.of(model).score_block, note

    def blend(self) -> tuple[ScoreBlock, str]:
        """EASE and LightGCN, the weight by validation."""
        linear, graph = self.fitted("ease")[0], self.fitted("lightgcn")[0]
        return self.best(
            {
                f"weight of ease {weight}": lambda w=weight: Blend(linear, graph, w).score_block
                for weight in WEIGHTS
            }
        )


MODELS: dict[str, Callable[[Bench], tuple[ScoreBlock, str]]] = {
    "popularity": Bench.popularity,
    "itemknn": Bench.itemknn,
    "ease": Bench.ease,
    **{name: partial(Bench.graph_model, backbone=name) for name in BACKBONES},
    "blend": Bench.blend,
}


def find_dataset(given: str) -> Path:
    """The folder itself, or the one of that name below RAYSYS_DATA."""
    root = os.environ.get("RAYSYS_DATA")
    places = [Path(given), *([Path(root, given)] if root else [])]
    for place in places:
        if (place / "interactions.parquet").is_file():
            return place
    raise UserError(
        f"no interactions.parquet in {' or '.join(map(str, places))}; "
        "give a folder, or set RAYSYS_DATA to where data sets lie."
    )


def measure(data: Data, names: list[str], seeds: int) -> tuple[dict[str, dict[str, float]], str]:
    """Figures of each model over the seeds, and the same as a markdown table."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    lines = ["| model | Recall@20 | NDCG@20 | chosen on validation |", "|---|---|---|---|"]
    notes = {}
    for turn in range(seeds):
        bench = Bench(data, 2023 + turn)
        for name in names:
            start = time.perf_counter()
            scorer, notes[name] = bench.fitted(name)
            metrics = all_rank(scorer, data.train, data.test, [K]).metrics
            runs[name].append(metrics)
            seconds = time.perf_counter() - start
            print(f"{name} {notes[name]}: {metrics} ({seconds:.0f} s)", file=sys.stderr)
    figures: dict[str, dict[str, float]] = {}
    for name, results in runs.items():
        figures[name] = {}
        cells = []
        for key in (f"recall@{K}", f"ndcg@{K}"):
            values = np.array([result[key] for result in results])
            figures[name][key] = round(float(values.mean()), 4)
            cells.append(f"{values.mean():.4f}")
            if seeds > 1:
                figures[name][f"{key}_sd"] = round(float(values.std(ddof=1)), 4)
                cells[-1] += f" ± {values.std(ddof=1):.4f}"
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {notes[name]} |")
    return figures, "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 2023, 2024, …")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    try:
        names = arguments.models.split(",")
        for name in names:
            if name not in MODELS:
                raise UserError(f"no model '{name}': {nearest(name, list(MODELS))}")
        data = Data(find_dataset(arguments.dataset))
        figures, table = measure(data, names, arguments.seeds)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if arguments.markdown:
        command = f"python -m benchmarks.reproduce {' '.join(sys.argv[1:])}"
        text = f"# {data.name}\n\nWritten by `{command}`; not edited by hand.\n\n{table}\n"
        arguments.markdown.write_text(text, encoding="utf-8")
    print(json.dumps({"benchmark": "reproduce", "figures": figures}))


if __name__ == "__main__":
    main()
