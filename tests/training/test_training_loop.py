from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from toy_models import USERS, toy_model, toy_settings, toy_train, toy_valid

from raysys.errors import UserError
from raysys.evaluation.protocols import all_rank
from raysys.models.parameters import parameters_of
from raysys.models.saved import Embeddings
from raysys.training.loop import GraphTraining, TrainSettings, mixed_seed


def toy_training(aligned: bool = True, **changes: object) -> GraphTraining:
    values = {"batch_size": 32, "epochs": 8, "learning_rate": 0.02, "validate_every": 2} | changes
    train = toy_train()
    model = toy_model(toy_settings(aligned))
    return GraphTraining(model, train, toy_valid(train), TrainSettings(**values))


def assert_same(left: GraphTraining, right: GraphTraining) -> None:
    assert left.history == right.history
    assert (left.epoch, left.best_epoch, left.stale) == (right.epoch, right.best_epoch, right.stale)
    for name, array in parameters_of(left.model).items():
        np.testing.assert_array_equal(array, parameters_of(right.model)[name])


def test_learns_the_two_groups() -> None:
    training = toy_training(aligned=False, epochs=40)
    train, before = toy_train(), Embeddings.of(training.model)
    training.run()
    after = Embeddings.of(training.model)
    losses = [row["bpr"] for row in training.history]
    assert losses[-1] < 0.5 * losses[0]
    # Positive pairs rise above the rest: the sign of BPR.
    everyone = np.arange(USERS)
    gaps = []
    for scores in (before, after):
        table = scores.score_block(everyone)
        gaps.append(table[train.toarray() > 0].mean() - table[train.toarray() == 0].mean())
    assert gaps[1] > gaps[0] + 1
    assert training.history[-1]["recall@20"] == 1.0


def test_same_seed_same_run_other_seed_other_run() -> None:
    first, again, other = toy_training(), toy_training(), toy_training(seed=7)
    for training in (first, again, other):
        training.run()
    assert_same(first, again)
    assert first.history != other.history


@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_resumed_run_equals_the_undisturbed_one(stop_after: int, tmp_path: Path) -> None:
    undisturbed = toy_training()
    undisturbed.run()
    killed = toy_training()
    for _ in range(stop_after):
        killed.train_epoch()
    killed.save(tmp_path)
    killed.train_epoch()  # lost with the process
    resumed = toy_training()
    resumed.load(tmp_path)
    assert resumed.epoch == stop_after
    resumed.run()
    assert_same(resumed, undisturbed)
    undisturbed.restore_best()
    resumed.restore_best()
    assert_same(resumed, undisturbed)


def test_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    training = toy_training()
    training.train_epoch()
    training.save(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    assert json.loads((tmp_path / "state.json").read_text())["epoch"] == 1


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    training = toy_training(aligned=False)
    training.save(tmp_path)
    with pytest.raises(UserError, match="does not fit this model"):
        toy_training().load(tmp_path)


def test_checkpoint_of_another_train_split_is_refused(tmp_path: Path) -> None:
    toy_training().save(tmp_path)
    other = GraphTraining(toy_model(), toy_train(seed=1), None, TrainSettings())
    with pytest.raises(UserError, match="another train split"):
        other.load(tmp_path)


def test_stops_when_patience_is_used_up_and_restores_the_best_epoch() -> None:
    training = toy_training(aligned=False, epochs=50, patience=3, validate_every=1)
    recalls = iter([0.1, 0.4, 0.3, 0.4, 0.2, 0.9])
    best: list[dict[str, np.ndarray]] = []
    training._validate = lambda valid: next(recalls)  # type: ignore[method-assign]
    training.run(lambda now: best.append(parameters_of(now.model)))
    # 0.4 in epoch 2 is the best; an equal value is not better: epochs 3, 4, 5 are stale.
    assert (training.epoch, training.best_epoch, training.best_recall) == (5, 2, 0.4)
    training.restore_best()
    np.testing.assert_array_equal(parameters_of(training.model)["nodes"], best[1]["nodes"])


def test_recall_is_that_of_the_evaluation() -> None:
    training = toy_training(epochs=2)
    training.run()
    train = toy_train()
    result = all_rank(Embeddings.of(training.model).score_block, train, toy_valid(train), [20])
    assert training.history[0]["recall@20"] is None
    assert training.history[1]["recall@20"] == pytest.approx(result.metrics["recall@20"])


def test_last_epoch_is_validated_even_if_not_due() -> None:
    training = toy_training(epochs=3, validate_every=100)
    training.run()
    assert [row["recall@20"] is None for row in training.history] == [True, True, False]


@pytest.mark.parametrize("valid", [None, csr_matrix((USERS, 18), dtype=np.float32)])
def test_without_validation_the_last_epoch_counts(valid: csr_matrix | None) -> None:
    settings = TrainSettings(epochs=7, patience=1, validate_every=1)
    training = GraphTraining(toy_model(), toy_train(), valid, settings)
    training.run()
    assert (training.epoch, training.best_epoch, training.best_recall) == (7, 7, None)


def test_each_positive_once_an_epoch_with_new_order_and_negatives() -> None:
    training = toy_training()
    seen = []
    for _ in range(2):
        batches = training._batches()
        seen.append([torch.cat([getattr(b, key) for b in batches]).numpy() for key in
                     ("users", "positives", "negatives")])  # fmt: skip
        training.epoch += 1
    train = toy_train().tocoo()
    for users, positives, negatives in seen:
        assert sorted(zip(users, positives, strict=True)) == sorted(
            zip(train.row, train.col, strict=True)
        )
        assert not toy_train().toarray()[users, negatives].any()
    assert (seen[0][0] != seen[1][0]).any()
    assert (np.sort(seen[0][2]) != np.sort(seen[1][2])).any()


def test_step_seeds_differ() -> None:
    seeds = {mixed_seed(s, e, t) for s in (0, 1, 2023) for e in range(20) for t in range(20)}
    assert len(seeds) == 3 * 20 * 20


def test_divergence_is_told() -> None:
    training = toy_training(epochs=20)
    with torch.no_grad():
        next(training.model.parameters())[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"not finite in epoch 1.*learning_rate"):
        training.run()


def test_empty_train_split() -> None:
    with pytest.raises(UserError, match="train split is empty"):
        GraphTraining(toy_model(), csr_matrix((USERS, 18), dtype=np.float32), None, TrainSettings())


def test_the_step_size_is_halved_when_validation_stands_still_and_a_checkpoint_knows(
    tmp_path: Path,
) -> None:
    # The toy data is learnt at once, so that every later validation is stale.
    changes = {"epochs": 8, "validate_every": 1, "patience": 9, "halve_after": 2}
    training = toy_training(aligned=False, learning_rate=0.5, **changes)
    training.run()
    assert (
        training.halved
        == [training.best_epoch + 2 * turn for turn in (1, 2, 3)][: len(training.halved)]
    )
    assert training.halved
    (group,) = training._optimizer.param_groups
    before_last = sum(epoch < 8 for epoch in training.halved)
    assert group["lr"] == 0.5 * 0.5**before_last
    training.save(tmp_path)
    other = toy_training(aligned=False, learning_rate=0.5, **changes)
    other.load(tmp_path)
    assert other.halved == training.halved


def test_a_refit_repeats_the_step_sizes() -> None:
    training = toy_training(aligned=False, epochs=4, halve_at=(1, 3))
    rates = []
    training.run(lambda now: rates.append(now._optimizer.param_groups[0]["lr"]))
    assert rates == pytest.approx([0.02, 0.01, 0.01, 0.005])
