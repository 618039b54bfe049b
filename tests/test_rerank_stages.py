"""Reranking and explaining as stages of a run, with a scripted language model."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from toy_llm import Script, as_json, last, writer

from raysys import schema
from raysys.errors import UserError
from raysys.pipeline import run_stages
from raysys.settings import parse_settings
from raysys.shown import told
from raysys.stages import explain, rerank
from raysys.stages.context import RunSettings
from raysys.store import read_json, read_table, write_table

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
USERS, ITEMS, SPLITS = 16, 24, ("train",) * 6 + ("valid", "test")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict:
    """Two tastes, each with half of the items; a popularity-like model is trained."""
    folder = Path(tmp_path_factory.mktemp("shop"))
    rng = np.random.default_rng(0)
    rows: dict[str, list] = {"user_id": [], "item_id": [], "split": []}
    for user in range(USERS):
        # In the catalogue's order of time, a user goes on among his own kind.
        own = np.arange(ITEMS)[np.arange(ITEMS) % 2 == user % 2]
        for item, split in zip(rng.permutation(own)[:8], SPLITS, strict=True):
            rows["user_id"].append(f"u{user}")
            rows["item_id"].append(f"i{item}")
            rows["split"].append(split)
    write_table(folder / "interactions.parquet", pa.table(rows))
    kinds = ["even" if item % 2 == 0 else "odd" for item in range(ITEMS)]
    items = {"item_id": [f"i{item}" for item in range(ITEMS)], "kind": kinds}
    write_table(folder / "items.parquet", pa.table({**items, "title": items["item_id"]}))
    values = {
        "out": folder / "run",
        "data": {
            "interactions": folder / "interactions.parquet",
            "items": folder / "items.parquet",
            "split": {"method": "column"},
        },
        "models": {"knn": {"backbone": "itemknn", "settings": {"neighbours": 1}}},
    }
    run_stages(parse_settings(RunSettings, values, source="test"), ("data", "train"))
    return values


def play(monkeypatch, run, answer, stages=("rerank",), **changes):
    """Run the stages with `answer` in place of an engine."""
    script = Script(answer)

    @contextmanager
    def toy(name, settings, prompts, *_, **__):
        yield writer(script, prompts)

    for stage in (rerank, explain):
        monkeypatch.setattr(stage, "writing", toy)
    given = {"pool": 12, "k": 6, "domain": "products", "max_rank_shift": None}
    values = run | {"rerank": given | changes}
    settings = parse_settings(RunSettings, values, source="test")
    return run_stages(settings, stages), settings.out, script


def by_taste(chat, *, right: bool = True) -> str:
    """Scores candidates of the user's own kind higher, or lower."""
    liked, _, shown = last(chat).partition("[Candidate products]\n")
    mine = "even" if liked.count("kind: even") > liked.count("kind: odd") else "odd"
    lines = re.findall(r"^(\d+)\. .*kind: (\w+)", shown, re.MULTILINE)
    return as_json(scores={place: 90 if (kind == mine) is right else 10 for place, kind in lines})


def test_a_model_that_knows_better_is_chosen_and_helps(run, monkeypatch):
    outcomes, out, _ = play(monkeypatch, run, by_taste, choose=True, test_users=None)
    choice = read_json(out / "rerank" / "choice.json")
    assert choice["weight"] > 0
    assert choice["tried"][0] == {
        "weight": 0.0,
        "below": None,
        "ndcg@6": pytest.approx(choice["tried"][0]["ndcg@6"]),
    }
    measured = read_json(out / "rerank" / "metrics.json")["segments"]["all"]
    assert measured["users"] == USERS
    assert measured["reranked"]["recall"] > measured["graph"]["recall"]
    assert measured["difference"]["recall"]["difference"] == pytest.approx(
        measured["reranked"]["recall"] - measured["graph"]["recall"]
    )
    value, lines = told(out, outcomes)
    assert value["rerank"]["choice"]["weight"] == choice["weight"]
    assert any(line.startswith("chosen on validation: weight") for line in lines)
    assert any(line.startswith(f"all, {USERS} users: NDCG") for line in lines)
    counts = outcomes["rerank"].manifest.counts
    assert counts["in"] == counts["ok"] + counts["dead_letter"] == USERS
    table = read_table(out / "rerank" / schema.RECOMMENDATIONS_FILE)
    assert table.schema.names == schema.RERANKED_SCHEMA.names
    rows = table.to_pylist()
    for user in range(USERS):
        mine = [row for row in rows if row["user_id"] == f"u{user}"]
        assert [row["rank"] for row in mine] == [1, 2, 3, 4, 5, 6]
        assert len({row["item_id"] for row in mine}) == 6
    interactions = read_table(run["data"]["interactions"]).to_pylist()
    seen = {(row["user_id"], row["item_id"]) for row in interactions}
    assert not seen & {(row["user_id"], row["item_id"]) for row in rows}


def test_a_model_that_knows_worse_is_switched_off(run, monkeypatch):
    def wrong(chat):
        return by_taste(chat, right=False)

    outcomes, out, script = play(
        monkeypatch, run, wrong, choose=True, weights=(1.0,), test_users=None
    )
    assert len(script.rounds) == 1, "on validation; what is switched off is not paid for"
    assert "chosen on validation: not to rerank" in told(out, outcomes)[1]
    assert read_json(out / "rerank" / "choice.json")["weight"] == 0
    measured = read_json(out / "rerank" / "metrics.json")["segments"]["all"]
    assert measured["reranked"] == measured["graph"]


def test_only_the_segment_is_reranked_and_degraded_lists_are_flagged(run, monkeypatch):
    _, out, script = play(monkeypatch, run, by_taste, below=6, weight=1.0)
    assert not script.rounds
    rows = read_table(out / "rerank" / schema.RECOMMENDATIONS_FILE).to_pylist()
    assert all(row["rank"] == row["graph_rank"] for row in rows), "everyone has 6 likes"
    assert not any(row["degraded"] for row in rows)
    outcomes, out, _ = play(monkeypatch, run, lambda chat: "no idea", users=5)
    counts = outcomes["rerank"].manifest.counts
    assert counts["degraded"] == counts["in"] == 5
    assert outcomes["rerank"].manifest.figures["degraded_invalid_json"] == 5
    rows = read_table(out / "rerank" / schema.RECOMMENDATIONS_FILE).to_pylist()
    assert all(row["degraded"] and row["rank"] == row["graph_rank"] for row in rows)
    assert {row["llm_score"] for row in rows} == {None}


def test_what_was_tested_on_is_never_shown(run, monkeypatch):
    """Histories in the prompts are train's, in validation, on test and for the lists."""
    _, _, script = play(monkeypatch, run, by_taste, choose=True, test_users=None)
    interactions = read_table(run["data"]["interactions"]).to_pylist()
    train = {
        tuple(
            sorted(
                row["item_id"]
                for row in interactions
                if row["user_id"] == f"u{user}" and row["split"] == "train"
            )
        )
        for user in range(USERS)
    }
    for request in [request for round_ in script.rounds for request in round_]:
        context = last(request.messages).partition("[Candidate products]")[0]
        assert tuple(sorted(re.findall(r"^L\d+ title: (\w+)", context, re.MULTILINE))) in train


def test_lists_are_explained(run, monkeypatch):
    def answer(chat):
        if "[Recommended product]" in last(chat):
            kind = re.search(r"C2 kind: (\w+)", last(chat))[1]
            return as_json(
                claims=[
                    {"claim": f"You like the {kind} kind.", "because": ["L1", "C2"]},
                    {"claim": "See http://x.com", "because": ["C1"]},
                ]
            )
        return by_taste(chat)

    outcomes, out, _ = play(
        monkeypatch, run, answer, ("rerank", "explain"), users=3, explain_items=2
    )
    counts = outcomes["explain"].manifest.counts
    assert (counts["in"], counts["ok"], counts["llm"]) == (6, 6, 6)
    assert outcomes["explain"].manifest.figures["claims_link"] == 6
    for row in read_table(out / "explain" / schema.EXPLANATIONS_FILE).to_pylist():
        (claim,) = json.loads(row["claims"])
        assert claim["claim"].startswith("You like the")
        assert [line["key"] for line in claim["because"]] == ["L1", "C2"]
        assert row["dropped_claims"] == 1
    again, _, script = play(
        monkeypatch, run, answer, ("rerank", "explain"), users=3, explain_items=2
    )
    assert all(outcome.skipped for outcome in again.values())
    assert not script.rounds


def test_a_model_that_is_not_trained_is_named(run, monkeypatch):
    with pytest.raises(UserError, match=r"rerank\.model 'kn' is not trained: did you mean 'knn'"):
        play(monkeypatch, run, by_taste, model="kn")


def test_refit_learns_from_validation_too_and_is_what_is_measured(run, monkeypatch, in_process):
    values = run | {"train": {"refit": True}, "recommend": {"k": 3}}
    values["models"] = {
        "knn": {"backbone": "itemknn", "grid": {"neighbours": [1, 3]}},
        "graph": {"settings": {"width": 4}, "train": {"epochs": 2, "batch_size": 16}},
    }
    settings = parse_settings(RunSettings, values, source="test")
    run_stages(settings, ("data", "train", "refit", "evaluate", "recommend"), in_process)
    out = settings.out
    about = {stage: read_json(out / stage / "manifest.json") for stage in ("train", "refit")}
    assert about["train"]["counts"]["ok"] == 6 * USERS
    assert about["refit"]["counts"]["ok"] == 7 * USERS
    chosen = read_json(out / "train" / "knn" / "training.json")["chosen"]
    saved = read_json(out / "refit" / "knn" / "model.json")["model"]["settings"]
    assert saved["neighbours"] == chosen["neighbours"]
    assert read_json(out / "recommend" / "model.json")["stage"] == "refit"
    best = read_json(out / "train" / "graph" / "training.json")["best_epoch"]
    assert read_json(out / "refit" / "graph" / "training.json")["epochs"] == best
    # Nothing of validation is left to be recommended, so it cannot be counted as a miss.
    for path in ("train", "refit"):
        history = read_json(out / path / "graph" / "history.json")
        assert all((row["recall@20"] is None) == (path == "refit") for row in history[-1:])


def test_training_settings_of_one_model_are_checked(run):
    for values, problem in (
        ({"epoch": 3}, "unknown key 'epoch'"),
        ({"refit": True}, "refit is for all models"),
    ):
        broken = run | {"models": {"graph": {"train": values}}}
        with pytest.raises(UserError, match=problem):
            parse_settings(RunSettings, broken, source="test")
