from __future__ import annotations

import pytest
import torch

from raysys.models import losses
from raysys.models.losses import bpr, info_nce, log_sum_exp


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def plain_info_nce(
    queries: torch.Tensor,
    targets: torch.Tensor,
    keys: torch.Tensor,
    temperature: float,
    counts: torch.Tensor,
) -> torch.Tensor:
    cosine = torch.nn.functional.cosine_similarity
    pairs = cosine(queries[:, None], keys[None], dim=2) / temperature
    return (pairs.exp() * counts).sum(1).log() - cosine(queries, targets) / temperature


@pytest.mark.parametrize("entries", [1, 25, 1 << 20])
@pytest.mark.parametrize("temperature", [0.3, 0.01])
def test_info_nce_and_gradients_equal_the_plain_formula(
    entries: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses._BLOCK_BYTES, "cpu", 4 * entries)
    counts = torch.tensor([1.0, 3, 1, 2, 1, 1, 4, 1, 1], dtype=torch.float64)
    weights = torch.arange(1.0, 8, dtype=torch.float64)

    def plain(*inputs: torch.Tensor) -> torch.Tensor:
        return (plain_info_nce(*inputs, temperature, counts) * weights).sum()

    def ours(*inputs: torch.Tensor) -> torch.Tensor:
        return info_nce(*inputs, temperature, weights, counts)

    results = []
    for function in (plain, ours):
        inputs = [draw(n, 4, seed=n).requires_grad_() for n in (7, 7, 9)]
        total = function(*inputs)
        (2 * total).backward()
        results.append([total.detach(), *(tensor.grad for tensor in inputs)])
    # Ours guards against zero rows with 1e-8, which a small temperature makes visible.
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.2, 0.01])
def test_bfloat16_is_near_and_never_used_for_large_scores(temperature: float) -> None:
    torch.manual_seed(3)
    inputs = [torch.randn(rows, 32, requires_grad=True) for rows in (200, 200, 1000)]
    results = []
    for low in (False, True):
        total = info_nce(*inputs, temperature, low_precision=low)
        results.append((total, *torch.autograd.grad(total, inputs)))
    pairs = zip(*results, strict=True)
    errors = [((low - exact).norm() / exact.norm()).item() for exact, low in pairs]
    if temperature == 0.01:
        assert errors == [0] * 4
    else:
        assert 0 < errors[0] < 1e-3
        assert 0 < max(errors) < 0.01


def test_log_sum_exp_of_large_scores_equals_torch() -> None:
    queries, keys = draw(6, 4, seed=1) * 40, draw(8, 4, seed=2) * 40
    counts = torch.arange(1.0, 9, dtype=torch.float64)
    expected = torch.logsumexp(queries @ keys.T + counts.log(), dim=1).sum()
    torch.testing.assert_close(log_sum_exp(queries, keys, key_counts=counts), expected)


def test_info_nce_does_not_overflow() -> None:
    # exp(cosine / 0.001) reaches e^1000, beyond float64.
    queries = draw(5, 3, seed=0, dtype=torch.float32).requires_grad_()
    total = info_nce(queries, queries.detach(), queries.detach(), 0.001)
    total.backward()
    assert torch.isfinite(queries.grad).all()
    torch.testing.assert_close(total.detach(), torch.zeros(()), atol=1e-3, rtol=0)


def test_info_nce_of_zero_rows_and_of_nothing() -> None:
    zero = torch.zeros(2, 3, requires_grad=True)
    info_nce(zero, zero, zero, 0.2).backward()
    assert torch.isfinite(zero.grad).all()
    empty = torch.zeros(0, 3, requires_grad=True)
    assert info_nce(empty, empty, empty, 0.2) == 0


def test_bpr_falls_when_the_positive_rises() -> None:
    user = torch.tensor([[1.0, 0.0]])
    positive = torch.tensor([[0.3, 0.1]], requires_grad=True)
    negative = torch.tensor([[0.5, 0.1]], requires_grad=True)
    bpr(user, positive, negative).sum().backward()
    assert positive.grad[0, 0] < 0 < negative.grad[0, 0]
