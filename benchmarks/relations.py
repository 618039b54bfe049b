"""How fast R is looked up, how that grows with the graph, and what it costs a training step.

A batch is 32 prompts of 254 ids, 2 users and 252 items each, drawn at random: none of them a
history, which would need no look-up. Graphs are random with 20 edges a user and 50 an item, items
of unequal popularity. The reference goes through the pairs of a prompt in Python with sets of
neighbours; it is run on one prompt and counted for 32. Training: steps of both kinds of prompts of
a data set, by `configs/graph_lm_cpu.toml`, with R and with `kind = "none"`, in turn; the first are
a warm-up.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from benchmarks.elmrec import seconds
from benchmarks.llm_throughput import dataset_of
from raysys.cluster import cores_per
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.graph.relations import Relations, RelationSettings
from raysys.settings import load_settings
from raysys.stages.context import RunSettings
from raysys.store import write_table
from raysys.text.crowd_prompts import as_tokens, requests
from raysys.text.graph_prompts import load_graph_templates
from raysys.training.graph_lm import GraphLMTraining
from raysys.training.graph_lm_model import (
    PROMPTS_FILE,
    GraphLMJob,
    build,
    lessons_of,
    words_of,
    write_inputs,
)
from raysys.training.graph_lm_settings import CROWD, PREDICT, GraphLMSettings
from raysys.training.ray_train import Placement

CONFIG = Path("configs/graph_lm_cpu.toml")
PROMPTS, IDS, USERS = 32, 254, 2
SIZES = (100_000, 1_000_000, 10_000_000)


def random_graph(edges: int) -> csr_matrix:
    """(U, I) with about so many edges."""
    rng = np.random.default_rng(0)
    users, items = edges // 20, edges // 50
    popularity = 1 / np.arange(1, items + 1) ** 0.7
    chosen = rng.choice(items, size=edges, p=popularity / popularity.sum())
    pairs = (rng.integers(users, size=edges), chosen)
    return csr_matrix((np.ones(edges, np.float32), pairs), (users, items))


def random_prompts(graph: csr_matrix) -> np.ndarray:
    """(32, 254) nodes."""
    rng = np.random.default_rng(1)
    users, items = graph.shape
    rows = [
        np.r_[rng.permutation(users)[:USERS], users + rng.permutation(items)[: IDS - USERS]]
        for _ in range(PROMPTS)
    ]
    return np.stack(rows)


def pair_by_pair(graph: csr_matrix, nodes: np.ndarray) -> np.ndarray:
    """R of one prompt, (K, K), pair after pair."""
    by_item = graph.T.tocsr()
    users = graph.shape[0]

    def neighbours(node: int) -> set[int]:
        if node < users:
            row = graph.indices[graph.indptr[node] : graph.indptr[node + 1]]
            return set((row + users).tolist())
        place = node - users
        return set(by_item.indices[by_item.indptr[place] : by_item.indptr[place + 1]].tolist())

    near = {int(node): neighbours(int(node)) for node in nodes}
    scale = {1: 1.0, 2: 4 / 11, 3: 3 / 11}
    found = np.zeros((len(nodes), len(nodes)), np.float32)
    for i, a in enumerate(nodes.tolist()):
        for j, b in enumerate(nodes.tolist()[:i]):
            if b in near[a]:
                distance = 1
            elif near[a] & near[b]:
                distance = 2
            elif any(near[b] & neighbours(between) for between in near[a]):
                distance = 3
            else:
                continue
            found[i, j] = found[j, i] = scale[distance]
    return found


def lookups() -> dict[str, float]:
    """Milliseconds a batch by size of the graph, and how many times a loop over pairs takes."""
    times: dict[int, float] = {}
    figures: dict[str, float] = {}
    for edges in SIZES:
        graph = random_graph(edges)
        relations, nodes = Relations(graph, RelationSettings()), random_prompts(graph)
        (times[edges],) = seconds(lambda r=relations, n=nodes: r.of(n), repeats=7)  # type: ignore[misc]
        print(f"{edges} edges: {1000 * times[edges]:.1f} ms", file=sys.stderr, flush=True)
        figures[f"batch_ms_{edges}"] = round(1000 * times[edges], 1)
        tracemalloc.start()
        relations.of(nodes)
        figures[f"peak_mb_{edges}"] = round(tracemalloc.get_traced_memory()[1] / 2**20, 1)
        tracemalloc.stop()
        if edges == SIZES[1]:
            start = time.perf_counter()
            expected = pair_by_pair(graph, nodes[0])
            loop = PROMPTS * (time.perf_counter() - start)
            np.testing.assert_allclose(relations.of(nodes[:1])[0], expected, atol=1e-6)
            figures["batch_ms"] = round(1000 * times[edges], 1)
            figures["speedup_over_pairs"] = round(loop / times[edges], 1)
    grown_by = math.log(times[SIZES[2]] / times[SIZES[0]])
    figures["growth_exponent"] = round(grown_by / math.log(SIZES[2] / SIZES[0]), 3)
    return figures


def settings_with(kind: str) -> GraphLMSettings:
    """Those of the config, with another R."""
    overrides = [f'graph_lm.relations.kind="{kind}"', "graph_lm.valid_users=1"]
    return load_settings(RunSettings, CONFIG, overrides).graph_lm


def step_seconds(folder: Path, dataset: Dataset, steps: int) -> dict[str, float]:
    """How much longer a training step takes with R, by kind of step."""
    settings = settings_with("linear")
    write_inputs(settings.model_copy(update={"steps": (PREDICT,)}), dataset, folder)
    source = str(folder / "language_model")
    tokens = as_tokens(
        settings.crowd_prompts,
        (source, None),
        words_of(source, None),
        len(dataset.user_ids),
        load_graph_templates(None),
        settings.max_tokens,
        requests(settings.crowd_prompts, dataset),
    )
    write_table(folder / PROMPTS_FILE, tokens.drop(["number"]))
    found = {}
    for step in (CROWD, PREDICT):
        ways = []
        for kind in ("linear", "none"):
            job = GraphLMJob(folder / "data", folder, settings_with(kind), step, None, Placement())
            built = build(job, torch.device("cpu"))
            ways.append(GraphLMTraining(built, lessons_of(job, built), job.settings, step))
        times: list[list[float]] = [[], []]
        for turn in range(steps + 2):
            for place, training in enumerate(ways):
                start = time.perf_counter()
                training.train_step()
                if turn > 1:
                    times[place].append(time.perf_counter() - start)
        ratios = [one / other for one, other in zip(*times, strict=True)]
        found[step] = statistics.median(ratios) - 1
        print(f"{step}: {100 * found[step]:+.1f} % with R", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="amazon14-beauty")
    parser.add_argument("--users", type=int, default=5000, help="of the data set, the first ones")
    parser.add_argument("--steps", type=int, default=30, help="of training, of each kind")
    arguments = parser.parse_args()
    torch.set_num_threads(cores_per(1))
    try:
        figures: dict[str, Any] = lookups()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            dataset = dataset_of(arguments.dataset, arguments.users, folder)
            overheads = step_seconds(folder, dataset, arguments.steps)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    for step, overhead in overheads.items():
        figures[f"train_overhead_{step}"] = round(overhead, 3)
    figures["train_overhead"] = round(max(overheads.values()), 3)
    print(json.dumps({"benchmark": "relations", "figures": figures}))


if __name__ == "__main__":
    main()
