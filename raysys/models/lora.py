"""A causal language model with low-rank adapters (LoRA) on its attention, by peft.

L tokens, d the model's width, V the vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch.utils.checkpoint import checkpoint

from raysys.errors import UserError
from raysys.models.precision import matrix_type
from raysys.settings import Settings

#: Positions whose V logits are in memory at once.
_CHUNK = 1024


class LoraSettings(Settings):
    """The adapters. Defaults: LLM-TRSR §5.2.2."""

    rank: int = Field(default=8, ge=1, le=512)
    """Width of the bottleneck."""
    alpha: int = Field(default=16, ge=1)
    """Adapters are scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """On the adapters' input."""
    modules: tuple[str, ...] = Field(default=("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1)
    """Names of the linear layers that are adapted."""


def load_base(path: str, revision: str | None, device: torch.device) -> Any:
    """The base model: bfloat16 where the device is fast at it, else float32."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        path, revision=revision, dtype=matrix_type(device)
    )
    return model.to(device)


def with_lora(model: Any, settings: LoraSettings, seed: int) -> Any:
    """The model with fresh float32 adapters (which change nothing yet); the rest is frozen.

    Raises:
        UserError: the model has no layers of the names in `settings.modules`.
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    if missing := sorted(set(settings.modules) - names):
        raise UserError(
            f"this base model has no layer {', '.join(missing)}: set lora.modules "
            f"to some of {', '.join(sorted(_linear_names(model)))}."
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.modules),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def body_and_head(model: Any) -> tuple[Any, Any]:
    """What gives hidden states, and the layer that turns them into logits."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal.base_model, causal.get_output_embeddings()


def token_losses(
    hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, head: torch.nn.Module
) -> torch.Tensor:
    """Weighted sum of −log Pr(label) (LLM-TRSR Eq. 1), a chunk of logits in memory at a time.

    Args:
        hidden: (n, d) states of the positions before the labels.
        labels: (n,) token ids.
        weights: (n,) how often each counts.
        head: (n, d) → (n, V) logits.

    Returns:
        A float32 scalar.
    """

    def chunk_loss(
        states: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        return F.cross_entropy(head(states).float(), targets, reduction="none") @ counts

    total = hidden.new_zeros((), dtype=torch.float32)
    chunks = (torch.split(one, _CHUNK) for one in (hidden, labels, weights))
    for chunk in zip(*chunks, strict=True):
        loss: torch.Tensor = checkpoint(chunk_loss, *chunk, use_reentrant=False)
        total = total + loss
    return total


def merged(base: Any, adapter: Path) -> Any:
    """A plain model in which the adapters of a folder are part of the weights.

    Raises:
        UserError: the adapters do not fit this base model.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        detail = str(error).strip().splitlines()[0]
        raise UserError(f"{adapter} does not fit this base model: {detail}") from None


def _linear_names(model: Any) -> set[str]:
    return {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
