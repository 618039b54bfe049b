"""A small T5 or GPT-2 with random weights and a tokeniser of its own, where no other is at hand.

Written as a folder in the form that hubs have, so that all that follows loads it like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from raysys.errors import UserError
from raysys.settings import Settings

#: Of queries and keys. T5 does not scale their products, which grow with the width.
_ALIKE = 0.3
#: Standard deviation of T5's token vectors at the start; its own is 1. A step of Adam moves each
#: number by the learning rate, whatever its size: vectors of an id must be small to be learnt soon.
_TOKENS = 0.05
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"


class SmallSettings(Settings):
    """Size of the model and of its vocabulary."""

    width: int = Field(default=128, ge=8)
    """d of embeddings and layers."""
    layers: int = Field(default=2, ge=1)
    """Of the decoder, and of the encoder where there is one."""
    heads: int = Field(default=4, ge=1)
    """Of each attention; they share the width."""
    inner: int = Field(default=256, ge=8)
    """Width inside the feed-forward layers."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Everywhere in the model."""
    vocabulary: int = Field(default=2000, ge=300)
    """Tokens, at most; ELMRec writes ids with two or three of them."""


def write_small_seq2seq(
    folder: Path, settings: SmallSettings, texts: Iterable[str], seed: int
) -> None:
    """Learn a byte-pair vocabulary of the texts, and write it with a fresh T5.

    Args:
        folder: is created.
        texts: id words and whatever else is to be written.
        seed: draws the weights.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = _learn_tokenizer(settings, texts)
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
    model = _drawn(T5ForConditionalGeneration, config, seed)
    _start_at_identity(model)
    with torch.no_grad():
        model.shared.weight.mul_(_TOKENS)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_small_causal(
    folder: Path, settings: SmallSettings, texts: Iterable[str], seed: int, max_tokens: int
) -> None:
    """The same with a fresh GPT-2 of so many positions.

    Raises:
        UserError: the heads do not share the width evenly.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if settings.width % settings.heads:
        raise UserError(
            f"small.width {settings.width} is not a multiple of small.heads {settings.heads}."
        )
    tokenizer = _learn_tokenizer(settings, texts)
    configure: Any = GPT2Config
    config = configure(
        vocab_size=len(tokenizer),
        n_positions=max_tokens,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        n_inner=settings.inner,
        resid_pdrop=settings.dropout,
        embd_pdrop=settings.dropout,
        attn_pdrop=settings.dropout,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    _drawn(GPT2LMHeadModel, config, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _drawn(kind: Any, config: Any, seed: int) -> Any:
    """A model with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config)


def _learn_tokenizer(settings: SmallSettings, texts: Iterable[str]) -> Any:
    """Byte pairs of the texts, at most `vocabulary` of them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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
    return wrap(tokenizer_object=core, pad_token=_PAD, eos_token=_END, unk_token=_UNKNOWN)


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
