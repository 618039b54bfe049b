"""What every graph model is: two embedding tables, losses on a batch, dot-product scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch.nn import init

from raysys.graph.bipartite import BipartiteGraph
from raysys.models.losses import bpr

#: Scores of a block of users against all items: (b,) user rows -> (b, I).
ScoreBlock = Callable[[np.ndarray], np.ndarray]
#: What users said in train beside their likes: `schema.DISLIKED` or `NEITHER` -> (U, I) pairs.
Others = Mapping[int, csr_matrix]


@dataclass(frozen=True)
class Batch:
    """One global batch, known whole to every worker, and which part this worker computes.

    Attributes:
        users, positives, negatives: (B,) int64 rows of the global batch.
        worker: this worker's number, from 0.
        workers: how many share the batch.
        step: place of the batch in its epoch, from 0.
    """

    users: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor
    worker: int = 0
    workers: int = 1
    step: int = 0

    def __len__(self) -> int:
        return len(self.users)

    def share(self, rows: torch.Tensor) -> torch.Tensor:
        """This worker's part of `rows` (first dimension); the parts of all workers make it up."""
        return rows.tensor_split(self.workers)[self.worker]


@dataclass(frozen=True)
class Encoded:
    """What a model computes once in a step, before its losses.

    Attributes:
        start: (N, d) layer 0 as it was used; a wrapper may have replaced rows.
        users: (U, d) final embeddings.
        items: (I, d) final embeddings.
        inner: whatever else the same backbone's losses need.
        masked: (n,) replaced rows of `start` that a wrapper's loss is about, in its own numbering.
    """

    start: torch.Tensor
    users: torch.Tensor
    items: torch.Tensor
    inner: Any = None
    masked: torch.Tensor | None = None


class Recommender(torch.nn.Module, ABC):
    """Base of every backbone and of the wrappers around one.

    The losses that a worker returns are its *share*: their sum over the workers of a batch
    is the loss of the whole batch, and so is the sum of their gradients.

    Args:
        graph: train edges, on the device that the model will compute on.
        reg: weight of Σ‖W‖² over all parameters.
    """

    #: Whether the constructor also takes profile vectors and `Others`.
    reads_content: ClassVar[bool] = False

    def __init__(self, graph: BipartiteGraph, reg: float) -> None:
        super().__init__()
        self.graph = graph
        self.reg = reg

    @property
    @abstractmethod
    def width(self) -> int:
        """d, the width of the final embeddings."""

    @abstractmethod
    def initial_embeddings(self) -> torch.Tensor:
        """(N, d) layer 0, users first."""

    @abstractmethod
    def encode(
        self, start: torch.Tensor, generator: torch.Generator | None, step: int = 0
    ) -> Encoded:
        """Final embeddings from layer 0.

        Args:
            start: (N, d) `initial_embeddings()`, or the same with some rows replaced.
            generator: source of dropout and noise in training; None: neither.
            step: place of the batch in its epoch, for what is drawn once for several steps.
        """

    @abstractmethod
    def batch_losses(
        self, encoded: Encoded, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """This worker's share of each named loss, weights included, without regularisation.

        Args:
            encoded: this step's result of `encode`.
            batch: the global batch.
            generator: for models that draw further views.
        """

    @property
    def uses_negatives(self) -> bool:
        """Whether the batch's negatives take part in the losses."""
        return True

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """This worker's share of each named loss; their sum is what is minimised."""
        encoded = self.encode(self.initial_embeddings(), generator, batch.step)
        named = self.batch_losses(encoded, batch, generator)
        # A product with itself makes no array of squares.
        squares = sum(torch.dot(flat, flat) for flat in map(torch.flatten, self.parameters()))
        named["reg"] = torch.as_tensor(squares) * (self.reg / batch.workers)
        return named

    @torch.no_grad()
    def final_embeddings(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings to score with, no dropout: users (U, d), items (I, d)."""
        encoded = self.encode(self.initial_embeddings(), None)
        return encoded.users, encoded.items


class NodeRecommender(Recommender):
    """A backbone whose layer 0 is one trainable table and whose main loss is BPR.

    Args:
        graph: train edges.
        reg: see `Recommender`.
        width: columns of the table.
        generator: CPU random state for its start (Xavier uniform, users and items each as
            one (rows, width) matrix).
    """

    def __init__(
        self, graph: BipartiteGraph, reg: float, width: int, generator: torch.Generator
    ) -> None:
        super().__init__(graph, reg)
        tables = [
            init.xavier_uniform_(torch.empty(rows, width), generator=generator)
            for rows in (graph.users, graph.items)
        ]
        # One table saves joining the two, and splitting their gradient, in every step.
        self.nodes = torch.nn.Parameter(torch.cat(tables))

    @property
    def width(self) -> int:
        """Columns of the table; backbones that join layers have more."""
        return self.nodes.shape[1]

    def initial_embeddings(self) -> torch.Tensor:
        """(N, width) trainable layer 0."""
        return self.nodes

    def sides(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, d) -> users (U, d) and items (I, d)."""
        users, items = torch.split(nodes, [self.graph.users, self.graph.items])
        return users, items

    def encoded(self, start: torch.Tensor, nodes: torch.Tensor, inner: Any = None) -> Encoded:
        """The result of `encode`, from final embeddings (N, d) of all nodes."""
        return Encoded(start, *self.sides(nodes), inner)

    def batch_losses(
        self, encoded: Encoded, batch: Batch, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """BPR, averaged over the global batch."""
        rows = bpr(
            encoded.users.index_select(0, batch.share(batch.users)),
            encoded.items.index_select(0, batch.share(batch.positives)),
            encoded.items.index_select(0, batch.share(batch.negatives)),
        )
        return {"bpr": rows.sum() / len(batch)}


def dropout(x: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
    """Entries set to 0 at `rate` and the others scaled up, drawn from `generator` alone."""
    if rate == 0:
        return x
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= rate
    return x * kept / (1 - rate)
