from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from toy_llm import Script, as_json, last, writer

from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.schema import ENTITY_ID, PROFILES_FILE, SUMMARY
from raysys.settings import parse_settings
from raysys.store import read_table, write_table
from raysys.text import profiles
from raysys.text.profiles import (
    ProfileSettings,
    fields_in_order,
    profile_items,
    profile_users,
    summaries_in_order,
)

ROWS = [
    ("u", "a", 5.0, "train", "loved a"),
    ("u", "b", 1.0, "train", "hated b"),
    ("u", "c", 5.0, "test", "SECRET"),
    ("v", "b", 3.0, "train", "so so"),
]


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    columns = ("user_id", "item_id", "rating", "split", "review")
    table = dict(zip(columns, map(list, zip(*ROWS, strict=True)), strict=True))
    table["opinion"] = [1 if row[2] >= 4 else -1 if row[2] <= 2 else 0 for row in ROWS]
    folder = tmp_path / "data"
    write_table(folder / "interactions.parquet", pa.table(table))
    write_table(folder / "users.parquet", pa.table({"user_id": ["u", "v"]}))
    items = {
        "item_id": list("abc"),
        "title": ["Alien", "Brazil", "Chicago"],
        "description": ["in space", None, None],
        "genre": ["horror", "satire", None],
    }
    write_table(folder / "items.parquet", pa.table(items))
    return Dataset.load(folder)


@pytest.fixture
def play(monkeypatch, tmp_path):
    """Run a stage with a script in place of its engine."""

    def run(stage, script, *arguments):
        @contextmanager
        def toy(name, settings, prompts, *_, **__):
            yield writer(script, prompts)

        monkeypatch.setattr(profiles, "writing", toy)
        output = tmp_path / stage.__name__
        output.mkdir(exist_ok=True)
        report = stage(*arguments, output)
        table = read_table(output / PROFILES_FILE)
        return report, {row[ENTITY_ID]: row for row in table.to_pylist()}, output

    return run


def rlmrec(chat) -> str:
    return as_json(summarization=f"saw {last(chat)}")


def test_items_are_shown_their_description_or_attributes_and_train_reviews(dataset, play):
    script = Script(rlmrec)
    settings = ProfileSettings(domain="movies", reasoning_words=0)
    report, rows, _ = play(profile_items, script, settings, None, None, dataset)
    shown = [json.loads(last(request.messages)) for request in script.rounds[0]]
    assert shown[0] == {"title": "Alien", "description": "in space"}
    assert shown[1] == {
        "title": "Brazil",
        "description": "genre: satire",
        "reviews": shown[1]["reviews"],
    }
    assert sorted(shown[1]["reviews"]) == ["hated b", "so so"]
    assert shown[2] == {"title": "Chicago", "description": "None", "reviews": "None"}
    assert "SECRET" not in str(script.rounds)
    assert report.counts["in"] == report.counts["ok"] == 3
    assert rows["a"]["source"] == "llm"


def test_users_are_shown_train_items_with_profile_and_their_own_review(dataset, play):
    settings = ProfileSettings(domain="movies", reasoning_words=0)
    _, _, items = play(profile_items, Script(rlmrec), settings, None, None, dataset)
    script = Script(rlmrec)
    play(profile_users, script, settings, None, None, dataset, items)
    text = last(script.rounds[0][0].messages)
    shown = json.loads(text.removeprefix("CHOSEN ITEMS: "))
    assert {row["title"]: row["review"] for row in shown} == {"Alien": "loved a"}, "likes alone"
    assert all(row["description"].startswith("saw") for row in shown)
    assert "Chicago" not in text


def test_unified_profiles_of_items_and_users(dataset, play):
    settings = ProfileSettings(domain="movies", method="unified")

    def answer(chat):
        names = [name for name in ("Alien", "Brazil", "Chicago") if name in last(chat)]
        return as_json(
            overview=f"{names}", attributes=["horror", "satire"], description="d", dislikes=[]
        )

    _, rows, items = play(profile_items, Script(answer), settings, None, None, dataset)
    assert rows["a"]["summarization"].startswith("- **Overview:** ['Alien']\n- **Attributes:**")
    assert fields_in_order(items, np.array(["b"]))[0]["overview"] == "['Brazil']"
    script = Script(answer)
    report, rows, _ = play(profile_users, script, settings, None, None, dataset, items)
    assert [last(request.messages)[:8] for round_ in script.rounds for request in round_] == [
        "LIKED: [",
        "DISLIKED",
    ]
    assert rows["u"]["calls"] == 2
    assert report.dropped == {"no_evidence": 1}, "v only rated 3: neither liked nor disliked"


def test_every_row_ends_as_a_profile_or_a_dead_letter(dataset, play):
    def answer(chat):
        if "Brazil" in str(chat):
            return "broken"
        return as_json(summarization="None" if "Chicago" in last(chat) else "Good.")

    settings = ProfileSettings(domain="movies", reasoning_words=0)
    report, rows, output = play(profile_items, Script(answer), settings, None, None, dataset)
    assert {name: row[SUMMARY] for name, row in rows.items()} == {"a": "Good.", "c": None}
    assert (report.counts["in"], report.counts["ok"], report.counts["dead_letter"]) == (3, 2, 1)
    assert report.counts["null_profiles"] == 1
    assert report.dropped == {"invalid_json": 1}
    assert summaries_in_order(output, np.array(["a", "b", "c"])) == ["Good.", None, None]
    template = settings.model_copy(update={"on_failure": "template"})
    report, rows, _ = play(profile_items, Script(answer), template, None, None, dataset)
    assert (rows["b"][SUMMARY], rows["b"]["source"]) == ("Brazil. genre: satire", "template")
    assert report.counts["dead_letter"] == 0


def test_the_same_rows_give_the_same_files_whatever_is_cached(dataset, play):
    settings = ProfileSettings(domain="movies", reasoning_words=0)
    _, first, _ = play(profile_items, Script(rlmrec), settings, None, None, dataset)
    _, second, _ = play(profile_items, Script(rlmrec), settings, None, None, dataset)
    assert first == second


def test_summaries_follow_the_order_asked_for(tmp_path):
    write_table(
        tmp_path / PROFILES_FILE, pa.table({ENTITY_ID: ["b", "a"], SUMMARY: ["of b", None]})
    )
    found = summaries_in_order(tmp_path, np.array(["a", "b", "missing"], dtype=object))
    assert found == [None, "of b", None]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"item_words": 4}, "item_words"),
        ({"item_words": 501}, "item_words"),
        ({"noun": "book"}, "unknown key 'noun'"),
    ],
)
def test_settings_are_checked(values, problem):
    with pytest.raises(UserError, match=problem):
        parse_settings(ProfileSettings, values, source="test")
