"""The losses that graph models share. Embeddings in, one number per row or per batch out."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

#: Entries of a similarity matrix held at once. On a CPU 4 MiB, to stay near the cache
#: (2^24 is half as fast); on a GPU 256 MiB, to keep it busy.
_BLOCK_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 26}


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
    positive_scores = (users * positives).sum(dim=1)  # (n,)
    negative_scores = (users * negatives).sum(dim=1)  # (n,)
    return functional.softplus(negative_scores - positive_scores)


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows over √(1e-8 + ‖row‖²), RLMRec's guard against zero rows. (n, d) -> (n, d)."""
    return x * torch.rsqrt(1e-8 + x.square().sum(dim=1, keepdim=True))


def info_nce(
    queries: torch.Tensor,
    targets: torch.Tensor,
    keys: torch.Tensor,
    temperature: float,
    key_counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """InfoNCE with cosine similarity: log Σ_k n_k·exp(cos(q, k)/τ) − cos(q, t)/τ, one per row.

    Source: RLMRec, equation 7 with the released code's one direction. Memory is bounded, see
    `log_sum_exp`.

    Args:
        queries: (n, d), need not be normalised; nor need the rest.
        targets: (n, d), the match of each query.
        keys: (m, d), the denominator.
        temperature: τ > 0.
        key_counts: (m,) how often each key stands in the denominator; default once.

    Returns:
        (n,).
    """
    scaled = unit_rows(queries) / temperature
    bias = None if key_counts is None else key_counts.log()
    denominators = log_sum_exp(scaled, unit_rows(keys), bias)
    return denominators - (scaled * unit_rows(targets)).sum(dim=1)


def log_sum_exp(
    queries: torch.Tensor, keys: torch.Tensor, key_bias: torch.Tensor | None = None
) -> torch.Tensor:
    """log Σ_k exp(q·k + b_k), one per query; stable, and of bounded memory.

    Blocks of the (n, m) matrix are computed, and computed again in the backward pass.

    Args:
        queries: (n, d).
        keys: (m, d).
        key_bias: (m,) b, without gradient; default 0.

    Returns:
        (n,).
    """
    bias = keys.new_zeros(len(keys)) if key_bias is None else key_bias
    result: torch.Tensor = _LogSumExp.apply(  # type: ignore[no-untyped-call]
        queries, keys, bias
    )
    return result


class _LogSumExp(torch.autograd.Function):
    """log Σ_k exp(q·k + b_k) for each query: (n, d), (m, d), (m,) -> (n,)."""

    @staticmethod
    def forward(
        ctx: Any, queries: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        result = queries.new_empty(len(queries))
        for rows in _blocks(queries, keys):
            scores = torch.addmm(bias, queries[rows], keys.T)
            # Shifted by the row's maximum, no exponential can overflow.
            top = scores.amax(dim=1, keepdim=True)
            result[rows] = scores.sub_(top).exp_().sum(dim=1).log_().add_(top[:, 0])
        ctx.save_for_backward(queries, keys, bias, result)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        queries, keys, bias, result = ctx.saved_tensors
        query_grad, key_grad = torch.empty_like(queries), torch.zeros_like(keys)
        for rows in _blocks(queries, keys):
            weights = torch.addmm(bias, queries[rows], keys.T)
            weights.sub_(result[rows, None]).exp_().mul_(grads[0][rows, None])
            torch.mm(weights, keys, out=query_grad[rows])
            key_grad.addmm_(weights.T, queries[rows])
        return query_grad, key_grad, None


def _blocks(queries: torch.Tensor, keys: torch.Tensor) -> list[slice]:
    step = max(1, _BLOCK_ENTRIES.get(queries.device.type, 1 << 20) // max(1, len(keys)))
    return [slice(start, start + step) for start in range(0, len(queries), step)]
