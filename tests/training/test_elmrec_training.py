"""ELMRec's tasks and training without Ray, on a shop of twelve users and thirty items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from precisions import assert_alike_in_bfloat16
from toy_language_model import toy_shop

from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.models.elmrec import NO_LABEL
from raysys.models.parameters import parameters_of
from raysys.settings import parse_settings
from raysys.store import read_table, write_table
from raysys.training.elmrec import (
    LANGUAGE_MODEL,
    NUMBERS_FILE,
    Built,
    ELMRecJob,
    ELMRecTraining,
    build,
    load,
    material,
    save,
    write_inputs,
)
from raysys.training.elmrec_answers import Asked
from raysys.training.elmrec_settings import ELMRecSettings
from raysys.training.elmrec_tasks import (
    CANDIDATES_FILE,
    Edges,
    read_candidates,
    write_candidates,
)
from raysys.training.ray_train import Placement
from raysys.training.workers import Workers

CPU = torch.device("cpu")


def settings_of(**changes) -> ELMRecSettings:
    values = {
        "small": {
            "width": 16, "layers": 1, "heads": 2, "inner": 32, "dropout": 0.0, "vocabulary": 330,
        },
        "words": {"sigma": 0.5, "layers": 2},
        "negatives": 9,
        "further": 2,
        "train": {"learning_rate": 0.01, "batch_size": 4, "epochs": 2, "checkpoint_every": 1},
        "ks": (1, 3, 5),
    }  # fmt: skip
    return parse_settings(ELMRecSettings, values | changes, source="test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data set with reviews, and the inputs of a training."""
    folder = Path(tmp_path_factory.mktemp("elmrec"))
    toy_shop(folder / "data")
    path = folder / "data" / "interactions.parquet"
    table = read_table(path)
    texts = [f"good number {n}" if n % 3 else None for n in range(table.num_rows)]
    write_table(path, table.append_column("review", pa.array(texts, pa.string())))
    dataset, settings = Dataset.load(folder / "data"), settings_of()
    inputs = folder / "inputs"
    inputs.mkdir()
    assert write_inputs(settings, dataset, inputs) == {"valid": 12, "test": 12}
    return folder


def job_of(folder: Path, **changes) -> ELMRecJob:
    return ELMRecJob(folder / "data", folder / "inputs", settings_of(**changes), Placement())


def shown(built: Built, batch) -> list[set[int]]:
    """Item rows that each row of a batch shows."""
    users = len(built.dataset.user_ids)
    return [{n - 1 - users for n in row if n > users} for row in batch.word_nodes.tolist()]


ALL = ("direct", "sequential", "explanation")


def test_training_reads_nothing_of_validation_and_test(folder) -> None:
    built = build(job_of(folder, tasks=ALL), CPU)
    train = [set(one.tolist()) for one in built.dataset.histories("train")]
    later = [set(one.tolist()) for one in built.dataset.histories("valid", "test")]
    seen = dict.fromkeys(ALL, 0)
    for epoch in range(20):
        for step in range(built.tasks.steps):
            batch = built.tasks.batch(epoch, step)
            for row, (user, item) in enumerate(zip(batch.users, batch.items, strict=True)):
                own, items = train[int(user)], shown(built, batch)[row]
                assert int(item) in own
                if batch.task == "direct":
                    assert items & own == {int(item)}
                    assert len(items) == 10
                elif batch.task == "sequential":
                    assert items <= own - {int(item)}
                    assert not items & later[int(user)]
                else:
                    assert items == {int(item)}
            seen[batch.task] += 1
    assert len(set(seen.values())) == 1
    assert min(seen.values()) > 0


def test_a_segment_is_of_consecutive_items_and_its_answer_the_next(folder) -> None:
    built = build(job_of(folder, tasks=["sequential"]), CPU)
    histories = built.dataset.histories("train")
    found = set()
    for epoch in range(30):
        batch = built.tasks.batch(epoch, 0)
        for row, (user, item) in enumerate(zip(batch.users, batch.items, strict=True)):
            history = histories[int(user)].tolist()
            end = history.index(int(item))
            nodes = [n - 13 for n in batch.word_nodes[row].tolist()[1:] if n]
            assert nodes == history[end - len(nodes) : end]
            found.add((end - len(nodes), end))
    assert found == {(0, 1), (0, 2), (1, 2)}


def test_batches_follow_from_seed_epoch_and_step(folder) -> None:
    first, again = (build(job_of(folder), CPU).tasks for _ in range(2))
    for epoch, step in ((0, 0), (3, 5)):
        ours, theirs = first.batch(epoch, step), again.batch(epoch, step)
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.labels, theirs.labels)
    assert not torch.equal(first.batch(0, 0).tokens, first.batch(1, 0).tokens)


def test_every_user_is_seen_once_an_epoch(folder) -> None:
    tasks = build(job_of(folder), CPU).tasks
    assert tasks.steps == 6
    users = [tasks.batch(0, step).users.tolist() for step in range(0, 6, 2)]
    assert sorted(user for batch in users for user in batch) == list(range(12))


def test_the_graph_holds_train_alone_unless_it_is_asked_to_leak(folder) -> None:
    dataset = Dataset.load(folder / "data")
    edges = Edges.of(settings_of(), dataset)
    assert (edges.graph != dataset.matrix("train")).nnz == 0
    settings = settings_of(graph="explanation_split", hide="none")
    leaky = Edges.of(settings, dataset).graph
    assert leaky.multiply(dataset.matrix("test")).nnz > 0
    assert settings.leaks
    assert not settings_of().leaks


def test_a_split_teaches_what_the_graph_has_not(folder) -> None:
    edges = Edges.of(
        settings_of(hide="split", supervision_share=0.5), Dataset.load(folder / "data")
    )
    assert edges.message.multiply(edges.taught).nnz == 0
    assert ((edges.message + edges.taught) != edges.graph).nnz == 0
    built = build(job_of(folder, hide="split", supervision_share=0.5, tasks=ALL), CPU)
    taught = edges.taught.toarray().astype(bool)
    for step in range(built.tasks.steps):
        batch = built.tasks.batch(0, step)
        if batch.task != "sequential":
            assert taught[batch.users, batch.items].all()
    with pytest.raises(UserError, match="leaves the sequential task's targets in the graph"):
        settings_of(hide="split", words={"sequential": {"whole_words": "graph"}})


def test_training_lowers_the_loss_and_the_same_seed_gives_the_same_model(folder) -> None:
    ends = []
    for _ in range(2):
        built = build(job_of(folder, tasks=ALL), CPU)
        training = ELMRecTraining(built, settings_of(tasks=ALL))
        before = training.validate()
        training.run()
        assert training.best < before
        assert [row["epoch"] for row in training.history] == [1, 2]
        ends.append(parameters_of(built.model))
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name], err_msg=name)


def test_a_stopped_training_ends_with_the_same_bits(folder, tmp_path) -> None:
    job = job_of(folder)
    whole = build(job, CPU)
    ELMRecTraining(whole, job.settings).run()
    first = ELMRecTraining(build(job, CPU), job.settings)
    for _ in range(4):
        first.train_step()
    first.save(tmp_path)
    later = build(job, CPU)
    training = ELMRecTraining(later, job.settings)
    training.load(tmp_path)
    training.run()
    for name, array in parameters_of(whole.model).items():
        np.testing.assert_array_equal(array, parameters_of(later.model)[name], err_msg=name)


@pytest.mark.parametrize("step", [0, 1])
def test_the_workers_gradients_add_up_to_one_workers(folder, step) -> None:
    """Step 0 is of the direct task, step 1 of the sequential one."""
    job = job_of(folder)
    sums: list[dict[str, torch.Tensor]] = []
    for workers in ([Workers()], [Workers(0, 3), Workers(1, 3), Workers(2, 3)]):
        total: dict[str, torch.Tensor] = {}
        shares = 0.0
        for worker in workers:
            built = build(job, CPU)
            training = ELMRecTraining(built, job.settings, worker)
            training.step = step
            built.model.train()
            shares += float(training.backward()[0])
            for name, one in built.model.named_parameters():
                if one.grad is not None:
                    total[name] = total.get(name, 0) + one.grad
        sums.append(total | {"loss": torch.tensor(shares)})
    for name, value in sums[0].items():
        torch.testing.assert_close(sums[1][name], value, msg=name, rtol=1e-4, atol=1e-6)


def test_five_epochs_without_gain_end_it(folder) -> None:
    changes = {"train": {"learning_rate": 1e-9, "epochs": 50, "batch_size": 12, "patience": 5}}
    job = job_of(folder, **changes)
    training = ELMRecTraining(build(job, CPU), job.settings)
    training.validate = lambda: 1.0  # type: ignore[method-assign]
    training.run()
    assert (training.epoch, training.best_epoch) == (6, 1)


def test_a_saved_model_answers_alike_and_both_ways_of_decoding_agree(folder, tmp_path) -> None:
    job = job_of(folder, tasks=ALL)
    built = build(job, CPU)
    ELMRecTraining(built, job.settings).run()
    save(built, job, tmp_path)
    built.model.eval()
    known = built.dataset.histories("train", "valid")
    answers = []
    for decode in ("trie", "score"):
        again = job_of(folder, tasks=ALL, decode=decode, beams=10)
        for one in (built, load(again, tmp_path, CPU)):
            asked = Asked(one, again.settings)
            rows = {task: one.tasks.asked(task, "test") for task in ALL}
            answers.append(
                (
                    asked.direct(rows["direct"]).tolist(),
                    asked.sequential(
                        rows["sequential"], [known[row.user] for row in rows["sequential"]]
                    ).tolist(),
                    asked.explain(rows["explanation"]).tolist(),
                )
            )
    assert all(answer == answers[0] for answer in answers)
    for row, items in zip(rows["direct"], answers[0][0], strict=True):
        assert len(set(items)) == 5
        assert set(items) <= set(row.items.tolist())
    for row, items in zip(rows["sequential"], answers[0][1], strict=True):
        assert not set(items) & set(known[row.user].tolist())


def test_a_model_of_other_items_is_refused(folder, tmp_path) -> None:
    job = job_of(folder)
    save(build(job, CPU), job, tmp_path / "model")
    toy_shop(tmp_path / "other")
    table = read_table(tmp_path / "other" / "items.parquet")
    ids = pa.array([f"x{n}" for n in range(30)])
    write_table(tmp_path / "other" / "items.parquet", table.set_column(0, "item_id", ids))
    inner = read_table(tmp_path / "other" / "interactions.parquet")
    moved = pa.array(["x" + one[1:] for one in inner["item_id"].to_pylist()])
    write_table(tmp_path / "other" / "interactions.parquet", inner.set_column(1, "item_id", moved))
    other = ELMRecJob(tmp_path / "other", folder / "inputs", job.settings, Placement())
    with pytest.raises(UserError, match="was trained on other users or items"):
        load(other, tmp_path / "model", CPU)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("user_id", "nobody", "row 1: 'nobody' is not in the data set"),
        ("item_id", ["i1", "i1"], "row 1: candidate 'i1' is there twice"),
        ("item_id", ["i1", "gone"], "row 1: 'gone' is not in the data set"),
    ],
)
def test_stored_candidates_that_do_not_fit_are_refused(folder, tmp_path, column, value, told):
    table = read_table(folder / "inputs" / CANDIDATES_FILE)
    rows = table.to_pylist()
    rows[0][column] = value
    write_table(tmp_path / CANDIDATES_FILE, pa.Table.from_pylist(rows, table.schema))
    with pytest.raises(UserError, match=told):
        read_candidates(Dataset.load(folder / "data"), tmp_path, rows[0]["split"])


def test_a_user_with_one_interaction_is_taught_and_never_asked(folder, tmp_path) -> None:
    toy_shop(tmp_path)
    path = tmp_path / "interactions.parquet"
    table = read_table(path)
    keep = [row["user_id"] != "u00" or row["timestamp"] == 0 for row in table.to_pylist()]
    write_table(path, table.filter(pa.array(keep)))
    dataset, settings = Dataset.load(tmp_path), settings_of()
    (tmp_path / "inputs").mkdir()
    for name in (NUMBERS_FILE, LANGUAGE_MODEL):
        (tmp_path / "inputs" / name).symlink_to(folder / "inputs" / name)
    assert write_candidates(settings, dataset, tmp_path / "inputs") == {"valid": 11, "test": 11}
    job = ELMRecJob(tmp_path, tmp_path / "inputs", settings, Placement())
    built = build(job, CPU)
    direct = [built.tasks.batch(0, step).users.tolist() for step in range(0, 6, 2)]
    assert any(0 in users for users in direct)
    training = ELMRecTraining(built, settings)
    training.run()
    assert np.isfinite(training.history[-1]["loss"])


def test_a_search_wider_than_the_catalogue_gives_what_there_is(folder) -> None:
    job = job_of(folder, further=100, ks=(1, 40))
    built = build(job, CPU)
    built.model.eval()
    rows = built.tasks.asked("sequential", "test")
    known = [row.items for row in rows]
    lists = Asked(built, job.settings).sequential(rows, known)
    assert lists.shape == (12, 40)
    for row, items in zip(rows, lists, strict=True):
        real = items[items >= 0].tolist()
        assert sorted(real) == sorted(set(range(30)) - set(row.items.tolist()))


@pytest.mark.parametrize("decode", ["trie", "score"])
def test_fewer_candidates_than_the_list_is_long_leave_it_short(folder, decode) -> None:
    job = job_of(folder, decode=decode, ks=(1, 15))
    built = build(job, CPU)
    built.model.eval()
    rows = built.tasks.asked("direct", "test")
    lists = Asked(built, job.settings).direct(rows)
    assert lists.shape == (12, 15)
    for row, items in zip(rows, lists, strict=True):
        assert sorted(items[:10]) == sorted(row.items)
        assert (items[10:] == -1).all()


def test_the_same_candidate_twice_is_refused(folder) -> None:
    built = build(job_of(folder), CPU)
    row = built.tasks.asked("direct", "test")[0]
    row.items[1] = row.items[0]
    with pytest.raises(ValueError, match="has a candidate twice"):
        Asked(built, settings_of()).direct([row])


def test_explanations_need_their_column(folder, tmp_path) -> None:
    toy_shop(tmp_path)
    job = ELMRecJob(tmp_path, folder / "inputs", settings_of(tasks=ALL), Placement())
    with pytest.raises(UserError, match="reads the interactions' column 'review', and there is"):
        material(job)
    rows = material(job_of(folder, tasks=ALL)).tasks.explanations
    train = Dataset.load(folder / "data").matrix("train").toarray()
    assert rows["train"]
    assert all(train[row.user, row.item] for row in rows["train"])
    assert not any(train[row.user, row.item] for row in rows["test"])


def test_a_causal_model_is_refused(folder, tmp_path) -> None:
    from toy_language_model import toy_language_model

    toy_language_model(tmp_path)
    with pytest.raises(UserError, match="of type 'llama', not an encoder-decoder"):
        build(job_of(folder, model=str(tmp_path)), CPU)


def test_labels_end_where_the_item_does(folder) -> None:
    batch = build(job_of(folder), CPU).tasks.batch(0, 0)
    ends = (batch.labels != NO_LABEL).sum(dim=1)
    assert all(int(row[end - 1]) == 1 for row, end in zip(batch.labels, ends, strict=True))


def test_bfloat16_trains_alike(folder, monkeypatch) -> None:
    job = job_of(folder)
    assert_alike_in_bfloat16(lambda: ELMRecTraining(build(job, CPU), job.settings), monkeypatch)
