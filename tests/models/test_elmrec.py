from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from transformers import T5Config, T5ForConditionalGeneration

from raysys.graph.bipartite import bipartite_graph
from raysys.models.elmrec import (
    NO_LABEL,
    TASKS,
    ELMRec,
    GraphWords,
    TaskBatch,
    TaskSettings,
    WordSettings,
)

WIDTH, USERS, ITEMS = 16, 3, 4
TRAIN = csr_matrix(np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], np.float32))


def build(train: csr_matrix = TRAIN, message: csr_matrix | None = None, **words) -> ELMRec:
    settings = WordSettings.model_validate({"sigma": 0.5, "layers": 2} | words)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=30, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    config.decoder_start_token_id = 0
    generator = torch.Generator().manual_seed(1)
    graphs = [None if one is None else bipartite_graph(one) for one in (train, message)]
    table = GraphWords(*graphs, settings, WIDTH, generator)
    return ELMRec(T5ForConditionalGeneration(config), table, settings, 8, generator)


def a_batch(task: str = "direct") -> TaskBatch:
    """Two rows: user 0 with items 2 and 1, user 1 with item 3; the second is shorter."""
    return TaskBatch(
        task,
        tokens=torch.tensor([[3, 4, 5, 6, 7, 1], [8, 9, 5, 1, 0, 0]]),
        mask=torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool(),
        # Node n is 1 + n, items after the three users; the second token of user 0 is of no word.
        nodes=torch.tensor([[1, 0, 6, 6, 5, 0], [2, 2, 7, 0, 0, 0]]),
        order=torch.tensor([[1, 0, 2, 2, 3, 0], [1, 1, 2, 0, 0, 0]]),
        word_nodes=torch.tensor([[1, 6, 5], [2, 7, 0]]),
        word_order=torch.tensor([[1, 2, 3], [1, 2, 0]]),
        users=torch.tensor([0, 1]),
        items=torch.tensor([1, 2]),
        labels=torch.tensor([[5, 6, 1], [9, 1, NO_LABEL]]),
    )


def test_propagation_by_hand() -> None:
    """One user with two items, L = 1 (Eq. 5 and 7): each edge weighs 1 / √(2 · 1)."""
    settings = WordSettings(sigma=1.0, layers=1)
    graph = bipartite_graph(csr_matrix(np.ones((1, 2), np.float32)))
    words = GraphWords(graph, None, settings, 2, torch.Generator()).eval()
    with torch.no_grad():
        words.start.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 0.0]]))
    found = words(torch.tensor([0, 1, 2]), (torch.empty(0), torch.empty(0)))
    half, root = 0.5, 1 / math.sqrt(2)
    wanted = [[half * (1 + 4 * root), half * 2 * root], [half * root, 1.0], [half * (4 + root), 0]]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_the_start_has_the_deviation_that_is_asked_for() -> None:
    graph = bipartite_graph(csr_matrix((2000, 1000), dtype=np.float32))
    words = GraphWords(graph, None, WordSettings(sigma=5.0), 8, torch.Generator().manual_seed(0))
    assert words.start.std().item() == pytest.approx(5.0, rel=0.02)
    assert words.start.requires_grad


@pytest.mark.parametrize("kind", ["graph", "incremental", "random", "none"])
def test_inputs_are_tokens_and_weighted_words(kind: str) -> None:
    """Eq. 8, token by token."""
    model = build(direct={"whole_words": kind, "alpha": 3.0}).eval()
    batch = a_batch()
    found, mask = model.inputs(batch)
    assert mask.tolist() == [[1] * 9, [1] * 7 + [0] * 2]
    embed = model.language_model.get_input_embeddings()
    every = model.words(torch.arange(USERS + ITEMS), (batch.users, batch.items))
    for row in range(2):
        torch.testing.assert_close(found[row, :3], model.prompts[TASKS.index("direct")])
        for place in range(6):
            node, order = int(batch.nodes[row, place]), int(batch.order[row, place])
            wanted = embed(batch.tokens[row, place])
            if kind == "graph":
                wanted = wanted + 3.0 * (every[node - 1] if node else model.other[0])
            elif kind != "none":
                wanted = wanted + 3.0 * (model.ordinal[order - 1] if order else model.other[1])
            torch.testing.assert_close(found[row, 3 + place], wanted)


def test_prepended_words_stand_between_prompt_and_tokens() -> None:
    model = build(attach="prepend").eval()
    batch = a_batch()
    found, mask = model.inputs(batch)
    assert mask.tolist() == [[1] * 12, [1] * 5 + [0] + [1] * 4 + [0] * 2]
    every = model.words(torch.arange(USERS + ITEMS), (batch.users, batch.items))
    torch.testing.assert_close(found[0, 3:6], 9.0 * every[[0, 5, 4]])
    tokens = model.language_model.get_input_embeddings()(batch.tokens)
    torch.testing.assert_close(found[:, 6:], tokens)


def test_the_loss_is_the_mean_over_a_rows_tokens() -> None:
    """Eq. 1 against the definition and, for one row, against the library's own loss."""
    model = build().eval()
    batch = a_batch()
    found = model.losses(batch)
    for row in range(2):
        alone = batch.rows(slice(row, row + 1))
        embeds, mask = model.inputs(alone)
        library = model.language_model(
            inputs_embeds=embeds, attention_mask=mask, labels=alone.labels
        ).loss
        torch.testing.assert_close(found[row], library)


@pytest.mark.parametrize("task", TASKS)
def test_a_taught_edge_does_not_move_what_is_said_of_it(task: str) -> None:
    """The heart of the leak guard: with the edge in the graph or not, the loss is the same."""
    kind = TaskSettings(whole_words="graph")
    batch = a_batch(task)
    without = TRAIN.copy().tolil()
    without[0, 1] = without[1, 2] = 0
    settings = {task: kind.model_dump()}
    whole = build(TRAIN, **settings).train().losses(batch)
    smaller = build(csr_matrix(without), **settings).train().losses(batch)
    torch.testing.assert_close(whole, smaller)
    seen = build(TRAIN, message=TRAIN, **settings).train().losses(batch)
    assert not torch.allclose(whole, seen, atol=1e-4), "the edge is not read at all"


def test_evaluation_propagates_once_and_training_forgets_it(monkeypatch) -> None:
    import raysys.models.elmrec as module

    calls = []
    original = module.propagate_sum
    monkeypatch.setattr(module, "propagate_sum", lambda *args: calls.append(1) or original(*args))
    model = build().eval()
    first = model.losses(a_batch())
    torch.testing.assert_close(model.losses(a_batch()), first)
    assert len(calls) == 1
    model.train()
    with torch.no_grad():
        model.words.start.mul_(2)
    model.eval()
    assert not torch.allclose(model.losses(a_batch()), first)


def test_a_fixed_start_trains_a_projection_alone() -> None:
    model = build(TRAIN, message=TRAIN, fixed_width=4).train()
    names = {name for name, _ in model.words.named_parameters()}
    assert names == {"projection"}
    assert model.words.start.shape == (USERS + ITEMS, 4)
    model.losses(a_batch()).sum().backward()
    assert model.words.projection.grad.abs().sum() > 0


def test_gradients_reach_all_that_a_task_reads() -> None:
    for task, table in (("direct", "words.start"), ("sequential", "ordinal")):
        model = build().train()
        model.losses(a_batch(task)).sum().backward()
        grads = {name: one.grad for name, one in model.named_parameters()}
        for name in (table, "prompts", "other"):
            assert grads[name].abs().sum() > 0, (task, name)
