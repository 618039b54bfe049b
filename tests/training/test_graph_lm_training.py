"""What the graph-attentive language model learns, and that training is exact; no Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from precisions import assert_alike_in_bfloat16
from toy_language_model import toy_language_model, toy_shop

from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.evaluation.protocols import all_rank
from raysys.models.parameters import parameters_of
from raysys.schema import TEST, TRAIN, VALID
from raysys.settings import parse_settings
from raysys.store import write_arrays, write_json
from raysys.training.graph_lm import GraphLMTraining
from raysys.training.graph_lm_lessons import Crowd, Lesson
from raysys.training.graph_lm_model import (
    ABOUT_FILE,
    PARAMETERS_FILE,
    Built,
    GraphLMJob,
    build,
    history_scores,
    lessons_of,
    material,
    write_inputs,
)
from raysys.training.graph_lm_online import OnlineScorer
from raysys.training.graph_lm_settings import GraphLMSettings, StepSettings
from raysys.training.ray_train import Placement
from raysys.training.workers import Workers

CPU = torch.device("cpu")
STEP = {"learning_rate": 0.02, "batch_size": 5, "epochs": 3}
SMALL = {"width": 16, "layers": 1, "heads": 2, "inner": 16, "vocabulary": 300, "dropout": 0.0}
JobOf = Callable[..., GraphLMJob]


@pytest.fixture
def job_of(tmp_path: Path) -> JobOf:
    """Jobs on one toy shop."""
    toy_shop(tmp_path / "data", length=7)

    def make(step: str = "predict", **changes: object) -> GraphLMJob:
        values = {
            "small": SMALL,
            "steps": [step],
            "max_tokens": 64,
            "interactions": STEP,
            "predict": STEP,
            "valid_users": None,
        }
        settings = parse_settings(GraphLMSettings, values | changes, source="test")
        dataset = Dataset.load(tmp_path / "data")
        inputs = tmp_path / "inputs"
        if not inputs.is_dir() and settings.model is None:
            write_inputs(settings.model_copy(update={"steps": ("predict",)}), dataset, inputs)
        return GraphLMJob(tmp_path / "data", inputs, settings, step, None, Placement())

    return make


def training_of(job: GraphLMJob, workers: Workers | None = None) -> GraphLMTraining:
    built = build(job, CPU)
    return GraphLMTraining(built, lessons_of(job, built), job.settings, job.step, workers)


def nodes_of(lesson: Lesson, built: Built) -> list[list[int]]:
    """Item rows in each prompt."""
    first = built.writer.words + built.writer.users
    return [[int(one) - first for one in row if one >= first] for row in lesson.batch.tokens]


@pytest.mark.parametrize("step", ["interactions", "predict"])
def test_only_train_is_learnt(job_of: JobOf, step: str) -> None:
    job = job_of(step)
    built = build(job, CPU)
    lessons, train = lessons_of(job, built), built.dataset.matrix(TRAIN).toarray()
    users = []
    for place in range(lessons.steps):
        lesson = lessons.batch(0, place, 0, 1)
        assert lesson is not None
        for row, items in enumerate(nodes_of(lesson, built)):
            user = int(lesson.batch.tokens[row, 0]) - built.writer.words
            users.append(user)
            wanted = [] if lesson.items is None else lesson.items[lesson.rows == row].tolist()
            assert train[user, items + wanted].all()
            if step == "interactions":
                assert sorted(items) == np.flatnonzero(train[user]).tolist()
    assert sorted(users) == list(range(len(train)))


@pytest.mark.parametrize(("targets", "wanted"), [("all", 5), ("hidden", 1)])
def test_a_share_of_the_history_is_hidden(job_of: JobOf, targets: str, wanted: int) -> None:
    job = job_of(predict={**STEP, "hidden_share": 0.2, "targets": targets})
    built = build(job, CPU)
    lesson = lessons_of(job, built).batch(0, 0, 0, 1)
    assert lesson is not None
    assert lesson.items is not None
    for row, items in enumerate(nodes_of(lesson, built)):
        mine = lesson.items[lesson.rows == row]
        assert (len(items), len(mine)) == (4, wanted)
        assert len(set(items) | set(mine)) == 5
    orders = [nodes_of(lessons_of(job, built).batch(epoch, 0, 0, 1), built) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_crowd_batches_hold_each_prompt_once_and_like_lengths(job_of: JobOf) -> None:
    found = material(job_of())
    rng = np.random.default_rng(0)
    prompts = [np.arange(size) % 7 for size in rng.integers(3, 60, 103)]
    settings = parse_settings(StepSettings, {"batch_size": 10}, source="test")
    crowd = Crowd(settings, prompts, found.writer, found.relations)
    batches = [crowd.chosen(0, place) for place in range(crowd.steps)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(103))
    assert crowd.steps == 11
    spread = [np.ptp([len(prompts[place]) for place in batch]) for batch in batches[:-1]]
    assert max(spread) < 20
    again = Crowd(settings, prompts, found.writer, found.relations)
    assert all(np.array_equal(again.chosen(0, place), one) for place, one in enumerate(batches))
    assert not np.array_equal(crowd.order(np.random.default_rng(1)), np.concatenate(batches))


def test_no_crowd_prompt_is_a_mistake(job_of: JobOf) -> None:
    with pytest.raises(UserError, match=r"take 'crowd' out of graph_lm\.steps"):
        lessons_of(replace(job_of(), step="crowd"), material(job_of()))


@pytest.mark.parametrize("step", ["interactions", "predict"])
def test_shares_of_workers_add_up(job_of: JobOf, step: str) -> None:
    whole, *parts = (
        training_of(job_of(step), w) for w in (Workers(), Workers(0, 2), Workers(1, 2))
    )
    shares = [one.backward()[0] for one in (whole, *parts)]
    assert float(shares[1] + shares[2]) == pytest.approx(float(shares[0]), rel=1e-5)
    for name, parameter in whole.model.named_parameters():
        found = [dict(one.model.named_parameters())[name].grad for one in parts]
        total = sum(one for one in found if one is not None)
        if parameter.grad is not None:
            torch.testing.assert_close(total, parameter.grad, rtol=1e-4, atol=1e-6)


def test_training_learns_which_half_a_user_likes(job_of: JobOf) -> None:
    training = training_of(job_of(predict={**STEP, "epochs": 40, "patience": 40}))
    training.run()
    losses = [row["loss"] for row in training.history]
    assert losses[-1] < 0.8 * losses[0]
    scores = history_scores(training._built, np.arange(12))
    same = (np.arange(12)[:, None] + np.arange(30)) % 2 == 0
    assert scores[same].mean() > scores[~same].mean() + 1


@pytest.mark.parametrize("step", ["interactions", "predict"])
def test_a_stopped_training_ends_with_the_same_bits(
    job_of: JobOf, step: str, tmp_path: Path
) -> None:
    whole = training_of(job_of(step))
    whole.run()
    stopped = training_of(job_of(step))
    for _ in range(4):
        stopped.train_step()
    stopped.save(tmp_path / "checkpoint")
    going_on = training_of(job_of(step))
    going_on.load(tmp_path / "checkpoint")
    going_on.run()
    assert going_on.history == whole.history
    for name, array in parameters_of(whole.model).items():
        np.testing.assert_array_equal(parameters_of(going_on.model)[name], array, err_msg=name)


@pytest.mark.parametrize("lora", [None, {"modules": ["c_attn"]}])
def test_saved_and_loaded_gives_the_same_scores(
    job_of: JobOf, lora: dict[str, object] | None, tmp_path: Path
) -> None:
    job = job_of(lora=lora)
    training = training_of(job)
    training.train_step()
    arrays = parameters_of(training.model)
    assert {"users", "items"} < set(arrays)
    if lora:
        assert all("lora" in name for name in set(arrays) - {"users", "items"})
    write_arrays(tmp_path / PARAMETERS_FILE, arrays)
    identity = Dataset.load(job.dataset).identity()
    write_json(tmp_path / ABOUT_FILE, {"dataset": identity})
    loaded = build(job, CPU, tmp_path)
    users = np.arange(12)
    np.testing.assert_array_equal(
        history_scores(loaded, users), history_scores(training._built, users)
    )
    assert not np.array_equal(history_scores(build(job, CPU), users), history_scores(loaded, users))
    write_json(tmp_path / ABOUT_FILE, {"dataset": "another"})
    with pytest.raises(UserError, match="trained on other users or items"):
        build(job, CPU, tmp_path)


def test_embeddings_are_held_where_texts_left_them(job_of: JobOf) -> None:
    moved = []
    for weight in (0.0, 1000.0):
        settings = {**STEP, "content_weight": weight}
        job = job_of("interactions", steps=["crowd", "interactions"], interactions=settings)
        training = training_of(job)
        before = training.model.items.detach().clone()
        for _ in range(6):
            training.train_step()
        moved.append(float((training.model.items.detach() - before).norm()))
    assert moved[1] < 0.5 * moved[0]


def test_validation_is_recall_on_validation(job_of: JobOf) -> None:
    training = training_of(job_of())
    dataset = training._built.dataset
    found = all_rank(
        lambda users: history_scores(training._built, users),
        dataset.matrix(TRAIN),
        dataset.matrix(VALID),
        (20,),
    )
    assert training.validate() == pytest.approx(found.metrics["recall@20"])
    assert dataset.matrix(TEST).nnz


def test_scores_do_not_depend_on_who_is_asked_with_whom(job_of: JobOf) -> None:
    built = build(job_of(), CPU)
    together = history_scores(built, np.arange(12))
    alone = np.concatenate([history_scores(built, np.array([user])) for user in range(12)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "cooccurrence", "none"])
def test_asked_online_a_user_gets_the_same_scores(job_of: JobOf, kind: str) -> None:
    built = build(job_of(relations={"kind": kind}), CPU)
    histories = built.dataset.histories(TRAIN)
    online = OnlineScorer(built)
    for user in (0, 3):
        np.testing.assert_allclose(
            online.scores(user, histories[user].tolist()),
            history_scores(built, np.array([user]))[0],
            atol=1e-5,
        )


def test_a_history_is_read_once(job_of: JobOf) -> None:
    built = build(job_of(), CPU)
    items = built.dataset.histories(TRAIN)[2].tolist()
    online, trigger = OnlineScorer(built), len(built.writer.trigger)
    first = online.scores(2, items[:-1])
    encoded = online.encoded
    np.testing.assert_allclose(online.scores(2, items[:-1]), first, atol=1e-5)
    assert online.encoded - encoded == trigger
    # One item more is one token more; and the scores are those of the whole history.
    longer = online.scores(2, items)
    assert online.encoded - encoded == 2 * trigger + 1
    np.testing.assert_allclose(longer, OnlineScorer(built).scores(2, items), atol=1e-5)
    # Another order is read anew.
    turned = online.scores(2, items[::-1])
    np.testing.assert_allclose(turned, OnlineScorer(built).scores(2, items[::-1]), atol=1e-5)


def test_histories_asked_for_long_ago_are_dropped(job_of: JobOf) -> None:
    built = build(job_of(), CPU)
    histories = [one.tolist() for one in built.dataset.histories(TRAIN)]
    size = len(built.writer.history(0, histories[0]))
    online = OnlineScorer(built, most_tokens=2 * size)
    online.warm(dict(enumerate(histories[:3])))
    encoded = online.encoded
    online.scores(2, histories[2])
    assert online.encoded - encoded == len(built.writer.trigger)
    online.scores(0, histories[0])
    assert online.encoded - encoded == 2 * len(built.writer.trigger) + size


def test_someone_new_and_something_unknown(job_of: JobOf) -> None:
    online = OnlineScorer(build(job_of(), CPU))
    assert np.isfinite(online.scores(1, [])).all()
    with pytest.raises(ValueError, match="not known"):
        online.scores(1, [30])
    with pytest.raises(ValueError, match="not known"):
        online.scores(12, [])


def test_a_prompt_longer_than_the_model_allows(job_of: JobOf, tmp_path: Path) -> None:
    folder = toy_language_model(tmp_path / "model")
    job = job_of(model=str(folder), max_tokens=5000)
    with pytest.raises(UserError, match="max_tokens 5000 is more than the 4096 positions"):
        write_inputs(job.settings, Dataset.load(job.dataset), tmp_path / "other")


def test_a_llama_is_trained_like_a_gpt2(job_of: JobOf, tmp_path: Path) -> None:
    folder = toy_language_model(tmp_path / "model")
    training = training_of(job_of(model=str(folder), gradient_checkpointing=True))
    before = parameters_of(training.model)
    training.train_step()
    after = parameters_of(training.model)
    assert all(not np.array_equal(before[name], after[name]) for name in ("users", "items"))
    assert any("q_proj" in name and not np.array_equal(before[name], after[name]) for name in after)


def test_steps_come_in_order() -> None:
    with pytest.raises(UserError, match="steps must be some of crowd, interactions, predict"):
        parse_settings(GraphLMSettings, {"steps": ["predict", "crowd"]}, source="test")


@pytest.mark.parametrize("step", ["interactions", "predict"])
def test_bfloat16_trains_alike(job_of: JobOf, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_alike_in_bfloat16(lambda: training_of(job_of(step)), monkeypatch)
