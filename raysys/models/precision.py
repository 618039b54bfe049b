"""Which floating-point type matrices are multiplied in, decided in one place.

Results in bfloat16 differ in the third digit from those in float32. Where they must not depend on
the processor, set `RAYSYS_BFLOAT16` in the environment: 0 never, 1 always.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch
from torch.nn import functional

from raysys.errors import UserError

VARIABLE = "RAYSYS_BFLOAT16"
#: Rows of a matrix of varying height are filled up to a multiple of it, see `padded`.
ROWS = 512


def fast_bfloat16(device: torch.device | None = None) -> bool:
    """Whether a device (default: this processor) is to multiply in bfloat16.

    `RAYSYS_BFLOAT16` decides where it is set. Else a GPU that has the type, or a processor with
    AMX: measured, it is about 8 times faster than in float32, with AVX-512 alone half as fast.

    Raises:
        UserError: the variable is something else than 0 or 1.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "0", "1"):
        raise UserError(f"{VARIABLE}={wanted} in the environment: must be 0 or 1.")
    if wanted:
        return wanted == "1"
    if device is not None and device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return has_amx()


def has_amx() -> bool:
    """Whether this processor has units for matrices of bfloat16, as Intel's AMX."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def matrix_type(device: torch.device) -> torch.dtype:
    """The type for the weights of a language model on a device."""
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32


def mixed_precision(device: torch.device) -> AbstractContextManager[None]:
    """Matrices in bfloat16 where the device is fast at it; the weights stay as they are."""
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device))


def padded(x: torch.Tensor) -> torch.Tensor:
    """Zeros added below, up to a multiple of `ROWS` rows. (n, …) -> (n', …).

    A CPU's kernels for bfloat16 (oneDNN) are compiled for each shape: 3 to 30 ms the first time,
    about 1 ms afterwards. So matrices whose height changes from step to step are made alike.
    """
    missing = -len(x) % ROWS
    return functional.pad(x, [0, 0] * (x.dim() - 1) + [0, missing]) if missing else x
