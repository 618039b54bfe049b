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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from scipy.sparse import csr_matrix

from benchmarks.bench_models import Bench, require_known
from benchmarks.results import NDCG, PAGE, RECALL, record
from raysys.data import columns
from raysys.data.sources import Source, read_source
from raysys.data.splits import ratio
from raysys.data.tables import SPLIT_WORDS
from raysys.errors import UserError
from raysys.evaluation.protocols import all_rank
from raysys.models.profiles import Profiles, with_users_from_items
from raysys.models.published import PUBLISHED_BACKBONES
from raysys.schema import ITEM_ID, SPLIT, SPLITS, TEST, TRAIN, USER_ID, VALID
from raysys.store import read_json, write_json
from raysys.text.vectors import read_vectors

K = 20
#: RLMRec's 3:1:1, for data sets without a split of their own.
VALID_SHARE, TEST_SHARE, SPLIT_SEED = 0.2, 0.2, 2023
IDS = (USER_ID, ITEM_ID)
INTERACTIONS = ("interactions.parquet", "interactions_implicit.parquet")


class Data:
    """Train, valid and test as (U, I) matrices, and profile vectors where they are given.

    Attributes:
        split: where the three come from, in words.

    Raises:
        UserError: of the file, a column and a row, where something cannot be used.
    """

    def __init__(self, folder: Path, vectors: Path | None = None) -> None:
        file = next(folder / name for name in INTERACTIONS if (folder / name).is_file())
        source = read_source(file)
        self.name = folder.absolute().name
        digest = hashlib.sha256(file.read_bytes())
        ids = {name: columns.ids(_column(source, name)) for name in IDS}
        users, items = (pc.unique(ids[name]) for name in IDS)
        rows = pc.index_in(ids[USER_ID], value_set=users).to_numpy()
        places = pc.index_in(ids[ITEM_ID], value_set=items).to_numpy()
        if SPLIT in source.table.column_names:
            self.split = f"the column '{SPLIT}'"
            labels = columns.words(source.column(SPLIT), SPLIT_WORDS).to_numpy()
        else:
            self.split = f"random, 3:1:1 of each user's rows, seed {SPLIT_SEED}"
            labels = np.array(SPLITS)[
                ratio(rows.astype(np.int64), VALID_SHARE, TEST_SHARE, SPLIT_SEED)
            ]

        def matrix(split: str) -> csr_matrix:
            chosen = labels == split
            pairs = (rows[chosen], places[chosen])
            shape = (len(users), len(items))
            return csr_matrix((np.ones(chosen.sum(), np.float32), pairs), shape)

        self.train, self.valid, self.test = map(matrix, SPLITS)
        if not self.train.nnz:
            raise UserError(f"{file}: no row has the split '{TRAIN}'; it comes from {self.split}.")
        for name, part in ((VALID, self.valid), (TEST, self.test)):
            if not (part - part.multiply(self.train > 0)).count_nonzero():
                raise UserError(
                    f"{file}: no row has the split '{name}' whose pair is not also in '{TRAIN}': "
                    f"nothing to measure on; the split comes from {self.split}."
                )
        self.profiles: Profiles | None = None
        if vectors is not None:
            wanted = items.to_numpy(zero_copy_only=False).astype(object)
            found = read_vectors(vectors, ITEM_ID, wanted)
            digest.update(vectors.read_bytes())
            nobody = np.zeros(len(users), dtype=bool)
            empty = np.zeros((len(users), found.values.shape[1]), dtype=np.float32)
            profiles = Profiles.of(empty, found.values, nobody, found.known)
            self.profiles = with_users_from_items(profiles, self.train)
        self.digest = digest.hexdigest()[:12]


def _column(source: Source, name: str) -> columns.Column:
    if name not in source.table.column_names:
        importer = f"`raysys data import … --map {name}=COLUMN`, and give the folder that it writes"
        raise source.lacks(name, importer)
    return source.column(name)


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
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(seeds):
        seed = 2023 + turn
        bench = Bench(data, seed, patience)
        for name in names:
            file = (
                kept / data.name / f"{name}-{seed}-{patience}-{data.digest}.json" if kept else None
            )
            if file and file.is_file():
                run = read_json(file)
            else:
                run = _run(bench, data, name)
                if file:
                    write_json(file, run)
            print(f"{name} {seed}: {run}", file=sys.stderr, flush=True)
            runs[name].append(run)
        yield {name: _summary(found) for name, found in runs.items()}


def _run(bench: Bench, data: Data, name: str) -> dict[str, Any]:
    start = time.perf_counter()
    scorer, chosen = bench.fitted(name)
    metrics = all_rank(scorer, data.train, data.test, [K]).metrics
    return {"metrics": metrics, "chosen": chosen, "seconds": round(time.perf_counter() - start)}


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    chosen = "; ".join(dict.fromkeys(run["chosen"] for run in runs))
    figures: dict[str, Any] = {"seeds": len(runs), "chosen": chosen}
    for key in (RECALL, NDCG):
        values = np.array([run["metrics"][key] for run in runs])
        figures[key] = round(float(values.mean()), 4)
        if len(values) > 1:
            figures[f"{key}_sd"] = round(float(values.std(ddof=1)), 4)
    return figures


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument(
        "--models", default=",".join(DEFAULT), help="names, see benchmarks/bench_models.py"
    )
    parser.add_argument("--vectors", type=Path, help="parquet of item_id and vector")
    parser.add_argument("--seeds", type=positive, default=1, help="seeds 2023, 2024, …")
    parser.add_argument("--patience", type=positive, default=5, help="RLMRec's is 5")
    parser.add_argument("--kept", type=Path, help="folder of finished runs, which are not repeated")
    parser.add_argument("--save", action="store_true", help=f"add the figures to {PAGE}")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.models.split(",")]
    command = f"python -m benchmarks.reproduce {' '.join(sys.argv[1:])}"
    figures: dict[str, dict[str, Any]] = {}
    try:
        require_known(names, arguments.vectors is not None)
        data = Data(find_dataset(arguments.dataset), arguments.vectors)
        print(f"train, valid and test: {data.split}", file=sys.stderr)
        for figures in measure(data, names, arguments.seeds, arguments.patience, arguments.kept):
            if arguments.save:
                record(data.name, command, figures)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    result = {"dataset": data.name, "split": data.split, "figures": figures}
    print(json.dumps({"benchmark": "reproduce", **result}))


if __name__ == "__main__":
    main()
