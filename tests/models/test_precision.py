from __future__ import annotations

import pytest
import torch

from raysys.errors import UserError
from raysys.models.precision import VARIABLE, fast_bfloat16, matrix_type, mixed_precision

CPU = torch.device("cpu")


def product(x: torch.Tensor) -> torch.dtype:
    with mixed_precision(CPU):
        return (x @ x).dtype


@pytest.mark.parametrize(("wanted", "found"), [("0", torch.float32), ("1", torch.bfloat16)])
def test_the_environment_decides(monkeypatch, wanted, found):
    monkeypatch.setenv(VARIABLE, wanted)
    assert matrix_type(CPU) == product(torch.ones(2, 2)) == found


@pytest.mark.parametrize("amx", [True, False])
def test_else_the_processor_does(monkeypatch, amx):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    assert fast_bfloat16() == amx


def test_another_value_is_named(monkeypatch):
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(UserError, match="RAYSYS_BFLOAT16=yes in the environment: must be 0 or 1"):
        fast_bfloat16()
