"""How time and memory grow with the number of edges: graph build, LightGCN epoch, top-100 lists.

Synthetic graphs, seeded: 10 edges a user and 50 an item at every size, so users, items and edges
grow together; popularity of items falls as rank^-2/3, activity of users as rank^-1/3; no pair
twice; rows in random order, so that popular items do not lie side by side in memory.

A growth exponent is the slope of log seconds over log edges, by least squares over the sizes:

1. `build`: `bipartite_graph` from a CSR matrix.
2. `epoch`: one LightGCN epoch (width 32, 3 layers) of STEPS steps at every size. The batch grows
   with the graph, because each step propagates over the whole graph: with a fixed batch size
   an epoch has more steps on a larger graph too, and its time is quadratic in the edges.
3. `top_100`: exact lists *of one user*, whose scores are as many as there are items. All users
   of the smaller graphs are ranked, of the larger ones a sample, in blocks of equal memory.
   Lists for *all* users are quadratic: `all_users_exponent` is 1 more than that of one user,
   since users grow as edges do. `all_users_seconds` is reckoned from the sample.

`growth_exponent` is the largest of these three. Seconds are of the fastest run: as many as fit
into RUN_SECONDS, at least RUNS for build and lists and one for the epoch. Bytes are the peak
of resident memory above where the step began, so they hold nothing that was there before; on
small graphs memory that the allocator kept from before hides them. Linux only.

Beside other work the figures mislead: threads of a product wait for one another, which costs
small graphs most, so that growth looks smaller than it is. `load_at_start` shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from raysys.graph.bipartite import bipartite_graph
from raysys.models.registry import ModelSettings, build_model
from raysys.models.saved import Embeddings
from raysys.ranking.retrieve import retrieve
from raysys.training.loop import GraphTraining, TrainSettings

EDGES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 20_000_000)
EDGES_PER_USER, EDGES_PER_ITEM = 10, 50
#: u^p of a uniform u has density ∝ x^(1/p − 1): rank^-1/3 for users, rank^-2/3 for items.
USER_POWER, ITEM_POWER = 1.5, 3.0
WIDTH, LAYERS, STEPS, K, SEED = 32, 3, 30, 100, 2023
#: (user, item) scores of the sampled users, and of one block of them.
SAMPLE_SCORES, BLOCK_SCORES = 4e8, 2**25
RUN_SECONDS, RUNS = 2.0, 3


@dataclass
class Step:
    """One measured step: seconds of its fastest run, bytes at its peak above its start."""

    seconds: float
    bytes: int


class Meter:
    """Measures steps; `peak` is the highest resident memory of the process so far, in bytes."""

    def __init__(self) -> None:
        self.peak = 0

    def run(self, work: Callable[[], object], runs: int) -> Step:
        """Repeat `work` until RUN_SECONDS are used up, at least `runs` times."""
        self.note_peak()
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
        before = memory("VmRSS")
        spent: list[float] = []
        while len(spent) < runs or sum(spent) < RUN_SECONDS:
            start = time.perf_counter()
            work()
            spent.append(time.perf_counter() - start)
        step = Step(min(spent), memory("VmHWM") - before)
        self.note_peak()
        return step

    def note_peak(self) -> None:
        """Take in the kernel's peak, also of what ran outside any step."""
        self.peak = max(self.peak, memory("VmHWM"))


def memory(line: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS is resident memory, VmHWM its peak."""
    found = re.search(rf"{line}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def power_law_graph(edges: int, seed: int) -> csr_matrix:
    """(U, I) distinct pairs, `edges` of them; see the module."""
    users, items = edges // EDGES_PER_USER, edges // EDGES_PER_ITEM
    rng = np.random.default_rng(seed)
    keys = np.empty(0, dtype=np.int64)
    while len(keys) < edges:
        # A little more than are missing: popular pairs come up again and count once.
        drawn = rng.random((2, int(1.1 * (edges - len(keys))) + 1000))
        rows = (users * drawn[0] ** USER_POWER).astype(np.int64)
        columns = (items * drawn[1] ** ITEM_POWER).astype(np.int64)
        keys = np.unique(np.concatenate([keys, rows * items + columns]))
    keys = rng.permutation(keys)[:edges]
    rows, columns = rng.permutation(users)[keys // items], rng.permutation(items)[keys % items]
    return csr_matrix((np.ones(edges, np.float32), (rows, columns)), (users, items))


def measure(edges: int, meter: Meter) -> dict[str, Any]:
    """The three steps on a graph of one size."""
    train = power_law_graph(edges, SEED)
    users, items = train.shape
    build = meter.run(lambda: bipartite_graph(train), RUNS)

    chosen = ModelSettings(settings={"width": WIDTH, "layers": LAYERS})
    model = build_model(chosen, bipartite_graph(train), None, SEED)
    settings = TrainSettings(batch_size=-(-edges // STEPS), seed=SEED)
    training = GraphTraining(model, train, None, settings)
    epoch = meter.run(training.train_epoch, 1)

    scores = Embeddings.of(model).score_block
    sample = min(users, int(SAMPLE_SCORES / items))
    chosen_users = np.random.default_rng(SEED).choice(users, sample, replace=False)
    block = max(1, BLOCK_SCORES // items)
    lists = meter.run(lambda: retrieve(scores, chosen_users, train, K, block), RUNS)
    per_user = lists.seconds / sample
    return {
        "edges": edges,
        "users": users,
        "items": items,
        "build": per_edge(build, edges),
        "epoch": per_edge(epoch, edges),
        "top_100": {
            "users": sample,
            "seconds_per_user": per_user,
            "seconds_per_million_scores": per_user / items * 1e6,
            "peak_bytes": lists.bytes,
            "all_users_seconds": per_user * users,
        },
    }


def per_edge(step: Step, edges: int) -> dict[str, float]:
    """A step's figures by the size of its graph."""
    return {
        "seconds": step.seconds,
        "seconds_per_million_edges": step.seconds / edges * 1e6,
        "bytes_per_edge": step.bytes / edges,
    }


def exponent(edges: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log edges."""
    return float(np.polyfit(np.log(edges), np.log(seconds), deg=1)[0])


def sizes(text: str) -> list[int]:
    """Comma-separated numbers of edges, ascending."""
    found = sorted({int(word) for word in text.split(",")})
    if len(found) < 2 or found[0] < 1000:
        raise argparse.ArgumentTypeError("give two or more sizes, of 1000 edges at least")
    return found


def rounded(value: Any) -> Any:
    """Floats to four significant digits, in nested dictionaries too."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    """Measure every size, fit, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edges", type=sizes, default=list(EDGES), help="comma-separated")
    edges: list[int] = parser.parse_args().edges
    load = os.getloadavg()[0]
    meter = Meter()
    rows = []
    for size in edges:
        start = time.perf_counter()
        rows.append(rounded(measure(size, meter)))
        took = time.perf_counter() - start
        print(f"{rows[-1]} ({took:.0f} s, peak {meter.peak / 1e9:.2f} GB)", file=sys.stderr)
    exponents = {
        "build": exponent(edges, [row["build"]["seconds"] for row in rows]),
        "epoch": exponent(edges, [row["epoch"]["seconds"] for row in rows]),
        "top_100": exponent(edges, [row["top_100"]["seconds_per_user"] for row in rows]),
    }
    result = {
        "benchmark": "gnn_scale",
        "growth_exponent": max(exponents.values()),
        "peak_gb": meter.peak / 1e9,
        "edges": edges[-1],
        "exponents": exponents,
        "all_users_exponent": exponents["top_100"] + 1,
        "steps_per_epoch": STEPS,
        "threads": torch.get_num_threads(),
        "load_at_start": load,
    }
    print(json.dumps({**rounded(result), "sizes": rows}))


if __name__ == "__main__":
    main()
