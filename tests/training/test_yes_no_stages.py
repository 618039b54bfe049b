"""LLM-TRSR's recommender from files to metrics, with a tiny language model."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from toy_language_model import toy_language_model, toy_shop
from toy_models import kill_train_worker, trained_here
from transformers import AutoModelForCausalLM

from raysys.cli import main
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.evaluation.kept_lists import read_test_lists
from raysys.models.saved import load_model
from raysys.models.yes_no import AnswerTokens, Question, YesNoScorer
from raysys.pipeline import YES_NO, run_stages, stages_to
from raysys.schema import PROFILE_SCHEMA, PROFILES_FILE, TRAIN, VALID
from raysys.settings import parse_settings
from raysys.stages.context import RunSettings
from raysys.stages.yes_no_lists import LISTS
from raysys.store import read_arrays, read_json, read_table, write_json, write_table
from raysys.text.engine import tokenizer_of
from raysys.text.yes_no import YesNoPrompts
from raysys.training.ray_train import Placement
from raysys.training.yes_no import (
    ABOUT_FILE,
    FinetuneJob,
    LoadedModel,
    finetune_yes_no,
    merge,
)
from raysys.training.yes_no_examples import (
    YesNoSettings,
    build_examples,
    item_texts,
    read_questions,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
STAGES = ("data", *YES_NO)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return toy_language_model(Path(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Dataset:
    return toy_shop(Path(tmp_path_factory.mktemp("shop")))


def settings_of(model: Path, **changes) -> YesNoSettings:
    values = {
        "model": str(model),
        "domain": "games",
        "summaries": False,
        "max_tokens": 1024,
        "finetune": {"learning_rate": 0.01, "batch_size": 8, "epochs": 2, "checkpoint_every": 1},
        "sasrec": {"epochs": 2, "width": 8, "length": 5},
    }
    return parse_settings(YesNoSettings, values | changes, source="test")


@pytest.fixture(scope="module")
def run(model, tmp_path_factory, in_process) -> RunSettings:
    """A finished run."""
    folder = Path(tmp_path_factory.mktemp("run"))
    toy_shop(folder / "files")
    values = {
        "out": folder / "run",
        "data": {
            "interactions": folder / "files" / "interactions.parquet",
            "items": folder / "files" / "items.parquet",
            "split": {"method": "leave_last_two"},
        },
        "yes_no": settings_of(model).model_dump(),
    }
    settings = parse_settings(RunSettings, values, source="test")
    run_stages(settings, STAGES, in_process)
    return settings


def test_a_run_ends_with_every_row_measured(run):
    found = read_json(run.out / "yes_no_evaluation" / "metrics.json")
    assert (found["questions"], found["candidates"]) == (12, 21)
    assert list(found["rows"]) == ["yes_no", "zero_shot", "popularity", "sasrec"]
    for row in found["rows"].values():
        assert set(row) == {f"{name}@{k}" for name in ("recall", "mrr", "ndcg") for k in (3, 5, 10)}
        for value in row.values():
            assert value["low"] <= value["mean"] <= value["high"]
    assert set(found["yes_no_minus"]) == {"zero_shot", "popularity", "sasrec"}
    scores = read_arrays(run.out / "yes_no_evaluation" / "scores.safetensors")
    assert {name: array.shape for name, array in scores.items()} == dict.fromkeys(
        found["rows"], (12, 21)
    )
    assert not np.allclose(scores["yes_no"], scores["zero_shot"])
    assert all(outcome.skipped for outcome in run_stages(run, STAGES).values())


def test_lists_out_of_the_catalogue_are_a_retriever_s_reordered(run, in_process):
    """Weight 0 is the retriever's order, weight 1 the model's own, of the same items."""
    values = run.model_dump() | {"models": {"ease": {"backbone": "ease", "settings": {"reg": 5.0}}}}

    def lists(weight: float) -> tuple[np.ndarray, np.ndarray]:
        own = {"retriever": "ease", "pool": 6, "list_users": 5, "weight": weight}
        values["yes_no"] = run.yes_no.model_dump() | own
        settings = parse_settings(RunSettings, values, source="test")
        stages = stages_to(settings, LISTS)
        assert stages == ("data", "train", "yes_no_examples", "yes_no_model", LISTS)
        outcomes = run_stages(settings, stages, in_process)
        assert outcomes["yes_no_model"].skipped, "fine-tuned again for other lists"
        return read_test_lists(run.out / LISTS, "yes_no")

    users, graph = lists(0.0)
    again, answered = lists(1.0)
    assert users.tolist() == again.tolist()
    assert len(users) == 5
    dataset = Dataset.load(run.out / "data")
    known = dataset.matrix(TRAIN, VALID, opinion=None)
    scores = load_model(run.out / "train" / "ease").score_block(users)
    model = LoadedModel(run.yes_no, run.out / "yes_no_model" / "adapter")
    tokenizer = tokenizer_of(run.yes_no.model, None)
    writer = YesNoPrompts(run.yes_no.prompts(), tokenizer, run.yes_no.max_tokens)
    texts = item_texts(run.yes_no, dataset)
    histories = dataset.histories(TRAIN, VALID)
    for row, user in enumerate(users):
        assert sorted(graph[row]) == sorted(answered[row])
        assert (np.diff(scores[row, graph[row]]) <= 0).all()
        assert not set(graph[row]) & set(known[user].indices)
        recent = [texts[item] for item in histories[user][-3:]]
        prompt = writer.write(None, recent, [texts[item] for item in graph[row]])
        said = model.score(Question(prompt.prefix, prompt.candidates, -1))
        places = [list(graph[row]).index(item) for item in answered[row]]
        assert (np.diff(said[places]) <= 1e-6).all()


def test_the_command_shows_every_row(run, capsys, tmp_path):
    write_json(tmp_path / "config.yaml", run.model_dump(mode="json"))
    assert main(["finetune", "yes-no", str(tmp_path / "config.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "yes_no_model: finished before" in shown
    rows = read_json(run.out / "yes_no_evaluation" / "metrics.json")["rows"]
    for name, row in rows.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"{name}: "))
        assert f"mrr@10 {row['mrr@10']['mean']:.3f} [" in line


def test_manifests_say_what_was_decided(run):
    manifest = read_json(run.out / "yes_no_examples" / "manifest.json")
    assert manifest["config"]["yes"]
    assert manifest["config"]["no"]
    assert set(manifest["config"]["yes"].values()) == {"Yes"}
    assert manifest["figures"]["train_questions"] == 12
    counts = manifest["counts"]
    assert counts["in"] == counts["ok"] + counts["dead_letter"]
    about = read_json(run.out / "yes_no_model" / "adapter" / ABOUT_FILE)
    assert about["base"] == manifest["config"]["base"]


def test_questions_hold_no_later_item_than_their_target(run):
    dataset = Dataset.load(run.out / "data")
    table = read_table(run.out / "yes_no_examples" / "questions.parquet").to_pylist()
    tokenizer = tokenizer_of(run.yes_no.model, None)
    titles = dict(
        zip(dataset.items["item_id"].to_pylist(), dataset.items["title"].to_pylist(), strict=True)
    )
    later = {"train": ("train", "valid", "test"), "valid": ("valid", "test"), "test": ("test",)}
    for row in table:
        user = dataset.user_ids.tolist().index(row["user_id"])
        text = tokenizer.decode(row["prefix"])
        target = row["item_id"][row["target"]]
        shown = {item for item, title in titles.items() if f"title: {title}\n" in text}
        assert len(shown) == row["recent"]
        assert target not in shown
        for split in later[row["split"]][row["split"] == "train" :]:
            own = dataset.item_ids[dataset.histories(split)[user]]
            assert not shown & set(own.tolist())


def test_a_merged_model_is_a_plain_one_with_the_same_scores(run, tmp_path, capsys):
    assert main(["merge", str(run.out), "--out", str(tmp_path / "plain"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": str(tmp_path / "plain")}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    tokenizer = tokenizer_of(str(tmp_path / "plain"), None)
    questions = read_questions(run.out / "yes_no_examples", "test")[0]
    adapter = run.out / "yes_no_model" / "adapter"
    scorer = YesNoScorer(plain, AnswerTokens.of(tokenizer), 0)
    stored = read_arrays(run.out / "yes_no_evaluation" / "scores.safetensors")["yes_no"]
    for question, scores in zip(questions[:3], stored, strict=False):
        found = scorer.shared(question.prefix, question.candidates).numpy()
        np.testing.assert_allclose(found, scores, atol=1e-4)
    assert main(["merge", str(run.out), "--out", str(tmp_path / "plain")]) == 2
    assert "exists" in capsys.readouterr().err
    other = toy_language_model(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="was fine-tuned from"):
        merge(adapter, tmp_path / "new", str(other))
    with pytest.raises(UserError, match="was fine-tuned from"):
        LoadedModel(settings_of(other), adapter)


def examples(settings: YesNoSettings, shop: Dataset, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    build_examples(settings, shop, None, folder)
    return folder


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return read_arrays(folder / "adapter" / "adapter_model.safetensors")


def test_the_same_seed_gives_the_same_questions(model, shop, tmp_path):
    one = examples(settings_of(model), shop, tmp_path / "one") / "questions.parquet"
    two = examples(settings_of(model), shop, tmp_path / "two") / "questions.parquet"
    other = examples(settings_of(model, seed=1), shop, tmp_path / "other") / "questions.parquet"
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()


ONE_EPOCH = {"lora": {"dropout": 0.0}, "epochs": 1, "batch_size": 8, "pass_tokens": 1200}


@pytest.fixture(scope="module")
def by_one_worker(model, shop, tmp_path_factory) -> tuple[Path, dict, Path]:
    """Examples, what one worker's training said, and where its adapter is."""
    folder = Path(tmp_path_factory.mktemp("one"))
    settings = settings_of(model, finetune=ONE_EPOCH)
    asked = examples(settings, shop, folder / "examples")
    return (
        asked,
        finetune_yes_no(FinetuneJob(asked, settings, Placement(watch=trained_here)), folder),
        folder,
    )


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_workers_give_the_model_of_one(model, by_one_worker, tmp_path, sharding):
    asked, wanted, folder = by_one_worker
    settings = settings_of(model, finetune=ONE_EPOCH | {"sharding": sharding})
    found = finetune_yes_no(FinetuneJob(asked, settings, Placement(2)), tmp_path)
    first, second = tensors(folder), tensors(tmp_path)
    assert first.keys() == second.keys()
    assert any(np.abs(array).max() > 0 for name, array in first.items() if "lora_B" in name)
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], atol=1e-4, err_msg=name)
    assert found["history"][0] == pytest.approx(wanted["history"][0], rel=1e-4)


def test_a_killed_worker_resumes_to_the_same_adapter(model, shop, tmp_path):
    settings = settings_of(
        model,
        finetune={"learning_rate": 0.01, "batch_size": 4, "epochs": 6, "checkpoint_every": 2},
    )
    folder = examples(settings, shop, tmp_path / "examples")
    job = FinetuneJob(folder, settings, Placement())
    finetune_yes_no(replace(job, placement=Placement(watch=trained_here)), tmp_path / "whole")
    output, killed = tmp_path / "killed", []

    killer = threading.Thread(target=kill_train_worker, args=(output, killed))
    killer.start()
    finetune_yes_no(job, output)
    killer.join()
    assert len(killed) == 1
    whole = tensors(tmp_path / "whole")
    for name, array in tensors(output).items():
        np.testing.assert_array_equal(array, whole[name], err_msg=name)


def test_summaries_are_shown_and_none_at_all_is_refused(model, shop, tmp_path):
    rows = [
        {"entity_id": name, "summarization": f"{name} likes", "source": "llm"}
        for name in shop.user_ids[:6]
    ]
    write_table(tmp_path / PROFILES_FILE, pa.Table.from_pylist(rows, schema=PROFILE_SCHEMA))
    report = build_examples(settings_of(model), shop, tmp_path, tmp_path)
    assert report.figures["without_summary"] == 3 * 6
    tokenizer = tokenizer_of(str(model), None)
    for row in read_table(tmp_path / "questions.parquet").to_pylist():
        said = f"{row['user_id']} likes" if row["user_id"] in shop.user_ids[:6] else "NULL"
        assert f"[Preference Summary]\n{said}\n" in tokenizer.decode(row["prefix"])
    write_table(tmp_path / PROFILES_FILE, PROFILE_SCHEMA.empty_table())
    with pytest.raises(UserError, match="for none of the drawn users"):
        build_examples(settings_of(model), shop, tmp_path, tmp_path)


def test_summaries_that_know_the_target_are_refused(run):
    values = run.model_dump(mode="json")
    values["yes_no"]["summaries"] = True
    leaking = parse_settings(RunSettings, values, source="test")
    with pytest.raises(UserError, match=r"summaries\.leave_out_latest = 1"):
        run_stages(leaking, YES_NO[:1])


def test_a_model_without_single_answer_tokens_is_refused(shop, tmp_path):
    wordless = toy_language_model(tmp_path / "wordless", answers=False)
    with pytest.raises(UserError, match="no single token for 'yes'"):
        settings_of(wordless).about()


def test_a_candidate_longer_than_the_limit_is_refused(model, shop, tmp_path):
    with pytest.raises(UserError, match=r"yes_no.max_tokens = 400"):
        build_examples(settings_of(model, max_tokens=400), shop, None, tmp_path)


def test_an_empty_history_is_null_and_no_training_example(model, tmp_path):
    short = toy_shop(tmp_path / "short", length=3)  # one train item each
    with pytest.raises(UserError, match="no user has a training question"):
        build_examples(settings_of(model), short, None, tmp_path)
    report = build_examples(
        settings_of(model, recent_items=0), toy_shop(tmp_path / "shop"), None, tmp_path
    )
    assert report.figures["without_summary"] == 36
    tokenizer = tokenizer_of(str(model), None)
    for row in read_table(tmp_path / "questions.parquet").to_pylist():
        assert "[Historical Items]\nNULL\n" in tokenizer.decode(row["prefix"])
