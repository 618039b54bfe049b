"""ELMRec's speed, and what its leaky graph is worth.

Decoding: users encoded once and their keys and values shared by the beams, against the input
expanded for each beam before it is encoded, with the same search after it; both tasks, in turn.
Propagation in evaluation: kept, against done anew for each batch of 64 users, at the width of
T5-small. Training: steps of the direct task with and without the graph, by
`configs/elmrec_cpu.toml`. Leak: candidates ranked by the graph's embeddings alone, user times item,
before any training: HR@10 with the released code's graph less that with the train graph;
`--leak-steps` also trains a model with each. Loading is not counted, and the first of each is a
warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.llm_throughput import dataset_of
from raysys.cluster import cores_per
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.evaluation.candidates import hit_metrics
from raysys.graph.bipartite import bipartite_graph
from raysys.models.constrained import Trie, constrained_search
from raysys.models.elmrec import DIRECT, SEQUENTIAL, GraphWords, WordSettings
from raysys.schema import TEST, TRAIN
from raysys.settings import load_settings
from raysys.stages.context import RunSettings
from raysys.training.elmrec import (
    NUMBERS_FILE,
    Built,
    ELMRecJob,
    ELMRecTraining,
    build,
    write_inputs,
)
from raysys.training.elmrec_answers import Asked
from raysys.training.elmrec_settings import ELMRecSettings
from raysys.training.ray_train import Placement

CONFIG = Path("configs/elmrec_cpu.toml")
BEAMS, T5_SMALL_WIDTH, EVALUATED = 20, 512, 64
#: Of the small T5: twice the config's, which is as small as two cores make one wish.
SIZE = {"width": 128, "layers": 2, "heads": 4, "inner": 256}


def prepared(
    folder: Path, dataset: Dataset, users: int, **changes: Any
) -> tuple[Built, ELMRecSettings]:
    """A model at its start."""
    base = load_settings(RunSettings, CONFIG, [f"elmrec.test_users={users}"]).elmrec
    small = base.small.model_dump() | SIZE
    settings = ELMRecSettings.model_validate(base.model_dump() | {"small": small} | changes)
    if not (folder / NUMBERS_FILE).is_file():
        write_inputs(settings, dataset, folder)
    job = ELMRecJob(folder / "data", folder, settings, Placement())
    return build(job, torch.device("cpu")), settings


def seconds(*ways: Callable[[], Any], repeats: int = 3) -> list[float]:
    """Median seconds of each way; they take turns, and the first round warms up."""
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for place, way in enumerate(ways):
            start = time.perf_counter()
            way()
            if turn:
                times[place].append(time.perf_counter() - start)
    return [statistics.median(one) for one in times]


@torch.no_grad()
def decoding(built: Built) -> dict[str, float]:
    """Seconds of both ways for 16 users of each task."""
    model, totals = built.model.eval(), [0.0, 0.0]
    for task in (DIRECT, SEQUENTIAL):
        rows = built.tasks.asked(task, TEST)[:16]
        batch = built.tasks.written(task, rows)
        items, roots = built.prompts.items, None
        if task == DIRECT:
            items = items[np.concatenate([row.items for row in rows])]
            roots = np.repeat(np.arange(len(rows)), [len(row.items) for row in rows])
        trie = Trie.of(items, roots)
        starts = torch.arange(len(rows)) if task == DIRECT else torch.zeros(len(rows)).long()

        def once(batch: Any = batch, trie: Trie = trie, starts: Any = starts) -> torch.Tensor:
            states, mask = model.encoded(batch)
            return constrained_search(model.language_model, states, mask, trie, starts, BEAMS)[1]

        def expanded(batch: Any = batch, trie: Trie = trie, starts: Any = starts) -> torch.Tensor:
            embeds, mask = model.inputs(batch)
            embeds, mask = (one.repeat_interleave(BEAMS, dim=0) for one in (embeds, mask))
            encoder = model.language_model.get_encoder()
            states = encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
            found = constrained_search(
                model.language_model, states[::BEAMS], mask[::BEAMS], trie, starts, BEAMS
            )
            return found[1]

        torch.testing.assert_close(once(), expanded(), rtol=1e-3, atol=1e-3)
        ours, plain = seconds(once, expanded)
        print(f"{task}: {ours:.2f} s, {plain:.2f} s", file=sys.stderr, flush=True)
        totals = [totals[0] + ours, totals[1] + plain]
    return {
        "decode_speedup": round(totals[1] / totals[0], 2),
        "sequences_per_s": round(32 / totals[0], 2),
    }


@torch.no_grad()
def propagation(dataset: Dataset) -> float:
    """How many times faster an evaluation's whole words are with the propagation kept."""
    graph = bipartite_graph(dataset.matrix(TRAIN))
    generator = torch.Generator().manual_seed(0)
    words = GraphWords(graph, None, WordSettings(), T5_SMALL_WIDTH, generator).eval()
    batches = -(-graph.users // EVALUATED)
    nothing = (torch.empty(0), torch.empty(0))
    nodes = torch.randint(graph.nodes, (EVALUATED, 1 + 100), generator=generator)

    def anew() -> None:
        words.train().eval()
        words(nodes, nothing)

    again, kept = seconds(anew, lambda: words(nodes, nothing))
    print(f"propagation: {again:.3f} s, {kept:.4f} s", file=sys.stderr, flush=True)
    # An evaluation propagates once either way.
    return batches * again / (again + (batches - 1) * kept)


def step_seconds(built: Built, settings: ELMRecSettings, steps: int = 6) -> float:
    """Median seconds of a training step of the direct task with 99 negatives."""
    training = ELMRecTraining(built, settings)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        training.train_step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@torch.no_grad()
def untrained_hr10(built: Built) -> float:
    """HR@10 of the direct task by the dot products of the graph's embeddings as they start."""
    rows = built.tasks.asked(DIRECT, TEST)
    words = built.model.words.eval()
    users = len(built.dataset.user_ids)
    nothing = (torch.empty(0), torch.empty(0))
    hits = 0
    for row in rows:
        items = torch.from_numpy(row.items)
        own, others = words(torch.tensor([row.user]), nothing), words(users + items, nothing)
        order = (others @ own[0]).argsort(descending=True)
        hits += row.item in row.items[order[:10].numpy()]
    return hits / len(rows)


def direct_hr10(built: Built, settings: ELMRecSettings, steps: int) -> float:
    """HR@10 of the direct task after so many steps."""
    training = ELMRecTraining(built, settings)
    for _ in range(steps):
        training.train_step()
    built.model.eval()
    rows = built.tasks.asked(DIRECT, TEST)
    lists = Asked(built, settings).direct(rows)
    return float(hit_metrics(lists, [row.item for row in rows], [10])["hr@10"].mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="amazon14-beauty")
    parser.add_argument("--users", type=int, default=22363, help="of the data set, the first ones")
    parser.add_argument("--leak-steps", type=int, default=0, help="of training, for --leak-users")
    parser.add_argument("--leak-users", type=int, default=1000, help="that are measured")
    arguments = parser.parse_args()
    torch.set_num_threads(cores_per(1))
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            dataset = dataset_of(arguments.dataset, arguments.users, folder)
            start = {"tasks": (DIRECT,), "train_negatives": None}
            both = {"tasks": (DIRECT, SEQUENTIAL)}
            built, settings = prepared(folder, dataset, arguments.leak_users, **both)
            figures: dict[str, Any] = decoding(built)
            figures["eval_propagation_speedup"] = round(propagation(dataset), 1)
            times = []
            for kind in ("graph", "none"):
                words = settings.words.model_dump()
                words["direct"]["whole_words"] = kind
                changed = prepared(folder, dataset, arguments.leak_users, **start, words=words)
                times.append(step_seconds(*changed))
            figures["graph_train_overhead"] = round(times[0] / times[1], 3)
            ways = {"leaky": {"graph": "explanation_split", "hide": "none"}, "honest": {}}
            for label, more in ways.items():
                changed = prepared(folder, dataset, arguments.leak_users, tasks=(DIRECT,), **more)
                figures[f"{label}_hr10"] = round(untrained_hr10(changed[0]), 4)
                if arguments.leak_steps:
                    rate = direct_hr10(*changed, arguments.leak_steps)
                    figures[f"trained_{label}_hr10"] = round(rate, 4)
            figures["leak_gain_hr10"] = round(figures["leaky_hr10"] - figures["honest_hr10"], 4)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps({"benchmark": "elmrec", "figures": figures}))


if __name__ == "__main__":
    main()
