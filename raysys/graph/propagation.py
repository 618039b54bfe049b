"""Message passing over the fixed graph, with a backward pass of the same cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from raysys.graph.bipartite import BipartiteGraph, SparseMatrix, SparsePattern


class Adjacency(NamedTuple):
    """A sparse (N, N) matrix and its transpose; the same one twice where symmetric."""

    forward: SparseMatrix
    transposed: SparseMatrix


def full_adjacency(graph: BipartiteGraph) -> Adjacency:
    """All edges; Â is its own transpose."""
    matrix = SparseMatrix(graph, graph.values)
    return Adjacency(matrix, matrix)


def drop_edges(graph: BipartiteGraph, keep_rate: float, generator: torch.Generator) -> Adjacency:
    """Keep each directed edge with probability `keep_rate`, without rescaling the rest.

    Source: RLMRec's released `EdgeDrop`. The two directions of an edge drop independently,
    so the result is not symmetric. Dropped entries stay stored as 0: a mask over fixed
    structure costs a fraction of building a smaller matrix.

    Args:
        graph: the full graph.
        keep_rate: 0 < keep_rate ≤ 1.
        generator: random state on the device of the graph.
    """
    if keep_rate >= 1.0:
        return full_adjacency(graph)
    return weighted(graph, drop_values(graph.values, keep_rate, generator))


def without_pairs(graph: BipartiteGraph, users: torch.Tensor, items: torch.Tensor) -> Adjacency:
    """The matrix of the graph that has these pairs not: degrees are counted without them.

    What a model is asked to predict must not be an edge that it reads. The same values as
    `bipartite_graph` of the smaller data, over the pattern of the larger.

    Args:
        users, items: (n,) int64 rows; repeats, and pairs that are no edge, are allowed.
    """
    if not len(graph.columns):
        return full_adjacency(graph)
    wanted = torch.unique(users * graph.nodes + graph.users + items)
    places = torch.searchsorted(graph.keys, wanted).clamp(max=len(graph.keys) - 1)
    places = places[graph.keys[places] == wanted]
    kept = torch.ones_like(graph.values)
    kept[places] = 0
    kept[graph.reverse[places]] = 0
    degrees = graph.degrees.float()
    hidden = torch.cat([graph.rows[places], graph.columns[places].long()])
    degrees -= torch.bincount(hidden, minlength=graph.nodes)
    scale = degrees.clamp(min=1).rsqrt()
    values = kept.mul_(scale[graph.rows]).mul_(scale[graph.columns])
    matrix = SparseMatrix(graph, values)
    return Adjacency(matrix, matrix)


def drop_values(values: torch.Tensor, keep_rate: float, generator: torch.Generator) -> torch.Tensor:
    """(E,) values, each kept with probability `keep_rate` and else 0."""
    drawn = torch.rand(values.shape, generator=generator, device=values.device)
    # In place: at 10^7 edges each array more is 40 MB and a pass over memory.
    return drawn.lt_(keep_rate).mul_(values)


def weighted(pattern: SparsePattern, values: torch.Tensor) -> Adjacency:
    """A matrix with `values` (E,) on the pattern, no gradient for them, and its transpose."""
    turned = values.index_select(0, pattern.reverse)
    return Adjacency(SparseMatrix(pattern, values), SparseMatrix(pattern, turned))


def propagate(adjacency: Adjacency, x: torch.Tensor, layers: int) -> list[torch.Tensor]:
    """All layer outputs [x, Âx, Â²x, …].

    Args:
        adjacency: (N, N).
        x: (N, d).
        layers: L.

    Returns:
        L+1 tensors (N, d); layer 0 is `x` itself.
    """
    outputs = [x]
    with _as_it_is(x):
        for _ in range(layers):
            outputs.append(_Product.apply(outputs[-1], *adjacency))  # type: ignore[no-untyped-call]
    return outputs


def propagate_sum(adjacency: Adjacency, x: torch.Tensor, layers: int) -> torch.Tensor:
    """The sum of all layer outputs, x + Âx + … + Â^L x, (N, d).

    The same as `sum(propagate(…))`, evaluated as x + Â(x + Â(x + …)): each product adds `x`
    on its way, so no layer is stored and no separate addition is done.
    """
    with _as_it_is(x):
        result: torch.Tensor = _LayerSum.apply(  # type: ignore[no-untyped-call]
            x, *adjacency, layers
        )
    return result


def _as_it_is(x: torch.Tensor) -> torch.autocast:
    """No mixed precision: there are no sparse products in bfloat16 on a CPU, and none is faster."""
    return torch.autocast(x.device.type, enabled=False)


class _Product(torch.autograd.Function):
    """Â @ x. Autograd's own rule would build the transpose in each step."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, forward: SparseMatrix, transposed: SparseMatrix
    ) -> torch.Tensor:
        ctx.transposed = transposed
        return forward @ x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.transposed @ grads[0].contiguous(), None, None


class _LayerSum(torch.autograd.Function):
    """Horner's scheme; its transpose is the same scheme with the transposed matrix."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, forward: SparseMatrix, transposed: SparseMatrix, layers: int
    ) -> torch.Tensor:
        ctx.transposed, ctx.layers = transposed, layers
        return _horner(forward, x, layers)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _horner(ctx.transposed, grads[0].contiguous(), ctx.layers), None, None, None


def _horner(matrix: SparseMatrix, x: torch.Tensor, layers: int) -> torch.Tensor:
    if layers == 0:
        return x.clone()
    total = matrix.plus(x, x, out=torch.empty_like(x))
    spare = torch.empty_like(x) if layers > 1 else x
    for _ in range(layers - 1):
        # Two arrays in turn: fresh ones would cost page faults in every step.
        spare, total = total, matrix.plus(x, total, out=spare)
    return total
