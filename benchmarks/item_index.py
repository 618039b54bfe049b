"""Milliseconds of a list out of an index beside the exact search, on synthetic clustered items."""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from raysys.ranking.index import ItemIndex
from raysys.ranking.retrieve import best_of

WIDTH, CENTRES, QUERIES, FOUND, RECALL = 32, 500, 300, 100, 0.98


def clustered(rows: int, rng: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    """(rows, WIDTH) float32 vectors around the centres."""
    spread = 0.7 * rng.normal(size=(rows, WIDTH))
    return (centres[rng.integers(CENTRES, size=rows)] + spread).astype(np.float32)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, WIDTH))
    items, users = (clustered(rows, rng, centres) for rows in (arguments.items, QUERIES))
    start = time.perf_counter()
    index = ItemIndex(items, users, RECALL)
    built = time.perf_counter() - start
    start = time.perf_counter()
    for user in users:
        _ = items[index.nearest(user, FOUND)] @ user
    quick = (time.perf_counter() - start) / QUERIES
    start = time.perf_counter()
    for user in users[:30]:
        best_of(items @ user, 10)
    exact = (time.perf_counter() - start) / 30
    figures = {
        "items": arguments.items,
        "build_seconds": round(built, 1),
        "recall": round(index.recall, 3),
        "index_ms": round(1000 * quick, 2),
        "exact_ms": round(1000 * exact, 2),
    }
    print(json.dumps({"benchmark": "item_index", "figures": figures}))


if __name__ == "__main__":
    main()
