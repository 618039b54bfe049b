"""One epoch of LightGCN on rlmrec-amazon-book, alone and aligned, beside a plain reference.

The reference does what the released code does: COO products, edge dropout by building a new
matrix, negatives drawn in a Python loop, the profile MLP over all nodes in each step, and
InfoNCE with materialised logits. Both run in this process, in turn. The floor is the time of
the CSR products of one epoch alone. Profile vectors are random, 1536 wide.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from benchmarks.gnn_scale import memory
from benchmarks.reproduce import Data, find_dataset
from raysys.errors import UserError
from raysys.evaluation.protocols import all_rank
from raysys.graph.bipartite import bipartite_graph
from raysys.models.contrastive import ContrastiveAlignment
from raysys.models.profiles import Profiles
from raysys.models.registry import ModelSettings, build_model
from raysys.models.saved import Embeddings
from raysys.training.loop import GraphTraining, TrainSettings

WIDTH, LAYERS, KEEP, REG, BATCH = 32, 3, 0.8, 1e-7, 4096
TEXT_WIDTH, KD_WEIGHT, TEMPERATURE = 1536, 0.01, 0.2
SEED = 2023
#: Steps of the reference with alignment that are timed; an epoch is reckoned from them.
REFERENCE_STEPS = 3


def random_profiles(users: int, items: int, width: int = TEXT_WIDTH) -> Profiles:
    """Unit vectors for all nodes."""
    rng = np.random.default_rng(SEED)
    matrix = rng.standard_normal((users + items, width), dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return Profiles.of(matrix[:users], matrix[users:])


def our_training(data: Data, aligned: bool, pca: int | None = None) -> GraphTraining:
    """The package's training, ready for its first epoch."""
    alignment = ContrastiveAlignment(kd_weight=KD_WEIGHT, temperature=TEMPERATURE, pca=pca)
    settings = ModelSettings(
        settings={"width": WIDTH, "layers": LAYERS, "keep_rate": KEEP, "reg": REG},
        alignment=alignment if aligned else None,
    )
    profiles = random_profiles(*data.train.shape) if aligned else None
    model = build_model(settings, bipartite_graph(data.train), profiles, SEED)
    return GraphTraining(model, data.train, None, TrainSettings(batch_size=BATCH, seed=SEED))


class Reference:
    """The straightforward way, one epoch or some of its steps at a time."""

    def __init__(self, data: Data, aligned: bool) -> None:
        coo = data.train.tocoo()
        self.users, self.items = data.train.shape
        self.pairs = list(zip(coo.row.tolist(), coo.col.tolist(), strict=True))
        self.seen = set(self.pairs)
        graph = bipartite_graph(data.train)
        self.adjacency = graph.matrix().to_sparse_coo().coalesce()
        generator = torch.Generator().manual_seed(SEED)
        self.nodes = torch.nn.Parameter(
            torch.nn.init.xavier_uniform_(torch.empty(graph.nodes, WIDTH), generator=generator)
        )
        parameters = [self.nodes]
        self.mlp = None
        if aligned:
            profiles = random_profiles(self.users, self.items)
            self.texts = torch.from_numpy(np.concatenate([profiles.users, profiles.items]))
            hidden = (TEXT_WIDTH + WIDTH) // 2
            self.mlp = torch.nn.Sequential(
                torch.nn.Linear(TEXT_WIDTH, hidden),
                torch.nn.LeakyReLU(),
                torch.nn.Linear(hidden, WIDTH),
            )
            parameters += list(self.mlp.parameters())
        self.parameters = parameters
        self.optimizer = torch.optim.Adam(parameters, lr=1e-3)
        self.rng = np.random.default_rng(SEED)

    def draw(self) -> list[torch.Tensor]:
        """A new order and one negative for each pair, in a Python loop."""
        negatives = []
        for user, _ in self.pairs:
            while True:
                item = int(self.rng.integers(self.items))
                if (user, item) not in self.seen:
                    break
            negatives.append(item)
        rows = torch.tensor([(u, i, n) for (u, i), n in zip(self.pairs, negatives, strict=True)])
        return list(rows[torch.from_numpy(self.rng.permutation(len(rows)))].split(BATCH))

    def step(self, batch: torch.Tensor) -> None:
        """Forward, backward, Adam."""
        adjacency = self.adjacency
        keep = torch.rand(adjacency._nnz()) < KEEP
        dropped = torch.sparse_coo_tensor(
            adjacency.indices()[:, keep], adjacency.values()[keep], adjacency.shape
        )
        layers = [self.nodes]
        for _ in range(LAYERS):
            layers.append(torch.sparse.mm(dropped, layers[-1]))
        users, items = torch.stack(layers).sum(0).split([self.users, self.items])
        anchors, positives, negatives = users[batch[:, 0]], items[batch[:, 1]], items[batch[:, 2]]
        difference = (anchors * negatives).sum(1) - (anchors * positives).sum(1)
        loss = functional.softplus(difference).mean()
        loss = loss + REG * torch.stack([p.square().sum() for p in self.parameters]).sum()
        if self.mlp is not None:
            text_users, text_items = self.mlp(self.texts).split([self.users, self.items])
            high, low = text_items[batch[:, 1]], text_items[batch[:, 2]]
            total = (
                plain_info_nce(anchors, text_users[batch[:, 0]], text_users)
                + plain_info_nce(positives, high, high)
                + plain_info_nce(negatives, low, low)
            )
            loss = loss + KD_WEIGHT * total / len(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def plain_info_nce(
    queries: torch.Tensor, targets: torch.Tensor, keys: torch.Tensor
) -> torch.Tensor:
    """Σ InfoNCE with all logits in memory."""
    queries, targets, keys = (functional.normalize(x, dim=1) for x in (queries, targets, keys))
    denominators = torch.exp(queries @ keys.T / TEMPERATURE).sum(dim=1).log()
    return (denominators - (queries * targets).sum(dim=1) / TEMPERATURE).sum()


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def floor_seconds(data: Data, steps: int) -> float:
    """The CSR products that an epoch of LightGCN cannot do without: L forward, L backward."""
    matrix = bipartite_graph(data.train).matrix()
    x = torch.randn(matrix.shape[0], WIDTH)

    def products() -> None:
        for _ in range(2 * LAYERS * steps):
            matrix @ x

    products()
    return seconds(products)


def reference_epoch(reference: Reference, timed_steps: int | None) -> float:
    """Seconds of an epoch; with `timed_steps`, reckoned from so many of its steps."""
    batches: list[torch.Tensor] = []
    drawing = seconds(lambda: batches.extend(reference.draw()))
    chosen = batches[:timed_steps]
    stepping = seconds(lambda: [reference.step(batch) for batch in chosen])
    return drawing + stepping * len(batches) / len(chosen)


def compare(data: Data, aligned: bool, turns: int) -> dict[str, float]:
    """Ours and the reference in turn; medians of seconds, and of the ratio of each turn."""
    training, reference = our_training(data, aligned), Reference(data, aligned)
    steps = len(training._batches())
    training.train_epoch()
    reference_epoch(reference, 1)
    rows = []
    for _ in range(turns):
        ours = seconds(training.train_epoch)
        theirs = reference_epoch(reference, REFERENCE_STEPS if aligned else None)
        rows.append((ours, theirs, theirs / ours, ours / floor_seconds(data, steps)))
    ours, theirs, speedup, over_floor = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    return {"seconds": ours, "reference": theirs, "speedup": speedup, "over_floor": over_floor}


def evaluation_seconds(data: Data) -> float:
    """All users of the test split ranked against all items; the best of three."""
    model = our_training(data, aligned=False).model
    scorer = Embeddings.of(model).score_block
    return min(seconds(lambda: all_rank(scorer, data.train, data.test, [20])) for _ in range(3))


def peak_mb(data: Data) -> float:
    """The most memory that this process has held, after an epoch with alignment; MB = 10^6."""
    our_training(data, aligned=True).train_epoch()
    # Not getrusage: a child begins with its parent's peak there.
    return memory("VmHWM") / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="rlmrec-amazon-book")
    parser.add_argument("--turns", type=int, default=3, help="ours and the reference, in turn")
    parser.add_argument("--pca", type=int, default=256, help="also time ours with this width")
    parser.add_argument("--only-peak", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        folder = find_dataset(arguments.dataset)
        data = Data(folder)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if arguments.only_peak:
        print(peak_mb(data))
        return
    base = compare(data, aligned=False, turns=2 * arguments.turns + 1)
    print(f"base: {base}", file=sys.stderr)
    con = compare(data, aligned=True, turns=arguments.turns)
    print(f"con: {con}", file=sys.stderr)
    reduced = our_training(data, aligned=True, pca=arguments.pca)
    reduced.train_epoch()
    reduced_seconds = statistics.median(seconds(reduced.train_epoch) for _ in range(3))
    # In a process of its own: memory that the reference has used is never given back.
    command = [
        sys.executable,
        "-m",
        "benchmarks.gnn_epoch",
        "--only-peak",
        "--dataset",
        str(folder),
    ]
    peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    figures = {
        "base_speedup": base["speedup"],
        "con_speedup": con["speedup"],
        "base_over_floor": base["over_floor"],
        "eval_seconds": evaluation_seconds(data),
        "con_peak_mb": peak,
        "base_seconds": base["seconds"],
        "con_seconds": con["seconds"],
        f"con_pca_{arguments.pca}_seconds": reduced_seconds,
        f"con_pca_{arguments.pca}_speedup": con["reference"] / reduced_seconds,
    }
    rounded = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps({"benchmark": "gnn_epoch", **rounded}))


if __name__ == "__main__":
    main()
