"""The same training step in float32 and in bfloat16, whatever the processor prefers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from raysys.models.precision import VARIABLE
from raysys.training.epochs import EpochTraining


def assert_alike_in_bfloat16(
    make: Callable[[], EpochTraining], patch: pytest.MonkeyPatch, least_cosine: float = 0.98
) -> None:
    """Losses within 3 %, gradients in one direction, and two steps do not spoil the weights."""
    losses, gradients = [], []
    for wanted in "01":
        patch.setenv(VARIABLE, wanted)
        training = make()
        losses.append(float(training.backward()[0]))
        found = [
            p.grad.flatten().float() for p in training.model.parameters() if p.grad is not None
        ]
        gradients.append(torch.cat(found))
        for _ in range(2):
            training.train_step()
        assert all(bool(p.isfinite().all()) for p in training.model.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert not torch.equal(*gradients), "both were computed in one precision"
    assert float(torch.cosine_similarity(*gradients, dim=0)) > least_cosine
