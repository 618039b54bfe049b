"""One number an edge: similarities of its two ends, and sums weighted by them.

With gradients for the numbers, which a plain sparse product does not give, and never a
(edges, d) array: what is built is one number for each stored entry.
"""

from __future__ import annotations

from typing import Any

import torch

from raysys.graph.bipartite import SparsePattern


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
        return pattern.with_values(grads[0]) @ b, pattern.with_values(turned) @ a, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, x: torch.Tensor, pattern: SparsePattern
    ) -> torch.Tensor:
        ctx.save_for_backward(values, x)
        ctx.pattern = pattern
        return pattern.with_values(values) @ x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (values, x), pattern = ctx.saved_tensors, ctx.pattern
        grad = grads[0].contiguous()
        turned = values.index_select(0, pattern.reverse)
        return _dots(pattern, grad, x), pattern.with_values(turned) @ grad, None


def _dots(pattern: SparsePattern, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    zeros = pattern.with_values(a.new_zeros(len(pattern.columns)))
    product: torch.Tensor = torch.sparse.sampled_addmm(zeros, a, b.T, beta=0.0)
    return product.values()
