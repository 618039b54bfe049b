"""Split a model's layers over all workers (FSDP)."""

from __future__ import annotations

from typing import Any

from raysys.errors import UserError


def shard_layers(body: Any) -> None:
    """Split every layer over all workers; gradients are summed, not averaged.

    Args:
        body: a model of transformers without its head.

    Raises:
        UserError: its layers are not where Llama- and GPT-2-type models have them.
    """
    from torch.distributed.fsdp import fully_shard

    layers = getattr(body, "layers", None) or getattr(body, "h", None)
    if layers is None:
        raise UserError(f"sharding: the layers of {type(body).__name__} are not known; use 'none'.")
    for layer in layers:
        sharded = fully_shard(layer)
        sharded.set_gradient_divide_factor(1.0)
        # A plain sum; the default scales on the way, which gloo cannot.
        sharded.set_force_sum_reduction_for_comms(True)
