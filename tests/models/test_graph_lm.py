"""The graph-attentive language model against its equations and against plain transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from raysys.models.graph_lm import GraphLM, ItemSoftmaxSettings, PromptBatch, as_batch

WORDS, USERS, ITEMS, WIDTH = 11, 4, 5, 8
FIRST_USER, FIRST_ITEM = WORDS, WORDS + USERS
PROMPTS = [[11, 3, 15, 16, 4], [12, 17, 4], [3, 15, 7, 15]]


def language_model(kind: str, attention: str = "sdpa", layers: int = 2) -> Any:
    torch.manual_seed(0)
    shared = {"vocab_size": WORDS, "attn_implementation": attention, "initializer_range": 0.4}
    marks = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt2":
        size = {"n_embd": WIDTH, "n_layer": layers, "n_head": 2, "n_positions": 32}
        drop = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**shared, **marks, **size, **drop)).eval()
    size = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**shared, **marks, **size, **heads)).eval()


def graph_lm(
    kind: str = "gpt2", attention: str = "sdpa", layers: int = 2, **softmax: int
) -> GraphLM:
    generator = torch.Generator().manual_seed(1)
    model = GraphLM(
        language_model(kind, attention, layers),
        USERS,
        ITEMS,
        ItemSoftmaxSettings(**softmax),
        generator,
    )
    with torch.no_grad():
        model.users.mul_(20)
        model.items.mul_(20)
    return model


def relations_of(nodes: np.ndarray) -> np.ndarray:
    """Any numbers that depend on both nodes; 0 for none."""
    found = np.sin(nodes[:, :, None] * 3.0 + nodes[:, None, :]) * 2
    real = nodes >= 0
    return (found * (real[:, :, None] & real[:, None, :])).astype(np.float32)


def no_relations(nodes: np.ndarray) -> np.ndarray:
    return np.zeros((*nodes.shape, nodes.shape[1]), np.float32)


def dense_relations(prompt: list[int]) -> torch.Tensor:
    """(T, T) R of one prompt by its definition."""
    found = torch.zeros(len(prompt), len(prompt))
    for i, a in enumerate(prompt):
        for j, b in enumerate(prompt):
            if a >= WORDS and b >= WORDS:
                found[i, j] = float(np.float32(np.sin((a - WORDS) * 3.0 + (b - WORDS)) * 2))
    return found


def test_the_bias_stands_where_both_tokens_are_nodes() -> None:
    batch = as_batch(PROMPTS, WORDS, relations_of)
    assert batch.lengths.tolist() == [5, 3, 4]
    for row, prompt in enumerate(PROMPTS):
        size = len(prompt)
        torch.testing.assert_close(batch.bias()[row, :size, :size], dense_relations(prompt))
        assert not batch.bias()[row, :, size:].any()


def test_nodes_come_in_order_of_appearance() -> None:
    seen = []
    as_batch([[3, 18, 11, 15, 18]], WORDS, lambda nodes: seen.append(nodes) or no_relations(nodes))
    assert seen[0].tolist() == [[18 - WORDS, 0, 15 - WORDS]]


def test_no_node_at_all() -> None:
    batch = as_batch([[1, 2], [3]], WORDS, no_relations)
    assert batch.relations.shape == (2, 1, 1)
    assert not batch.bias().any()
    assert torch.isfinite(graph_lm().states(batch)).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gpt2_attention_by_hand(attention: str) -> None:
    """Eq. 1: softmax(Q Kᵀ / √d + R) V in a model of one layer."""
    model = graph_lm("gpt2", attention, layers=1)
    prompt, body = PROMPTS[0], model.language_model.transformer
    tables = torch.cat([body.wte.weight, model.users, model.items])
    x = tables[prompt] + body.wpe.weight[: len(prompt)]
    layer = body.h[0]
    q, k, v = layer.attn.c_attn(layer.ln_1(x)).split(WIDTH, dim=1)
    heads = []
    for part in range(2):
        own = slice(part * WIDTH // 2, (part + 1) * WIDTH // 2)
        scores = q[:, own] @ k[:, own].T / (WIDTH // 2) ** 0.5 + dense_relations(prompt)
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(later, -torch.inf).softmax(dim=1) @ v[:, own])
    x = x + layer.attn.c_proj(torch.cat(heads, dim=1))
    expected = body.ln_f(x + layer.mlp(layer.ln_2(x)))
    found = model.states(as_batch(PROMPTS, WORDS, relations_of))[0, : len(prompt)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_both_attentions_agree_and_read_the_relations(kind: str) -> None:
    batch = as_batch(PROMPTS, WORDS, relations_of)
    one, other = (graph_lm(kind, name).scores(batch) for name in ("sdpa", "eager"))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    without = graph_lm(kind).scores(as_batch(PROMPTS, WORDS, no_relations))
    assert (one - without).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_without_relations_it_is_the_plain_model(kind: str) -> None:
    model, tokens = graph_lm(kind), torch.tensor([[1, 2, 3, 4]])
    plain = model.language_model.base_model(tokens).last_hidden_state
    found = model.states(as_batch(tokens.tolist(), WORDS, no_relations))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_other_rows_and_their_length_change_nothing(kind: str) -> None:
    model = graph_lm(kind)
    together = model.scores(as_batch(PROMPTS, WORDS, relations_of))
    for row, prompt in enumerate(PROMPTS):
        alone = model.scores(as_batch([prompt], WORDS, relations_of))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_the_next_token_loss_by_its_definition() -> None:
    model = graph_lm()
    batch = as_batch(PROMPTS, WORDS, relations_of)
    states = model.states(batch)
    words = items = torch.zeros(())
    for row, prompt in enumerate(PROMPTS):
        for place, label in enumerate(prompt[1:]):
            state = states[row, place]
            if label < WORDS:
                logits = model.language_model.lm_head(state)
                words = words - F.log_softmax(logits, dim=0)[label]
            elif label >= FIRST_ITEM:
                items = items - F.log_softmax(model.items @ state, dim=0)[label - FIRST_ITEM]
    torch.testing.assert_close(model.next_token_loss(batch), words + items, rtol=1e-5, atol=1e-4)
    alone = model.next_token_loss(batch, words=False)
    torch.testing.assert_close(alone, items, rtol=1e-5, atol=1e-4)


def test_the_item_loss_by_its_definition() -> None:
    model, batch = graph_lm(), as_batch(PROMPTS, WORDS, relations_of)
    found = model.item_loss(batch, torch.tensor([0, 0, 2]), torch.tensor([1, 3, 4]))
    logs = F.log_softmax(model.scores(batch), dim=1)
    expected = torch.stack([-logs[0, 1] - logs[0, 3], torch.zeros(()), -logs[2, 4]])
    torch.testing.assert_close(found, expected)
    last = torch.stack([model.states(batch)[row, len(one) - 1] for row, one in enumerate(PROMPTS)])
    torch.testing.assert_close(model.scores(batch), last @ model.items.T)


def test_the_sampled_softmax_has_the_right_mean() -> None:
    batch = as_batch(PROMPTS, WORDS, relations_of)
    rows, items = torch.tensor([0, 0, 2]), torch.tensor([1, 3, 4])
    whole = graph_lm().item_loss(batch, rows, items)
    sampled = graph_lm(sampled_above=1, samples=4000)
    found = sampled.item_loss(batch, rows, items, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, whole, rtol=0.02, atol=0.02)
    few = graph_lm(sampled_above=1, samples=3)
    draws = [
        torch.exp(few.item_loss(batch, rows[2:], items[2:], torch.Generator().manual_seed(seed))[2])
        for seed in range(600)
    ]
    # exp(loss) is normaliser / exp(logit): its mean is the whole one's.
    torch.testing.assert_close(torch.stack(draws).mean(), torch.exp(whole[2]), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradients_reach_every_parameter(kind: str) -> None:
    model = graph_lm(kind)
    batch = as_batch([[11, 12, 13, 14, 3, 15, 16, 4]], WORDS, relations_of)
    rows, items = torch.tensor([0]), torch.tensor([4])
    (model.item_loss(batch, rows, items).sum() + model.next_token_loss(batch)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_how_far_embeddings_moved() -> None:
    model = graph_lm()
    content = torch.cat([model.users, model.items]).detach().clone()
    with torch.no_grad():
        model.users[1] += 2.0
        model.items[3] += 1.0
    nodes = torch.tensor([1, USERS + 3, USERS + 3, 0])
    assert float(model.distance(nodes, content)) == pytest.approx(WIDTH * (4 + 1 + 1), rel=1e-5)


def test_tables_are_drawn_by_the_generator() -> None:
    one, other = (
        GraphLM(
            language_model("gpt2"),
            2000,
            50,
            ItemSoftmaxSettings(),
            torch.Generator().manual_seed(s),
        )
        for s in (3, 4)
    )
    assert float(one.users.std()) == pytest.approx(0.02, rel=0.03)
    assert not torch.equal(one.items, other.items)


def test_a_batch_moves_as_a_whole() -> None:
    batch = as_batch(PROMPTS, WORDS, relations_of)
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, PromptBatch)
    assert torch.equal(moved.relations, batch.relations)
