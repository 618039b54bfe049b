"""A tiny Llama with a tokeniser of its own, as a folder that transformers loads; and toy shops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from raysys import schema
from raysys.data.dataset import Dataset
from raysys.store import write_table

COLOURS = ("red", "blue")
_TEMPLATE = (
    "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def toy_tokenizer(chat: bool = True, answers: bool = True) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and a few words that are one token each."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|user|>", "<|assistant|>", "<|end|>"]
    words = [*COLOURS, *(("Yes", "No") if answers else ())]
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", additional_special_tokens=marks[:2]
    )
    found.add_tokens(words)
    if chat:
        found.chat_template = _TEMPLATE
    return found


def toy_language_model(folder: Path, seed: int = 0, answers: bool = True, width: int = 32) -> Path:
    """Write model and tokeniser; returns the folder."""
    tokenizer = toy_tokenizer(answers=answers)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def toy_shop(folder: Path, users: int = 12, items: int = 30, length: int = 5) -> Dataset:
    """Users who like one colour; each one's last two interactions are valid and test."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        own = rng.permutation(items // 2)[:length] * 2 + user % 2
        for place, item in enumerate(own):
            split = {length - 1: "test", length - 2: "valid"}.get(place, "train")
            rows.append((f"u{user:02}", f"i{item}", place, split))
    names = ("user_id", "item_id", "timestamp", "split")
    tables = {
        schema.USERS_FILE: {"user_id": [f"u{user:02}" for user in range(users)]},
        schema.ITEMS_FILE: {
            "item_id": [f"i{item}" for item in range(items)],
            "title": [f"{COLOURS[item % 2]} {item}" for item in range(items)],
        },
        schema.INTERACTIONS_FILE: dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)),
    }
    for name, columns in tables.items():
        write_table(folder / name, pa.table(columns))
    return Dataset.load(folder)
