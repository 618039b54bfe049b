"""A small T5 with random weights and a tokeniser of its own, where no pre-trained one is at hand.

Written as a folder in the form that hubs have, so that all that follows loads it like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from raysys.settings import Settings

#: Of queries and keys. T5 does not scale their products, which grow with the width.
_ALIKE = 0.3
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"


class SmallSettings(Settings):
    """Size of the model and of its vocabulary."""

    width: int = Field(default=128, ge=8)
    """d of embeddings and layers."""
    layers: int = Field(default=2, ge=1)
    """Of the encoder, and of the decoder."""
    heads: int = Field(default=4, ge=1)
    """Of each attention; they share the width."""
    inner: int = Field(default=256, ge=8)
    """Width inside the feed-forward layers."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Everywhere in the model."""
    vocabulary: int = Field(default=2000, ge=300)
    """Tokens, at most; ids are written with two or three of them."""


def write_small_model(
    folder: Path, settings: SmallSettings, texts: Iterable[str], seed: int
) -> None:
    """Learn a byte-pair vocabulary of the texts, and write it with a fresh model.

    Args:
        folder: is created.
        texts: id words and whatever else is to be written.
        seed: draws the weights.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    # Bytes at the bottom, so that there is no text that it cannot write.
    core = Tokenizer(models.BPE(unk_token=_UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        # Not split at "_": two tokens for an id where the usual rule would make four.
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(True, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[_PAD, _END, _UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    wrap: Any = PreTrainedTokenizerFast
    tokenizer = wrap(tokenizer_object=core, pad_token=_PAD, eos_token=_END, unk_token=_UNKNOWN)
    configure: Any = T5Config
    config = configure(
        vocab_size=len(tokenizer),
        d_model=settings.width,
        d_kv=max(1, settings.width // settings.heads),
        d_ff=settings.inner,
        num_layers=settings.layers,
        num_heads=settings.heads,
        dropout_rate=settings.dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
    _start_at_identity(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def _start_at_identity(model: torch.nn.Module) -> None:
    """Let every attention look for what is alike and copy it, as pre-trained models can.

    From T5's own random start, learning to write an id that stands in the input takes thousands
    of steps.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("Attention.v.weight", "Attention.o.weight")):
            torch.nn.init.eye_(parameter)
        elif name.endswith(("Attention.q.weight", "Attention.k.weight")):
            torch.nn.init.eye_(parameter).mul_(_ALIKE)
