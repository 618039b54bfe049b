from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from toy_llm import Script, as_json, last, writer

from raysys.data.candidates import drawn_users
from raysys.data.dataset import Dataset
from raysys.schema import PROFILES_FILE, SUMMARY_SCHEMA
from raysys.store import write_table
from raysys.text import summaries
from raysys.text.prompts import load_prompts
from raysys.text.structured import Rejected
from raysys.text.summaries import History, SummarySettings, hierarchical, recurrent, summarize

PROMPTS = load_prompts("trsr", "games", 60)


def history(*titles: str) -> History:
    return History([{"title": title} for title in titles], list(titles))


def naming(chat) -> str:
    """A summary that names what it was made of."""
    rows = [line.split(". ", 1)[1] for line in last(chat).splitlines() if ". " in line[:4]]
    before = last(chat).splitlines()[1] if "Previous" in last(chat) else ""
    return as_json(summary=f"{before}({'+'.join(row.removeprefix('title: ') for row in rows)})")


def test_recurrent_updates_block_by_block_as_worked_by_hand():
    script = Script(naming)
    told = {"u": history(*"ABCDE"), "v": history(*"FG")}
    rounds = recurrent(writer(script, PROMPTS), PROMPTS, told, block_items=2)
    assert rounds["u"][-1].fields["summary"] == "(A+B)(C+D)(E)"
    assert rounds["v"][-1].fields["summary"] == "(F+G)"
    assert [len(requests) for requests in script.rounds] == [2, 1, 1]


def test_hierarchical_merges_a_tree_as_worked_by_hand():
    script = Script(naming)
    told = {"u": history(*"ABCDEFGHIJ"), "v": history("K")}
    rounds = hierarchical(writer(script, PROMPTS), PROMPTS, told, block_items=2, fan_in=2)
    # Five blocks; two merges and one summary that goes up as it is; again; and the last merge.
    assert rounds["u"][-1].fields["summary"] == "((((A+B)+(C+D))+((E+F)+(G+H)))+(I+J))"
    assert rounds["v"][-1].fields["summary"] == "(K)"
    assert [len(requests) for requests in script.rounds] == [6, 2, 1, 1]


def test_ten_and_more_blocks_are_merged_in_order():
    script = Script(naming)
    told = {"u": history(*[f"{row:02}" for row in range(12)])}
    rounds = hierarchical(writer(script, PROMPTS), PROMPTS, told, block_items=1, fan_in=12)
    assert rounds["u"][-1].fields["summary"] == f"({'+'.join(f'({row:02})' for row in range(12))})"


@pytest.mark.parametrize("method", [recurrent, hierarchical])
def test_a_failed_block_stops_that_user_alone(method):
    def answer(chat):
        return "broken" if "C" in last(chat) or "could not" in last(chat) else naming(chat)

    told = {"u": history(*"ABCD"), "v": history(*"EFGH")}
    extra = () if method is recurrent else (2,)
    rounds = method(writer(Script(answer), PROMPTS), PROMPTS, told, 2, *extra)
    assert isinstance(rounds["u"], Rejected)
    assert "2:" in rounds["u"].detail or "1:" in rounds["u"].detail
    assert not isinstance(rounds["v"], Rejected)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    pairs = [("u", item, 1 + place, "train") for place, item in enumerate("abc")]
    pairs += [("u", "d", 9, "test"), ("v", "a", 1, "train"), ("w", "b", 1, "test")]
    columns = ("user_id", "item_id", "timestamp", "split")
    table = dict(zip(columns, map(list, zip(*pairs, strict=True)), strict=True))
    write_table(tmp_path / "interactions.parquet", pa.table(table))
    write_table(tmp_path / "users.parquet", pa.table({"user_id": list("uvw")}))
    items = {"item_id": list("abcd"), "title": list("ABCD"), "genre": ["x", "", "y", "z"]}
    write_table(tmp_path / "items.parquet", pa.table(items))
    return Dataset.load(tmp_path)


def run(settings, dataset, script, output, monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def toy(stage, settings, prompts, *_, **__):
        yield writer(script, prompts)

    monkeypatch.setattr(summaries, "writing", toy)
    output.mkdir()
    report = summarize(settings, None, None, dataset, output)
    rows = pa.parquet.read_table(output / PROFILES_FILE).to_pylist()
    return report, {row["entity_id"]: row for row in rows}


def test_every_user_ends_as_a_summary_or_a_dead_letter_and_test_is_never_read(
    dataset, tmp_path, monkeypatch
):
    script = Script(naming)
    settings = SummarySettings(domain="games", block_items=2)
    report, rows = run(settings, dataset, script, tmp_path / "out", monkeypatch)
    assert rows["u"]["summarization"] == "(A; genre: x+B)(C; genre: y)"
    assert report.counts["in"] == 3
    assert (report.counts["ok"], report.dropped) == (2, {"no_history": 1})
    assert "genre: z" not in str(script.rounds)
    assert rows["u"]["items_read"] == 3


def test_new_interactions_cost_one_call_and_unchanged_users_none(dataset, tmp_path, monkeypatch):
    settings = SummarySettings(domain="games", block_items=5)
    run(settings, dataset, Script(naming), tmp_path / "old", monkeypatch)
    labels = dataset.labels.copy()
    labels[(dataset.user_rows == 0)] = 0  # the fourth item of u is new in train
    grown = Dataset(**{**vars(dataset), "labels": labels})
    script = Script(naming)
    again = settings.model_copy(update={"update_from": tmp_path / "old"})
    _, rows = run(again, grown, script, tmp_path / "new", monkeypatch)
    assert [len(requests) for requests in script.rounds] == [1]
    assert rows["u"]["summarization"] == "(A; genre: x+B+C; genre: y)(D; genre: z)"
    assert rows["v"]["summarization"] == "(A; genre: x)"
    assert rows["u"]["items_read"] == 4
    # What is stored for u is now of four items: read with the old history it does not fit.
    script = Script(naming)
    back = settings.model_copy(update={"update_from": tmp_path / "new"})
    _, rows = run(back, dataset, script, tmp_path / "back", monkeypatch)
    assert rows["u"]["summarization"] == "(A; genre: x+B+C; genre: y)"


def test_a_failed_user_gets_a_template_where_it_is_asked_for(dataset, tmp_path, monkeypatch):
    settings = SummarySettings(domain="games", on_failure="template")
    report, rows = run(settings, dataset, Script(lambda chat: "no"), tmp_path / "o", monkeypatch)
    assert (rows["u"]["source"], rows["u"]["summarization"]) == ("template", "A; B; C")
    assert report.counts["from_template"] == 2


def test_a_template_is_no_summary_to_go_on_from(dataset, tmp_path, monkeypatch):
    settings = SummarySettings(domain="games", on_failure="template")
    run(settings, dataset, Script(lambda chat: "no"), tmp_path / "old", monkeypatch)
    again = settings.model_copy(update={"update_from": tmp_path / "old"})
    _, rows = run(again, dataset, Script(naming), tmp_path / "new", monkeypatch)
    assert rows["u"]["source"] == "llm"
    assert rows["u"]["summarization"] == "(A; genre: x+B+C; genre: y)"


def test_the_latest_can_be_left_out_and_users_drawn(dataset, tmp_path, monkeypatch):
    settings = SummarySettings(domain="games", leave_out_latest=1)
    report, rows = run(settings, dataset, Script(naming), tmp_path / "o", monkeypatch)
    assert rows["u"]["summarization"] == "(A; genre: x+B)"
    assert "v" not in rows, "its only interaction is left out"
    assert report.counts["in"] == report.counts["ok"] + report.counts["dead_letter"]
    few = SummarySettings(domain="games", users=2)
    report, rows = run(few, dataset, Script(naming), tmp_path / "few", monkeypatch)
    drawn = dataset.user_ids[drawn_users(len(dataset.user_ids), 2, few.seed)]
    assert report.counts["in"] == len(drawn) == 2
    assert set(rows) == {"u", "v"} & set(drawn)


def test_the_columns_are_those_of_the_schema(dataset, tmp_path, monkeypatch):
    _, rows = run(SummarySettings(), dataset, Script(naming), tmp_path / "o", monkeypatch)
    assert list(rows["u"]) == SUMMARY_SCHEMA.names
    assert np.isfinite(rows["u"]["calls"])
