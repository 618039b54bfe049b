"""The losses that graph models share. Embeddings in, one number per row or per batch out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from raysys.models.precision import padded

#: Bytes of a similarity matrix held at once. On a CPU few, to stay near the cache (64 MiB are
#: half as fast); on a GPU many, to keep it busy.
_BLOCK_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}
#: exp(±40), summed over 10^9 keys, is within float32: such scores need no shift.
_SMALL_BOUND = 40.0
#: Up to here bfloat16 may hold the scores: rounding changes one term of a sum by 2 % at most, and
#: a gradient (a mean over many of them) by less than 1 %.
_LOW_BOUND = 10.0


def bpr(users: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Bayesian personalised ranking, softplus(s⁻ − s⁺) = −log σ(s⁺ − s⁻), one per row.

    Source: BPR (Rendle 2009), equation for BPR-Opt; RLMRec equation 1.

    Args:
        users: (n, d).
        positives: (n, d) item embeddings.
        negatives: (n, d) item embeddings.

    Returns:
        (n,); it falls as the positive's score rises above the negative's.
    """
    differences = (users * (negatives - positives)).sum(dim=1)  # (n,)
    return functional.softplus(differences)


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows over √(1e-8 + ‖row‖²), RLMRec's guard against zero rows. (n, d) -> (n, d)."""
    return x * torch.rsqrt(1e-8 + x.square().sum(dim=1, keepdim=True))


def info_nce(
    queries: torch.Tensor,
    targets: torch.Tensor,
    keys: torch.Tensor,
    temperature: float,
    weights: torch.Tensor | None = None,
    key_counts: torch.Tensor | None = None,
    low_precision: bool = False,
) -> torch.Tensor:
    """InfoNCE with cosine similarity: Σ_q w_q·[log Σ_k n_k·exp(cos(q, k)/τ) − cos(q, t_q)/τ].

    Source: RLMRec, equations 16 and 18, with the released code's one direction. Memory is
    bounded, see `log_sum_exp`.

    Args:
        queries: (n, d), need not be normalised; nor need the rest.
        targets: (n, d), the match of each query.
        keys: (m, d), the denominator.
        temperature: τ > 0.
        weights: (n,) w, how often each query counts; default once.
        key_counts: (m,) n, how often each key stands in the denominator; default once.
        low_precision: the denominator's products in bfloat16, see `log_sum_exp`.

    Returns:
        The sum, a scalar.
    """
    scaled = unit_rows(queries) / temperature
    matches = (scaled * unit_rows(targets)).sum(dim=1)
    if weights is not None:
        matches = matches * weights
    unit_keys = unit_rows(keys)
    bound = 1 / temperature
    return log_sum_exp(scaled, unit_keys, weights, key_counts, bound, low_precision) - matches.sum()


def log_sum_exp(
    queries: torch.Tensor,
    keys: torch.Tensor,
    weights: torch.Tensor | None = None,
    key_counts: torch.Tensor | None = None,
    bound: float = math.inf,
    low_precision: bool = False,
) -> torch.Tensor:
    """Σ_q w_q·log Σ_k n_k·exp(q·k), stable, and of bounded memory.

    The (n, m) matrix is computed once, in blocks, and each block's part of the gradient at
    once with it: nothing of that size is kept or computed again.

    Args:
        queries: (n, d).
        keys: (m, d).
        weights: (n,) w, without gradient; default 1.
        key_counts: (m,) n, without gradient; default 1.
        bound: what |q·k| cannot exceed, if that is known: a small one saves a pass.
        low_precision: products in bfloat16; only where `bound` is at most 10, else it is ignored.
            What is summed over blocks stays in the type of the queries.

    Returns:
        The sum, a scalar.
    """
    weights = queries.new_ones(len(queries)) if weights is None else weights
    key_counts = keys.new_ones(len(keys)) if key_counts is None else key_counts
    low_precision = low_precision and bound <= _LOW_BOUND
    if low_precision:  # what is added weighs nothing, as query and as key
        queries, weights, keys, key_counts = map(padded, (queries, weights, keys, key_counts))
    result: torch.Tensor = _LogSumExp.apply(  # type: ignore[no-untyped-call]
        queries, keys, weights, key_counts, bound, low_precision
    )
    return result


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        keys: torch.Tensor,
        weights: torch.Tensor,
        counts: torch.Tensor,
        bound: float,
        low_precision: bool,
    ) -> torch.Tensor:
        exact = queries.dtype
        dtype = torch.bfloat16 if low_precision else exact
        total = queries.new_zeros(())
        query_grad, key_grad = torch.empty_like(queries), torch.zeros_like(keys)
        low_queries, low_keys = queries.to(dtype), keys.to(dtype)
        # The last column makes one product of a row's sum and its gradient.
        counted = torch.cat([keys * counts[:, None], counts[:, None]], dim=1).to(dtype)
        for rows in _blocks(queries, keys, dtype):
            scores = low_queries[rows] @ low_keys.T
            top = weights.new_zeros(len(scores))
            if bound > _SMALL_BOUND:
                # Shifted by the row's maximum, no exponential overflows and no sum vanishes.
                top = scores.amax(dim=1)
                scores.sub_(top[:, None])
            scores.exp_()
            mixed = (scores @ counted).to(exact)  # (rows, d + 1)
            sums = mixed[:, -1]
            total += (weights[rows] * (sums.log() + top)).sum()
            share = (weights[rows] / sums)[:, None]
            query_grad[rows] = mixed[:, :-1] * share
            key_grad += scores.T @ (queries[rows] * share).to(dtype)
        ctx.save_for_backward(query_grad, key_grad.mul_(counts[:, None]))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_grad, key_grad = ctx.saved_tensors
        return query_grad * grads[0], key_grad * grads[0], None, None, None, None


def _blocks(queries: torch.Tensor, keys: torch.Tensor, dtype: torch.dtype) -> list[slice]:
    bytes_held = _BLOCK_BYTES.get(queries.device.type, _BLOCK_BYTES["cpu"])
    step = max(1, bytes_held // dtype.itemsize // max(1, len(keys)))
    if dtype == torch.bfloat16:  # few shapes, see `padded`
        step = max(1, step // 64) * 64
    return [slice(start, start + step) for start in range(0, len(queries), step)]
