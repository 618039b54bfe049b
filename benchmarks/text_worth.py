"""Where text helps: test pairs found by EASE with and without it, by how well an item is known.

The settings are those that `benchmarks.reproduce` chose on validation for `ease` and `ease_text`,
read from docs/results/reproduce. A pair counts as found when its item is among the user's first
20; items of the train split are left out of the lists.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from benchmarks import results, tables
from benchmarks.reproduce import Data, K, find_dataset
from raysys.errors import UserError
from raysys.models.base import ScoreBlock
from raysys.models.registry import ModelSettings
from raysys.ranking.retrieve import retrieve
from raysys.store import read_json
from raysys.training.linear_models import fit

MODELS = ("ease", "ease_text")
#: Train interactions of an item at which a group of pairs begins.
GROUPS = (0, 5, 10, 20, 50)
#: Scores held at once.
BLOCK_SCORES = 2**25


def chosen(dataset: str, model: str) -> dict[str, float]:
    """The settings of a row of `benchmarks.reproduce`.

    Raises:
        UserError: there is no such row.
    """
    path = results.FOLDER / f"{dataset}.json"
    if not path.is_file() or model not in (rows := read_json(path)):
        raise UserError(f"{path} has no row '{model}': run benchmarks.reproduce --save first.")
    words = [part.split() for part in rows[model]["chosen"].split(", ")]
    return {name: float(value) for name, value in words if name != "validation"}


def found_pairs(score: ScoreBlock, train: csr_matrix, test: csr_matrix) -> np.ndarray:
    """(n,) bool for the stored entries of `test`: is the item in the user's list?"""
    users, items = np.flatnonzero(np.diff(test.indptr)), test.shape[1]
    lists, _ = retrieve(score, users, train, K, max(1, BLOCK_SCORES // items))
    shown = (users[:, None] * items + lists)[lists >= 0]
    rows = np.repeat(np.arange(test.shape[0]), np.diff(test.indptr))
    return np.isin(rows * items + test.indices, shown)


def groups_of(train: csr_matrix, test: csr_matrix) -> np.ndarray:
    """(n,) place in `GROUPS` of each stored entry of `test`."""
    degrees = np.bincount(train.indices, minlength=train.shape[1])
    return np.digitize(degrees[test.indices], GROUPS) - 1


def measure(data: Data) -> list[dict[str, float]]:
    """For each group: its share of the test pairs, and what each model finds of it."""
    found = {}
    for name in MODELS:
        settings = ModelSettings(backbone="ease", settings=chosen(data.name, name))
        profiles = data.profiles if settings.reads_profiles() else None
        model = fit(settings, {}, data.train, data.valid, profiles).model
        found[name] = found_pairs(model.score_block, data.train, data.test)
    groups = groups_of(data.train, data.test)
    rows = []
    for place in range(len(GROUPS)):
        inside = groups == place
        rates = {
            name: float(hits[inside].mean()) if inside.any() else 0.0
            for name, hits in found.items()
        }
        rows.append({"share": float(inside.mean()), **rates})
    return rows


def table_of(figures: dict[str, list[dict[str, float]]]) -> str:
    """All data sets beside each other, a group a row."""
    columns = ("share of test", "EASE finds", "with text")
    head = ["train interactions of the item"]
    head += [f"{name}: {column}" for name in figures for column in columns]
    rows = []
    for place, low in enumerate(GROUPS):
        last = place + 1 == len(GROUPS)
        cells = [f"{low} and more" if last else f"{low} to {GROUPS[place + 1] - 1}"]
        for groups in figures.values():
            cells += [f"{groups[place]['share']:.1%}"]
            cells += [f"{groups[place][name]:.1%}" for name in MODELS]
        rows.append(cells)
    return tables.markdown(head, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", default="amazon14-beauty,amazon18-games,ml-1m")
    parser.add_argument("--vectors", type=Path, required=True, help="folder of NAME.parquet")
    parser.add_argument("--save", action="store_true", help="show the table in docs/models.md")
    arguments = parser.parse_args()
    figures: dict[str, list[dict[str, Any]]] = {}
    try:
        for name in arguments.datasets.split(","):
            data = Data(find_dataset(name), arguments.vectors / f"{name}.parquet")
            figures[name] = measure(data)
            print(f"{name}: {figures[name]}", file=sys.stderr, flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if arguments.save:
        tables.save("text_worth", table_of(figures), tables.this_command("text_worth"))
    print(json.dumps({"benchmark": "text_worth", "figures": figures}))


if __name__ == "__main__":
    main()
