"""The losses that graph models share. Embeddings in, one number per row or per batch out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

#: Entries of a similarity matrix held at once. On a CPU 4 MiB, to stay near the cache
#: (2^24 is half as fast); on a GPU 256 MiB, to keep it busy.
_BLOCK_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 26}
#: exp(±40), summed over 10^9 keys, is within float32: such scores need no shift.
_SMALL_BOUND = 40.0


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

    Returns:
        The sum, a scalar.
    """
    scaled = unit_rows(queries) / temperature
    matches = (scaled * unit_rows(targets)).sum(dim=1)
    if weights is not None:
        matches = matches * weights
    unit_keys = unit_rows(keys)
    return log_sum_exp(scaled, unit_keys, weights, key_counts, 1 / temperature) - matches.sum()


def log_sum_exp(
    queries: torch.Tensor,
    keys: torch.Tensor,
    weights: torch.Tensor | None = None,
    key_counts: torch.Tensor | None = None,
    bound: float = math.inf,
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

    Returns:
        The sum, a scalar.
    """
    weights = queries.new_ones(len(queries)) if weights is None else weights
    key_counts = keys.new_ones(len(keys)) if key_counts is None else key_counts
    result: torch.Tensor = _LogSumExp.apply(  # type: ignore[no-untyped-call]
        queries, keys, weights, key_counts, bound
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
    ) -> torch.Tensor:
        total = queries.new_zeros(())
        query_grad, key_grad = torch.empty_like(queries), torch.zeros_like(keys)
        counted = keys * counts[:, None]
        for rows in _blocks(queries, keys):
            own = queries[rows]
            scores = own @ keys.T
            top = own.new_zeros(len(own))
            if bound > _SMALL_BOUND:
                # Shifted by the row's maximum, no exponential overflows and no sum vanishes.
                top = scores.amax(dim=1)
                scores.sub_(top[:, None])
            scores.exp_()
            sums = scores @ counts
            total += (weights[rows] * (sums.log() + top)).sum()
            share = (weights[rows] / sums)[:, None]
            query_grad[rows] = (scores @ counted) * share
            key_grad.addmm_(scores.T, own * share)
        ctx.save_for_backward(query_grad, key_grad.mul_(counts[:, None]))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_grad, key_grad = ctx.saved_tensors
        return query_grad * grads[0], key_grad * grads[0], None, None, None


def _blocks(queries: torch.Tensor, keys: torch.Tensor) -> list[slice]:
    step = max(1, _BLOCK_ENTRIES.get(queries.device.type, 1 << 20) // max(1, len(keys)))
    return [slice(start, start + step) for start in range(0, len(queries), step)]
