"""One number an edge: similarities of its two ends, and sums weighted by them.

With gradients for the numbers, which a plain sparse product does not give, and never a
(edges, d) array: what is built is one number for each stored entry.
"""

from __future__ import annotations

from typing import Any

import torch

from raysys.graph.bipartite import SparseMatrix, SparsePattern


def edge_dots(pattern: SparsePattern, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a_i · b_j for each stored entry (i, j).

    Args:
        pattern: E entries over N nodes.
        a, b: (N, d).

    Returns:
        (E,) in the order of the entries.
    """
    result: torch.Tensor = _EdgeDots.apply(a, b, pattern)  # type: ignore[no-untyped-call]
    return result


def weighted_sum(pattern: SparsePattern, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Row i: Σ over its entries (i, j) of value · x_j, with gradients for both.

    Args:
        pattern: E entries over N nodes.
        values: (E,).
        x: (N, d).

    Returns:
        (N, d).
    """
    result: torch.Tensor = _WeightedSum.apply(values, x, pattern)  # type: ignore[no-untyped-call]
    return result


def weighted_mean(pattern: SparsePattern, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`weighted_sum` over the sum of the row's values, with gradients for both.

    Args:
        pattern: E entries over N nodes.
        values: (E,) at least 0.
        x: (N, d).

    Returns:
        (N, d); zero for rows whose values sum to 0, such as nodes without an edge.
    """
    # A column of ones carries the sum of the values through the same product.
    sums = weighted_sum(pattern, values, torch.cat([x, x.new_ones(len(x), 1)], dim=1))
    return sums[:, :-1] / (sums[:, -1:] + _TINY)


def attention_scores(
    pattern: SparsePattern,
    targets: torch.Tensor,
    sources: torch.Tensor,
    marks: torch.Tensor,
    mark: torch.Tensor,
    attention: torch.Tensor,
    slope: float,
) -> torch.Tensor:
    """a_h · LeakyReLU(t_ih + s_jh + m_ij w_h) for each entry (i, j) and head h.

    Source: GATv2 (Brody 2022), equation 7, before the softmax.

    Args:
        pattern: E entries over N nodes.
        targets, sources: (N, H, C) of rows and of columns.
        marks: (E,) m, a number an entry; no gradient.
        mark: (H, C) w.
        attention: (H, C) a.
        slope: of LeakyReLU below zero.

    Returns:
        (E, H) in the order of the entries.
    """
    result: torch.Tensor = _AttentionScores.apply(  # type: ignore[no-untyped-call]
        targets, sources, marks, mark, attention, slope, pattern
    )
    return result


def softmax_of_rows(pattern: SparsePattern, scores: torch.Tensor) -> torch.Tensor:
    """exp(score) over its sum in the entry's row; (E, H) -> (E, H)."""
    rows = pattern.rows
    shape = (pattern.nodes, scores.shape[1])
    at = rows[:, None].expand(-1, shape[1])
    # The largest of a row is a constant: it cancels out.
    top = scores.detach().new_full(shape, -torch.inf)
    top.scatter_reduce_(0, at, scores.detach(), "amax")
    weights = (scores - top.index_select(0, rows)).exp()
    sums = weights.new_zeros(shape).index_add(0, rows, weights)
    return weights / sums.index_select(0, rows)


#: Keeps 0 / 0 at 0; far below any sum of values that carries information.
_TINY = 1e-8


class _EdgeDots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, pattern: SparsePattern) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        ctx.pattern = pattern
        return _dots(pattern, a, b)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (a, b), pattern = ctx.saved_tensors, ctx.pattern
        turned = grads[0].index_select(0, pattern.reverse)
        return SparseMatrix(pattern, grads[0]) @ b, SparseMatrix(pattern, turned) @ a, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, x: torch.Tensor, pattern: SparsePattern
    ) -> torch.Tensor:
        ctx.save_for_backward(values, x)
        ctx.pattern = pattern
        return SparseMatrix(pattern, values) @ x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (values, x), pattern = ctx.saved_tensors, ctx.pattern
        grad = grads[0].contiguous()
        turned = values.index_select(0, pattern.reverse)
        return _dots(pattern, grad, x), SparseMatrix(pattern, turned) @ grad, None


def _dots(pattern: SparsePattern, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    zeros = pattern.with_values(a.new_zeros(len(pattern.columns)))
    product: torch.Tensor = torch.sparse.sampled_addmm(zeros, a, b.T, beta=0.0)
    return product.values()


#: Entries of `attention_scores` worked on at once: an (entries, H·C) block stays in the cache.
_BLOCK = 2048


class _AttentionScores(torch.autograd.Function):
    """Blocks of entries are computed, and in the backward pass computed again: never (E, H, C)."""

    @staticmethod
    def forward(
        ctx: Any,
        targets: torch.Tensor,
        sources: torch.Tensor,
        marks: torch.Tensor,
        mark: torch.Tensor,
        attention: torch.Tensor,
        slope: float,
        pattern: SparsePattern,
    ) -> torch.Tensor:
        ctx.save_for_backward(targets, sources, marks, mark, attention)
        ctx.slope, ctx.pattern = slope, pattern
        scores = targets.new_empty(len(pattern.columns), targets.shape[1])
        for block in _entry_blocks(pattern):
            inner, _, _ = _inner(pattern, block, targets, sources, marks, mark)
            torch.nn.functional.leaky_relu_(inner, slope)
            scores[block] = inner.mul_(attention).sum(dim=2)
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        targets, sources, marks, mark, attention = ctx.saved_tensors
        pattern, slope, grad = ctx.pattern, ctx.slope, grads[0]
        found = [torch.zeros_like(part) for part in (targets, sources, mark, attention)]
        for block in _entry_blocks(pattern):
            inner, rows, columns = _inner(pattern, block, targets, sources, marks, mark)
            own = grad[block][:, :, None]
            share = torch.ops.aten.leaky_relu_backward(own * attention, inner, slope, False)
            found[0].index_add_(0, rows, share)
            found[1].index_add_(0, columns, share)
            found[2] += (marks[block] @ share.flatten(1)).view_as(mark)
            torch.nn.functional.leaky_relu_(inner, slope)
            found[3] += inner.mul_(own).sum(dim=0)
        return found[0], found[1], None, found[2], found[3], None, None


def _entry_blocks(pattern: SparsePattern) -> list[slice]:
    return [slice(at, at + _BLOCK) for at in range(0, len(pattern.columns), _BLOCK)]


def _inner(
    pattern: SparsePattern,
    block: slice,
    targets: torch.Tensor,
    sources: torch.Tensor,
    marks: torch.Tensor,
    mark: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What LeakyReLU is applied to, (block, H, C), and the block's rows and columns."""
    rows, columns = pattern.rows[block], pattern.columns[block]
    inner = targets.index_select(0, rows)
    inner += sources.index_select(0, columns)
    inner += marks[block][:, None, None] * mark
    return inner, rows, columns
