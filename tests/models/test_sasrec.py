from __future__ import annotations

import numpy as np
import pytest
import torch

from raysys.data.candidates import Candidates
from raysys.errors import UserError
from raysys.models.sasrec import SASRec, SASRecSettings, next_item_loss, padded
from raysys.training.sequential import candidate_scores, train_sasrec

SETTINGS = SASRecSettings(width=16, heads=2, length=6, dropout=0.0, batch_size=8, epochs=30)
#: Everybody walks a circle of ten items, each from a place of their own.
WALKS = [(start + np.arange(5)) % 10 for start in range(10)]


@pytest.fixture
def model() -> SASRec:
    torch.manual_seed(0)
    return SASRec(10, SETTINGS).eval()


def test_histories_stand_left_the_latest_items_are_kept_and_nothing_is_zero():
    found = padded([np.array([4, 0]), np.arange(9), np.array([], np.int64)], 3)
    assert found.tolist() == [[5, 1, 0], [7, 8, 9], [0, 0, 0]]


def test_items_and_the_one_that_fills_up_have_a_row_each(model):
    assert model.items.weight.shape == (10 + 1, 16)
    assert not model(torch.zeros(1, 6, dtype=torch.int64)).isnan().any()


def test_no_place_sees_what_comes_later(model):
    one, other = (model(torch.tensor([[1, 2, 3, last]])) for last in (4, 9))
    torch.testing.assert_close(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3], other[:, 3])


def test_scores_do_not_depend_on_who_stands_beside(model):
    items = np.array([[1, 2, 3], [4, 5, 6]])
    both = model.score([np.array([1, 2]), np.arange(6)], items)
    alone = model.score([np.array([1, 2])], items[:1])
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=0)
    assert model.score([np.array([], np.int64)], items[:1]).tolist() == [[0, 0, 0]]


def test_the_loss_is_the_cross_entropy_of_each_place(model):
    sequences, negatives = padded([np.array([1, 2, 3]), np.array([4, 5])], 6), torch.tensor([2, 7])
    wanted = []
    for row, (before, after) in ((0, (1, 2)), (0, (2, 3)), (1, (4, 5))):
        history = sequences[row, : sequences[row].tolist().index(before + 1) + 1][None]
        state = model(history)[0, -1]
        others = [item for item in negatives.tolist() if item != after]
        logits = model.items.weight[torch.tensor([after, *others]) + 1] @ state
        wanted.append(-logits.log_softmax(dim=0)[0].item())
    found = next_item_loss(model, sequences, negatives)
    assert found.item() == pytest.approx(np.mean(wanted), rel=1e-5)


def test_it_learns_who_follows_whom_and_repeats_itself():
    questions = [
        Candidates(user, walk, np.array([(walk[-1] + step) % 10 for step in (3, 1, 5)]), 1)
        for user, walk in enumerate(WALKS)
    ]
    settings = SETTINGS.model_copy(update={"learning_rate": 0.01, "patience": 30})
    scores = [
        candidate_scores(train_sasrec(settings, WALKS, 10, questions), questions) for _ in range(2)
    ]
    assert (scores[0].argmax(axis=1) == 1).all()
    np.testing.assert_array_equal(*scores)


def test_single_interactions_are_refused():
    with pytest.raises(UserError, match="two train interactions"):
        train_sasrec(SETTINGS, [np.array([1])], 10, [])
