from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from raysys.models.constrained import (
    Trie,
    constrained_search,
    sequence_scores,
    without_known,
)

END = 1
#: Sequences of different lengths that share beginnings.
SEQUENCES = np.array(
    [[5, 6, END, -1], [5, 7, 8, END], [9, END, -1, -1], [5, 6, 4, END], [9, 9, END, -1]]
)


@pytest.fixture(scope="module")
def model() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=12, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def encoded(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Two users' inputs; the second is shorter."""
    tokens = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        states = model.get_encoder()(tokens, attention_mask=mask).last_hidden_state
    return states, mask


def by_hand(model, encoded, user: int, sequence: list[int]) -> float:
    """The definition: the whole sequence in one pass, no cache, no other user."""
    states, mask = encoded
    with torch.no_grad():
        logits = model(
            encoder_outputs=(states[user : user + 1],),
            attention_mask=mask[user : user + 1],
            decoder_input_ids=torch.tensor([[0, *sequence[:-1]]]),
        ).logits
    chances = logits[0].double().log_softmax(dim=-1)
    return float(sum(chances[place, token] for place, token in enumerate(sequence)))


def expected(model, encoded, user: int, sequences: np.ndarray) -> np.ndarray:
    rows = ([token for token in row if token >= 0] for row in sequences.tolist())
    return np.array([by_hand(model, encoded, user, row) for row in rows])


def test_a_trie_holds_its_sequences_and_nothing_else() -> None:
    trie = Trie.of(SEQUENCES)

    def walk(node: int, before: tuple[int, ...]) -> dict[tuple[int, ...], int]:
        found = {before: int(trie.ends[node])} if trie.ends[node] >= 0 else {}
        for edge in range(int(trie.first[node]), int(trie.first[node + 1])):
            found |= walk(trie.roots + edge, (*before, int(trie.tokens[edge])))
        return found

    wanted = {tuple(t for t in row if t >= 0): n for n, row in enumerate(SEQUENCES.tolist())}
    assert walk(0, ()) == wanted


def test_of_equal_sequences_the_first_is_meant() -> None:
    assert sorted(n for n in Trie.of(SEQUENCES[[0, 0, 2, 2]]).ends.tolist() if n >= 0) == [0, 2]


def test_search_and_teacher_forcing_give_the_scores_of_the_definition(model, encoded) -> None:
    states, mask = encoded
    trie, roots = Trie.of(SEQUENCES), torch.zeros(2, dtype=torch.int64)
    found, scores = constrained_search(model, states, mask, trie, roots, beams=5)
    forced = sequence_scores(model, states, mask, torch.from_numpy(np.stack([SEQUENCES] * 2)))
    for user in range(2):
        wanted = expected(model, encoded, user, SEQUENCES)
        np.testing.assert_allclose(forced[user], wanted, atol=1e-5)
        assert found[user].tolist() == np.argsort(-wanted).tolist()
        np.testing.assert_allclose(scores[user], np.sort(wanted)[::-1], atol=1e-5)
    assert not torch.allclose(*scores, atol=1e-3), "both users are alike: the test shows nothing"


def test_each_user_searches_a_tree_of_its_own(model, encoded) -> None:
    roots = np.array([0, 0, 1, 1, 1])
    trie = Trie.of(SEQUENCES, roots)
    found, scores = constrained_search(model, *encoded, trie, torch.tensor([0, 1]), beams=4)
    for user in range(2):
        own = np.flatnonzero(roots == user)
        wanted = expected(model, encoded, user, SEQUENCES[own])
        order = own[np.argsort(-wanted)].tolist()
        assert found[user].tolist() == order + [-1] * (4 - len(own))
        assert torch.isneginf(scores[user, len(own) :]).all()


def test_a_narrow_search_keeps_the_best_beginnings(model, encoded) -> None:
    trie, roots = Trie.of(SEQUENCES), torch.zeros(2, dtype=torch.int64)
    found, scores = constrained_search(model, *encoded, trie, roots, beams=1)
    for user in range(2):
        wanted = expected(model, encoded, user, SEQUENCES)
        first = expected(model, encoded, user, np.array([[5], [9]]))
        inside = np.flatnonzero(SEQUENCES[:, 0] == (5, 9)[int(first.argmax())])
        assert found[user, 0] in inside
        np.testing.assert_allclose(scores[user, 0], wanted[found[user, 0]], atol=1e-5)


def test_what_a_user_has_is_left_out_and_the_order_stays() -> None:
    found = np.array([[7, 3, 5, 1], [2, 4, -1, -1]])
    lists = without_known(found, [np.array([3, 9]), np.array([2, 4])], k=2)
    assert lists.tolist() == [[7, 5], [-1, -1]]
